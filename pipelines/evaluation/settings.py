"""What an evaluation compares: the systems, the shape of their videos, and where everything is."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from models.config import SamplingConfig, TextConfig
from models.device import compute_device
from models.errors import ConfigError
from models.windows import even_spans
from pipelines.data.store.info import read_info
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.features.i3d import I3DFeatures, WindowRule, identity
from pipelines.evaluation.features.i3d_file import load_weights
from pipelines.generation import Head, Method, Sampler
from pipelines.world.config import WorldConfig

Group = Literal["seen", "unseen", "withheld"]
"""Captions of LONG, of textures that LONG never shows, or with the withheld words left out."""


@dataclass(frozen=True)
class System:
    """One way of making long videos."""

    name: str
    """Row of the table and key of summary.json, such as `mmm_4`."""
    checkpoint: str
    """Folder of the network."""
    head: Head
    """Which velocity of the network is sampled; `teacher` is a plain stack."""
    sampler: Sampler
    """`few_step`: stochastic; `ode`: Euler; `windows`: a short model rolled out window by window."""
    nfe: int
    """Steps of the sampler; for `windows`, steps per window. With guidance each is two evaluations."""
    draws: int = 1
    """Independent sets of videos whose distances are averaged."""

    @property
    def method(self) -> Method:
        """How the network is sampled."""
        return Method(self.head, self.sampler, self.nfe)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Everything but the systems."""

    evaluation: EvaluationConfig
    """How many videos, draws and actors."""
    sampling: SamplingConfig
    """Guidance of the samplers of many steps; few-step times and the shift are the network's own."""
    world: WorldConfig | None
    """The built-in world that the corpora come from; None for a user's clips."""
    dataset: str
    """Folder that ingest wrote."""
    references: str
    """Folder that keeps the measured references, shared by the seeds of a run; any fsspec URI."""
    seed: int
    """Seed of the noise."""
    text: TextConfig = TextConfig()
    """How captions are encoded; those without `withheld_words` are evaluated too."""
    use_gpu: bool = False
    """One GPU per worker."""

    def start_worker(self) -> torch.device:
        """Where this worker computes; on the CPU with one thread.

        Raises:
            ConfigError: a GPU is wanted and torch sees none.
        """
        if not self.use_gpu:
            torch.set_num_threads(1)
        return compute_device(self.use_gpu)


@dataclass(frozen=True)
class LogitPlan:
    """What I3D sees of a set of videos."""

    videos: int
    """The first so many."""
    rule: WindowRule
    """Their windows."""
    identity: str
    """Of the logits."""
    file: str | None
    """Weights; None is the user's cache folder."""

    @classmethod
    def of(cls, evaluation: EvaluationConfig, frames: int, *, use_gpu: bool = False) -> "LogitPlan | None":
        """For videos of so many frames; None where FVD is not wanted."""
        if not evaluation.fvd:
            return None
        rule = WindowRule.of(frames, evaluation.windows_per_video)
        kind = "cuda" if use_gpu else "cpu"
        return cls(evaluation.fvd_videos, rule, identity(kind), evaluation.i3d)


@lru_cache(maxsize=1)
def i3d_features(plan: LogitPlan, device: torch.device) -> I3DFeatures:
    """The network on a device, kept in this process.

    Raises:
        CheckpointError: its weights are not there.
    """
    return I3DFeatures(load_weights(plan.file), plan.rule, device)


@dataclass(frozen=True)
class VideoShape:
    """The shape of a dataset's LONG videos, which the systems make, and of the windows they are judged by."""

    latents: tuple[int, int, int, int]
    """[T, C, h, w] of a LONG video."""
    frames: int
    """Frames of a LONG video."""
    fps: float
    """Frames per second."""
    window_latents: int
    """Latent frames of a SHORT window."""
    window_frames: int
    """Frames of a SHORT window."""

    @property
    def seconds(self) -> float:
        """Length of a LONG video."""
        return self.frames / self.fps

    def evaluations(self, system: System, guidance_scale: float) -> int:
        """Network evaluations per video."""
        return system.method.evaluations(self.latents[0], self.window_latents, guidance_scale)


def video_shape(settings: EvaluationSettings) -> VideoShape:
    """The shape of the videos of the settings' dataset.

    Raises:
        ConfigError: a LONG video holds no window.
    """
    info = read_info(settings.dataset)
    short, long = info.short, info.long
    try:
        even_spans(long.window_frames, short.window_frames, settings.evaluation.windows_per_video)
    except ValueError as error:
        raise ConfigError(
            f"LONG videos of {long.window_frames} frames hold no SHORT window of {short.window_frames}",
            "Make data.short_frames smaller than data.long_frames, and ingest again",
        ) from error
    return VideoShape(
        long.latent_shape, long.window_frames, long.fps, short.latent_shape[0], short.window_frames
    )
