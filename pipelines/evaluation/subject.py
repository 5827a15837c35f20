"""Is there one animal in every frame, and does it move as a real one? For a camera that stands still.

`dark_blob`: the animal is what is darker than the ground by DARKER, in one piece of at least LEAST_AREA of
the picture once what is thinner than two pixels is rubbed out: tails and noise are no second animal. The
ground is, at each pixel, the 25 % quantile of real SHORT clips: where pictures differ in the ground itself,
as mirrored ones do, the darker one.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.evaluation.features.extractors import shrink
from pipelines.media.color import luma

DARKER = 0.25
LEAST_AREA = 0.003
GROUND_CLIPS = 128
GROUND_QUANTILE = 0.25
COLUMN = "subject"
"""Of measurements, [N, F, 4]: animals in a frame, row and column of the largest in pixels, edges."""

Floats = NDArray[np.float32]


def ground_of(dataset: str, autoencoder: Autoencoder) -> Floats:
    """Luma [h, w] of the ground, from evenly spread SHORT clips of a dataset."""
    short = ShardDataset(dataset, "short")
    rows = short.main
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), GROUND_CLIPS)).astype(int)
    frames = autoencoder.decode(short.read([rows[i] for i in chosen]).latents).flatten(0, 1)
    return ground(luma(shrink(frames.cpu()).movedim(0, -1)).numpy())


def ground(light: Floats) -> Floats:
    """Luma [h, w] of the ground of pictures [F, h, w]."""
    return np.quantile(light, GROUND_QUANTILE, axis=0, method="lower").astype(np.float32)


def animals(pixels: Tensor, ground: Floats) -> Floats:
    """What is seen of a video [3, F, h, w] in [0, 1] from `shrink`: [F, 4], as `COLUMN`; not-a-number for the
    place where there is no animal. Edges are the root mean square gradient of luma."""
    light = luma(pixels.movedim(0, -1)).numpy()
    found = np.full((len(light), 4), np.nan, dtype=np.float32)
    for frame, seen in zip(light, found, strict=True):
        dark = ndimage.binary_opening(ground - frame > DARKER, np.ones((2, 2)))
        pieces, _ = ndimage.label(dark, np.ones((3, 3)))
        areas = np.bincount(pieces.ravel())[1:]
        seen[0] = (areas >= LEAST_AREA * frame.size).sum()
        if seen[0]:
            seen[1:3] = ndimage.center_of_mass(pieces == 1 + areas.argmax())
        seen[3] = np.sqrt(np.square(np.diff(frame, axis=0)).mean() + np.square(np.diff(frame, axis=1)).mean())
    return found


def subject_scores(videos: Floats, real: Floats) -> dict[str, float | None]:
    """Scores of videos [N, F, 4] beside those of real SHORT clips.

    `subject.one`, `.none` and `.more` are shares of all frames, `.one_in_short` that of SHORT. `subject.jump`
    is the way from frame to frame that 95 % stay below, `subject.sharpness` the mean of edges: 1 for SHORT.
    """
    count, jumps, usual = videos[..., 0], jump(videos), jump(real)
    return {
        "subject.one": float((count == 1).mean()),
        "subject.one_in_short": float((real[..., 0] == 1).mean()),
        "subject.none": float((count == 0).mean()),
        "subject.more": float((count > 1).mean()),
        "subject.jump": jumps / usual if jumps is not None and usual else None,
        "subject.sharpness": float(videos[..., 3].mean() / real[..., 3].mean()),
    }


def jump(videos: Floats) -> float | None:
    """The way, in pixels from frame to frame, that the largest animal stays below in 95 % of all steps; None
    where no two frames in a row show one."""
    steps = np.linalg.norm(np.diff(videos[..., 1:3], axis=1), axis=-1)
    seen = steps[np.isfinite(steps)]
    return float(np.quantile(seen, 0.95)) if len(seen) else None
