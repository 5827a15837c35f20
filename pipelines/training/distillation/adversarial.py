"""The adversarial term: the student's windows against those of SHORT, in the eyes of the frozen teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.dit import DiT
from models.flow import interpolate
from models.losses import cut_windows
from models.rng import Key, normal
from models.text.conditioning import withhold_some
from pipelines.training.config import DistillConfig
from pipelines.training.distillation.adversary import Adversary, adversarial_loss, adversary_loss
from pipelines.training.distillation.critic import Lessons, same_size
from pipelines.training.distillation.rollout import Simulation
from pipelines.training.distillation.scoring import score_times
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Captions
from pipelines.training.state import Rollout


def fooling_loss(
    adversary: Adversary, teacher: DiT, rollout: Simulation, starts: Sequence[int], noise: Tensor, t: Tensor
) -> Tensor:
    """How sure the adversary is that windows of a rollout are not real; its own weights learn nothing.

    Args:
        rollout: videos with a graph.
        starts: first frames of the m windows that are scored.
        noise, t: of the windows, [b m, L, C, h, w] and [b m].
    """
    length = noise.shape[1]
    windows = cut_windows(rollout.video, starts, length, rollout.images)
    folded = rollout.conditioning.repeat(len(starts))
    return adversarial_loss(adversary.frozen(teacher.encoder(interpolate(windows, noise, t), t, folded)))


class AdversaryLessons:
    """Backward passes of the adversary's own loss.

    Args:
        recipe: of the stage.
        captions: encodes them.
        lessons: of the critic, whose windows of rollouts these are, too.
    """

    def __init__(self, recipe: Recipe, captions: Captions, lessons: Lessons) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.captions, self.lessons = recipe, recipe.stage, captions, lessons

    def learn(
        self, adversary: Adversary, teacher: DiT, pool: Sequence[Rollout], short: Batch, key: Key, step: int
    ) -> Tensor:
        """As many windows of recent rollouts as of SHORT, at the same times; this worker's part."""
        pool, length, value = same_size(pool, key), self.config.window_frames, short.latents.new_zeros(())
        for part in short.parts(self.config.micro_batch):
            drawn = [self.lessons.window(pool, key, sample) for sample in part.samples]
            own = withhold_some(part.captions, self.recipe.text, key, part.samples)
            t = score_times(self.recipe, key, part.samples, step).to(value.device)
            logits = []
            for name, x0, captions in (
                ("real", part.latents[:, :length], own),
                ("fake", torch.stack([w.latents for w in drawn]), [w.caption for w in drawn]),
            ):
                noise = normal(x0.shape[1:], key.at(purpose=f"{name}-noise"), part.samples, value.device)
                with torch.no_grad():
                    text = self.captions.encode(captions, value.device)
                    features = teacher.encoder(interpolate(x0, noise, t), t, text)
                logits.append(adversary(features))
            loss = adversary_loss(logits[0], logits[1]) * (len(part.latents) / part.total)
            # workers that share the frames of clips have the same windows, and gradients add up over all
            (loss / self.lessons.workers.alike).backward()
            value += loss.detach()
        return value
