"""The supervised stages: teacher on SHORT, sft on LONG, mixed on both. A step does backward and update;
it touches no files, no clock and no log."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from models.config import FlowConfig, LoraConfig, LossConfig, ModelConfig, SamplingConfig, TextConfig
from models.ddt import Student
from models.dit import DiT
from models.ema import Ema
from models.errors import TrainingDiverged
from models.flow import VelocityModel, shift_for, training_times
from models.init import initialize
from models.lora import add_adapters, start_adapters
from models.losses import Loss, flow_matching_loss
from models.rng import Key, normal
from models.text.conditioning import Conditioning, TextEncoder, drop_some, withhold_some
from models.text.kinds import text_kind
from models.weights import copy_into
from pipelines.checkpoints import NetworkSpec, Role, load_network
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import StageConfig
from pipelines.training.state import TrainState, adamw, learning_rate_factor

HELD_OUT_WINDOWS = 64
"""Most windows of the held-out part, over all workers."""


@dataclass(frozen=True)
class Recipe:
    """Everything a stage is made from, beside its data.

    Args:
        model, text, flow, loss, sampling: settings of the networks and losses.
        stage: settings of this stage.
        short_shape, long_shape: latents [T, C, h, w] of a window of each corpus, of its main bucket: what is
            sampled and held out has it, while a batch may have another.
        start: checkpoint folders by role: `teacher`, `student`, `critic`.
        seed: the run's seed.
        critic_only: distillation's warm-up, which leaves the student alone.
        lora: adapters of the student and the critic, where this stage trains by them.
        crop_safe: whether the latents of a window are the window of the latents (the autoencoder's).
    """

    model: ModelConfig
    text: TextConfig
    flow: FlowConfig
    loss: LossConfig
    sampling: SamplingConfig
    stage: StageConfig
    short_shape: tuple[int, int, int, int]
    long_shape: tuple[int, int, int, int]
    start: dict[str, str]
    seed: int
    critic_only: bool = False
    lora: LoraConfig = LoraConfig()
    crop_safe: bool = True


@dataclass(frozen=True)
class Batch:
    """This worker's share of a batch from one corpus.

    Args:
        latents: [b, T, C, h, w].
        captions: b captions.
        samples: their indices in the global batch.
    """

    latents: Tensor
    captions: Sequence[str]
    samples: Sequence[int]

    def parts(self, size: int) -> "Iterator[Batch]":
        """The same rows, at most `size` at a time."""
        for first in range(0, len(self.latents), size):
            rows = slice(first, first + size)
            yield Batch(self.latents[rows], self.captions[rows], self.samples[rows])


@dataclass(frozen=True)
class Batches:
    """SHORT and LONG stay apart: their ratio is exact in every step."""

    short: Batch | None = None
    long: Batch | None = None


@dataclass(frozen=True)
class StepResult:
    """Named numbers of one step, averaged over the workers."""

    metrics: dict[str, float]


class Captions:
    """Captions as training sees them: some words withheld, some captions dropped, all keyed.

    Args:
        config: what is withheld and dropped.
        encoder: None is the one without weights.
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
        """Conditioning for flow matching: words withheld and whole captions dropped."""
        given = withhold_some(captions, self.config, key, samples)
        return self.with_dropout(given, key, samples, device)

    def with_dropout(
        self, captions: Sequence[str], key: Key, samples: Sequence[int], device: torch.device
    ) -> Conditioning:
        """Conditioning of captions of which some are dropped."""
        return self.encode(drop_some(captions, self.config.dropout, key, samples), device)


class Stage(Protocol):
    """A stage of training."""

    spec: NetworkSpec
    captions: Captions

    def init(self, device: torch.device | str) -> TrainState:
        """The state before the first step."""
        ...

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """One backward and update; `state.step` is advanced."""
        ...


def apply_update(
    state: TrainState, role: str, config: StageConfig, learning_rate: float, workers: Workers
) -> Tensor:
    """Averages gradients over the workers, clips them, steps the optimiser; the gradient norm.

    Raises:
        TrainingDiverged: the norm is not finite; nothing has been changed.
    """
    module, optimizer = state.modules[role], state.optimizers[role]
    parameters = [p for p in module.parameters() if p.grad is not None]
    workers.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
    if not bool(torch.isfinite(norm)):
        raise diverged(f"the gradient of the {role}", state.step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def diverged(what: str, step: int) -> TrainingDiverged:
    """The error for a number that is not finite."""
    return TrainingDiverged(
        f"{what} is not finite at step {step}",
        "the last checkpoint stands: lower the learning rate or the loss weight, then run the command again",
    )


class SupervisedStage:
    """Flow matching of a plain stack on SHORT (teacher), or of the student's encoder and FM head.

    Args:
        recipe: what it is made from; without `start["teacher"]` a plain stack is trained from scratch.
        workers: this worker's place.
        encoder: of captions; None is the one without weights.
    """

    def __init__(self, recipe: Recipe, workers: Workers = ALONE, encoder: TextEncoder | None = None) -> None:
        self.recipe = recipe
        self.workers = workers
        self.captions = Captions(recipe.text, encoder)
        role: Role = "student" if recipe.start else "teacher"
        shape = recipe.long_shape if role == "student" else recipe.short_shape
        self.spec = NetworkSpec(role, recipe.model, recipe.text, shape[1], shape, recipe.lora)

    def init(self, device: torch.device | str) -> TrainState:
        """A fresh teacher, or a student that starts as the teacher or as an earlier student."""
        recipe, role = self.recipe, self.spec.role
        model = self.spec.build(device)
        if isinstance(model, DiT):
            initialize(model, Key(recipe.seed, purpose="init"))
        else:
            start_student(model, recipe.start)
            adapt(model, recipe, role)
            freeze_unused_head(model)
        optimizer = adamw(trained(model), recipe.stage)
        return TrainState({role: model}, {role: optimizer}, {role: Ema(model, recipe.stage.ema_decay)})

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """Equal weights for SHORT and LONG where both are there, eq. 14."""
        model = state.modules[self.spec.role]
        velocity = supervised_velocity(model)
        parts = [b for b in (batches.short, batches.long) if b is not None]
        names = [n for n, b in (("short", batches.short), ("long", batches.long)) if b is not None]
        losses = []
        for name, batch in zip(names, parts, strict=True):
            loss = supervised_loss(velocity, batch, self.recipe, self.captions, key.at(purpose=name)).value
            (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        total = torch.stack(losses).mean()
        rate = self.recipe.stage.learning_rate * learning_rate_factor(self.recipe.stage, state.step)
        norm = apply_update(state, self.spec.role, self.recipe.stage, rate, self.workers)
        state.averages[self.spec.role].update(model)
        state.step += 1
        values = self.workers.mean([total, norm, *losses]).tolist()
        labels = ["loss", "gradient_norm", *(f"flow_matching_{n}" for n in names)]
        return StepResult(dict(zip(labels, values, strict=True)) | {"learning_rate": rate})


def supervised_velocity(model: nn.Module) -> VelocityModel:
    """What supervised stages train: a student's FM head, or the plain stack itself."""
    return model.flow_matching if isinstance(model, Student) else model


def supervised_loss(
    velocity: VelocityModel, batch: Batch, recipe: Recipe, captions: Captions, key: Key
) -> Loss:
    """Flow matching on a batch, with keyed times, noise and caption dropout."""
    x0, samples = batch.latents, batch.samples
    amount = shift_for(recipe.flow, x0.shape[1])
    t = training_times(key.at(purpose="t"), samples, recipe.stage.t_mean, recipe.stage.t_std, amount)
    noise = normal(x0.shape[1:], key.at(purpose="noise"), samples, x0.device)
    conditioning = captions.supervised(batch.captions, key, samples, x0.device)
    return flow_matching_loss(velocity, x0, noise, t.to(x0.device), conditioning)


def start_student(student: Student, start: dict[str, str]) -> None:
    """An earlier student if there is one, else the teacher's blocks."""
    if "student" in start:
        earlier = load_network(start["student"]).model
        copy_into(student, earlier.state_dict(), start["student"])
        return
    teacher = load_network(start["teacher"]).model
    assert isinstance(teacher, DiT)
    student.start_from(teacher)


def freeze_unused_head(student: Student) -> None:
    """Supervised stages leave the DM head alone."""
    for name, head in student.heads.items():
        if name != "flow_matching":
            head.requires_grad_(False)


def adapt(model: DiT | Student, recipe: Recipe, role: str) -> None:
    """Puts the recipe's adapters on a network, which then computes what it did before; none at rank 0."""
    if recipe.lora.rank:
        add_adapters(model, recipe.lora)
        start_adapters(model, Key(recipe.seed, purpose=f"adapters/{role}"))


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser gets."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def held_out_loss(
    velocity: VelocityModel,
    batch: Batch,
    recipe: Recipe,
    captions: Captions,
    workers: Workers = ALONE,
    repeats: int = 4,
) -> float:
    """Flow-matching loss on windows that training never sees, with the same noise at every call.

    Args:
        velocity: what is judged.
        batch: this worker's windows, which may be none; no more of them are read at a time than in a step.
        recipe, captions: as in training.
        workers: over which the loss is averaged.
        repeats: how often each window is judged.
    """
    size = max(1, min(b for b in (recipe.stage.short_batch, recipe.stage.long_batch) if b) // workers.size)
    total = batch.latents.new_zeros(())
    with torch.no_grad():
        for i in range(repeats):
            key = Key(recipe.seed, i, purpose="held-out")
            for part in batch.parts(size):
                loss = supervised_loss(velocity, part, recipe, captions, key)
                total += loss.value * len(part.latents)
    count = batch.latents.new_tensor(repeats * len(batch.latents))
    mean_total, mean_count = workers.mean([total, count])
    return float(mean_total / mean_count)
