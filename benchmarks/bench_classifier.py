"""Whether generated clips help to learn what no window of a video shows.

    python benchmarks/bench_classifier.py FOLDER [--config tiny] [--set storage.root=runs] [--json FILE]
    python benchmarks/bench_classifier.py /tmp/clips --config minute --json classifier.json

A small network learns from pixels whether the sun of a LONG clip stays away longer than the median: a window
shows it leave or return, never both. It is given 20 real clips, and those with 1,000 of each source:

MMM          the distilled student in few steps
long-SFT     the student before distillation, in Euler steps
teacher      the short model, window by window
real         more real clips: what generated ones can come near

Real clips are low-grade LONG, freshly drawn, through MP4. Generated ones are datasets as `sostenuto sample
--dataset` writes them, in FOLDER, of which what is missing is made; their answers come from the `sun` of
metadata.jsonl. Half of each batch is real, all networks take as many steps, and both answers weigh the same
in training and in accuracy. A seed has 20 real clips and a first network of its own; all are tried on the
same held-out clips. A gain is over the 20 clips alone, with its 95 % interval over seeds and clips, drawn
with replacement, the same for both sides.

longer       share of a source's clips whose sun stays away longer
story        share whose sun leaves and returns in its colour, as LONG's does
sharpness    of wave crests, 1 when clean; LONG's is low
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from timing import write
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.commands.runs import checkpoint_of
from jobs.commands.sample import sample
from jobs.config.load import load
from jobs.config.schema import RunConfig
from models.rng import Key
from pipelines.generation import Head
from pipelines.media.color import Frames
from pipelines.media.video import read_mp4, through_mp4
from pipelines.synthesis import METADATA
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_absence, draw_long, schedule
from pipelines.world.measures import FactorReader, present, rule, sharpness
from pipelines.world.render import render

SOURCES: dict[str, tuple[str, Head]] = {
    "MMM": ("distill", "dm"),
    "long-SFT": ("sft", "fm"),
    "teacher": ("teacher", "teacher"),
}
"""Stage and head of what generates."""
REAL, SEEDS, HELD_OUT = 20, 5, 400
SIDE, WIDTH = 8, 32
STEPS, BATCH, RATE = 400, 32, 3e-3
BOOTSTRAPS, LEVEL = 2000, 0.95

Bools = NDArray[np.bool_]


class Clips(NamedTuple):
    """Clips as the network sees them, its answers, and what is said of them."""

    pixels: Tensor
    """uint8 [N, F, SIDE, SIDE, 3]."""
    longer: Tensor
    """Whether the sun stays away longer than the median, bool [N]."""
    factors: NDArray[np.float32]
    """Read from whole pictures, [N, F, 13]."""

    def some(self, first: int, end: int) -> "Clips":
        return Clips(*(part[first:end] for part in self))

    def figures(self) -> dict[str, float]:
        """Means over the clips."""
        smooth = schedule(self.factors.shape[1]).smooth
        return {
            "longer": float(self.longer.float().mean()),
            "story": float(rule(self.factors, smooth).mean()),
            "sharpness": float(sharpness(self.factors).mean()),
        }


def median_absence(frames: int) -> float:
    """Frames without a sun of LONG clips of this length; in the first and last of them it is half there."""
    leave, back = draw_absence(frames, 100_000, Key(0, purpose="absence").numpy())
    return float(np.median(back - leave + 1))


def clips_of(videos: Iterable[Frames], suns: Sequence[Bools], median: float, what: str) -> Clips:
    """Of videos [F, H, W, 3], and for each whether the sun is there [F]."""
    small, factors = [], []
    for done, video in enumerate(videos, 1):
        frames, size = video.shape[:2]
        block = size // SIDE
        pixels = video.reshape(frames, SIDE, block, SIDE, block, 3).mean(axis=(2, 4))
        small.append(torch.from_numpy(pixels.round().astype(np.uint8)))
        factors.append(FactorReader(size).factors(video))
        if done % 100 == 0 or done == len(suns):
            print(f"{what}: {done} of {len(suns)} clips read", flush=True)
    away = np.array([np.count_nonzero(~sun) for sun in suns])
    return Clips(torch.stack(small), torch.from_numpy(away > median), np.stack(factors))


def real_clips(world: WorldConfig, count: int, seed: int, median: float, what: str) -> Clips:
    """Low-grade LONG clips that the run has not seen, as they come out of an MP4."""
    factors = draw_long(world, count, seed).factors
    videos = (through_mp4(render(clip, world.size), world.fps, world.crf) for clip in factors)
    return clips_of(videos, present(factors), median, what)


def generated_clips(config: RunConfig, name: str, count: int, folder: Path, median: float) -> Clips:
    """A dataset by a source, which is made or completed."""
    stage, head = SOURCES[name]
    sample(
        config,
        checkpoint=checkpoint_of(config, stage, "bench_classifier"),
        count=count,
        captions=None,
        head=head,
        steps=None,
        out=None,
        dataset=str(folder),
    )
    rows = [json.loads(line) for line in (folder / METADATA).read_text(encoding="utf-8").splitlines()]
    videos = (read_mp4(folder / row["file_name"]) for row in rows)
    return clips_of(videos, [np.array(row["sun"], np.bool_) for row in rows], median, name)


class Classifier(nn.Module):
    """Looks at each frame, then at its neighbours, and adds up what stands out of the clip's own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Linear(SIDE * SIDE * 3, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.nearby = nn.Sequential(
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2),
            nn.GELU(),
            nn.Conv1d(WIDTH, WIDTH, 5, padding=2),
            nn.InstanceNorm1d(WIDTH),
        )
        self.answer = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N] of clips uint8 [N, F, SIDE, SIDE, 3]."""
        seen = self.look(4 * (pixels.flatten(2) / 255 - 0.5))
        logits: Tensor = self.answer((2 * self.nearby(seen.mT)).sigmoid().sum(dim=2))
        return logits[:, 0]


def train(sets: Sequence[Clips], seed: int) -> Classifier:
    """A network that has seen as many clips of each set, both answers weighing the same in it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Classifier()
    optimizer = torch.optim.AdamW(network.parameters(), RATE)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    draws, each = Key(seed, purpose="classifier").torch(), BATCH // len(sets)
    for _ in range(STEPS):
        picked = [torch.randint(len(one.longer), (each,), generator=draws) for one in sets]
        pixels = torch.cat([one.pixels[places] for one, places in zip(sets, picked, strict=True)])
        wanted = torch.cat([one.longer[places] for one, places in zip(sets, picked, strict=True)])
        weights = torch.cat([weights_of(one)[places] for one, places in zip(sets, picked, strict=True)])
        loss = F.binary_cross_entropy_with_logits(network(pixels), wanted.float(), weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return network.eval()


def weights_of(clips: Clips) -> Tensor:
    """Of each clip: those of both answers have the same sum."""
    share = clips.longer.float().mean().clamp(1 / len(clips.longer), 1 - 1 / len(clips.longer))
    return torch.where(clips.longer, 0.5 / share, 0.5 / (1 - share))


@torch.no_grad()
def right(network: Classifier, clips: Clips) -> Bools:
    """Whether each answer is right, [N]."""
    logits = torch.cat([network(part) for part in clips.pixels.split(BATCH)])
    return ((logits > 0) == clips.longer).numpy()


def accuracy(right: Bools, longer: Bools) -> NDArray[np.float64]:
    """Mean over both answers of the share that is right, of [..., N] the means over N."""
    return np.asarray((right[..., longer].mean(axis=-1) + right[..., ~longer].mean(axis=-1)) / 2)


def gain(ours: Bools, theirs: Bools, longer: Bools) -> tuple[float, float, float]:
    """Accuracy of ours less that of theirs, [seeds, clips] each, with its interval by a paired bootstrap."""
    draws, (seeds, count), found = Key(0, purpose="bootstrap").numpy(), ours.shape, []
    for _ in range(BOOTSTRAPS):
        picked, places = draws.integers(seeds, size=seeds), draws.integers(count, size=count)
        again = [side[picked][:, places] for side in (ours, theirs)]
        found.append(np.subtract(*(accuracy(side, longer[places]).mean() for side in again)))
    middle = float(accuracy(ours, longer).mean() - accuracy(theirs, longer).mean())
    spread = (np.array(found) - np.mean(found)) * np.sqrt(seeds / max(1, seeds - 1))
    low, high = middle + np.quantile(spread, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return middle, float(low), float(high)


def verdict(row: dict[str, Any], real_sharpness: float) -> str:
    """A row in words."""
    does = "helps" if row["low"] > 0 else "harms" if row["high"] < 0 else "makes no difference that shows"
    return (
        f"{row['with']} {does}: accuracy {row['accuracy']:.3f}, {row['gain']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f}). Of its clips {row['story']:.0%} keep LONG's story and "
        f"{row['longer']:.0%} have the longer absence; their crests are {row['sharpness']:.2f} sharp, "
        f"real ones {real_sharpness:.2f}."
    )


def measure(config: RunConfig, folder: Path, count: int) -> list[dict[str, Any]]:
    """A row without and one with the clips of each source."""
    world, median = config.world, median_absence(config.world.long_frames)
    few = real_clips(world, REAL * SEEDS, 1001, median, "a few real clips")
    held_out = real_clips(world, HELD_OUT, 1002, median, "held-out clips")
    longer = held_out.longer.numpy()

    def tried(name: str, more: Sequence[Clips]) -> Bools:
        answers = []
        for seed in range(SEEDS):
            own = few.some(REAL * seed, REAL * (seed + 1))
            answers.append(right(train([own, *more], seed), held_out))
            print(f"{name}, seed {seed}: {accuracy(answers[-1], longer):.3f}", flush=True)
        return np.stack(answers)

    def row(name: str, answers: Bools, about: Clips) -> dict[str, Any]:
        values = accuracy(answers, longer)
        return {"with": name, "accuracy": float(values.mean()), "seeds": values.tolist(), **about.figures()}

    alone = tried("real clips alone", [])
    rows = [row(f"{REAL} real clips alone", alone, held_out)]
    for name in (*SOURCES, "real"):
        if name == "real":
            more = real_clips(world, count, 1003, median, name)
        else:
            more = generated_clips(config, name, count, folder / name, median)
        answers = tried(name, [more])
        found = row(f"{count} of {name}", answers, more)
        found |= dict(zip(("gain", "low", "high"), gain(answers, alone, longer), strict=True))
        rows.append(found | {"verdict": verdict(found, rows[0]["sharpness"])})
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("with", "accuracy", "gain", "95 %", "longer", "story", "sharpness")
    for row in rows:
        gained = (
            (f"{row['gain']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}") if "gain" in row else ("", "")
        )
        figures = (f"{row[name]:.2f}" for name in ("longer", "story", "sharpness"))
        table.add_row(row["with"], f"{row['accuracy']:.3f}", *gained, *figures)
    Console().print(table)
    for row in rows[1:]:
        print(row["verdict"])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the generated datasets are, or will be")
    parser.add_argument("--config", default="tiny", help="of a finished run of the built-in world")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="over the config's")
    parser.add_argument("--clips", type=int, default=1000, help="of each source")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = load(given.config, given.set)
    rows = measure(config, given.folder, given.clips)
    show(rows)
    if given.json is not None:
        about = {"config": config.name, "clips": given.clips, "real": REAL, "held_out": HELD_OUT}
        write(given.json, "cpu", rows, **about, steps=STEPS)


if __name__ == "__main__":
    main()
