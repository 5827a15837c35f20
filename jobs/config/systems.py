"""The systems that an evaluation compares, before anything is trained, and how a network is sampled."""

import dataclasses
from collections.abc import Sequence

from jobs.config.checks import check_times
from jobs.config.schema import RunConfig
from models.config import SamplingConfig
from models.errors import ConfigError
from pipelines.checkpoints import NetworkSpec
from pipelines.evaluation.settings import System
from pipelines.generation import Head, Method


def planned_systems(config: RunConfig) -> tuple[tuple[str, System], ...]:
    """Each system with the stage that trains it, in the order of the table; they have no checkpoints yet."""
    few, many, draws = len(config.sampling.steps), config.sampling.ode_steps, config.evaluation.draws
    return (
        ("distill", System("mmm_4", "", "dm", "few_step", few, draws)),
        ("distill", System("mmm_fm_50", "", "fm", "ode", many)),
        ("sft", System("sft_50", "", "fm", "ode", many)),
        ("sft", System("sft_4", "", "fm", "ode", few, draws)),
        ("sft_longer", System("sft_50_longer", "", "fm", "ode", many)),
        ("mixed", System("mixed_50", "", "fm", "ode", many)),
        ("mixed_longer", System("mixed_50_longer", "", "fm", "ode", many)),
        ("teacher", System("teacher_rollout", "", "teacher", "windows", config.sampling.rollout_steps)),
    )


def read_times(given: str) -> tuple[float, ...]:
    """Times of the few-step sampler, as people write them: `1,0.5`.

    Raises:
        ConfigError: they cannot be read.
    """
    try:
        return tuple(float(part) for part in given.split(","))
    except ValueError as error:
        raise ConfigError(f"--times {given!r} cannot be read", "Write --times 1,0.75,0.5,0.25") from error


def method_of(
    config: RunConfig, spec: NetworkSpec, head: Head, steps: int | None, times: Sequence[float] | None
) -> tuple[Method, SamplingConfig]:
    """The sampler of a head, and its settings.

    Args:
        config: the run's settings.
        spec: the network.
        head: what is sampled; `teacher` goes window by window.
        steps: Euler steps, of the teacher for one window; None is the config's.
        times: of the few-step sampler; None is the checkpoint's own.

    Raises:
        ConfigError: steps for the few-step sampler, or times that do not fall or are for another.
    """
    if head != "dm":
        if times is not None:
            raise ConfigError(
                f"the {head} head was given times of the few-step sampler",
                "Give --steps instead",
            )
        if head == "teacher":
            return Method("teacher", "windows", steps or config.sampling.rollout_steps), config.sampling
        return Method("fm", "ode", steps or config.sampling.ode_steps), config.sampling
    own = spec.sampling.steps
    if steps is not None:
        raise ConfigError(
            f"the few-step sampler was asked for {steps} steps but has the times {list(own)}",
            f"Leave --steps out, give other times by --times {','.join(map(str, own))}, or take --head fm",
        )
    chosen = own if times is None else tuple(times)
    if times is not None:
        check_times(chosen, "--times")
    return Method("dm", "few_step", len(chosen)), dataclasses.replace(config.sampling, steps=chosen)
