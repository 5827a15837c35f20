"""Operations of one step of a stage over all workers, by what they are spent on."""

from collections.abc import Mapping

from jobs.config.schema import RunConfig
from jobs.estimate.flops import Flops, Tokens, stack_flops
from jobs.estimate.networks import Networks
from jobs.estimate.shapes import scored_windows, shapes
from models.ddt import HeadName, Student
from models.dit import DiT
from pipelines.training.config import StageConfig


def tokens(config: RunConfig, frames: int, clips: int = 1) -> Tokens:
    """What a network reads of clips of `frames` latent frames; captions count with all their tokens."""
    steps = frames // config.model.patch_size[0]
    return Tokens(steps, shapes(config).tokens_per_frame, config.text.max_tokens, clips)


def plain_flops(config: RunConfig, network: DiT, frames: int) -> Flops:
    """One clip through the teacher or the critic."""
    return stack_flops(network.encoder, network.head, config.model, tokens(config, frames))


def student_flops(config: RunConfig, student: Student, name: HeadName, frames: int, clips: int) -> Flops:
    """One of `clips` clips through the student's encoder and one head."""
    head = student.heads[name if config.model.heads == "decoupled" else "flow_matching"]
    read = tokens(config, frames, clips)
    return stack_flops(student.encoder, head, config.model, read)  # type: ignore[arg-type]


def phases(config: RunConfig, stage: str, built: Networks) -> dict[str, float]:
    """Operations of one step by phase.

    A rollout stops at a step drawn at random, so that its part, and the anchor's, are means.
    """
    if stage == "teacher":
        size = shapes(config).short_frames
        one = plain_flops(config, built.teacher, size) * config.teacher.short_batch
        return {"forward": one.forward, "backward": one.backward}
    if stage not in ("warmup", "distill"):
        return _supervised(config, getattr(config, stage), built.student)
    shared = {"rollout": _rollout(config, built), **_critic(config, built)}
    if stage == "warmup":
        return shared
    return _supervised(config, config.distill, built.student) | shared | _student(config, built)


def _supervised(config: RunConfig, stage: StageConfig, student: Student) -> dict[str, float]:
    size, total = shapes(config), Flops()
    for batch, frames in ((stage.short_batch, size.short_frames), (stage.long_batch, size.long_frames)):
        if batch:
            total += student_flops(config, student, "flow_matching", frames, batch) * batch
    return {"forward": total.forward, "backward": total.backward}


def _one(config: RunConfig, built: Networks) -> Flops:
    """One LONG clip through the student's DM head."""
    clips = config.distill.rollout_batch
    return student_flops(config, built.student, "distribution_matching", shapes(config).long_frames, clips)


def _rollout(config: RunConfig, built: Networks) -> float:
    """The steps up to the exit step, and that step: it carries the graph."""
    passes = (len(config.sampling.steps) + 1) / 2
    return passes * config.distill.rollout_batch * _one(config, built).forward


def _student(config: RunConfig, built: Networks) -> dict[str, float]:
    """Backward pass of the exit step, the scores, and the anchor when the exit step is the first."""
    distill, rows = config.distill, config.distill.rollout_batch
    windows = rows * scored_windows(config)
    teacher_calls = 1 if config.loss.guidance_scale == 1 else 2
    frozen = plain_flops(config, built.teacher, distill.window_frames).forward
    critic = plain_flops(config, built.critic, distill.window_frames).forward
    share = bool(config.loss.anchor_weight) / len(config.sampling.steps)
    reference = student_flops(config, built.frozen_student, "flow_matching", shapes(config).long_frames, rows)
    return {
        "student_backward": rows * _one(config, built).backward,
        "score_teacher": windows * teacher_calls * frozen,
        "score_critic": windows * critic,
        "anchor": rows * share * reference.forward,
    }


def _critic(config: RunConfig, built: Networks) -> dict[str, float]:
    distill = config.distill
    one = plain_flops(config, built.critic, distill.window_frames)
    updates = one * (distill.critic_updates * distill.critic_batch)
    return {"critic_forward": updates.forward, "critic_backward": updates.backward}


def total(by_phase: Mapping[str, float]) -> float:
    """Operations of one step."""
    return sum(by_phase.values())
