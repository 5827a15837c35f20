"""`sostenuto runs`: the stages of a run, what they were made from, how far they are, and which are stale."""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import print_line, print_table, safe_text, titled_table, warn
from models.errors import CheckpointError, DataError
from pipelines.storage import Storage
from pipelines.training.lineage import (
    Lineage,
    changed_settings,
    latest_step,
    lineage_of,
    read_lineage,
    require_current,
    stale_stages,
    told,
)
from pipelines.training.recipes import finished_stage, make_recipe, require_finished, stage_graph
from pipelines.training.state import STATE_FILE


@dataclass(frozen=True)
class StageState:
    """A stage of one seed, as the table shows it."""

    seed: int
    stage: str
    inputs: dict[str, str]
    """Stages that it started from, with the beginning of their weights' sha256, and the data's hash."""
    state: str
    """`not begun`, `at step 120 of 210` or `finished`."""
    stale: tuple[str, ...]
    """What it was made from that has changed."""
    other_settings: str
    """Settings that differ from those given, which it may have been trained with on purpose."""
    steps: int
    cpu_hours: float
    code: str
    """The commit that worked on it last."""
    changes: tuple[str, ...]
    """What it went on with from which step."""
    checkpoint: str


def runs(config: RunConfig, *, as_json: bool = False) -> list[StageState]:
    """Print every stage of every seed of the config's run.

    Args:
        config: the run's settings, which stages are compared with.
        as_json: one JSON object instead of the table.

    Returns:
        The stages, by seed and in order.
    """
    root = RunPaths.of(config).root
    names = Storage(root).list()
    seeds = sorted(int(n[5:]) for n in names if n.startswith("seed-") and n[5:].lstrip("-").isdigit())
    found = [state for seed in seeds or [config.seed] for state in states_of(config, seed)]
    if as_json:
        print_line(json.dumps({"run": root, "stages": [dataclasses.asdict(state) for state in found]}))
        return found
    table = titled_table(root)
    for heading in ("seed", "stage", "made from", "state", "steps", "CPU h", "code", "checkpoint"):
        table.add_column(heading, justify="right" if heading in ("seed", "steps", "CPU h") else "left")
    for state in found:
        made_from = ", ".join(f"{name} {value[:6]}" for name, value in state.inputs.items())
        mark = " (stale)" if state.stale else " (other settings)" if state.other_settings else ""
        checkpoint = state.checkpoint.removeprefix(f"{root}/seed-{state.seed}/")
        row = (state.seed, state.stage, made_from, f"{state.state}{mark}", state.steps or "")
        table.add_row(*map(safe_text, (*row, f"{state.cpu_hours:.2f}", state.code[:9], checkpoint)))
    print_table(table)
    for state in found:
        others = [f"other settings: {state.other_settings}"] if state.other_settings else []
        for text in (*(f"stale: {why}" for why in state.stale), *others, *state.changes):
            print_line(f"  seed {state.seed}, {state.stage}: {text}")
    return found


def states_of(config: RunConfig, seed: int) -> Iterator[StageState]:
    """Every stage of a seed, in order."""
    paths = RunPaths.of(config)
    root = paths.seed(seed)
    stale = stale_stages(config, root, paths.dataset)
    for stage in stage_graph(config):
        lineage, done = read_lineage(root, stage), finished_stage(root, stage)
        step, cpu_s, checkpoint, state = 0, 0.0, "", "not begun"
        if done is not None:
            step, cpu_s = int(done.summary["steps"]), done.summary.get("cpu_seconds", 0.0)
            checkpoint, state = done.checkpoint, "finished"
        elif lineage is not None:
            step = latest_step(root, stage)
            state = f"at step {step} of {lineage.settings[f'{stage}.steps']}"
            if step:
                checkpoint = f"{root}/{stage}/step-{step:06d}"
                cpu_s = Storage(checkpoint).read_json(STATE_FILE)["cpu_seconds"]
        changes = lineage.changes if lineage else ()
        yield StageState(
            seed=seed,
            stage=stage,
            inputs=_inputs(lineage),
            state=state,
            stale=tuple(stale.get(stage, ())),
            other_settings=_other_settings(config, stage, seed, lineage),
            steps=step,
            cpu_hours=cpu_s / 3600,
            code=lineage.code if lineage else "",
            changes=tuple(f"from step {entry['step']} on, {told(entry['changed'])}" for entry in changes),
            checkpoint=checkpoint,
        )


def _inputs(lineage: Lineage | None) -> dict[str, str]:
    if lineage is None:
        return {}
    return {name.split("/")[0]: value for name, value in lineage.inputs.items()} | {"data": lineage.data_hash}


def _other_settings(config: RunConfig, stage: str, seed: int, lineage: Lineage | None) -> str:
    """How a stage's settings differ from those that are given, where it could be made now."""
    if lineage is None:
        return ""
    paths = RunPaths.of(config)
    try:
        now = lineage_of(make_recipe(config, stage, seed, paths.seed(seed), paths.dataset))
    except (CheckpointError, DataError):
        return ""
    return told(changed_settings(lineage, now))


def checkpoint_of(config: RunConfig, stage: str, wanted_by: str) -> str:
    """The last checkpoint of a finished stage of the config's seed; a stale one is told.

    Raises:
        CheckpointError: it has not finished.
    """
    paths = RunPaths.of(config)
    root = paths.seed(config.seed)
    outcome = require_finished(root, stage, wanted_by)
    try:
        require_current(config, root, paths.dataset, [stage])
    except CheckpointError as stale:
        warn(f"note: {stale.problem}")
    return outcome.checkpoint
