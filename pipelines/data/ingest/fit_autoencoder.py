"""The autoencoder of a dataset: fitted on a sample of both corpora, or a reference to a folder of weights."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np

from models.autoencoders.kinds import autoencoder_kind
from models.config import AutoencoderConfig
from models.errors import DataError
from pipelines.data.ingest.worker import Group, Task, open_clip
from pipelines.data.source.manifest import Source
from pipelines.data.store.info import AUTOENCODER_FOLDER
from pipelines.data.types import Rejected
from pipelines.media.color import Frames
from pipelines.ray_map import ray_map
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import Progress

SAMPLE_BYTES = 1 << 30
"""Most bytes of frames in the sample, whatever autoencoder.fit_frames says."""
GROUP_BYTES = 16 << 20


def prepare_autoencoder(
    task: Task,
    corpora: Mapping[str, Sequence[Source]],
    config: AutoencoderConfig,
    seed: int,
    progress: Progress,
) -> None:
    """Fit the dataset's autoencoder or write its reference, unless it is there.

    Raises:
        ConfigError: it does not fit the settings.
        CheckpointError: the named folder holds none.
        DataError: too few frames can be decoded.
    """
    storage = Storage(task.out)
    if storage.exists(f"{AUTOENCODER_FOLDER}/config.json"):
        return
    kind = autoencoder_kind(config)
    if not kind.fitted:
        storage.write_json(f"{AUTOENCODER_FOLDER}/config.json", kind.reference(_window_shapes(task)))
        return
    frames = _sample(task, corpora, config.fit_frames, seed, progress)
    with temporary_folder() as local:
        for done, steps in kind.fit(frames, task.data.height, task.data.width, local):
            progress("autoencoder", done, steps)
        storage.put_folder(local, AUTOENCODER_FOLDER, last="config.json")


def check_autoencoder(task: Task, config: AutoencoderConfig) -> None:
    """Refuse an autoencoder that is missing or does not fit the windows.

    Raises:
        ConfigError, CheckpointError: as `prepare_autoencoder`.
    """
    kind = autoencoder_kind(config)
    if not kind.fitted:
        kind.reference(_window_shapes(task))


def _window_shapes(task: Task) -> list[tuple[int, int, int]]:
    return [
        (frames, *size)
        for corpus in task.folders
        for (frames, _), size in product(task.data.cuts_of(corpus), task.data.sizes)
    ]


def _sample(
    task: Task, corpora: Mapping[str, Sequence[Source]], fit_frames: int, seed: int, progress: Progress
) -> Frames:
    """Frames [N, H, W, 3], half of each corpus, in an order that depends on the videos and the seed only."""
    frame_bytes = task.data.height * task.data.width * 3
    total = min(fit_frames, SAMPLE_BYTES // frame_bytes)
    groups: list[Group] = []
    for corpus, sources in corpora.items():
        groups += _groups(corpus, *_draw(sources, total // len(corpora), seed), frame_bytes)
    found: dict[tuple[str, str], Frames] = {}
    rejects: dict[str, str] = {}
    wanted = [(group.corpus, source.id) for group in groups for source in group.sources]
    done = 0
    for index, (frames, unread) in ray_map(partial(sample_group, task), groups):
        group = groups[index]
        found |= {(group.corpus, source_id): own for source_id, own in frames.items()}
        rejects |= unread
        done += len(group.sources)
        progress("fit", done, len(wanted))
    kept = [found[key] for key in wanted if key in found]
    if sum(map(len, kept)) < 2:
        reasons = ", ".join(f"{path} ({reason})" for path, reason in sorted(rejects.items())[:5])
        raise DataError(
            f"No video could be decoded: {reasons or 'all workers died'}",
            "Give videos that play, or see data.limits",
        )
    return np.concatenate(kept)


def _draw(sources: Sequence[Source], frames: int, seed: int) -> tuple[list[Source], int]:
    """Videos to sample, and frames of each, two at least."""
    each = max(2, math.ceil(frames / max(1, len(sources))))
    order = sorted(sources, key=lambda source: hashlib.sha256(f"{seed}|{source.id}".encode()).digest())
    return order[: math.ceil(frames / each)], each


def _groups(corpus: str, sources: Sequence[Source], picks: int, frame_bytes: int) -> list[Group]:
    most = max(1, GROUP_BYTES // (frame_bytes * picks))
    return [
        Group(corpus=corpus, sources=tuple(sources[i : i + most]), picks=picks)
        for i in range(0, len(sources), most)
    ]


def sample_group(task: Task, group: Group) -> tuple[dict[str, Frames], dict[str, str]]:
    """Decode a few frames of each video of a group, at the main size.

    Returns: source id -> frames [n, H, W, 3], and path -> reason of what cannot be read.
    """
    frames: dict[str, Frames] = {}
    rejects: dict[str, str] = {}
    for source in group.sources:
        try:
            with open_clip(task, group.corpus, source, group.picks) as clip:
                chunks = [chunk.copy() for chunk in clip.frames]
        except Rejected as rejected:
            rejects[source.path] = str(rejected)
            continue
        if chunks:
            frames[source.id] = np.concatenate(chunks)
    return frames, rejects
