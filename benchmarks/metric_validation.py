"""Which metric sees what: every metric the project reports, on videos whose damage is known.

    python benchmarks/metric_validation.py [--clips DIR] [--keep DIR] [--json FILE] [--pictures DIR]

Each damage of damage.py comes in five strengths: on the built-in world (clean LONG, 32 frames at 64 pixels)
and, with --clips, on 4-second pieces of real videos (a folder with long/ and short/; the first half of each
video is the reference, the second is damaged). Samples of n videos are drawn again and again; a metric sees a
damage where 80 % of the samples lie beyond 95 % of undamaged ones of the same size. Metrics come from the
scorers that `sostenuto evaluate` uses. One thread.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timing import write
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.damage import CLIPS, PIXELS, SHARES, WORLD, Factors, draws  # noqa: E402
from pipelines.data.config import LimitsConfig  # noqa: E402
from pipelines.data.decode.decoder import Decoder  # noqa: E402
from pipelines.data.types import Rejected  # noqa: E402
from pipelines.evaluation.features.extractors import EXTRACTORS  # noqa: E402
from pipelines.evaluation.measure import Measurements, Measurer, SystemMeasurements, cut  # noqa: E402
from pipelines.evaluation.reference import what_is_measured  # noqa: E402
from pipelines.evaluation.scores import ClipScorer, Scores, WorldScorer  # noqa: E402
from pipelines.media.color import Frames  # noqa: E402
from pipelines.media.html import MUTED, blank_figure, png  # noqa: E402
from pipelines.storage import hash_of  # noqa: E402
from pipelines.world.config import WorldConfig  # noqa: E402
from pipelines.world.factors import draw_long  # noqa: E402
from pipelines.world.render import render  # noqa: E402

SIDE, FPS, FRAMES, WINDOW, WINDOWS = 64, 8.0, 32, 8, 2
SIZES = (64, 256)
"""Videos per sample."""
POWER, BAND = 0.8, 0.95
TURN = 0.02
"""A curve turns where a step leads back by more than this share of its range."""
LEVELS = 5
GENERATED = ("gen_",)
"""Beginnings of the names of files that no camera took."""

OTHER = (
    "unseen",
    "corpus_",
    "pixel_window",
    "nfe",
    "seconds_",
    "decoding_",
    "effective_",
    "spread",
    "texture_acc",
    "colour_",
    "speed_",
)
"""Beginnings of figures that say nothing here, or say again what others do."""

Values = NDArray[np.float64]


class Pixels:
    """An autoencoder whose latents are the frames, so that the evaluation's `Measurer` takes frames."""

    channels, temporal_factor, crop_safe, reconstruction_error = 3, 1, True, 0.0

    def encode(self, frames: Tensor) -> Tensor:
        """Frames uint8 [B, F, H, W, 3] as [B, F, 3, H, W]."""
        return frames.movedim(-1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return latents.movedim(2, -1)


@dataclass(frozen=True)
class Corpus:
    """Videos to damage, and what judges them."""

    name: str
    scorer: WorldScorer | ClipScorer
    clean: Measurements
    """The pool, undamaged."""
    damaged: Mapping[str, list[Measurements]]
    """The pool under each damage, by strength."""
    about: Mapping[str, int]
    """Sizes of pool and reference."""


def measured(videos: Sequence[Frames], captions: Sequence[str], world: WorldConfig | None) -> Measurements:
    """All measurements of videos uint8 [F, H, W, 3]."""
    code = Pixels()
    measurer = Measurer(WINDOW, WINDOWS, FPS, world, code)
    parts = []
    for indices in cut(len(videos), 16):
        frames = torch.from_numpy(np.stack([videos[i] for i in indices]))
        parts.append(measurer.measure(code.encode(frames), tuple(EXTRACTORS), temporal=len(indices)).columns)
    return Measurements.join(captions, parts)


def mixed(clean: Measurements, damaged: Measurements, share: float, *key: object) -> Measurements:
    """The share of the videos damaged, the others clean; a larger share holds the smaller."""
    order = draws(*key).permutation(len(clean.captions))
    ill = order < round(share * len(order))
    columns = {
        name: np.where(ill.reshape(-1, *[1] * (column.ndim - 1)), damaged.columns[name], column)
        for name, column in clean.columns.items()
    }
    return Measurements(clean.captions, columns)


def taken(videos: Measurements, places: NDArray[np.int64]) -> SystemMeasurements:
    """These videos, as a system's."""
    captions = tuple(videos.captions[place] for place in places)
    return SystemMeasurements([Measurements(captions, {n: c[places] for n, c in videos.columns.items()})])


class Keep:
    """What is made once: a run that was stopped finds it in `folder`, if there is one.

    Below it a folder is named by all that measurements depend on beside the videos.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder and folder / hash_of([what_is_measured(), SIDE, FPS, FRAMES, WINDOW, WINDOWS])

    def measurements(self, name: str, make: Callable[[], Measurements]) -> Measurements:
        kept = self._bytes(f"{name}.safetensors", lambda: make().to_bytes())
        return Measurements.from_bytes(kept)

    def values(self, name: str, make: Callable[[], Any]) -> Any:
        return json.loads(self._bytes(f"{name}.json", lambda: json.dumps(make()).encode()))

    def _bytes(self, name: str, make: Callable[[], bytes]) -> bytes:
        file = self._folder / name if self._folder else None
        if file and file.exists():
            return file.read_bytes()
        made = make()
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(".part")
            aside.write_bytes(made)
            aside.replace(file)
        told(name)
        return made


def pixel_damage(
    keep: Keep, name: str, videos: Sequence[Frames], captions: Sequence[str], world: WorldConfig | None
) -> dict[str, list[Measurements]]:
    """The videos under all strengths of all damage of PIXELS."""

    def made(damage: str, strength: float) -> Measurements:
        broken = [PIXELS[damage](video, strength, damage, i) for i, video in enumerate(videos)]
        return measured(broken, captions, world)

    return {
        damage: [
            keep.measurements(f"{name}-{damage}-{strength:g}", partial(made, damage, strength))
            for strength in PIXELS[damage].strengths
        ]
        for damage in PIXELS
    }


def world_corpus(count: int, reference: int, keep: Keep) -> Corpus:
    """The built-in world: `count` clean LONG videos under every damage, against `reference` others."""
    world = WorldConfig(size=SIDE, fps=FPS, long_frames=FRAMES)
    sizes = {"clean": reference, "ideal": count, "pool": count, "long": 64, "unseen": 32, "unseen_ideal": 32}
    drawn = {
        name: draw_long(
            world,
            size,
            seed,
            grade="low" if name == "long" else "clean",
            textures="unseen" if name.startswith("unseen") else "seen",
        )
        for seed, (name, size) in enumerate(sizes.items(), start=1)
    }

    def seen(factors: Sequence[Factors], captions: Sequence[str]) -> Measurements:
        return measured([render(f, SIDE) for f in factors], captions, world)

    sets = {
        name: keep.measurements(
            f"world-{count}-{reference}-{name}", partial(seen, clips.factors, clips.captions)
        )
        for name, clips in drawn.items()
    }
    pool, clean = drawn["pool"], sets.pop("pool")
    frames = [render(f, SIDE) for f in pool.factors]
    damaged = pixel_damage(keep, f"world-{count}", frames, pool.captions, world)
    for name, breaks in WORLD.items():
        truth = zip(pool.factors, pool.labels, strict=True)
        factors = [breaks(f, label, draws(name, i)) for i, (f, label) in enumerate(truth)]
        whole = keep.measurements(
            f"world-{count}-{name.replace(' ', '-')}", partial(seen, factors, pool.captions)
        )
        damaged[name] = [mixed(clean, whole, share, name) for share in SHARES]
    about = {"pool": count, "reference": reference}
    return Corpus("world", WorldScorer(sets, WINDOW, WINDOWS), clean, damaged, about)


def clip_corpus(folder: Path, most: int, keep: Keep) -> Corpus:
    """Pieces of real videos: the first half of each for the reference, the second damaged; `most` of each."""
    first, second, sources = [], [], []
    with Decoder(LimitsConfig()) as decoder:
        for turn, (path, pieces) in enumerate(real_pieces(folder, decoder)):
            pieces = pieces[: 2 * most]
            half = (len(pieces) + turn % 2) // 2
            first += pieces[:half]
            second += pieces[half:]
            sources += [path] * len(pieces[half:])
    captions = [""] * len(second)
    reference = keep.measurements(f"clips-{most}-reference", lambda: measured(first, [""] * len(first), None))
    clean = keep.measurements(f"clips-{most}-pool", lambda: measured(second, captions, None))
    damaged = pixel_damage(keep, f"clips-{most}", second, captions, None)
    for name, breaks in CLIPS.items():
        broken = [breaks(second, sources, i, draws(name, i)) for i in range(len(second))]
        whole = keep.measurements(
            f"clips-{most}-{name.replace(' ', '-')}", partial(measured, broken, captions, None)
        )
        damaged[name] = [mixed(clean, whole, share, name) for share in SHARES]
    about = {"pool": len(second), "reference": len(first), "videos": len(set(sources))}
    some = taken(reference, np.arange(min(8, len(first)))).seen[0]  # SHORT is not judged here
    return Corpus("clips", ClipScorer({"long": reference, "short": some}), clean, damaged, about)


def real_pieces(folder: Path, decoder: Decoder) -> Iterator[tuple[str, list[Frames]]]:
    """Files of long/ and short/ in consecutive pieces; what is left out is told."""
    for path in sorted([*folder.glob("long/*"), *folder.glob("short/*")]):
        try:
            clip = decoder.open(path, [(SIDE, SIDE)], FPS)
            frames = np.concatenate(list(clip.frames))
        except Rejected as error:
            told(f"left out {path.name}: {error}")
            continue
        pieces = [frames[i : i + FRAMES] for i in range(0, len(frames) - FRAMES + 1, FRAMES)]
        if clip.probe.fps < FPS or not pieces or path.name.startswith(GENERATED):
            told(f"left out {path.name}: {clip.probe.fps:g} frames a second, {len(pieces)} pieces")
            continue
        yield path.name, pieces


def scored(corpus: Corpus, repeats: int, keep: Keep) -> dict[str, Any]:
    """Figures of `repeats` samples of each size: {damage: {size: [strength][sample] figures}}.

    Strength 0 is undamaged. All strengths of a sample are of the same videos; samples larger than half
    the pool are drawn with putting back.
    """
    pool = len(corpus.clean.captions)

    def made(videos: Measurements, n: int) -> list[dict[str, float]]:
        samples = [draws("sample", n, b).choice(pool, n, replace=2 * n > pool) for b in range(repeats)]
        return [figures(corpus.scorer.score(taken(videos, places))) for places in samples]

    def level(name: str, videos: Measurements, n: int) -> list[dict[str, float]]:
        parts = (corpus.name, *corpus.about.values(), name, f"n{n}x{repeats}")
        kept = "-".join(map(str, parts)).replace(" ", "-")
        return cast("list[dict[str, float]]", keep.values(kept, partial(made, videos, n)))

    none = {n: level("none", corpus.clean, n) for n in SIZES}
    return {
        damage: {
            n: [none[n], *(level(f"{damage}-{i}", grade, n) for i, grade in enumerate(grades, start=1))]
            for n in SIZES
        }
        for damage, grades in corpus.damaged.items()
    }


def figures(scores: Scores) -> dict[str, float]:
    """Plain numbers."""
    return {
        name: float(value)
        for name, value in scores.metrics.items()
        if isinstance(value, int | float) and not name.startswith(OTHER) and not name.endswith(".short")
    }


def rows(corpus: Corpus, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric and damage: its curve, whether that turns, what it detects at each size."""
    made = []
    for damage, sizes in found.items():
        strengths = PIXELS[damage].strengths if damage in PIXELS else SHARES
        names = list(sizes[SIZES[0]][0][0])
        for name in names:
            row: dict[str, Any] = {"corpus": corpus.name, "metric": name, "damage": damage}
            row["unit"] = PIXELS[damage].unit if damage in PIXELS else "share of videos"
            for n, levels in sizes.items():
                table = np.array([[sample.get(name, np.nan) for sample in level] for level in levels])
                row[f"n{n}"] = detection(table, strengths, one_sided=is_distance(name))
            made.append(row)
    return made


def is_distance(name: str) -> bool:
    """Whether only larger is worse."""
    return "frechet" in name or name.startswith(("fvd.", "kvd.", "temporal_distance."))


def detection(table: Values, strengths: Sequence[float], *, one_sided: bool) -> dict[str, Any]:
    """What values [strength, sample] say, strength 0 first.

    `curve`: means; `band`: the middle 95 % of undamaged samples; `power`: share of the samples beyond 95 % of
    the undamaged ones (on both sides unless one_sided), with its 95 % interval; `sees`: the least strength
    from which on the power is .8 or more; `against`: the largest step of the curve against its direction, as
    a share of its range.
    """
    clean = table[0][~np.isnan(table[0])]
    middle = np.median(clean)
    far = (table - middle) if one_sided else np.abs(table - middle)
    limit = np.nanquantile(far[0], BAND)
    with np.errstate(invalid="ignore"):
        power = [float(np.nanmean(level > limit)) if not np.isnan(level).all() else None for level in far[1:]]
    curve = [float(np.nanmean(level)) if not np.isnan(level).all() else None for level in table]
    known = np.array([value for value in curve if value is not None])
    steps, span = np.diff(known), float(np.ptp(known))
    up = known[-1] >= known[0]
    against = float(np.maximum(-steps if up else steps, 0).max() / span) if span > 0 and len(steps) else 0.0
    seen = [share is not None and share >= POWER for share in power]
    first = next((i for i in range(LEVELS) if all(seen[i:])), None)
    return {
        "curve": [short(value) for value in curve],
        "band": [short(q) for q in np.nanquantile(clean, [0.025, 0.975])],
        "power": [short(share) for share in power],
        "interval": [wilson(share, table.shape[1]) if share is not None else None for share in power],
        "sees": strengths[first] if first is not None else None,
        "direction": "up" if up else "down",
        "against": round(against, 4),
    }


def short(value: float | None) -> float | None:
    """Four digits of it."""
    return None if value is None else float(f"{value:.4g}")


def wilson(share: float, count: int, z: float = 1.96) -> list[float]:
    """95 % interval of a share that was found in `count` samples."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return [round(max(0.0, float(middle - half)), 3), round(min(1.0, float(middle + half)), 3)]


def findings(corpus: Corpus) -> dict[str, list[dict[str, int]]]:
    """What the temporal report tells of the pool: by damage and strength from 0, videos by metric, side."""
    every = np.arange(len(corpus.clean.captions))

    def told_of(videos: Measurements) -> dict[str, int]:
        found = corpus.scorer.score(taken(videos, every)).findings
        return {f"{finding.metric}.{finding.side}": finding.beyond for finding in found}

    clean = told_of(corpus.clean)
    return {damage: [clean, *map(told_of, grades)] for damage, grades in corpus.damaged.items()}


def print_table(made: Sequence[Mapping[str, Any]], corpus: str) -> None:
    """As Markdown: the least strength that each metric sees of each damage, at both sizes."""
    own = [row for row in made if row["corpus"] == corpus]
    names, damages = (list(dict.fromkeys(row[key] for row in own)) for key in ("metric", "damage"))
    cells = {(row["metric"], row["damage"]): cell(row) for row in own}
    print(f"\n{corpus}, n = {SIZES[0]} / {SIZES[1]}\n\n| metric | {' | '.join(damages)} |")
    print("|---" * (len(damages) + 1) + "|")
    for name in names:
        print(f"| `{name}` | {' | '.join(cells[name, damage] for damage in damages)} |")


def cell(row: Mapping[str, Any]) -> str:
    """Up or down, the least strengths seen, `-` where none is, and `~` where the curve turns."""
    sides = [row[f"n{n}"] for n in SIZES]
    if not any(side["sees"] for side in sides):
        return "-"
    seen = " / ".join(f"{side['sees']:g}" if side["sees"] else "-" for side in sides)
    turns = "~" if sides[-1]["against"] > TURN else ""
    return f"{sides[-1]['direction']} {seen}{turns}"


def picture(made: Sequence[Mapping[str, Any]], corpus: str) -> bytes:
    """A panel for each metric: from clean to damaged, in half widths of the clean band at the larger n."""
    own = [row for row in made if row["corpus"] == corpus]
    names, damages = (list(dict.fromkeys(row[key] for row in own)) for key in ("metric", "damage"))
    columns = 5
    lines = -(-len(names) // columns)
    figure = blank_figure(3.1 * columns, 2.1 * lines + 0.6)
    styles = [f"C{i % 10}" + ("-" if i < 10 else "--") for i in range(len(damages))]
    handles: list[Any] = []
    for place, name in enumerate(names):
        axis = figure.add_subplot(lines, columns, place + 1)
        axis.axhspan(-1, 1, color=MUTED, alpha=0.35, lw=0)
        handles = []
        sides = {row["damage"]: row[f"n{SIZES[1]}"] for row in own if row["metric"] == name}
        low, high = sides[damages[0]]["band"]
        values = [value for side in sides.values() for value in side["curve"] if value is not None]
        scale = (high - low) / 2 or 1e-3 * (max(values) - min(values)) or 1.0  # a band may have no width
        for damage, style in zip(damages, styles, strict=True):
            curve = sides[damage]["curve"]
            heights = [np.nan if v is None else (v - (low + high) / 2) / scale for v in curve]
            handles += axis.plot(range(len(heights)), heights, style, marker=".", lw=1.1, label=damage)
        axis.set_yscale("symlog", linthresh=1)
        axis.yaxis.get_major_locator().set_params(numticks=6)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9)
    figure.suptitle(
        f"{corpus}: from clean (0) to the strongest damage (5), in half widths of the clean band (grey), "
        f"n = {SIZES[1]}",
        fontsize=11,
    )
    small, memory = Image.open(io.BytesIO(png(figure))).convert("RGB"), io.BytesIO()
    small.quantize(64, dither=Image.Dither.NONE).save(memory, "PNG", optimize=True)
    return memory.getvalue()


def told(line: str) -> None:
    print(f"[{time.process_time():6.0f} s] {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=Path, help="folder of real videos with long/ and short/")
    parser.add_argument("--pieces", type=int, default=8, help="pieces of a real video on each side, at most")
    parser.add_argument("--videos", type=int, default=80, help="videos of the world under each damage")
    parser.add_argument(
        "--reference", type=int, default=256, help="clean videos of the world they are compared with"
    )
    parser.add_argument("--repeats", type=int, default=24, help="samples of each size")
    parser.add_argument("--keep", type=Path, help="folder for measurements: a stopped run goes on from them")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for metric_validation_<corpus>.png")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep = Keep(given.keep)
    corpora = [world_corpus(given.videos, given.reference, keep)]
    corpora += [clip_corpus(given.clips, given.pieces, keep)] if given.clips else []
    made, findings_of = [], {}
    for corpus in corpora:
        found = scored(corpus, given.repeats, keep)
        made += rows(corpus, found)
        findings_of[corpus.name] = findings(corpus)
        print_table(made, corpus.name)
        if given.pictures:
            (given.pictures / f"metric_validation_{corpus.name}.png").write_bytes(picture(made, corpus.name))
    if given.json:
        about = {corpus.name: dict(corpus.about) for corpus in corpora}
        write(
            given.json,
            "cpu",
            made,
            corpora=about,
            repeats=given.repeats,
            findings=findings_of,
        )


if __name__ == "__main__":
    main()
