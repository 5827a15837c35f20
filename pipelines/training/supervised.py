"""The supervised stages, by flow matching: teacher on SHORT, sft on LONG, mixed on both."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.ddt import Student
from models.dit import DiT, initialize
from models.flow import VelocityModel, logit_normal_times, over_frames, shift_for, uniform_times
from models.losses import flow_matching_squares, thirds
from models.rng import Key, normal, uniform
from models.text.conditioning import TextEncoder
from models.weights import Ema
from pipelines.checkpoints import Role
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.monitors.phases import Phases
from pipelines.training.recipes import Recipe
from pipelines.training.stage import (
    Batch,
    Batches,
    Captions,
    StepResult,
    adamw,
    adapt,
    apply_update,
    rate_share,
    start_student,
    trained,
)
from pipelines.training.state import TrainState


class SupervisedStage:
    """Flow matching of a plain stack on SHORT (teacher), or of the student's encoder and FM head.

    Args:
        recipe: what it is made from; without `start` a plain stack is trained from scratch.
        workers: this worker's place.
        encoder: of captions; None takes the one without weights.
    """

    def __init__(self, recipe: Recipe, workers: Workers = ALONE, encoder: TextEncoder | None = None) -> None:
        self.recipe, self.workers = recipe, workers
        self.captions = Captions(recipe.text, encoder)
        self.phases = Phases()
        role: Role = "student" if recipe.start else "teacher"
        self.spec = recipe.network(role)

    def init(self, device: torch.device | str) -> TrainState:
        """A fresh teacher, or a student that starts as the teacher or as an earlier student."""
        recipe, role = self.recipe, self.spec.role
        model = self.spec.build(self.workers.building(device))
        if isinstance(model, DiT):
            initialize(model, Key(recipe.seed, purpose="init"))
        else:
            start_student(model, recipe.start)
            adapt(model, recipe, role)
            freeze_unused_head(model)
            self.workers.sharing_frames(model)
        self.workers.sharding(model)
        optimizer = adamw(trained(model), recipe.stage)
        return TrainState({role: model}, {role: optimizer}, {role: Ema(model, recipe.stage.ema_decay)})

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """Mean seeking, eq. 14: the mean of the corpora's losses, whatever their batch sizes."""
        role, config = self.spec.role, self.recipe.stage
        model = state.modules[role]
        corpora = {"short": batches.short, "long": batches.long}
        given = {name: batch for name, batch in corpora.items() if batch is not None}
        velocity = supervised_velocity(model)
        self.phases.begin("fm")
        prefixes = {"short": 0.0, "long": config.prefix_share}
        found = {
            name: seek_mean(
                velocity,
                batch,
                self.recipe,
                self.captions,
                key.at(purpose=name),
                1 / len(given),
                prefixes[name],
            )
            for name, batch in given.items()
        }
        self.phases.begin("optimiser")
        rate = config.learning_rate * rate_share(config, state.step)
        norm = apply_update(state, role, config, rate, self.workers)
        state.averages[role].update(model)
        state.step += 1
        told = {"loss": torch.stack([value for value, _ in found.values()]).mean()}
        told |= {f"flow_matching_{name}": value for name, (value, _) in found.items()}
        if "long" in found:
            told |= {f"flow_matching_long_{place}": value for place, value in found["long"][1].items()}
        values = self.workers.sum(list(told.values())).tolist()
        own = {"gradient_norm": float(norm), "learning_rate": rate}
        return StepResult(dict(zip(told, values, strict=True)) | own)


def supervised_velocity(model: nn.Module) -> VelocityModel:
    """What supervised stages train: a student's FM head, or the plain stack itself."""
    return model.flow_matching if isinstance(model, Student) else model


def seek_mean(
    velocity: VelocityModel,
    batch: Batch,
    recipe: Recipe,
    captions: Captions,
    key: Key,
    weight: float,
    prefixes: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Backward passes of `weight` L_FM, a micro batch at a time; this worker's part of L_FM, detached, and of
    L_FM by thirds of the clips. A share `prefixes` of the clips begins with clean frames."""
    value, places = batch.latents.new_zeros(()), dict[str, Tensor]()
    for part in batch.parts(recipe.stage.micro_batch):
        squares, share = (
            supervised_squares(velocity, part, recipe, captions, key, prefixes),
            len(part.latents) / batch.total,
        )
        loss = squares.flatten(1).mean(dim=1).mean() * share
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        value += loss.detach()
        for place, own in thirds(squares.detach()).items():
            places[place] = places.get(place, 0) + share * own
    return value, places


def supervised_squares(
    velocity: VelocityModel,
    batch: Batch,
    recipe: Recipe,
    captions: Captions,
    key: Key,
    prefixes: float = 0.0,
) -> Tensor:
    """Squares [b, T, C, h, w] whose mean is L_FM, eq. 14, on a batch, with keyed times, noise and caption
    dropout.

    Of a share `prefixes` of the clips the first frames are at time 0 and count in no loss: every clip has the
    mean over its other frames.
    """
    x0, samples, stage = batch.latents, batch.samples, recipe.stage
    at, amount = key.at(purpose="t"), shift_for(recipe.flow, x0.shape[1])
    if stage.t_distribution == "uniform":
        t = uniform_times(at, samples, amount)
    else:
        t = logit_normal_times(at, samples, stage.t_mean, stage.t_std, amount)
    noise = normal(x0.shape[1:], key.at(purpose="noise"), samples, x0.device)
    conditioning = captions.supervised(batch.captions, key, samples, x0.device)
    if not prefixes:
        return flow_matching_squares(velocity, x0, noise, t.to(x0.device), conditioning)
    made = frames_after_prefix(key, samples, prefixes, x0.shape[1])
    squares = flow_matching_squares(velocity, x0, noise, (t[:, None] * made).to(x0.device), conditioning)
    return squares * over_frames(made / made.mean(dim=1, keepdim=True), squares)


def frames_after_prefix(key: Key, samples: Sequence[int], share: float, frames: int) -> Tensor:
    """Which frames of each clip come after a clean prefix, float [b, frames] of 0 and 1: in a `share` of the
    clips 0 ... half of them are its prefix, each number as likely."""
    known = (uniform(key.at(purpose="prefix"), samples) * (frames // 2 + 1)).long()
    known[uniform(key.at(purpose="prefixed"), samples) >= share] = 0
    return (torch.arange(frames) >= known[:, None]).float()


def freeze_unused_head(student: Student) -> None:
    """Supervised stages leave the DM head alone."""
    for name, head in student.heads.items():
        if name != "flow_matching":
            head.requires_grad_(False)


def held_out_loss(
    velocity: VelocityModel,
    batch: Batch,
    recipe: Recipe,
    captions: Captions,
    workers: Workers = ALONE,
    repeats: int = 2,
) -> float:
    """Flow-matching loss on windows that training never sees, with the same noise at every call.

    Args:
        velocity: what is judged.
        batch: this worker's windows, which may be none; those that are numbered beyond the whole batch come
            last and do not count. No more of them go through at once than in a step.
        recipe, captions: as in training.
        workers: who have the other windows.
        repeats: how often each window is judged.
    """
    total = batch.latents.new_zeros(())
    with torch.no_grad():
        for i in range(repeats):
            key = Key(recipe.seed, i, purpose="held-out")
            for part in batch.parts(recipe.stage.at_once(workers.size)):
                counting = sum(sample < batch.total for sample in part.samples)
                squares = supervised_squares(velocity, part, recipe, captions, key)
                if counting:
                    mean = squares[:counting].flatten(1).mean(dim=1).mean()
                    total += mean * (counting / (repeats * batch.total))
    return float(workers.sum([total])[0])
