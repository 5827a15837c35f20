"""What an evaluation is told: the systems to compare, the settings, and where things are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from models.config import FlowConfig, SamplingConfig, TextConfig
from models.device import compute_device
from pipelines.evaluation.config import EvaluationConfig
from pipelines.generation import Head, Method, Sampler
from pipelines.world.config import WorldConfig

Group = Literal["seen", "unseen", "withheld"]
Progress = Callable[[str, int, int], None]
"""Called with the name of a phase, what is done of it, and its whole."""


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
    """`few_step`: stochastic; `ode`: Euler; `windows`: a short model rolled out window after window."""
    nfe: int
    """Steps of the sampler; for `windows`, steps a window. With guidance each is two evaluations."""
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
    """Times of the few-step sampler and guidance of the others."""
    flow: FlowConfig
    """The timestep shift."""
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
    """One GPU a worker."""

    def start_worker(self) -> torch.device:
        """Where this worker computes; on the CPU with one thread.

        Raises:
            ConfigError: a GPU is wanted and torch sees none.
        """
        if not self.use_gpu:
            torch.set_num_threads(1)
        return compute_device(self.use_gpu)
