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
from safetensors.numpy import load, save

from models.autoencoders.kinds import Autoencoder
from models.rng import Key
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.evaluation.features.extractors import pixel_extractors
from pipelines.evaluation.generate import CLIPS, Clip, clip_name, put_clip
from pipelines.evaluation.measure import EVERY, Columns, Measured, Measurer, cut, join, within
from pipelines.evaluation.settings import EvaluationSettings, Progress
from pipelines.media.video import through_mp4
from pipelines.ray_map import Tasks, ray_map_all
from pipelines.storage import Storage
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.measures import FactorReader
from pipelines.world.render import render

VERSION = 2
"""Raised when the measurements change, so that kept references are made anew."""
_PART_VIDEOS = 25

CleanName = Literal["clean", "ideal", "unseen", "unseen_ideal"]
Corpus = Literal["short", "long"]
Split = Literal["train", "holdout"]
Spec: TypeAlias = "CleanSpec | CorpusSpec"


@dataclass(frozen=True)
class CleanSpec:
    """A set of clean LONG videos of the built-in world."""

    name: CleanName
    """`ideal` and `unseen_ideal` are second draws: the floor of every distance."""
    world: WorldConfig
    """The world."""
    labels: tuple[tuple[int, int, int], ...]
    """Texture, colour and speed of each video."""
    window_frames: int
    """Frames a window."""
    windows: int
    """Windows a video."""
    temporal: int
    """Videos with temporal numbers."""
    showcase: int
    """Videos that are kept as MP4."""
    dataset: str
    """Hash of the dataset whose autoencoder they go through."""

    @property
    def captions(self) -> list[str]:
        """One a video."""
        return [caption(*label) for label in self.labels]

    @property
    def file(self) -> str:
        """Name of the file that keeps the measurements: a hash of all that decides them."""
        return _file(self.name, dataclasses.asdict(self))


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
    """One a row."""
    clip: Clip
    """Windows and frames a second."""
    windows: int
    """Windows a video."""
    temporal: int
    """Videos with temporal numbers."""
    showcase: int
    """Videos that are kept as MP4."""
    world: WorldConfig | None
    """Whose factors are read back; None for other videos."""
    dataset: str
    """Hash of the dataset."""
    use_gpu: bool
    """Whether they are decoded on a GPU, in bfloat16."""

    @property
    def file(self) -> str:
        """Name of the file that keeps the measurements: a hash of all that decides them."""
        return _file(self.name, dataclasses.asdict(self))


class Part(NamedTuple):
    """Videos of a set that one task measures."""

    spec: Spec
    videos: range
    """Their places in the set."""

    def __str__(self) -> str:
        return f"real videos {self.videos.start} to {self.videos.stop - 1} of {self.spec.name}"


def _file(name: str, decides: dict[str, Any]) -> str:
    told = [VERSION, decides, [extractor.identity for extractor in pixel_extractors()]]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    return f"{name}-{digest}.safetensors"


def corpus_spec(
    name: Corpus, settings: EvaluationSettings, clip: Clip, shown: Sequence[str] = ()
) -> CorpusSpec:
    """At most `reference_videos` rows of a corpus' main bucket, held-out ones if there are any.

    Rows with the captions `shown` come first, so that the showcase compares videos of one caption.
    """
    held_out = ShardDataset(settings.dataset, name, "holdout")
    own = held_out if held_out.main else ShardDataset(settings.dataset, name, "train")
    captions = {row: own.captions[row] for row in own.main}
    of_text = {text: row for row, text in reversed(captions.items())}
    first = [of_text[text] for text in dict.fromkeys(shown) if text in of_text]
    rows = [*first, *(row for row in captions if row not in set(first))]
    rows = rows[: settings.evaluation.reference_videos]
    wanted, long = settings.evaluation, name == "long"
    return CorpusSpec(
        name=name,
        split="holdout" if own is held_out else "train",
        rows=rows,
        captions=[captions[i] for i in rows],
        clip=clip,
        windows=wanted.windows_per_video if long else 1,
        temporal=wanted.temporal_videos if long else 0,
        showcase=wanted.showcase if long else 0,
        world=settings.world,
        dataset=read_info(settings.dataset).data_hash,
        use_gpu=settings.use_gpu,
    )


def measure_real(
    specs: Sequence[Spec], settings: EvaluationSettings, progress: Progress
) -> dict[str, Measured]:
    """Measures real videos by Ray tasks; by name of the set. Sets that are kept are read instead."""
    storage = Storage(settings.references)
    found: dict[str, Measured] = {
        s.name: from_bytes(storage.read_bytes(s.file)) for s in specs if storage.exists(s.file)
    }
    parts = [
        Part(spec, part)
        for spec in specs
        if spec.name not in found
        for part in cut(len(spec.captions), _PART_VIDEOS)
    ]
    columns = ray_map_all(
        partial(measure_part, settings),
        parts,
        Tasks(settings.evaluation.max_actors, settings.use_gpu),
        lambda done: progress("real videos", done, len(parts)),
    )
    for spec in specs:
        if spec.name not in found:
            own = [table for part, table in zip(parts, columns, strict=True) if part.spec is spec]
            found[spec.name] = join([spec.captions], own)
            storage.write_bytes(spec.file, to_bytes(found[spec.name]))
    return found


def measure_part(settings: EvaluationSettings, part: Part) -> Columns:
    """The work of one task; one row per video."""
    device = settings.start_worker()
    folder = Storage(settings.references).child(CLIPS)
    autoencoder = dataset_autoencoder(settings.dataset, device)
    if isinstance(part.spec, CleanSpec):
        return _clean_part(part.spec, part.videos, folder, autoencoder)
    return _corpus_part(part.spec, part.videos, folder, settings.dataset, autoencoder)


def _clean_part(spec: CleanSpec, part: range, folder: Storage, autoencoder: Autoencoder) -> Columns:
    """Renders the videos, sends each through MP4 and the autoencoder, and measures it."""
    world = spec.world
    seed = Key(world.seed, purpose=f"evaluation/{spec.name}").seed64()
    drawn = draw_long(world, len(spec.labels), seed, grade="clean", labels=np.array(spec.labels))
    latents = []
    for i in part:
        frames = through_mp4(render(drawn.factors[i], world.size), world.fps, world.crf)
        if i < spec.showcase:
            put_clip(folder, clip_name(spec.name, i), frames, world.fps)
        latents.append(autoencoder.encode(torch.from_numpy(frames)[None]))
    reader = FactorReader(world.size)
    measurer = Measurer(spec.window_frames, spec.windows, world.fps, reader, autoencoder)
    return measurer.latents(torch.cat(latents), EVERY, temporal=within(spec.temporal, part))[0]


def _corpus_part(
    spec: CorpusSpec, part: range, folder: Storage, dataset: str, autoencoder: Autoencoder
) -> Columns:
    """Decodes and measures rows, and keeps the first LONG videos as MP4."""
    latents = ShardDataset(dataset, spec.name, spec.split).read([spec.rows[i] for i in part]).latents
    reader = None if spec.world is None else FactorReader(spec.world.size)
    clip = spec.clip
    measurer = Measurer(clip.window_frames, spec.windows, clip.fps, reader, autoencoder)

    def show(place: int, frames: torch.Tensor) -> None:
        if part[place] < spec.showcase:
            put_clip(folder, clip_name("corpus_long", part[place]), frames.numpy(), clip.fps)

    return measurer.latents(latents, EVERY, temporal=within(spec.temporal, part), show=show)[0]


def to_bytes(table: Measured) -> bytes:
    """Measurements as a safetensors file."""
    captions = np.frombuffer(json.dumps(table.captions).encode(), dtype=np.uint8)
    arrays = {name: np.ascontiguousarray(column) for name, column in table.columns.items()}
    return bytes(save(arrays | {"captions": captions}))


def from_bytes(data: bytes) -> Measured:
    """The inverse of `to_bytes`; without seconds."""
    columns = dict(load(data))
    captions = json.loads(columns.pop("captions").tobytes())
    return Measured(tuple(captions), columns)
