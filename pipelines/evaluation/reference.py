"""What systems are compared with: clean LONG videos of the built-in world, and the corpora themselves.

The clean videos go through real MP4 and through the dataset's autoencoder, as the training clips did, so that
neither the codec's marks nor what the code leaves out is a difference between them and generated videos. Both
are measured by Ray tasks and kept as safetensors beside the run, named by the hash of what decides them.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch

from models.rng import Key
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import Split
from pipelines.evaluation.features.extractors import EXTRACTORS
from pipelines.evaluation.generate import write_clip
from pipelines.evaluation.measure import Columns, Measurements, Measurer, among_first, cut
from pipelines.evaluation.settings import EvaluationSettings, LogitPlan, VideoShape, i3d_features
from pipelines.evaluation.subject import ground_of
from pipelines.evaluation.temporal import METRICS
from pipelines.media.video import through_mp4
from pipelines.ray_map import Tasks, ray_map_all
from pipelines.storage import Storage
from pipelines.tracking import Progress
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import all_labels, draw_long
from pipelines.world.render import render

VERSION = 3
"""Raised when the measurements change, so that kept references and results are made anew."""
_PART_VIDEOS = 25
_CAPTION_STEP = 7
"""Captions are taken in steps of 7 through the 30 of the world, so that neighbours differ in every word."""

CleanName = Literal["clean", "ideal", "unseen", "unseen_ideal"]
Corpus = Literal["short", "long"]


@dataclass(frozen=True)
class CleanSpec:
    """A set of clean LONG videos of the built-in world."""

    name: CleanName
    """`ideal` and `unseen_ideal` are second draws: the floor of every distance."""
    world: WorldConfig
    labels: tuple[tuple[int, int, int], ...]
    """Texture, colour and speed of each video."""
    window_frames: int
    """Frames per window."""
    windows: int
    """Windows per video."""
    temporal: int
    """Videos with temporal metrics."""
    showcase: int
    """Videos that are kept as MP4."""
    dataset: str
    """Hash of the dataset whose autoencoder they go through."""

    logits: LogitPlan | None = None
    """What I3D sees of them."""

    @property
    def captions(self) -> list[str]:
        """One per video."""
        return [caption(*label) for label in self.labels]


@dataclass(frozen=True)
class CorpusSpec:
    """Videos of a corpus, decoded from its shards."""

    name: Corpus
    """A SHORT clip is one window; a LONG clip gives as many windows as a generated video."""
    split: Split
    """Held-out rows where there are any."""
    rows: list[int]
    """Rows of the split that are measured."""
    captions: list[str]
    """One per row."""
    clip: VideoShape
    """Frames per window and per second."""
    windows: int
    """Windows per video."""
    temporal: int
    """Videos with temporal metrics."""
    showcase: int
    """Videos that are kept as MP4."""
    world: WorldConfig | None
    """Whose factors are read back; None for other videos."""
    subject: str | None
    """What is looked for in each frame (subject.py)."""
    dataset: str
    """Hash of the dataset."""
    use_gpu: bool
    """Whether they are decoded on a GPU, in bfloat16."""
    logits: LogitPlan | None = None
    """What I3D sees of them."""


Spec: TypeAlias = CleanSpec | CorpusSpec


def reference_specs(settings: EvaluationSettings, shape: VideoShape) -> list[Spec]:
    """The sets of real videos that an evaluation needs.

    In the built-in world the clean sets are compared with, and their second draws, which have the captions of
    the systems' videos, give the floors. A user's corpora are all there is.
    """
    wanted = settings.evaluation
    if settings.world is None:
        return [corpus_spec("short", settings, shape), corpus_spec("long", settings, shape)]
    unseen = min(wanted.videos, wanted.unseen_videos)
    logits = LogitPlan.of(wanted, shape.frames, use_gpu=settings.use_gpu)
    counts: dict[CleanName, int] = {
        "clean": wanted.reference_videos,
        "ideal": wanted.videos,
        "unseen": min(wanted.reference_videos, 2 * unseen),
        "unseen_ideal": unseen,
    }
    specs: dict[CleanName, CleanSpec] = {}
    for name, count in counts.items():
        every = all_labels("unseen" if name.startswith("unseen") else "seen").tolist()
        specs[name] = CleanSpec(
            name=name,
            world=settings.world,
            labels=tuple(tuple(every[i * _CAPTION_STEP % len(every)]) for i in range(count)),
            window_frames=shape.window_frames,
            windows=wanted.windows_per_video,
            temporal=wanted.temporal_videos,
            showcase=wanted.showcase if name == "ideal" else 0,
            dataset=read_info(settings.dataset).data_hash,
            logits=None if name.startswith("unseen") else logits,
        )
    shown = specs["ideal"].captions[: wanted.showcase]
    return [*specs.values(), corpus_spec("long", settings, shape, shown)]


def corpus_spec(
    name: Corpus, settings: EvaluationSettings, shape: VideoShape, shown: Sequence[str] = ()
) -> CorpusSpec:
    """At most `reference_videos` rows of a corpus' main bucket, held-out ones if there are any.

    Rows with the captions `shown` come first, so that the showcase compares videos of one caption.
    """
    held_out = ShardDataset(settings.dataset, name, "holdout")
    rows = held_out if held_out.main else ShardDataset(settings.dataset, name, "train")
    captions = {row: rows.captions[row] for row in rows.main}
    row_of = {text: row for row, text in reversed(captions.items())}
    first = [row_of[text] for text in dict.fromkeys(shown) if text in row_of]
    chosen = [*first, *(row for row in captions if row not in set(first))]
    chosen = chosen[: settings.evaluation.reference_videos]
    wanted, long = settings.evaluation, name == "long"
    logits = LogitPlan.of(wanted, shape.frames, use_gpu=settings.use_gpu) if long else None
    if logits and settings.world is None:  # half of them are the reference, half its control
        logits = dataclasses.replace(logits, videos=2 * logits.videos)
    return CorpusSpec(
        name=name,
        split="holdout" if rows is held_out else "train",
        rows=chosen,
        captions=[captions[row] for row in chosen],
        clip=shape,
        windows=wanted.windows_per_video if long else 1,
        temporal=wanted.temporal_videos if long else 0,
        showcase=wanted.showcase if long else 0,
        world=settings.world,
        subject=wanted.subject,
        dataset=read_info(settings.dataset).data_hash,
        logits=logits,
        use_gpu=settings.use_gpu,
    )


def what_is_measured() -> list[Any]:
    """What measurements of a video depend on beside the video: results of others are made anew."""
    return [VERSION, [extractor.identity for extractor in EXTRACTORS.values()], list(METRICS)]


def kept_file(spec: Spec) -> str:
    """Name of the file that keeps a set's measurements: a hash of all that decides them."""
    plain = dataclasses.asdict(spec)
    logits = plain.pop("logits")
    if logits:
        del logits["file"]
    decides = [plain, what_is_measured(), *([logits] if logits else [])]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return f"{spec.name}-{digest}.safetensors"


class Part(NamedTuple):
    """Videos of a set that one task measures."""

    spec: Spec
    indices: range

    def __str__(self) -> str:
        return f"real videos {self.indices.start} to {self.indices.stop - 1} of {self.spec.name}"


def measure_real(
    specs: Sequence[Spec], settings: EvaluationSettings, progress: Progress
) -> dict[str, Measurements]:
    """Measures real videos by Ray tasks; by name of the set. Sets that are kept are read instead."""
    storage = Storage(settings.references)
    found: dict[str, Measurements] = {}
    for spec in specs:
        if storage.exists(kept_file(spec)):
            found[spec.name] = Measurements.from_bytes(storage.read_bytes(kept_file(spec)))
    missing = [spec for spec in specs if spec.name not in found]
    parts = [Part(spec, indices) for spec in missing for indices in cut(len(spec.captions), _PART_VIDEOS)]
    columns = ray_map_all(
        partial(measure_part, settings),
        parts,
        Tasks(settings.evaluation.max_actors, settings.use_gpu),
        lambda done: progress("real videos", done, len(parts)),
    )
    for spec in missing:
        own = [table for part, table in zip(parts, columns, strict=True) if part.spec is spec]
        found[spec.name] = Measurements.join(spec.captions, own)
        storage.write_bytes(kept_file(spec), found[spec.name].to_bytes())
    return found


def measure_part(settings: EvaluationSettings, part: Part) -> Columns:
    """The work of one task; one row per video. Writes the showcase videos beside the references."""
    spec, indices = part
    device = settings.start_worker()
    autoencoder = dataset_autoencoder(settings.dataset, device)
    temporal, showcase = among_first(spec.temporal, indices), among_first(spec.showcase, indices)
    seen = among_first(spec.logits.videos, indices) if spec.logits else 0
    i3d = i3d_features(spec.logits, device) if spec.logits else None
    if isinstance(spec, CorpusSpec):
        rows = [spec.rows[index] for index in indices]
        latents = ShardDataset(settings.dataset, spec.name, spec.split).read(rows).latents
        ground = ground_of(settings.dataset, autoencoder) if spec.subject else None
        clip = spec.clip
        measurer = Measurer(clip.window_frames, spec.windows, clip.fps, spec.world, autoencoder, ground, i3d)
        measured = measurer.measure(latents, tuple(EXTRACTORS), temporal=temporal, keep=showcase, logits=seen)
        for index, frames in zip(indices, measured.frames, strict=False):
            write_clip(settings.references, "corpus_long", index, frames.numpy(), clip.fps)
        return measured.columns

    world = spec.world
    seed = Key(world.seed, purpose=f"evaluation/{spec.name}").seed64()
    drawn = draw_long(world, len(spec.labels), seed, grade="clean", labels=np.array(spec.labels))
    coded = []
    for index in indices:
        pixels = through_mp4(render(drawn.factors[index], world.size), world.fps, world.crf)
        if index < spec.showcase:
            write_clip(settings.references, spec.name, index, pixels, world.fps)
        coded.append(autoencoder.encode(torch.from_numpy(pixels)[None]))
    measurer = Measurer(spec.window_frames, spec.windows, world.fps, world, autoencoder, i3d=i3d)
    return measurer.measure(torch.cat(coded), tuple(EXTRACTORS), temporal=temporal, logits=seen).columns
