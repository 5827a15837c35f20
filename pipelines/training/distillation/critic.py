"""The critic's lessons: flow matching on windows of recent rollouts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.dit import DiT
from models.losses import THIRDS, flow_matching_errors
from models.rng import Key, normal
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distillation.scoring import first_masked, score_times
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Captions, parts
from pipelines.training.state import Rollout


class PoolWindow(NamedTuple):
    """A window of a rollout that the pool holds.

    Args:
        latents: [L, C, h, w].
        caption: the video's.
        start: its first frame in the video.
        exit: number of the step whose x0 it is.
        third: of the video, in which its middle lies.
    """

    latents: Tensor
    caption: str
    start: int
    exit: int
    third: int


def same_size(pool: Sequence[Rollout], key: Key) -> list[Rollout]:
    """Rollouts of one picture size, each as often as the pool has it; lengths may differ."""
    size = pool[key.at(purpose="size").integer(len(pool))].latents.shape[2:]
    return [rollout for rollout in pool if rollout.latents.shape[2:] == size]


class Lessons:
    """Backward passes of L_critic.

    Args:
        recipe: of the stage.
        captions: encodes them.
        workers: this worker's place.
        exits: steps of the few-step sampler.
    """

    def __init__(self, recipe: Recipe, captions: Captions, workers: Workers, exits: int) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.captions = recipe, recipe.stage, captions
        self.workers, self.exits = workers, exits

    def learn(self, critic: DiT, pool: Sequence[Rollout], key: Key, step: int) -> dict[str, float]:
        """Flow matching on windows of recent rollouts, cut and noised as those that are scored at this step;
        the loss over all workers, by exit, and by place in the video."""
        pool = same_size(pool, key)
        sums = pool[0].latents.new_zeros(2, self.exits + len(THIRDS) + 1)
        for samples in parts(self.workers.share_of_all(self.config.critic_batch), self.config.micro_batch):
            drawn = [self.window(pool, key, i) for i in samples]
            x0 = torch.stack([window.latents for window in drawn])
            noise = normal(x0.shape[1:], key.at(purpose="noise"), samples, x0.device)
            conditioning = self.captions.with_dropout([w.caption for w in drawn], key, samples, x0.device)
            t = score_times(self.recipe, key, samples, step).to(x0.device)
            frames = None
            if not self.recipe.crop_safe:
                frames = first_masked([window.start for window in drawn], x0.shape[1]).to(x0.device)
            stops = torch.tensor([window.exit for window in drawn], device=x0.device)
            thirds = torch.tensor([self.exits + window.third for window in drawn], device=x0.device)
            errors = flow_matching_errors(critic.told(stops), x0, noise, t, conditioning, frames)
            own = errors.detach().to(sums)
            for places in (stops, thirds, torch.full_like(stops, -1 + sums.shape[1])):
                sums.index_add_(1, places, torch.stack([own, torch.ones_like(own)]))
            loss = errors.mean() * (len(samples) / self.config.critic_batch)
            loss.backward()  # type: ignore[no-untyped-call]
        names = [*(f"critic_loss_exit_{number}" for number in range(self.exits))]
        names += [*(f"critic_loss_{third}" for third in THIRDS), "critic_loss"]
        totals = zip(names, *self.workers.total(sums).tolist(), strict=True)
        return {name: loss / count for name, loss, count in totals if count}

    def window(self, pool: Sequence[Rollout], key: Key, sample: int) -> PoolWindow:
        """A random window of a random rollout's tiling at a random phase."""
        draw = key.at(sample=sample, purpose="window").numpy()
        rollout = pool[int(draw.integers(len(pool)))]
        video = int(draw.integers(len(rollout.captions)))
        frames = rollout.latents.shape[1]
        tiling = self.config.tiling(frames, int(draw.integers(self.config.window_stride)), rollout.prefix)
        place = tiling[int(draw.integers(len(tiling)))]
        latents = rollout.latents[video, place.start : place.stop]
        if rollout.images is not None and place.start:
            latents = torch.cat([rollout.images[video, place.start, None], latents[1:]])
        third = (2 * place.start + place.length) * len(THIRDS) // (2 * frames)
        return PoolWindow(latents, rollout.captions[video], place.start, rollout.exit, third)
