"""Videos of the systems, made and measured by a pool of Ray actors.

Work is cut into batches of one system, draw and group of captions. An actor holds one network, samples a
batch, measures it, writes the showcase videos, and keeps (kept.py) and returns the measurements; no pixels
travel. The noise of a video is named by (seed, group, draw, index), so how work is cut and dealt out changes
nothing, and all systems start from the same noise.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from safetensors.numpy import load, save
from torch import Tensor

from models.config import TextConfig
from models.rng import Key
from models.text.conditioning import TextEncoder
from pipelines.checkpoints import Network, load_network
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.info import dataset_autoencoder
from pipelines.evaluation.features.extractors import EXTRACTORS
from pipelines.evaluation.kept import once
from pipelines.evaluation.measure import (
    Columns,
    Measurements,
    Measurer,
    SystemMeasurements,
    among_first,
    cut,
)
from pipelines.evaluation.settings import (
    EvaluationSettings,
    Group,
    LogitPlan,
    System,
    VideoShape,
    i3d_features,
)
from pipelines.evaluation.subject import ground_of
from pipelines.generation import generate_latents
from pipelines.media.color import Frames
from pipelines.media.video import store_mp4
from pipelines.ray_map import Pool, ray_map_all
from pipelines.storage import Storage, hash_of
from pipelines.tracking import Progress

CLIPS = "clips"
"""Folder of the showcase videos, below the evaluation's."""


@dataclass(frozen=True)
class VideoBatch:
    """Videos of one system that an actor makes at once."""

    system: System
    group: Group
    draw: int
    start: int
    """Index of the first video."""
    captions: tuple[str, ...]
    """One per video."""
    decides: str = ""
    """Hash of all else that its measurements depend on: network, settings, what is measured."""

    @property
    def kept(self) -> str:
        """Name of the file that keeps its measurements."""
        parts = [self.decides, self.group, self.draw, self.start, self.captions]
        return f"{self.system.name}-{hash_of(parts)[:32]}.safetensors"

    @property
    def indices(self) -> range:
        """Indices of the videos."""
        return range(self.start, self.start + len(self.captions))

    def __str__(self) -> str:
        return f"videos {self.start} to {self.indices.stop - 1} of {self.system.name}, {self.group} captions"


def generate(
    systems: Mapping[System, str],
    captions: Mapping[Group, Sequence[str]],
    shape: VideoShape,
    settings: EvaluationSettings,
    out: str,
    progress: Progress,
) -> dict[str, SystemMeasurements]:
    """Makes and measures all videos of all systems; by name of the system.

    Writes the showcase below `out`. Batches whose measurements are kept there are not made again. The slowest
    go first, so that the actors finish together.

    Args:
        systems: what to sample, each with a hash of all that decides its measurements beside the captions.
        captions: of the videos, by group.
        shape: of the videos.
        settings: of the evaluation.
        out: folder of the evaluation.
        progress: shows what is done.
    """
    wanted, scale = settings.evaluation, settings.sampling.guidance_scale
    batches = [
        VideoBatch(system, group, draw, part.start, tuple(texts[part.start : part.stop]), systems[system])
        for system in sorted(systems, key=lambda system: -shape.evaluations(system, scale))
        for group, texts in captions.items()
        for draw in range(1 if group == "withheld" else system.draws)
        for part in cut(len(texts), wanted.batch_size)
    ]
    every_caption = {caption for texts in captions.values() for caption in texts}
    embed_captions(settings.text, settings.dataset, every_caption, pool=Pool(1, 1, settings.use_gpu))
    done = ray_map_all(
        partial(_generate, shape, settings, out),
        batches,
        Pool(wanted.min_actors, wanted.max_actors, settings.use_gpu),
        lambda finished: progress("videos", finished, len(batches)),
    )
    parts: dict[tuple[str, Group, int], list[Columns]] = {}
    for batch, columns in zip(batches, done, strict=True):
        parts.setdefault((batch.system.name, batch.group, batch.draw), []).append(columns)
    sets = {key: Measurements.join(captions[key[1]], columns) for key, columns in parts.items()}
    return {
        system.name: SystemMeasurements(
            seen=[sets[system.name, "seen", draw] for draw in range(system.draws)],
            unseen=[
                sets[system.name, "unseen", draw] for draw in range(system.draws) if "unseen" in captions
            ],
            withheld=sets.get((system.name, "withheld", 0)),
            nfe=shape.evaluations(system, scale),
            clip_seconds=shape.seconds,
        )
        for system in systems
    }


def _generate(shape: VideoShape, settings: EvaluationSettings, out: str, batch: VideoBatch) -> Columns:
    def make() -> bytes:
        columns = _generator(shape, settings, out)(batch)
        return bytes(save({name: np.ascontiguousarray(column) for name, column in columns.items()}))

    return dict(load(once(out, batch.kept, make)))


@lru_cache(maxsize=1)
def _generator(shape: VideoShape, settings: EvaluationSettings, out: str) -> "Generator":
    """This actor's."""
    return Generator(shape, settings, out)


class Generator:
    """What an actor keeps to sample and measure batches.

    Args:
        shape: of the videos.
        settings: of the evaluation.
        out: folder below which the showcase is written.
    """

    def __init__(self, shape: VideoShape, settings: EvaluationSettings, out: str) -> None:
        self._shape, self._settings, self._out = shape, settings, out
        self._device = settings.start_worker()
        windows = settings.evaluation.windows_per_video
        autoencoder = dataset_autoencoder(settings.dataset, self._device)
        ground = ground_of(settings.dataset, autoencoder) if settings.evaluation.subject else None
        plan = LogitPlan.of(settings.evaluation, shape.frames, use_gpu=settings.use_gpu)
        self._logit_videos = plan.videos if plan else 0
        self._measurer = Measurer(
            shape.window_frames,
            windows,
            shape.fps,
            settings.world,
            autoencoder,
            ground,
            i3d_features(plan, self._device) if plan else None,
        )
        self._encoders: dict[TextConfig, TextEncoder] = {}
        self._loaded: tuple[str, Network] | None = None

    def __call__(self, batch: VideoBatch) -> Columns:
        """One row per video.

        Pixels are judged on captions of LONG: in the first draw by all extractors, and by I3D where it is
        wanted; then by the headline's.
        """
        latents, sampling_seconds = self._sample(batch)
        extractors: tuple[str, ...] = ()
        temporal = showcase = logits = 0
        if batch.group == "seen":
            extractors = tuple(EXTRACTORS)[: None if batch.draw == 0 else 1]
            if batch.draw == 0:
                temporal = among_first(self._settings.evaluation.temporal_videos, batch.indices)
                showcase = among_first(self._settings.evaluation.showcase, batch.indices)
                logits = among_first(self._logit_videos, batch.indices)
        measured = self._measurer.measure(
            latents.cpu(), extractors, temporal=temporal, keep=showcase, logits=logits
        )
        for index, frames in enumerate(measured.frames, batch.start):
            write_clip(self._out, batch.system.name, index, frames.numpy(), self._shape.fps)
        rows = len(latents)
        return measured.columns | {
            "sampling": np.full(rows, sampling_seconds / rows),
            "decoding": np.full(rows, measured.decode_seconds),
        }

    def _sample(self, batch: VideoBatch) -> tuple[Tensor, float]:
        """Latents, and the seconds they took: of the processor, or of the clock where a GPU does the work."""
        settings, checkpoint = self._settings, batch.system.checkpoint
        if self._loaded is None or self._loaded[0] != checkpoint:
            self._loaded = None  # one network in memory at a time: batches of one follow each other
            self._loaded = checkpoint, load_network(checkpoint, self._device)
        network = self._loaded[1]
        if network.spec.text not in self._encoders:
            self._encoders[network.spec.text] = text_encoder(network.spec.text, settings.dataset)
        conditioning = self._encoders[network.spec.text].encode(batch.captions)
        clock = time.perf_counter if settings.use_gpu else time.process_time
        start = clock()
        latents = generate_latents(
            network,
            batch.system.method,
            self._shape.latents,
            conditioning,
            Key(settings.seed, purpose=f"evaluate/{batch.group}/{batch.draw}"),
            batch.indices,
            sampling=dataclasses.replace(settings.sampling, steps=network.spec.sampling.steps),
            flow=network.spec.flow,
        )
        if settings.use_gpu:
            torch.cuda.synchronize()
        return latents, clock() - start


def clip_path(folder: str, system: str, index: int) -> str:
    """Where a showcase video lies below the folder of an evaluation or of the references."""
    return f"{Storage(folder)}/{CLIPS}/{system}/{index:03d}.mp4"


def write_clip(folder: str, system: str, index: int, frames: Frames, fps: float) -> None:
    """Write frames uint8 [F, H, W, 3] as a showcase video."""
    store_mp4(Storage(folder), f"{CLIPS}/{system}/{index:03d}.mp4", frames, fps)
