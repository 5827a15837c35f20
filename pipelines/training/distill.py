"""Mode seeking meets mean seeking (arXiv 2602.24289): the joint stage and the critic's warm-up before it.

`DistillStage.step` follows docs/method.md; equation numbers are the paper's.
"""

import copy

import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.flow import VelocityModel, x0_prediction
from models.losses import ReverseKLLoss, anchor_loss, reverse_kl_loss
from models.rng import Key, normal
from models.text.conditioning import TextEncoder
from models.weights import Ema, copy_into
from pipelines.checkpoints import critic_weights, load_network
from pipelines.training.collectives import ALONE, Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distillation.critic import Lessons
from pipelines.training.distillation.rollout import Rollouts, Simulation
from pipelines.training.distillation.scoring import score_times
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
    diverged,
    learning_rate,
    parts,
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
        self.captions = Captions(recipe.text, encoder)
        self.phases = Phases()
        self.spec = recipe.network("student", distilled=not recipe.critic_only)
        self.anchored = recipe.loss.anchor_weight > 0
        self.exit_shares = recipe.stage.shares(
            len(recipe.sampling.steps), without_first=self.anchored and recipe.critic_only
        )
        """How often a rollout stops at each step. With an anchor the first step is its alone: what that step
        predicts is blurred by intent, and is neither scored nor shown to the critic."""
        self.rollouts = Rollouts(recipe, self.captions, caption_pool, workers)
        self.lessons = Lessons(recipe, self.captions, workers, len(self.exit_shares))
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
            self.reference = self.workers.sharing_frames(frozen).flow_matching
        critic = recipe.network("critic").build(device)
        assert isinstance(critic, DiT)
        critic.start_from(teacher)
        if "critic" in start:
            copy_into(critic, critic_weights(start["critic"]), start["critic"])
        adapt(student, recipe, "student")
        adapt(critic, recipe, "critic")
        if recipe.critic_only:
            student.requires_grad_(False)
        modules = {"student": self.workers.sharing_frames(student), "critic": critic}
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
        config, trains = self.config, not self.recipe.critic_only
        student, critic = state.modules["student"], state.modules["critic"]
        assert isinstance(student, Student)
        assert isinstance(critic, DiT)
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
        real = batches.long if config.rollout == "noised_real" else None
        captions = self.rollouts.captions_at(rolled, real)
        stop = int(rolled.at(purpose="exit").numpy().choice(len(self.exit_shares), p=self.exit_shares))
        ramp = min(1.0, (state.step + 1) / config.ramp_steps) if config.ramp_steps else 1.0
        videos, non_finite = [], 0
        for samples in parts(self.workers.share(config.rollout_batch), config.micro_batch):
            with torch.set_grad_enabled(trains):
                self.phases.begin("rollout")
                rollout = self.rollouts.make(student, shape, rolled, samples, captions, stop, real)
            videos.append(rollout.video.detach())
            if trains:
                found, zeroed = self._seek_modes(critic, rollout, scored, ramp)
                values |= {name: values.get(name, 0) + value for name, value in found.items()}
                non_finite += zeroed

        if trains:
            if any(self.workers.largest([non_finite], videos[0].device)):
                raise diverged("the reverse-KL score", state.step)
            own |= self._update_student(state, student, mean_seeking)

        # The critic follows the student. Every worker keeps the whole batch, so that the critic's windows do
        # not depend on the number of workers.
        if stop or not self.anchored:
            video = self.workers.gather(torch.cat(videos), config.rollout_batch)
            state.pool.append(Rollout(video, tuple(captions), stop))
            del state.pool[: -config.rollout_pool]
        for update in range(config.critic_updates if state.pool else 0):
            own |= self._teach_critic(state, key.at(purpose=f"critic-{update}"))

        state.step += 1
        sums = dict(zip(values, self.workers.sum(list(values.values())).tolist(), strict=True))
        own["exit_step"] = float(stop)
        if "reverse_kl" in sums:
            own[f"reverse_kl_exit_{stop}"] = sums["reverse_kl"]
        return StepResult(sums | own)

    def _seek_mean(self, student: Student, long: Batch | None, key: Key) -> dict[str, Tensor]:
        """Mean seeking: the FM head on whole LONG clips, eq. 14."""
        assert long is not None
        self.phases.begin("fm")
        weight = self.recipe.loss.flow_matching_weight
        fm, places = seek_mean(student.flow_matching, long, self.recipe, self.captions, key, weight)
        told = {f"flow_matching_{place}": value for place, value in places.items()}
        return {"flow_matching": fm, "loss": weight * fm, **told}

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

    def _update_student(
        self, state: TrainState, student: Student, mean_seeking: Tensor | None
    ) -> dict[str, float]:
        """Steps the student by the gradients it has, of which those of mean seeking are given where they are
        watched; its gradient norm, and how the two agree."""
        self.phases.begin("optimiser")
        told = {}
        if mean_seeking is not None:
            told = self._between(mean_seeking, last_gradient(student) - mean_seeking)
        rate = learning_rate(self.config, state.step)
        told["gradient_norm"] = float(apply_update(state, "student", self.config, rate, self.workers))
        state.averages["student"].update(student)
        return told

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
        phase = key.at(purpose="phase").integer(self.config.window_stride)
        tiling = self.config.tiling(video.shape[1], phase)
        count = min(self.config.windows_per_video or len(tiling), len(tiling))
        order = key.at(purpose="windows").numpy().permutation(len(tiling))
        chosen = sorted(int(i) for i in order[:count])
        # 3. Score at random times, and 4. back onto the video.
        rows = [sample * count + k for sample in rollout.samples for k in range(count)]
        noise = normal((tiling[0].length, *video.shape[2:]), key.at(purpose="noise"), rows, video.device)
        t = score_times(self.recipe, key, rows).to(video.device)
        real: VelocityModel = self.teacher
        fake = critic.told(torch.tensor([rollout.exit], device=video.device))
        if context := self.workers.context:
            real, fake = context.dealt(real), context.dealt(fake)
        return reverse_kl_loss(
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
        )

    def _teach_critic(self, state: TrainState, key: Key) -> dict[str, float]:
        """An update of the critic; what is told of it."""
        self.phases.begin("critic")
        critic = state.modules["critic"]
        assert isinstance(critic, DiT)
        told = self.lessons.learn(critic, state.pool, key)
        self.phases.begin("optimiser")
        norm = apply_update(state, "critic", self.config, self.config.critic_learning_rate, self.workers)
        return told | {"critic_gradient_norm": float(norm)}


def last_gradient(student: Student) -> Tensor:
    """This worker's gradient of the encoder's last block, all its trained weights in a row."""
    return torch.cat(
        [p.grad.flatten() for p in student.encoder.blocks[-1].parameters() if p.grad is not None]
    )
