"""The systems that an evaluation compares, before anything is trained."""

from jobs.config.schema import RunConfig
from pipelines.evaluation.settings import System


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
