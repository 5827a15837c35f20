"""Mode seeking meets mean seeking: the warm-up of the critic, and the joint stage (arXiv 2602.24289)."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.ema import Ema
from models.flow import VelocityModel, shift, shift_for
from models.losses import Loss, Scorers, anchor_loss, flow_matching_loss, reverse_kl_loss, x0_prediction
from models.rng import Key, normal, uniform
from models.sampling import noisy_input
from models.text.conditioning import Conditioning, TextEncoder, withhold_some
from models.weights import copy_into
from models.windows import Span, spans
from pipelines.checkpoints import NetworkSpec, critic_weights, load_network
from pipelines.generation import few_step_times
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import DistillConfig
from pipelines.training.state import Rollout, TrainState, adamw, learning_rate_factor
from pipelines.training.supervised import (
    Batches,
    Captions,
    Recipe,
    StepResult,
    adapt,
    apply_update,
    diverged,
    start_student,
    supervised_loss,
    trained,
)


@dataclass(frozen=True)
class Simulated:
    """A batch of backward simulation, stopped where its gradient begins.

    Args:
        x_t: input of the step that carries the gradient [b, T, C, h, w].
        t: its time [b].
        exit: its number.
        steps: of the whole sampler.
        conditioning, samples: this worker's share.
        captions: those of the global batch.
    """

    x_t: Tensor
    t: Tensor
    exit: int
    steps: int
    conditioning: Conditioning
    captions: list[str]
    samples: range


class DistillStage:
    """The joint stage; with `critic_only`, the warm-up that precedes it.

    Args:
        recipe: `start` names the long-SFT student, the teacher and, after a warm-up, the critic.
        caption_pool: captions of each corpus, by name, that rollouts may use.
        workers: this worker's place.
        critic_only: leave the student alone.
        encoder: of captions; None is the one without weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        caption_pool: dict[str, list[str]],
        workers: Workers = ALONE,
        critic_only: bool = False,
        encoder: TextEncoder | None = None,
    ) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.workers = recipe, recipe.stage, workers
        self.captions = Captions(recipe.text, encoder)
        self.caption_pool = caption_pool
        self.critic_only = critic_only
        shape = recipe.long_shape
        self.spec = NetworkSpec(
            "student", recipe.model, recipe.text, shape[1], shape, recipe.lora, distilled=not critic_only
        )
        self.teacher: DiT
        self.reference: VelocityModel | None = None
        """The frozen long-SFT network, where there is an anchor."""

    def init(self, device: torch.device | str) -> TrainState:
        """DM head <- FM head, critic <- teacher, and the frozen teacher and long-SFT network."""
        start = self.recipe.start
        teacher = load_network(start["teacher"], device).model
        assert isinstance(teacher, DiT)
        self.teacher = teacher
        student = self.spec.build(device)
        assert isinstance(student, Student)
        start_student(student, start)
        student.copy_flow_matching_head()
        if not self.critic_only and self.recipe.loss.anchor_weight:
            self.reference = _frozen_flow_matching(student)
        critic = copy.deepcopy(teacher).train().requires_grad_(True)
        if "critic" in start:
            copy_into(critic, critic_weights(start["critic"]), start["critic"])
        adapt(student, self.recipe, "student")
        adapt(critic, self.recipe, "critic")
        if self.critic_only:
            student.requires_grad_(False)
        modules = {"student": student, "critic": critic}
        rates = {"student": self.config.learning_rate, "critic": self.config.critic_learning_rate}
        optimizers = {
            role: adamw(own, self.config, rates[role]) for role, m in modules.items() if (own := trained(m))
        }
        return TrainState(modules, optimizers, {"student": Ema(student, self.config.ema_decay)})

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """Flow matching + reverse KL + anchor in one update, then the critic on the rollout pool."""
        simulated = self._simulate(state, self._rollout_shape(batches), key.at(purpose="rollout"))
        values: dict[str, Tensor] = {}
        if self.critic_only:
            video = self._finish(state, simulated).detach()
        else:
            values, video = self._student_step(state, batches, simulated, key)
        self._remember(state, video, simulated)
        for update in range(self.config.critic_updates):
            loss = self._critic_step(state, key.at(purpose=f"critic-{update}"))
            values["critic_loss"] = loss
        state.step += 1
        means = self.workers.mean(list(values.values())).tolist()
        return StepResult(dict(zip(values, means, strict=True)) | {"exit_step": float(simulated.exit)})

    def _student_step(
        self, state: TrainState, batches: Batches, simulated: Simulated, key: Key
    ) -> tuple[dict[str, Tensor], Tensor]:
        student = _student(state)
        assert batches.long is not None
        weights = self.recipe.loss
        fm = supervised_loss(
            student.flow_matching, batches.long, self.recipe, self.captions, key.at(purpose="long")
        )
        supervised = weights.flow_matching_weight * fm.value
        supervised.backward()  # type: ignore[no-untyped-call]
        video = self._finish(state, simulated)
        kl = self._reverse_kl(state, video, simulated, key.at(purpose="score"))
        if self.workers.largest(kl.non_finite, video.device):
            raise diverged("the reverse-KL score", state.step)
        matched = self._ramp(state.step) * kl.value
        values = {"flow_matching": fm.value.detach(), "reverse_kl": kl.value.detach()}
        values |= {name: value for name, value in kl.metrics.items() if name != "loss"}
        if simulated.exit == 0 and weights.anchor_weight:
            anchor = self._anchor(video, simulated)
            matched = matched + weights.anchor_weight * simulated.steps * anchor.value
        matched.backward()  # type: ignore[no-untyped-call]
        rate = self.config.learning_rate * learning_rate_factor(self.config, state.step)
        values["gradient_norm"] = apply_update(state, "student", self.config, rate, self.workers)
        state.averages["student"].update(student)
        return values | {"loss": (supervised + matched).detach()}, video.detach()

    def _ramp(self, step: int) -> float:
        """loss.reverse_kl_weight, reached linearly over `ramp_steps`."""
        done = 1.0 if not self.config.ramp_steps else min(1.0, (step + 1) / self.config.ramp_steps)
        return self.recipe.loss.reverse_kl_weight * done

    def _rollout_shape(self, batches: Batches) -> tuple[int, ...]:
        """That of the step's LONG batch, so that both losses teach the encoder the same lengths and sizes."""
        return self.recipe.long_shape if batches.long is None else tuple(batches.long.latents.shape[1:])

    def _simulate(self, state: TrainState, shape: tuple[int, ...], key: Key) -> Simulated:
        """Backward simulation of videos [T, C, h, w] up to a random step, the same for the whole batch."""
        samples = self.workers.share(self.config.rollout_batch)
        captions = self._rollout_captions(key)
        device = next(state.modules["student"].parameters()).device
        conditioning = self.captions.encode(captions[samples.start : samples.stop], device)
        times = few_step_times(self.recipe.sampling, self.recipe.flow, shape[0])
        stop = key.at(purpose="exit").integer(len(times))
        model = _student(state).distribution_matching
        x_t = noisy_input(model, shape, times[: stop + 1], conditioning, key, samples)
        t = torch.full((len(samples),), times[stop], device=device)
        return Simulated(x_t, t, stop, len(times), conditioning, captions, samples)

    def _finish(self, state: TrainState, simulated: Simulated) -> Tensor:
        """The generated video: x0 of the exit step, with its graph."""
        model = _student(state).distribution_matching
        with torch.set_grad_enabled(not self.critic_only):
            return x0_prediction(model, simulated.x_t, simulated.t, simulated.conditioning)

    def _rollout_captions(self, key: Key) -> list[str]:
        """A caption a sample of the global batch: from LONG, from SHORT, or from both in turn."""
        source = self.config.caption_source
        order = ("long", "short") if source == "both" else (source,)
        samples = range(self.config.rollout_batch)
        chosen = []
        for sample in samples:
            pool = self.caption_pool[order[sample % len(order)]]
            chosen.append(pool[key.at(sample=sample, purpose="caption").integer(len(pool))])
        return withhold_some(chosen, self.recipe.text, key, samples)

    def _tiling(self, num_frames: int, phase: int) -> list[Span]:
        return spans(num_frames, self.config.window_frames, self.config.window_stride, phase)

    def _score_times(self, key: Key, samples: list[int]) -> Tensor:
        """Uniform score times, shifted as the teacher's own windows are."""
        low, high = self.recipe.loss.score_t_min, self.recipe.loss.score_t_max
        t = low + (high - low) * uniform(key.at(purpose="t"), samples)
        return shift(t, shift_for(self.recipe.flow, self.config.window_frames)).clamp(low, high)

    def _reverse_kl(self, state: TrainState, video: Tensor, simulated: Simulated, key: Key) -> Loss:
        """The windows of a random-phase tiling, folded into one teacher and one critic call."""
        tiling = self._tiling(video.shape[1], key.at(purpose="phase").integer(self.config.window_stride))
        count = min(self.config.windows_per_video or len(tiling), len(tiling))
        order = key.at(purpose="windows").numpy().permutation(len(tiling))
        chosen = sorted(int(i) for i in order[:count])
        rows = [sample * count + k for sample in simulated.samples for k in range(count)]
        noise = normal((tiling[0].length, *video.shape[2:]), key.at(purpose="noise"), rows, video.device)
        t = self._score_times(key, rows).to(video.device)
        critic = state.modules["critic"]
        assert isinstance(critic, DiT)
        scorers = Scorers(self.teacher, critic)
        return reverse_kl_loss(
            video,
            tiling,
            chosen,
            noise,
            t,
            simulated.conditioning,
            scorers,
            self.recipe.loss,
            self.recipe.crop_safe,
        )

    def _anchor(self, video: Tensor, simulated: Simulated) -> Loss:
        """Towards the frozen long-SFT network at t = 1, on the same noise and caption."""
        assert self.reference is not None
        with torch.no_grad():
            target = x0_prediction(self.reference, simulated.x_t, simulated.t, simulated.conditioning)
        return anchor_loss(video, target)

    def _remember(self, state: TrainState, video: Tensor, simulated: Simulated) -> None:
        """Every worker keeps the whole batch, so that critic samples do not depend on their number."""
        state.pool.append(Rollout(self.workers.gather(video), tuple(simulated.captions)))
        del state.pool[: -self.config.rollout_pool]

    def _critic_step(self, state: TrainState, key: Key) -> Tensor:
        """Flow matching of the critic on windows of recent rollouts, drawn as they are scored."""
        samples, pool = list(self.workers.share(self.config.critic_batch)), self._stackable(state, key)
        windows, captions, starts = zip(*(self._pool_window(pool, key, i) for i in samples), strict=True)
        x0 = torch.stack(windows)
        noise = normal(x0.shape[1:], key.at(purpose="noise"), samples, x0.device)
        conditioning = self.captions.with_dropout(captions, key, samples, x0.device)
        t = self._score_times(key, samples).to(x0.device)
        critic = state.modules["critic"]
        assert isinstance(critic, DiT)
        frames = None if self.recipe.crop_safe else first_masked(starts, x0.shape[1]).to(x0.device)
        loss = flow_matching_loss(critic, x0, noise, t, conditioning, frames)
        loss.value.backward()  # type: ignore[no-untyped-call]
        apply_update(state, "critic", self.config, self.config.critic_learning_rate, self.workers)
        return loss.value.detach()

    def _stackable(self, state: TrainState, key: Key) -> list[Rollout]:
        """The rollouts of the pool that have the picture size of a random one; lengths may differ."""
        one = state.pool[key.at(purpose="size").integer(len(state.pool))]
        return [r for r in state.pool if r.latents.shape[2:] == one.latents.shape[2:]]

    def _pool_window(self, pool: Sequence[Rollout], key: Key, sample: int) -> tuple[Tensor, str, int]:
        """A random window of the tiling at a random phase, of a random video of the pool; its first frame."""
        draw = key.at(sample=sample, purpose="window").numpy()
        rollout = pool[int(draw.integers(len(pool)))]
        video = int(draw.integers(len(rollout.captions)))
        tiling = self._tiling(rollout.latents.shape[1], int(draw.integers(self.config.window_stride)))
        window = tiling[int(draw.integers(len(tiling)))]
        return rollout.latents[video, window.start : window.stop], rollout.captions[video], window.start


def _frozen_flow_matching(student: Student) -> VelocityModel:
    """A frozen copy of the encoder and the FM head."""
    frozen = copy.deepcopy(student).eval().requires_grad_(False)
    if frozen.config.heads == "decoupled":
        del frozen.heads["distribution_matching"]
    return frozen.flow_matching


def first_masked(starts: Sequence[int], length: int) -> Tensor:
    """Which frames count of windows cut from latents that are not crop-safe, bool [len(starts), length]."""
    frames = torch.ones(len(starts), length, dtype=torch.bool)
    frames[:, 0] = torch.tensor([start == 0 for start in starts])
    return frames


def _student(state: TrainState) -> Student:
    student = state.modules["student"]
    assert isinstance(student, Student)
    return student
