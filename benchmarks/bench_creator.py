"""What a student trained on the built-in world makes of clips that go on, loop, change captions or are long.

    python benchmarks/bench_creator.py CHECKPOINT DATASET [--videos 100] [--json FILE]

Known frames are those of clean LONG clips. Figures are of factors read back from latents, means over videos:

motion     |phase step - nearest legal speed|, radians a frame: at the place that is asked about (the seam
           after known frames, where a loop closes, where the caption changes) and elsewhere in what is made
texture    likewise, how far a frame's texture code lies from the one before
sharpness  of wave crests, 1 when clean
light      jump of the light where a loop closes, and elsewhere
returns    share of clips whose sun, gone and back, has the colour of the known frames, when the caption does
           not say which (1 of 5 by chance)
colour     share of frames whose sun has the hue of the caption that holds there, of those that show one
drift      texture error of each fifth of a clip five times as long, made in pieces
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timing import write
from torch import Tensor

from models.autoencoders.pca import PcaAutoencoder
from models.rng import Key
from models.text.conditioning import Conditioning
from pipelines.checkpoints import load_network
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.generation import Method, generate_latents
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import COLOUR, LEVEL, TEXTURE, WAVE_SPEEDS, Clips, colour_codes, draw_long
from pipelines.world.measures import (
    FactorReader,
    frame_texture_error,
    phase_steps,
    present,
    rule,
    same_colour,
    sharpness,
)
from pipelines.world.scene import paint

Floats = NDArray[np.floating[Any]]


class Student:
    """A trained student, its dataset's code, and the clean clips whose captions it is given."""

    def __init__(self, checkpoint: str, dataset: str, videos: int) -> None:
        self.network = load_network(checkpoint)
        self.spec, info = self.network.spec, read_info(dataset)
        code = dataset_autoencoder(dataset)
        assert isinstance(code, PcaAutoencoder), "factors are read from whole-frame components"
        self.code, self.read = code, FactorReader(info.height).from_latents(code)
        self.encoder = text_encoder(self.spec.text, dataset)
        world = WorldConfig(size=info.height, long_frames=self.spec.shape[0])
        self.truth: Clips = draw_long(world, videos, seed=77, grade="clean")

    def captions(self, *, coloured: bool = True, hue: int = 0) -> Conditioning:
        """Of every clip, `hue` words further in the list of colours, or without one."""
        labels = self.truth.labels
        hues = (labels[:, 1] + hue) % len(colour_codes())
        texts = [
            caption(int(sky), int(sun) if coloured else None, int(speed))
            for (sky, _, speed), sun in zip(labels, hues, strict=True)
        ]
        return self.encoder.encode(texts)

    def known(self, frames: int) -> Tensor:
        """Latents of the first frames of the clean clips."""
        scene = paint(round((self.code.mean.numel() / 3) ** 0.5))
        found = []
        for factors in self.truth.factors[:, :frames]:
            pixels = scene.mean + np.tensordot(factors, scene.basis, axes=1)
            eight_bits = np.clip(np.round(pixels * 255), 0, 255).astype(np.uint8)
            found.append(self.code.encode(torch.from_numpy(eight_bits)[None]))
        return torch.cat(found)

    def make(self, conditioning: Conditioning, purpose: str, **options: Any) -> Tensor:
        """Latents of a clip per caption."""
        spec = self.spec
        return generate_latents(
            self.network,
            Method("dm", "few_step", len(spec.sampling.steps)),
            spec.shape,
            conditioning,
            Key(0, purpose=purpose),
            range(len(conditioning)),
            sampling=spec.sampling,
            flow=spec.flow,
            **options,
        )


def motion(factors: Floats) -> Floats:
    """|phase step - nearest legal speed| of each step, [N, T - 1]."""
    off = np.angle(np.exp(1j * (phase_steps(factors)[..., None] - np.array(WAVE_SPEEDS))))
    return np.asarray(np.abs(off).min(axis=-1))


def jumps(factors: Floats, part: slice) -> Floats:
    """Distance of some factors of each frame from those of the frame before, [N, T - 1]."""
    return np.asarray(np.linalg.norm(np.diff(factors[..., part], axis=1), axis=-1))


def at_and_elsewhere(steps: Floats, place: int, first: int = 0) -> tuple[float, float]:
    """Mean of [N, T - 1] at a step, and over the others from `first` on."""
    others = [step for step in range(first, steps.shape[1]) if step != place]
    return float(steps[:, place].mean()), float(steps[:, others].mean())


def both(factors: Floats, place: int, first: int = 0) -> dict[str, float]:
    """Motion and texture at a step from frame to frame, and elsewhere."""
    found = {}
    for name, steps in (("motion", motion(factors)), ("texture", jumps(factors, TEXTURE))):
        found[f"{name}_there"], found[f"{name}_elsewhere"] = at_and_elsewhere(steps, place, first)
    return found


def quality(factors: Floats) -> dict[str, float]:
    return {
        "texture_error": float(frame_texture_error(factors).mean()),
        "sharpness": float(sharpness(factors).mean()),
    }


def plain(student: Student) -> dict[str, float]:
    factors = student.read(student.make(student.captions(), "plain"))
    return {
        "motion_elsewhere": float(motion(factors).mean()),
        "texture_elsewhere": float(jumps(factors, TEXTURE).mean()),
        "rule": float(rule(factors).mean()),
        **quality(factors),
    }


def extend(student: Student, frames: int, *, coloured: bool) -> dict[str, float]:
    made = student.make(student.captions(coloured=coloured), "extend", known=student.known(frames))
    factors = student.read(made)
    return {
        **both(factors, frames - 1, frames),
        "returns": float(same_colour(factors).mean()),
        "rule": float(rule(factors).mean()),
        **quality(factors[:, frames:]),
    }


def loop(student: Student) -> dict[str, float]:
    factors = student.read(student.make(student.captions(), "loop", ring=True))
    closed = np.concatenate([factors, factors[:, :1]], axis=1)
    last = factors.shape[1] - 1
    light = at_and_elsewhere(jumps(closed, slice(LEVEL, LEVEL + 1)), last)
    found = {"light_there": light[0], "light_elsewhere": light[1]}
    return both(closed, last) | found | quality(factors)


def switch(student: Student, frame: int) -> dict[str, float]:
    """The second caption names another hue."""
    later = [(frame, student.captions(hue=2))]
    factors = student.read(student.make(student.captions(), "switch", later=later))
    hues = (factors[..., COLOUR] @ colour_codes().T).argmax(axis=-1)
    wanted = student.truth.labels[:, 1:2] + np.where(np.arange(factors.shape[1]) < frame, 0, 2)
    right, shown = hues == wanted % len(colour_codes()), present(factors)
    found = {
        name: float(right[:, span][shown[:, span]].mean())
        for name, span in (("colour_before", slice(0, frame)), ("colour_after", slice(frame, None)))
    }
    return both(factors, frame - 1) | found | quality(factors)


def long(student: Student, times: int = 5) -> dict[str, float]:
    frames, overlap = student.spec.shape[0], student.spec.shape[0] // 3
    conditioning, video = student.captions(), None
    for piece in range(-(-(times * frames - frames) // (frames - overlap)) + 1):
        known = None if video is None else video[:, -overlap:]
        made = student.make(conditioning, f"piece-{piece}", known=known)
        video = made if video is None else torch.cat([video, made[:, overlap:]], dim=1)
    assert video is not None
    parts = np.array_split(student.read(video[:, : times * frames]), times, axis=1)
    return {
        f"{name}_{number}": value
        for number, part in enumerate(parts, 1)
        for name, value in (quality(part) | {"motion": float(motion(part).mean())}).items()
    }


def rows_of(student: Student) -> list[dict[str, Any]]:
    frames = student.spec.shape[0]
    known = frames * 10 // 32
    switches = {f"another caption at {place} of 4": frames * place // 4 for place in (1, 2, 3)}
    return [
        {"what": "plain clip", **plain(student)},
        {"what": f"{known} known frames", **extend(student, known, coloured=True)},
        {"what": f"{known} known frames, colour withheld", **extend(student, known, coloured=False)},
        {"what": "one known frame", **extend(student, 1, coloured=True)},
        {"what": "loop", **loop(student)},
        *({"what": what, **switch(student, frame)} for what, frame in switches.items()),
        {"what": "five times as long", **long(student)},
    ]


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        table = Table("figure", "value", title=row["what"], title_justify="left")
        for name, value in row.items():
            if name != "what":
                table.add_row(name, f"{value:.3f}")
        Console().print(table)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a distilled student of the built-in world")
    parser.add_argument("dataset", help="folder of the dataset that it was trained on")
    parser.add_argument("--videos", type=int, default=100)
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    rows = rows_of(Student(given.checkpoint, given.dataset, given.videos))
    show(rows)
    if given.json is not None:
        write(given.json, "cpu", rows, videos=given.videos)


if __name__ == "__main__":
    main()
