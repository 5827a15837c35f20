"""The passes of a step: what goes through which network, how often, and which part of it is one worker's.

Operations (flops.py) and bytes exchanged (traffic.py) are sums over them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from jobs.config.schema import RunConfig
from jobs.config.shapes import scored_windows, shapes
from models.ddt import HeadName
from pipelines.data.store.batch_plan import share
from pipelines.generation import path_times

SCORED = ("warmup", "distill")
"""Stages with a critic and a frozen teacher."""


@dataclass(frozen=True)
class Place:
    """A worker's, in a mesh; the default is one worker that does all.

    Args:
        groups: of workers that share batches.
        alike: workers of a group, who share the frames of its clips.
        number: the worker's, in its group.
    """

    groups: int = 1
    alike: int = 1
    number: int = 0

    def rows(self, batch: int) -> int:
        """Most clips of a batch that a group has."""
        return -(-batch // self.groups)

    def rows_of_all(self, batch: int) -> int:
        """Most windows of a batch that all workers share that one has."""
        return -(-batch // (self.groups * self.alike))

    def dealt(self, rows: int) -> int:
        """Most windows of those that a group scores that one of it has."""
        return -(-rows // self.alike)

    def own(self, frames: int) -> range:
        """The worker's frames of a clip."""
        return share(frames, self.number, self.alike)


ALL = Place()
"""One worker that does all: the operations of all workers."""


def places(config: RunConfig, stage: str) -> list[Place]:
    """Workers of which one has most to do: the first has most frames, the middle one sees most of them."""
    workers, alike = config.cluster.least_workers, config.cluster.context_parallel
    if stage == "teacher":
        alike = 1
    return [Place(workers // alike, alike, number) for number in sorted({0, alike // 2})]


@dataclass(frozen=True)
class Pass:
    """Clips that go through a network in one direction."""

    phase: str
    role: Literal["teacher", "student", "critic", "frozen_student"]
    frames: int
    """Latent ones of a clip."""
    clips: float
    """In a step, each as often as it goes through."""
    calls: float
    """Of the network, for all of them."""
    head: HeadName | None = None
    """Of a student."""
    backward: bool = False
    detached: bool = False
    """Whether the backward pass ends at the head."""
    together: int = 1
    """Clips of one batch."""


def passes(config: RunConfig, stage: str, place: Place = ALL) -> Iterator[Pass]:
    """The passes of one step, a worker's part of them.

    A rollout stops at a step drawn at random, so what depends on it is a mean.
    """
    sizes, loss = shapes(config), config.loss
    if stage in ("teacher", "sft", "mixed"):
        settings = getattr(config, stage)
        short = Pass("forward", "student", sizes.short_frames, 0, 0, "flow_matching")
        if stage == "teacher":
            short = replace(short, role="teacher", head=None)
        if settings.short_batch:
            yield from _both(_of(short, place.rows(settings.short_batch), settings.micro_batch))
    if stage != "teacher" and stage != "warmup":
        settings = getattr(config, stage)
        if settings.long_batch and (stage != "distill" or loss.flow_matching_weight):
            long = Pass("forward", "student", sizes.long_frames, 0, 0, "flow_matching")
            yield from _both(_of(long, place.rows(settings.long_batch), settings.micro_batch))
    if stage in SCORED:
        yield from _mode_seeking(config, stage, place)


def _of(one: Pass, clips: int, micro_batch: int | None, times: float = 1.0) -> Pass:
    """A pass of so many clips, a micro batch at a time, each `times`."""
    return replace(
        one, clips=times * clips, calls=times * -(-clips // (micro_batch or clips)), together=clips
    )


def _both(forward: Pass, backward: str = "backward") -> Iterator[Pass]:
    yield forward
    yield replace(forward, phase=backward, backward=True)


def _mode_seeking(config: RunConfig, stage: str, place: Place) -> Iterator[Pass]:
    """Rollouts, their score and the critic's lessons."""
    sizes, distill, loss = shapes(config), config.distill, config.loss
    anchored, micro_batch, window = loss.anchor_weight > 0, distill.micro_batch, distill.window_frames
    shares = distill.shares(len(config.sampling.steps), without_first=anchored and stage == "warmup")
    calls = sum(share * count for count, share in enumerate(shares, start=1))
    calls = 1.0 if distill.rollout == "noised_real" else calls
    rows = place.rows(distill.rollout_batch)

    detached = distill.encoder_gradient == "flow_matching"
    video = Pass("rollout", "student", sizes.long_frames, 0, 0, "distribution_matching", detached=detached)
    yield _of(video, rows, micro_batch, calls)
    lesson = _of(
        Pass("critic_forward", "critic", window, 0, 0),
        place.rows_of_all(distill.critic_batch),
        micro_batch,
        distill.critic_updates,
    )
    yield from _both(lesson, "critic_backward")
    if stage != "distill":
        return

    yield replace(_of(video, rows, micro_batch), phase="student_backward", backward=True)
    parts = [min(micro_batch or rows, rows - first) for first in range(0, rows, micro_batch or rows)]
    windows = sum(place.dealt(part * scored_windows(config)) for part in parts)
    layout = shares[0] if anchored else 0.0
    teacher_calls = 1 if loss.guidance_scale == 1 else 2
    for role, times in (("teacher", teacher_calls), ("critic", 1)):
        scored = Pass(f"score_{role}", role, window, 0, 0)  # type: ignore[arg-type]  # one of the four
        times_scored = times * (1 - layout)
        yield replace(scored, clips=times_scored * windows, calls=times_scored * len(parts))
    path = len(path_times(config.sampling, config.flow, sizes.long_frames)) - 1
    followed = layout + shares[0] * (path if loss.forward_kl_weight else 0)
    reference = Pass("anchor", "frozen_student", sizes.long_frames, 0, 0, "flow_matching")
    yield _of(reference, rows, micro_batch, followed)
    if loss.adversarial_weight:
        # forward and backward to the windows, which costs about as much; SHORT and rollouts for its own
        whole = rows * scored_windows(config)
        lessons = 2 * distill.critic_updates * place.rows(distill.short_batch)
        adversary = Pass("adversary", "teacher", window, 0, 0)
        yield replace(adversary, clips=2 * whole * (1 - layout) + lessons, calls=2 * len(parts))
