"""Mode seeking meets mean seeking (arXiv 2602.24289): the joint stage and the critic's warm-up before it.

`DistillStage.step` follows docs/method.md; equation numbers are the paper's.
"""

import copy

import torch
from torch import Tensor, nn

from models.autoencoders.kinds import Autoencoder
from models.ddt import Student
from models.dit import DiT
from models.flow import VelocityModel, interpolate, x0_prediction
from models.losses import (
    ReverseKLLoss,
    anchor_loss,
    chord,
    forward_kl_loss,
    looking_at,
    reverse_kl_loss,
)
from models.rng import Key, normal
from models.text.conditioning import TextEncoder
from models.weights import Ema, copy_into
from pipelines.checkpoints import critic_weights, load_network
from pipelines.generation import path_times
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distillation.adversarial import AdversaryLessons, fooling_loss
from pipelines.training.distillation.adversary import Adversary
from pipelines.training.distillation.critic import Lessons
from pipelines.training.distillation.rollout import Rollouts, Simulation
from pipelines.training.distillation.scoring import score_times
from pipelines.training.monitors.phases import Phases
from pipelines.training.monitors.verdicts import CANNOT_TEACH, worst_gap
from pipelines.training.recipes import Recipe
from pipelines.training.sharding import whole
from pipelines.training.stage import (
    Batch,
    Batches,
    Captions,
    StepResult,
    adamw,
    adapt,
    apply_update,
    diverged,
    parts,
    rate_share,
    start_student,
    trained,
)
from pipelines.training.state import Rollout, TrainState
from pipelines.training.supervised import seek_mean


class DistillStage:
    """The joint stage; if the recipe is `critic_only`, the warm-up, which leaves the student alone.

    Args:
        recipe: `start` names the long-SFT student, the teacher and, after a warm-up, the critic.
        caption_pool: captions that rollouts may use, by where they come from.
        workers: this worker's place.
        encoder: of captions; None takes the one without weights.
        autoencoder: of the dataset, where the recipe asks for first latents that are encoded anew.
    """

    def __init__(
        self,
        recipe: Recipe,
        caption_pool: dict[str, list[str]],
        workers: Workers = ALONE,
        encoder: TextEncoder | None = None,
        autoencoder: Autoencoder | None = None,
    ) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.workers = recipe, recipe.stage, workers
        self.captions = Captions(recipe.text, encoder)
        self.phases = Phases()
        self.spec = recipe.network("student", distilled=not recipe.critic_only)
        self.anchored = recipe.loss.anchor_weight > 0
        self.exit_shares = recipe.stage.shares(
            len(recipe.sampling.steps), without_first=self.anchored and recipe.critic_only
        )
        """How often a rollout stops at each step. With an anchor the first step is its alone: what that step
        predicts is blurred by intent, and is neither scored nor shown to the critic."""
        self.rollouts = Rollouts(recipe, self.captions, caption_pool, workers, autoencoder)
        self.lessons = Lessons(recipe, self.captions, workers, len(self.exit_shares))
        self.adversary_lessons = AdversaryLessons(recipe, self.captions, self.lessons)
        self.teacher: DiT
        self.reference: VelocityModel | None = None
        """The frozen long-SFT network, where something holds the first step to it."""

    def init(self, device: torch.device | str) -> TrainState:
        """DM head <- FM head, critic <- teacher, and the frozen teacher and long-SFT network."""
        recipe, start, workers = self.recipe, self.recipe.start, self.workers
        at = workers.building(device)
        teacher, critic = load_network(start["teacher"], at).model, recipe.network("critic").build(at)
        assert isinstance(teacher, DiT)
        assert isinstance(critic, DiT)
        critic.start_from(teacher)
        if "critic" in start:
            copy_into(critic, critic_weights(start["critic"]), start["critic"])
        adapt(critic, recipe, "critic")
        workers.sharding(critic)
        self.teacher = workers.sharding(teacher)
        student = self.spec.build(at)
        assert isinstance(student, Student)
        start_student(student, start)
        student.copy_flow_matching_head()
        if (self.anchored or recipe.loss.forward_kl_weight) and not recipe.critic_only:
            frozen = copy.deepcopy(student).eval().requires_grad_(False)
            if frozen.config.heads == "decoupled":
                del frozen.heads["distribution_matching"]
            self.reference = workers.sharding(workers.sharing_frames(frozen)).flow_matching
        adapt(student, recipe, "student")
        if recipe.critic_only:
            student.requires_grad_(False)
        workers.sharding(workers.sharing_frames(student))
        modules: dict[str, nn.Module] = {"student": student, "critic": critic}
        if recipe.loss.adversarial_weight and not recipe.critic_only:
            width = recipe.model.num_heads * recipe.model.head_dim
            modules["adversary"] = Adversary(width, Key(recipe.seed, purpose="adversary")).to(device)
        rates = dict.fromkeys(modules, self.config.critic_learning_rate)
        rates["student"] = self.config.learning_rate
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
        config, trains = self.config, not self.recipe.critic_only
        student = state.modules["student"]
        assert isinstance(student, Student)
        # Rollouts have the shape of the LONG batch: both losses teach the encoder the same lengths and sizes.
        frames, *size = self.recipe.long_shape if batches.long is None else batches.long.latents.shape[1:]
        shape = config.frames_at(state.step, frames), *size
        # This worker's part of each mean over the global batch.
        values: dict[str, Tensor] = {}
        own: dict[str, float] = {}
        mean_seeking: Tensor | None = None
        if trains and self.recipe.loss.flow_matching_weight:
            values = self._seek_mean(student, batches.long, key.at(purpose="long"))
            if config.is_watched(state.step + 1):
                mean_seeking = last_gradient(student)

        # Mode seeking: every window of the DM head's own videos towards the teacher, eq. 5 and 9.
        rolled, scored = key.at(purpose="rollout"), key.at(purpose="score")
        forced = trains and self._is_forced(state.step, key)
        course = self.rollouts.course(rolled, shape[0], batches, forced)
        captions = self.rollouts.captions_at(rolled, course.real)
        stop = int(rolled.at(purpose="exit").numpy().choice(len(self.exit_shares), p=self.exit_shares))
        ramp = self._ramp(state) if trains else 1.0
        videos, images, non_finite = list[Tensor](), list[Tensor](), 0
        for samples in parts(self.workers.share(config.rollout_batch), config.micro_batch):
            with torch.set_grad_enabled(trains):
                self.phases.begin("rollout")
                rollout = self.rollouts.make(student, shape, rolled, samples, captions, stop, course)
            videos.append(rollout.video.detach())
            images += [] if rollout.images is None else [rollout.images]
            if trains:
                found, zeroed = self._seek_modes(state, rollout, scored, ramp, forced)
                values |= {name: values.get(name, 0) + value for name, value in found.items()}
                non_finite += zeroed

        if trains:
            if any(self.workers.largest([non_finite], videos[0].device)):
                raise diverged("the reverse-KL score", state.step)
            own |= self._update_student(state, student, mean_seeking)

        # The critic follows the student. Every worker keeps the whole batch, so that the critic's windows do
        # not depend on the number of workers.
        if stop or not self.anchored:
            video, image = (
                self.workers.gather(torch.cat(made), config.rollout_batch) if made else None
                for made in (videos, images)
            )
            assert video is not None
            state.pool.append(Rollout(video, tuple(captions), stop, course.prefix, image))
            del state.pool[: -config.rollout_pool]
        for update in range(config.critic_updates if state.pool else 0):
            at = key.at(purpose=f"critic-{update}")
            own |= self._teach_critic(state, at)
            if "adversary" in state.modules:
                values["adversary_loss"] = self._teach_adversary(state, batches.short, at)

        state.step += 1
        sums = dict(zip(values, self.workers.sum(list(values.values())).tolist(), strict=True))
        own["exit_step"] = float(stop)
        if config.ramp_steps and trains:
            own["ramp"] = ramp
        if "reverse_kl" in sums:
            own[f"reverse_kl_exit_{stop}"] = sums["reverse_kl"]
        return StepResult(sums | own)

    def _seek_mean(self, student: Student, long: Batch | None, key: Key) -> dict[str, Tensor]:
        """Mean seeking: the FM head on whole LONG clips, eq. 14."""
        assert long is not None
        self.phases.begin("fm")
        weight, prefixes = self.recipe.loss.flow_matching_weight, self.config.prefix_share
        fm, places = seek_mean(student.flow_matching, long, self.recipe, self.captions, key, weight, prefixes)
        told = {f"flow_matching_{place}": value for place, value in places.items()}
        return {"flow_matching": fm, "loss": weight * fm, **told}

    def _ramp(self, state: TrainState) -> float:
        """Share of the reverse-KL weight at this step, which it rises by or not."""
        config, worst = self.config, worst_gap(state.gaps)
        if config.ramp_follows == "steps":
            state.ramped = state.step + 1
        elif worst is None or worst[1] <= CANNOT_TEACH:
            state.ramped += 1
        return min(1.0, state.ramped / config.ramp_steps) if config.ramp_steps else 1.0

    def _is_forced(self, step: int, key: Key) -> bool:
        """Whether the teacher judges LONG clips at this step."""
        finish = step >= self.config.steps - self.config.data_forcing_steps
        return finish and bool(key.at(purpose="data-forcing").integer(2))

    def _seek_modes(
        self, state: TrainState, rollout: Simulation, key: Key, ramp: float, forced: bool
    ) -> tuple[dict[str, Tensor], int]:
        """Backward pass of L_DM, or of the anchor, on some videos; their part of what is logged, and how many
        entries of the score were not finite."""
        weights, non_finite = self.recipe.loss, 0
        found: dict[str, Tensor] = {}
        loss = rollout.video.new_zeros(())
        self.phases.begin("score")
        if rollout.exit == 0 and self.reference is not None:
            # What the first step learns from the frozen long-SFT network, at t = 1 from the same noise and
            # caption. Weights make up for the rollouts that have none.
            x_t, t, share = rollout.x_t, rollout.t, self.exit_shares[0]
            if weights.forward_kl_weight:
                times = path_times(self.recipe.sampling, self.recipe.flow, x_t.shape[1])
                path = chord(self.reference, x_t, times, rollout.conditioning)
                found["forward_kl"] = forward_kl_loss(rollout.video, x_t, t, path)
                loss = loss + weights.forward_kl_weight / share * found["forward_kl"]
            if self.anchored:
                with torch.no_grad():
                    target = x0_prediction(self.reference, x_t, t, rollout.conditioning)
                found["anchor"] = anchor_loss(rollout.video, target)
                loss = loss + weights.anchor_weight / share * found["anchor"]
        if rollout.exit or not self.anchored:
            dm, fooling = self._score(state, rollout, key, forced)
            loss = loss + weights.reverse_kl_weight * ramp * dm.value
            found |= {"reverse_kl": dm.value, **dm.metrics}
            non_finite = dm.non_finite
            if fooling is not None:
                loss = loss + weights.adversarial_weight * fooling
                found["adversarial"] = fooling
        self.phases.begin("backward")
        part = len(rollout.samples) / self.config.rollout_batch
        (part * loss).backward()  # type: ignore[no-untyped-call]
        return {name: part * value.detach() for name, value in (found | {"loss": loss}).items()}, non_finite

    def _update_student(
        self, state: TrainState, student: Student, mean_seeking: Tensor | None
    ) -> dict[str, float]:
        """Steps the student by the gradients it has, of which those of mean seeking are given where they are
        watched; its gradient norm, and how the two agree."""
        self.phases.begin("optimiser")
        told = {}
        if mean_seeking is not None:
            told = self._between(mean_seeking, last_gradient(student) - mean_seeking)
        rate = self.config.learning_rate * rate_share(self.config, state.step)
        told["gradient_norm"] = float(apply_update(state, "student", self.config, rate, self.workers))
        state.averages["student"].update(student)
        return told

    def _between(self, mean_seeking: Tensor, mode_seeking: Tensor) -> dict[str, float]:
        """Cosine of the two gradients of the encoder's last block, where neither is 0, and |FM| / |DM|."""
        both = torch.stack([mean_seeking, mode_seeking])
        fm, dm = (both if self.workers.shards is not None else self.workers.total(both)).double()
        fm_size, dm_size = float(fm.norm()), float(dm.norm())
        if not fm_size or not dm_size:
            return {}
        return {"gradient_cosine": float(fm @ dm) / (fm_size * dm_size), "gradient_ratio": fm_size / dm_size}

    def _score(
        self, state: TrainState, rollout: Simulation, key: Key, forced: bool
    ) -> tuple[ReverseKLLoss, Tensor | None]:
        """L_DM: windows of the rollout, folded into one teacher and one critic call; and what an adversary
        says of them, where there is one."""
        video, critic, adversary = rollout.video, state.modules["critic"], state.modules.get("adversary")
        assert isinstance(critic, DiT)
        # 2. Windows: a tiling at a random phase, of which some or all are scored.
        phase = key.at(purpose="phase").integer(self.config.window_stride)
        tiling = self.config.tiling(video.shape[1], phase, rollout.prefix)
        count = min(self.config.windows_per_video or len(tiling), len(tiling))
        order = key.at(purpose="windows").numpy().permutation(len(tiling))
        chosen = sorted(int(i) for i in order[:count])
        # 3. Score at random times, and 4. back onto the video.
        rows = [sample * count + k for sample in rollout.samples for k in range(count)]
        noise = normal((tiling[0].length, *video.shape[2:]), key.at(purpose="noise"), rows, video.device)
        t = score_times(self.recipe, key, rows, state.step).to(video.device)
        starts = [tiling[i].start for i in chosen]
        real: VelocityModel = self.teacher
        fake = critic.told(torch.tensor([rollout.exit], device=video.device))
        if context := self.workers.context:
            real, fake = context.dealt(real), context.dealt(fake)
        if forced:
            assert rollout.real is not None
            windows = self.rollouts.windows(rollout.real, starts)
            real = looking_at(real, interpolate(windows, noise, t))
        dm = reverse_kl_loss(
            video,
            tiling,
            chosen,
            noise,
            t,
            rollout.conditioning,
            real,
            fake,
            self.recipe.loss,
            self.recipe.crop_safe,
            rollout.images,
        )
        if not isinstance(adversary, Adversary):
            return dm, None
        return dm, fooling_loss(adversary, self.teacher, rollout, starts, noise, t)

    def _teach_critic(self, state: TrainState, key: Key) -> dict[str, float]:
        """An update of the critic; what is told of it."""
        self.phases.begin("critic")
        critic = state.modules["critic"]
        assert isinstance(critic, DiT)
        told = self.lessons.learn(critic, state.pool, key, state.step)
        self.phases.begin("optimiser")
        norm = apply_update(state, "critic", self.config, self._critic_rate(state), self.workers)
        return told | {"critic_gradient_norm": float(norm)}

    def _teach_adversary(self, state: TrainState, short: Batch | None, key: Key) -> Tensor:
        """An update of the adversary; this worker's part of its loss."""
        self.phases.begin("critic")
        adversary, at = state.modules["adversary"], key.at(purpose="adversary")
        assert isinstance(adversary, Adversary)
        assert short is not None
        value = self.adversary_lessons.learn(adversary, self.teacher, state.pool, short, at, state.step)
        self.phases.begin("optimiser")
        apply_update(state, "adversary", self.config, self._critic_rate(state), self.workers)
        return value

    def _critic_rate(self, state: TrainState) -> float:
        return self.config.critic_learning_rate * rate_share(self.config, state.step)


def last_gradient(student: Student) -> Tensor:
    """The gradient of the encoder's last block, all its trained weights in a row; of sharded weights that of
    all workers, else this worker's."""
    return torch.cat(
        [whole(p.grad).flatten() for p in student.encoder.blocks[-1].parameters() if p.grad is not None]
    )
