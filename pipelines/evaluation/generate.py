"""Videos of the systems, made and measured by a pool of Ray actors.

Work is cut into items of one system, draw and group of captions. An actor holds one network, samples an
item, measures it, writes the showcase videos and returns the measurements; no pixels travel. The noise of a
video is named by (seed, group, draw, index), so how work is cut and shared out changes nothing, and all
systems start from the same noise.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import TextConfig
from models.rng import Key
from models.text.conditioning import Conditioning, TextEncoder
from pipelines.checkpoints import Network, load_network
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.info import dataset_autoencoder
from pipelines.evaluation.measure import Columns, Measured, Measurer, join, within
from pipelines.evaluation.settings import EvaluationSettings, Group, Progress, System
from pipelines.generation import generate_latents
from pipelines.media.video import write_mp4
from pipelines.ray_map import Pool, ray_map_all
from pipelines.storage import Storage
from pipelines.world.measures import FactorReader

CLIPS = "clips"
"""Folder of the showcase videos, below the evaluation's."""


@dataclass(frozen=True)
class Item:
    """A batch of videos of one system: the unit of work of an actor."""

    system: System
    group: Group
    """Which captions: of LONG, of textures that LONG never shows, or with words withheld."""
    draw: int
    start: int
    """Index of the first video."""
    captions: tuple[str, ...]
    """One a video."""
    extractors: tuple[str, ...]
    """Window features of pixels that are wanted."""

    @property
    def samples(self) -> range:
        """Indices of the videos."""
        return range(self.start, self.start + len(self.captions))

    def __str__(self) -> str:
        return f"videos {self.start} to {self.samples.stop - 1} of {self.system.name}, {self.group} captions"


@dataclass(frozen=True)
class Clip:
    """The shape of the videos that are made, and of the windows they are judged by."""

    latents: tuple[int, int, int, int]
    """[T, C, h, w] of a LONG video."""
    frames: int
    """Frames of a LONG video."""
    fps: float
    """Frames a second."""
    window_latents: int
    """Latent frames of a SHORT window."""
    window_frames: int
    """Frames of a SHORT window."""

    @property
    def seconds(self) -> float:
        """Length of a LONG video."""
        return self.frames / self.fps

    def evaluations(self, system: System, guidance_scale: float) -> int:
        """Network evaluations a video."""
        return system.method.evaluations(self.latents[0], self.window_latents, guidance_scale)


def sample(
    network: Network, item: Item, clip: Clip, settings: EvaluationSettings, conditioning: Conditioning
) -> Tensor:
    """Latents [B, T, C, h, w] of an item's videos."""
    return generate_latents(
        network,
        item.system.method,
        clip.latents,
        conditioning,
        Key(settings.seed, purpose=f"evaluate/{item.group}/{item.draw}"),
        item.samples,
        sampling=settings.sampling,
        flow=settings.flow,
    )


class Generator:
    """What an actor keeps to sample and measure items.

    Args:
        clip: shape of the videos.
        settings: of the evaluation.
        out: folder below which the showcase is written.
    """

    def __init__(self, clip: Clip, settings: EvaluationSettings, out: str) -> None:
        self._clip, self._settings = clip, settings
        self._device = settings.start_worker()
        reader = None if settings.world is None else FactorReader(settings.world.size)
        windows = settings.evaluation.windows_per_video
        autoencoder = dataset_autoencoder(settings.dataset, self._device)
        self._measurer = Measurer(clip.window_frames, windows, clip.fps, reader, autoencoder)
        self._encoders: dict[TextConfig, TextEncoder] = {}
        self._out = Storage(out).child(CLIPS)
        self._loaded: tuple[str, Network] | None = None

    def __call__(self, item: Item) -> Columns:
        """One row per video."""
        latents, seconds = self._sample(item)
        settings = self._settings.evaluation
        headline = item.group == "seen" and item.draw == 0
        columns, decoding = self._measurer.latents(
            latents.cpu(),
            item.extractors,
            temporal=within(settings.temporal_videos, item.samples) if headline else 0,
            show=(lambda place, frames: self._show(item, place, frames)) if headline else None,
        )
        rows = len(latents)
        columns["sampling"], columns["decoding"] = np.full(rows, seconds / rows), np.full(rows, decoding)
        return columns

    def _network(self, checkpoint: str) -> Network:
        """The network that was used last is held, and no other: items of one follow each other."""
        if self._loaded is None or self._loaded[0] != checkpoint:
            self._loaded = None
            self._loaded = checkpoint, load_network(checkpoint, self._device)
        return self._loaded[1]

    def _encoder(self, text: TextConfig) -> TextEncoder:
        if text not in self._encoders:
            self._encoders[text] = text_encoder(text, self._settings.dataset)
        return self._encoders[text]

    def _sample(self, item: Item) -> tuple[Tensor, float]:
        """Latents, and the seconds they took: of the processor, or of the clock where a GPU does the work."""
        network = self._network(item.system.checkpoint)
        conditioning = self._encoder(network.spec.text).encode(item.captions)
        clock = time.perf_counter if self._settings.use_gpu else time.process_time
        start = clock()
        latents = sample(network, item, self._clip, self._settings, conditioning)
        if self._settings.use_gpu:
            torch.cuda.synchronize()
        return latents, clock() - start

    def _show(self, item: Item, place: int, frames: Tensor) -> None:
        index = item.start + place
        if index < self._settings.evaluation.showcase:
            put_clip(self._out, clip_name(item.system.name, index), frames.numpy(), self._clip.fps)


@lru_cache(maxsize=1)
def _kept_generator(clip: Clip, settings: EvaluationSettings, out: str) -> Generator:
    """This actor's."""
    return Generator(clip, settings, out)


def _generate(clip: Clip, settings: EvaluationSettings, out: str, item: Item) -> Columns:
    return _kept_generator(clip, settings, out)(item)


def clip_name(system: str, index: int) -> str:
    """Path of a showcase video below the folder of clips."""
    return f"{system}/{index:03d}.mp4"


def put_clip(storage: Storage, name: str, frames: np.ndarray[Any, Any], fps: float) -> None:
    """Writes frames uint8 [F, H, W, 3] as MP4 to local or remote storage."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "clip.mp4"
        write_mp4(str(local), frames, fps)
        storage.write_bytes(name, local.read_bytes())


def generate(
    items: Sequence[Item], clip: Clip, settings: EvaluationSettings, out: str, progress: Progress
) -> dict[tuple[str, Group, int], Measured]:
    """Makes and measures all items; the result is keyed by (system, group, draw), videos by index.

    The longest items go first, so that the actors finish together.
    """
    scale = settings.sampling.guidance_scale
    order = sorted(items, key=lambda item: -clip.evaluations(item.system, scale))
    wanted = settings.evaluation
    captions = {caption for item in items for caption in item.captions}
    embed_captions(settings.text, settings.dataset, captions, pool=Pool(1, 1, settings.use_gpu))
    done = ray_map_all(
        partial(_generate, clip, settings, out),
        order,
        Pool(wanted.min_actors, wanted.max_actors, settings.use_gpu),
        lambda finished: progress("videos", finished, len(order)),
    )
    return _assemble(order, done)


def _assemble(order: Sequence[Item], done: Sequence[Columns]) -> dict[tuple[str, Group, int], Measured]:
    groups: dict[tuple[str, Group, int], list[int]] = {}
    for number in sorted(range(len(order)), key=lambda n: order[n].start):
        item = order[number]
        groups.setdefault((item.system.name, item.group, item.draw), []).append(number)
    return {
        key: join([order[n].captions for n in numbers], [done[n] for n in numbers])
        for key, numbers in groups.items()
    }
