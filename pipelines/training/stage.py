"""What every stage of training shares: its protocol, its batches and captions, its optimiser's update.

A new stage is a file beside supervised.py and distill.py, a line in `loop.make_stage`, and its start in
`recipes.stage_starts`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.config import TextConfig
from models.ddt import Student
from models.dit import DiT
from models.errors import TrainingDiverged
from models.lora import add_adapters, start_adapters
from models.rng import Key
from models.text.conditioning import Conditioning, TextEncoder, drop_some, withhold_some
from models.text.kinds import text_kind
from models.weights import copy_into
from pipelines.checkpoints import NetworkSpec, load_network
from pipelines.training.collectives import Workers
from pipelines.training.config import StageConfig
from pipelines.training.monitors.phases import Phases
from pipelines.training.recipes import Recipe
from pipelines.training.sharding import whole
from pipelines.training.state import TrainState


@dataclass(frozen=True)
class Batch:
    """This worker's share of a batch from one corpus.

    Args:
        latents: [b, T, C, h, w].
        captions: b captions.
        samples: their indices in the global batch.
        total: rows of the global batch.
    """

    latents: Tensor
    captions: Sequence[str]
    samples: Sequence[int]
    total: int

    def parts(self, size: int | None) -> "Iterator[Batch]":
        """The same rows, at most `size` at a time."""
        for rows in parts(range(len(self.latents)), size):
            own = slice(rows.start, rows.stop)
            yield Batch(self.latents[own], self.captions[own], self.samples[own], self.total)


def parts(rows: range, size: int | None) -> Iterator[range]:
    """Rows in order, at most `size` at a time; None is all at once."""
    for first in range(0, len(rows), size or max(1, len(rows))):
        yield rows[first : first + (size or len(rows))]


@dataclass(frozen=True)
class Batches:
    """SHORT and LONG stay apart: their ratio is exact in every step."""

    short: Batch | None = None
    long: Batch | None = None


@dataclass(frozen=True)
class StepResult:
    """Named numbers of one step, of the whole global batch."""

    metrics: dict[str, float]


class Captions:
    """Captions as training sees them: some words withheld, some captions dropped, all keyed.

    Args:
        config: what is withheld and dropped.
        encoder: None takes the one without weights.
    """

    def __init__(self, config: TextConfig, encoder: TextEncoder | None = None) -> None:
        self.config = config
        self.encoder = encoder or text_kind(config).encoder()

    def encode(self, captions: Sequence[str], device: torch.device) -> Conditioning:
        """Conditioning of captions as they are."""
        return self.encoder.encode(captions).to(device)

    def supervised(
        self, captions: Sequence[str], key: Key, samples: Sequence[int], device: torch.device
    ) -> Conditioning:
        """Conditioning for flow matching: words withheld, then whole captions dropped."""
        given = withhold_some(captions, self.config, key, samples)
        return self.with_dropout(given, key, samples, device)

    def with_dropout(
        self, captions: Sequence[str], key: Key, samples: Sequence[int], device: torch.device
    ) -> Conditioning:
        """Conditioning of captions of which some are dropped."""
        return self.encode(drop_some(captions, self.config.dropout, key, samples), device)


class Stage(Protocol):
    """A stage of training: no files, no clock and no log; the loop owns those."""

    spec: NetworkSpec
    """The network that is sampled."""
    captions: Captions
    phases: Phases
    """Told where each part of a step begins."""

    def init(self, device: torch.device | str) -> TrainState:
        """The state before the first step."""
        ...

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """Backward passes and updates of one step; `state.step` is advanced."""
        ...


def start_student(student: Student, start: dict[str, str]) -> None:
    """Loads an earlier student if `start` has one, else the teacher's blocks."""
    role = "student" if "student" in start else "teacher"
    earlier = load_network(start[role]).model
    if isinstance(earlier, DiT):
        student.start_from(earlier)
    else:
        copy_into(student, earlier.state_dict(), start[role])


def adapt(model: DiT | Student, recipe: Recipe, role: str) -> None:
    """Puts the recipe's adapters, if any, on a network, which then computes what it did before."""
    if recipe.lora.rank:
        add_adapters(model, recipe.lora)
        start_adapters(model, Key(recipe.seed, purpose=f"adapters/{role}"))


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser updates."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adamw(
    parameters: Iterable[nn.Parameter], config: StageConfig, learning_rate: float | None = None
) -> torch.optim.AdamW:
    """AdamW with the stage's settings, fused on every device."""
    rate = config.learning_rate if learning_rate is None else learning_rate
    betas = (float(config.beta1), float(config.beta2))
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, weight_decay=config.weight_decay, fused=True)


def rate_share(config: StageConfig, step: int) -> float:
    """Share of its peak that every learning rate of a stage has at a step: it rises linearly over the
    warm-up, and then stays or falls by a half cosine to 0 at `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = float(torch.cos(torch.tensor(torch.pi * done, dtype=torch.float64)))
    return 0.5 * (1.0 + cosine)


def apply_update(state: TrainState, role: str, config: StageConfig, rate: float, workers: Workers) -> Tensor:
    """Adds up the workers' gradients, clips them, steps the optimiser; the gradient norm.

    Raises:
        TrainingDiverged: the norm is not finite; nothing has been changed.
    """
    module, optimizer = state.modules[role], state.optimizers[role]
    parameters = [p for p in module.parameters() if p.grad is not None]
    workers.sum_gradients(parameters)
    norm = whole(nn.utils.clip_grad_norm_(parameters, config.clip_norm))
    if not bool(torch.isfinite(norm)):
        raise diverged(f"the gradient of the {role}", state.step, role)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def diverged(what: str, step: int, role: str = "student") -> TrainingDiverged:
    """The error for a number that is not finite, of a role's training."""
    error = TrainingDiverged(
        f"{what} is not finite at step {step}",
        "The last checkpoint stands: lower the learning rate or the loss weight, or leave this step out",
    )
    error.rate = "critic_learning_rate" if role in ("critic", "adversary") else "learning_rate"
    return error
