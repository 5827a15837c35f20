"""Mode seeking meets mean seeking (arXiv 2602.24289): the joint stage and the critic's warm-up before it.

`DistillStage.step` follows docs/method.md; equation numbers are the paper's.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.flow import VelocityModel, shift_for, uniform_times, x0_prediction
from models.losses import ReverseKLLoss, anchor_loss, flow_matching_errors, reverse_kl_loss
from models.rng import Key, normal
from models.sampling import Draw, noisy_input
from models.text.conditioning import Conditioning, TextEncoder, withhold_some
from models.weights import Ema, copy_into
from models.windows import Span, spans
from pipelines.checkpoints import critic_weights, load_network
from pipelines.generation import few_step_times
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import DistillConfig
from pipelines.training.monitors.phases import Phases
from pipelines.training.recipes import Recipe
from pipelines.training.stage import (
    Batches,
    Captions,
    StepResult,
    adamw,
    adapt,
    apply_update,
    diverged,
    learning_rate,
    parts,
    start_student,
    trained,
)
from pipelines.training.state import Rollout, TrainState
from pipelines.training.supervised import seek_mean


@dataclass(frozen=True)
class Simulation:
    """Some of this worker's videos of a backward simulation.

    Args:
        video: x0 of the exit step [b, T, C, h, w], with its graph unless gradients were off.
        x_t, t: input of the exit step and its time [b].
        exit: number of the exit step among the few-step times.
        conditioning: of the b captions.
        samples: their indices in the global batch.
    """

    video: Tensor
    x_t: Tensor
    t: Tensor
    exit: int
    conditioning: Conditioning
    samples: range


class DistillStage:
    """The joint stage; if the recipe is `critic_only`, the warm-up, which leaves the student alone.

    Args:
        recipe: `start` names the long-SFT student, the teacher and, after a warm-up, the critic.
        caption_pool: captions that rollouts may use, by where they come from.
        workers: this worker's place.
        encoder: of captions; None takes the one without weights.
    """

    def __init__(
        self,
        recipe: Recipe,
        caption_pool: dict[str, list[str]],
        workers: Workers = ALONE,
        encoder: TextEncoder | None = None,
    ) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.workers = recipe, recipe.stage, workers
        self.captions, self.caption_pool = Captions(recipe.text, encoder), caption_pool
        self.phases = Phases()
        self.spec = recipe.network("student", distilled=not recipe.critic_only)
        self.anchored = recipe.loss.anchor_weight > 0
        self.exit_shares = recipe.stage.shares(
            len(recipe.sampling.steps), without_first=self.anchored and recipe.critic_only
        )
        """How often a rollout stops at each step. With an anchor the first step is its alone: what that step
        predicts is blurred by intent, and is neither scored nor shown to the critic."""
        self.teacher: DiT
        self.reference: VelocityModel | None = None
        """The frozen long-SFT network, where there is an anchor."""

    def init(self, device: torch.device | str) -> TrainState:
        """DM head <- FM head, critic <- teacher, and the frozen teacher and long-SFT network."""
        recipe, start = self.recipe, self.recipe.start
        teacher, student = load_network(start["teacher"], device).model, self.spec.build(device)
        assert isinstance(teacher, DiT)
        assert isinstance(student, Student)
        self.teacher = teacher
        start_student(student, start)
        student.copy_flow_matching_head()
        if self.anchored and not recipe.critic_only:
            frozen = copy.deepcopy(student).eval().requires_grad_(False)
            if frozen.config.heads == "decoupled":
                del frozen.heads["distribution_matching"]
            self.reference = frozen.flow_matching
        critic = recipe.network("critic").build(device)
        assert isinstance(critic, DiT)
        critic.start_from(teacher)
        if "critic" in start:
            copy_into(critic, critic_weights(start["critic"]), start["critic"])
        adapt(student, recipe, "student")
        adapt(critic, recipe, "critic")
        if recipe.critic_only:
            student.requires_grad_(False)
        modules = {"student": student, "critic": critic}
        rates = {"student": self.config.learning_rate, "critic": self.config.critic_learning_rate}
        optimizers = {
            role: adamw(own, self.config, rates[role]) for role, m in modules.items() if (own := trained(m))
        }
        return TrainState(modules, optimizers, {"student": Ema(student, self.config.ema_decay)})

    def step(self, state: TrainState, batches: Batches, key: Key) -> StepResult:
        """One update of the student by L = FM + DM + anchor (eq. 15-18), then the critic's updates.

        Mean seeking and mode seeking have backward passes of their own, one for each micro batch, so that one
        graph lives at a time: the encoder gets both gradients, the FM head only the first, the DM head only
        the second.
        """
        config, weights = self.config, self.recipe.loss
        student, critic = state.modules["student"], state.modules["critic"]
        assert isinstance(student, Student)
        assert isinstance(critic, DiT)
        # Rollouts have the shape of the LONG batch: both losses teach the encoder the same lengths and sizes.
        frames, *size = self.recipe.long_shape if batches.long is None else batches.long.latents.shape[1:]
        shape = config.frames_at(state.step, frames), *size
        # This worker's part of each mean over the global batch.
        values: dict[str, Tensor] = {}
        own: dict[str, float] = {}
        if not self.recipe.critic_only:
            # Mean seeking: the FM head on whole LONG clips, eq. 14.
            assert batches.long is not None
            at, weight = key.at(purpose="long"), weights.flow_matching_weight
            self.phases.begin("fm")
            fm = seek_mean(student.flow_matching, batches.long, self.recipe, self.captions, at, weight)
            values = {"flow_matching": fm, "loss": weight * fm}
            if watched := config.is_watched(state.step + 1):
                mean_seeking = last_gradient(student)

        # Mode seeking: every window of the DM head's own videos towards the teacher, eq. 5 and 9.
        rolled, scored = key.at(purpose="rollout"), key.at(purpose="score")
        captions = self._rollout_captions(rolled)
        stop = int(rolled.at(purpose="exit").numpy().choice(len(self.exit_shares), p=self.exit_shares))
        ramp = min(1.0, (state.step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        videos, non_finite = [], 0
        for samples in parts(self.workers.share(config.rollout_batch), config.micro_batch):
            with torch.set_grad_enabled(not self.recipe.critic_only):
                self.phases.begin("rollout")
                rollout = self._simulate(student, shape, rolled, samples, captions, stop)
            videos.append(rollout.video.detach())
            if not self.recipe.critic_only:
                found, zeroed = self._seek_modes(critic, rollout, scored, ramp)
                values |= {name: values.get(name, 0) + value for name, value in found.items()}
                non_finite += zeroed

        if not self.recipe.critic_only:
            if any(self.workers.largest([non_finite], videos[0].device)):
                raise diverged("the reverse-KL score", state.step)
            self.phases.begin("optimiser")
            if watched:
                own |= self._between(mean_seeking, last_gradient(student) - mean_seeking)
            rate = learning_rate(config, state.step)
            own["gradient_norm"] = float(apply_update(state, "student", config, rate, self.workers))
            state.averages["student"].update(student)

        # The critic follows the student. Every worker keeps the whole batch, so that the critic's windows do
        # not depend on the number of workers.
        if stop or not self.anchored:
            video = self.workers.gather(torch.cat(videos), config.rollout_batch)
            state.pool.append(Rollout(video, tuple(captions), stop))
            del state.pool[: -config.rollout_pool]
        for update in range(config.critic_updates if state.pool else 0):
            at = key.at(purpose=f"critic-{update}")
            values["critic_loss"], told = self._critic_step(state, at)
            own |= told

        state.step += 1
        sums = dict(zip(values, self.workers.sum(list(values.values())).tolist(), strict=True))
        own["exit_step"] = float(stop)
        if "reverse_kl" in sums:
            own[f"reverse_kl_exit_{stop}"] = sums["reverse_kl"]
        return StepResult(sums | own)

    def _simulate(
        self,
        student: Student,
        shape: tuple[int, ...],
        key: Key,
        samples: range,
        captions: Sequence[str],
        stop: int,
    ) -> Simulation:
        """1. Backward simulation: videos [T, C, h, w] of some of the global batch, whose captions are given,
        from noise to the step `stop`, which alone has a gradient."""
        device = next(student.parameters()).device
        conditioning = self.captions.encode(captions[samples.start : samples.stop], device)
        times = few_step_times(self.recipe.sampling, self.recipe.flow, shape[0])
        model = student.distribution_matching
        draw = Draw(shape, conditioning, key, samples)
        x_t, t = noisy_input(model, times[: stop + 1], draw), draw.at(times[stop])
        video = x0_prediction(model, x_t, t, conditioning)
        return Simulation(video, x_t, t, stop, conditioning, samples)

    def _rollout_captions(self, key: Key) -> list[str]:
        """A caption for each sample of the global batch: from one of the pool's sources, or all in turn."""
        source = self.config.caption_source
        order = (source,) if source in self.caption_pool else tuple(self.caption_pool)
        samples = range(self.config.rollout_batch)
        chosen = []
        for sample in samples:
            pool = self.caption_pool[order[sample % len(order)]]
            chosen.append(pool[key.at(sample=sample, purpose="caption").integer(len(pool))])
        return withhold_some(chosen, self.recipe.text, key, samples)

    def _seek_modes(
        self, critic: DiT, rollout: Simulation, key: Key, ramp: float
    ) -> tuple[dict[str, Tensor], int]:
        """Backward pass of L_DM, or of the anchor, on some videos; their part of what is logged, and how many
        entries of the score were not finite."""
        weights, non_finite = self.recipe.loss, 0
        share = len(rollout.samples) / self.config.rollout_batch
        self.phases.begin("score")
        if rollout.exit == 0 and self.reference is not None:
            # Anchor: at t = 1, the frozen long-SFT network's answer to the same noise and caption. Its weight
            # makes up for the rollouts that have none.
            with torch.no_grad():
                target = x0_prediction(self.reference, rollout.x_t, rollout.t, rollout.conditioning)
            anchor = anchor_loss(rollout.video, target)
            loss = weights.anchor_weight / self.exit_shares[0] * anchor
            found = {"anchor": anchor, "loss": loss}
        else:
            dm = self._reverse_kl(critic, rollout, key)
            loss = weights.reverse_kl_weight * ramp * dm.value
            found, non_finite = {"reverse_kl": dm.value, "loss": loss, **dm.metrics}, dm.non_finite
        self.phases.begin("backward")
        (share * loss).backward()  # type: ignore[no-untyped-call]
        return {name: share * value.detach() for name, value in found.items()}, non_finite

    def _between(self, mean_seeking: Tensor, mode_seeking: Tensor) -> dict[str, float]:
        """Cosine of the two gradients of the encoder's last block, where neither is 0, and |FM| / |DM|."""
        fm, dm = self.workers.total(torch.stack([mean_seeking, mode_seeking])).double()
        fm_size, dm_size = float(fm.norm()), float(dm.norm())
        if not fm_size or not dm_size:
            return {}
        return {"gradient_cosine": float(fm @ dm) / (fm_size * dm_size), "gradient_ratio": fm_size / dm_size}

    def _reverse_kl(self, critic: DiT, rollout: Simulation, key: Key) -> ReverseKLLoss:
        """L_DM: windows of the rollout, folded into one teacher and one critic call."""
        video = rollout.video
        # 2. Windows: a tiling at a random phase, of which some or all are scored.
        tiling = self.tiling(video.shape[1], key.at(purpose="phase").integer(self.config.window_stride))
        count = min(self.config.windows_per_video or len(tiling), len(tiling))
        order = key.at(purpose="windows").numpy().permutation(len(tiling))
        chosen = sorted(int(i) for i in order[:count])
        # 3. Score at random times, and 4. back onto the video.
        rows = [sample * count + k for sample in rollout.samples for k in range(count)]
        noise = normal((tiling[0].length, *video.shape[2:]), key.at(purpose="noise"), rows, video.device)
        t = self.score_times(key, rows).to(video.device)
        return reverse_kl_loss(
            video,
            tiling,
            chosen,
            noise,
            t,
            rollout.conditioning,
            self.teacher,
            critic.told(t.new_full((len(rows),), rollout.exit, dtype=torch.long)),
            self.recipe.loss,
            self.recipe.crop_safe,
        )

    def _critic_step(self, state: TrainState, key: Key) -> tuple[Tensor, dict[str, float]]:
        """L_critic: flow matching on windows of recent rollouts, cut and noised as the scored ones are; this
        worker's part of it, and of all workers the gradient norm and the loss by exit."""
        self.phases.begin("critic")
        critic = state.modules["critic"]
        assert isinstance(critic, DiT)
        # One picture size, each as often as the pool has it; lengths may differ.
        size = state.pool[key.at(purpose="size").integer(len(state.pool))].latents.shape[2:]
        pool = [rollout for rollout in state.pool if rollout.latents.shape[2:] == size]
        value = pool[0].latents.new_zeros(())
        by_exit = value.new_zeros(2, len(self.exit_shares))
        for samples in parts(self.workers.share(self.config.critic_batch), self.config.micro_batch):
            drawn = (self._pool_window(pool, key, i) for i in samples)
            windows, captions, starts, exits = zip(*drawn, strict=True)
            x0 = torch.stack(windows)
            noise = normal(x0.shape[1:], key.at(purpose="noise"), samples, x0.device)
            conditioning = self.captions.with_dropout(captions, key, samples, x0.device)
            t = self.score_times(key, samples).to(x0.device)
            frames = None if self.recipe.crop_safe else first_masked(starts, x0.shape[1]).to(x0.device)
            stops = torch.tensor(exits, device=x0.device)
            errors = flow_matching_errors(critic.told(stops), x0, noise, t, conditioning, frames)
            own = errors.detach().to(by_exit)
            by_exit.index_add_(1, stops, torch.stack([own, torch.ones_like(own)]))
            loss = errors.mean() * (len(samples) / self.config.critic_batch)
            loss.backward()  # type: ignore[no-untyped-call]
            value += loss.detach()
        self.phases.begin("optimiser")
        norm = apply_update(state, "critic", self.config, self.config.critic_learning_rate, self.workers)
        totals = zip(*self.workers.total(by_exit).tolist(), strict=True)
        found = {f"critic_loss_exit_{k}": loss / n for k, (loss, n) in enumerate(totals) if n}
        return value, found | {"critic_gradient_norm": float(norm)}

    def _pool_window(self, pool: Sequence[Rollout], key: Key, sample: int) -> tuple[Tensor, str, int, int]:
        """A random window of a random rollout's tiling at a random phase: latents, caption, first frame, and
        the rollout's exit."""
        draw = key.at(sample=sample, purpose="window").numpy()
        rollout = pool[int(draw.integers(len(pool)))]
        video = int(draw.integers(len(rollout.captions)))
        tiling = self.tiling(rollout.latents.shape[1], int(draw.integers(self.config.window_stride)))
        window = tiling[int(draw.integers(len(tiling)))]
        latents = rollout.latents[video, window.start : window.stop]
        return latents, rollout.captions[video], window.start, rollout.exit

    def tiling(self, num_frames: int, phase: int) -> list[Span]:
        """The windows of a video."""
        return spans(num_frames, self.config.window_frames, self.config.window_stride, phase)

    def score_times(self, key: Key, samples: Sequence[int]) -> Tensor:
        """Uniform times of windows, shifted as the teacher's own are."""
        loss, amount = self.recipe.loss, shift_for(self.recipe.flow, self.config.window_frames)
        return uniform_times(key.at(purpose="t"), samples, amount, loss.score_t_min, loss.score_t_max)


def last_gradient(student: Student) -> Tensor:
    """This worker's gradient of the encoder's last block, all its trained weights in a row."""
    return torch.cat(
        [p.grad.flatten() for p in student.encoder.blocks[-1].parameters() if p.grad is not None]
    )


def first_masked(starts: Sequence[int], length: int) -> Tensor:
    """Which frames count of windows cut from latents that are not crop-safe, bool [len(starts), length]."""
    frames = torch.ones(len(starts), length, dtype=torch.bool)
    frames[:, 0] = torch.tensor([start == 0 for start in starts])
    return frames
