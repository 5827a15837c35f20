"""The videos that are scored: of the DM head's own sampler, or what it makes of noised LONG clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from models.ddt import Student
from models.flow import interpolate, x0_prediction
from models.losses import cut_windows
from models.rng import Key
from models.sampling import Draw, noisy_input, ring_turns
from models.text.conditioning import Conditioning, withhold_some
from pipelines.generation import few_step_times
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distillation.first_latents import image_latents
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Batches, Captions


@dataclass(frozen=True)
class Course:
    """What a step's rollout follows.

    Args:
        real: clips whose captions it has; None takes captions from the pool.
        prefix: first frames that it is given of them, clean.
        ring: whether its last frame is followed by the first.
    """

    real: Batch | None = None
    prefix: int = 0
    ring: bool = False


@dataclass(frozen=True)
class Simulation:
    """Some of this worker's videos of a rollout.

    Args:
        video: x0 of the exit step [b, T, C, h, w], with its graph unless gradients were off.
        x_t, t: input of the exit step and its time, [b] or [b, T].
        exit: number of the exit step among the few-step times.
        conditioning: of the b captions.
        samples: their indices in the global batch.
        prefix: first frames that were given, not made.
        real: clips of the same captions [b, T, C, h, w], where the rollout follows them.
        images: of the video, for each latent frame [b, T, C, h, w], the first latent of a clip that begins
            there, where windows are cut that way.
    """

    video: Tensor
    x_t: Tensor
    t: Tensor
    exit: int
    conditioning: Conditioning
    samples: range
    prefix: int
    real: Tensor | None
    images: Tensor | None


class Rollouts:
    """Makes videos of the DM head.

    Args:
        recipe: of the stage.
        captions: encodes them.
        pool: captions that rollouts may use, by where they come from.
        workers: this worker's place.
        autoencoder: encodes first latents anew, where it is not crop-safe and they are to be.
    """

    def __init__(
        self,
        recipe: Recipe,
        captions: Captions,
        pool: Mapping[str, list[str]],
        workers: Workers,
        autoencoder: Autoencoder | None,
    ) -> None:
        assert isinstance(recipe.stage, DistillConfig)
        self.recipe, self.config, self.workers = recipe, recipe.stage, workers
        self.captions, self.pool, self.autoencoder = captions, pool, autoencoder

    def course(self, key: Key, frames: int, batches: Batches, forced: bool = False) -> Course:
        """LONG clips of the batch where the teacher has to judge them or they are noised; else a ring, a
        continuation of LONG or SHORT clips, or none, in the settings' shares."""
        if forced or self.config.rollout == "noised_real":
            return Course(batches.long)
        draw = key.at(purpose="course").numpy()
        kind, place, from_short = draw.random(), draw.random(), bool(draw.integers(2))
        if kind < self.config.ring_share:
            return Course(ring=True)
        short, long = batches.short, batches.long
        if long is None or kind >= self.config.ring_share + self.config.prefix_share:
            return Course()
        if short is not None and from_short and short.latents.shape[2:] == long.latents.shape[2:]:
            long = short
        return Course(long, int(place * (min(frames // 2, long.latents.shape[1]) + 1)))

    def captions_at(self, key: Key, real: Batch | None = None) -> list[str]:
        """A caption for each sample of the global batch: those of the clips that the rollout follows, or
        from one of the pool's sources, or all in turn."""
        if real is not None:
            own = withhold_some(real.captions, self.recipe.text, key, real.samples)
            return self.workers.gather_texts(own, self.config.rollout_batch, real.latents.device)
        source = self.config.caption_source
        order = (source,) if source in self.pool else tuple(self.pool)
        samples = range(self.config.rollout_batch)
        chosen = []
        for sample in samples:
            pool = self.pool[order[sample % len(order)]]
            chosen.append(pool[key.at(sample=sample, purpose="caption").integer(len(pool))])
        return withhold_some(chosen, self.recipe.text, key, samples)

    def make(
        self,
        student: Student,
        shape: tuple[int, ...],
        key: Key,
        samples: range,
        captions: Sequence[str],
        stop: int,
        course: Course = Course(),
    ) -> Simulation:
        """Videos [T, C, h, w] of some of the global batch, whose captions are given. Only step `stop` has a
        gradient: it gets what the DM head's sampler has reached, or noised LONG clips.

        Args:
            course: what it follows; of clips this worker has one per sample of its share.
        """
        device = next(student.parameters()).device
        conditioning = self.captions.encode(captions[samples.start : samples.stop], device)
        times = few_step_times(self.recipe.sampling, self.recipe.flow, shape[0])
        model = student.head("distribution_matching", detached=self.config.encoder_gradient != "both")
        clips = known = None
        if course.real is not None:
            first = samples.start - self.workers.share(self.config.rollout_batch).start
            clips = course.real.latents[first : first + len(samples), : shape[0]]
            known = clips[:, : course.prefix] if course.prefix else None
        draw = Draw(
            shape, conditioning, key, samples, known, ring_turns(shape[0], len(times)) if course.ring else ()
        )
        if clips is not None and self.config.rollout == "noised_real":
            x_t = interpolate(clips, draw.noise("noise-0"), draw.at(times[stop]))
        else:
            x_t = noisy_input(model, times[: stop + 1], draw)
        t = draw.at(times[stop])
        video = x0_prediction(draw.seen_by(model, stop), x_t, t, conditioning)
        if course.ring and stop:  # at the first step a ring is a clip like any other
            video = video.roll(key.at(purpose="cut").integer(shape[0]), dims=1)
        images = self.images(video.detach())
        return Simulation(video, x_t, t, stop, conditioning, samples, course.prefix, clips, images)

    def images(self, videos: Tensor) -> Tensor | None:
        """First latents of windows of videos [B, T, C, h, w], where they are encoded anew, else None."""
        return None if self.autoencoder is None else image_latents(self.autoencoder, videos)

    def windows(self, videos: Tensor, starts: Sequence[int]) -> Tensor:
        """Windows of videos without a graph, as they are scored; [B M, L, C, h, w]."""
        return cut_windows(videos, starts, self.config.window_frames, self.images(videos))
