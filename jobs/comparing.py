"""What `sostenuto compare` trains and evaluates: each stage once, whatever systems share it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from jobs.commands.evaluate import evaluate_missing, settings_of
from jobs.commands.ingest import ingest_corpora
from jobs.commands.train import run_stage
from jobs.config.comparison import FOLDER, Row, chosen_rows
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress
from jobs.system_runs import file_systems
from jobs.tracking import RunReference
from pipelines.evaluation.run import Evaluation
from pipelines.evaluation.settings import EvaluationSettings, System
from pipelines.training.config import DistillConfig
from pipelines.training.lineage import deciding, made_alike, require_current, take_over
from pipelines.training.monitors.board import BoardProgress
from pipelines.training.recipes import (
    bare_recipe,
    finished_stage,
    make_recipe,
    require_finished,
    stage_graph,
    stage_starts,
    stages_behind,
)

RESAMPLES = 40
"""Of the videos of each system and seed."""

DATASET, NO_SEED = "dataset", -1
"""The work of a row with a dataset of its own, which is no stage and no seed's."""


@dataclass(frozen=True)
class Work:
    """One piece: a stage of a seed, or a row's own dataset, which is no seed's."""

    row: str
    """Empty: the run's own, which rows may share."""
    stage: str
    seed: int = NO_SEED

    @property
    def label(self) -> str:
        """`dm_only 0 `: before the stage's name in progress."""
        return "".join(f"{part} " for part in (self.row, self.seed) if part not in ("", NO_SEED))


def work_graph(config: RunConfig, rows: Sequence[Row], seeds: Sequence[int]) -> dict[Work, set[Work]]:
    """What has to be done for the rows, and what each piece waits for; the run's own stages come first."""
    shared: dict[Work, set[Work]] = {}
    own: dict[Work, set[Work]] = {}

    def share(stage: str, seed: int) -> Work:
        for name in _in_order(config, stage):
            shared[Work("", name, seed)] = {Work("", before, seed) for before in stage_graph(config)[name]}
        return Work("", stage, seed)

    for seed in seeds:
        for row in rows:
            changed, (last, _) = row.config(config), row.planned(config)
            if not row.overrides:
                share(last, seed)
                continue
            for stage in _in_order(changed, last):
                waits = {Work(row.name, before, seed) for before in stage_graph(changed)[stage]}
                if row.has_own_data:
                    own[dataset := Work(row.name, DATASET)] = set()
                    waits.add(dataset)
                elif shares(config, row, stage):
                    waits.add(share(stage, seed))
                own[Work(row.name, stage, seed)] = waits
    return shared | own


def _in_order(config: RunConfig, last: str) -> list[str]:
    """A stage and those behind it, in the order of a run."""
    needed = stages_behind(config, last) | {last}
    return [stage for stage in stage_starts(config) if stage in needed]


def shares(config: RunConfig, row: Row, stage: str) -> bool:
    """Whether the run's own stage is the row's as well, by the settings of all that it is made from."""
    own = row.config(config)
    if row.has_own_data:
        return False
    return all(
        made_alike(name, *(deciding(bare_recipe(one, name, config.seed)) for one in (config, own)))
        for name in {stage} | stages_behind(own, stage)
    )


def do(
    work: Work,
    config: RunConfig,
    progress: ConsoleProgress,
    board: BoardProgress,
    parent: RunReference | None,
) -> None:
    """One piece of work, or nothing where it is done: a stage that the run has is taken over.

    Raises:
        SostenutoError: as `ingest` and `train`.
    """
    board = dataclasses.replace(board, prefix=work.label)
    if not work.row:
        run_stage(config, work.stage, work.seed, board, parent)
        return
    (row,) = chosen_rows(config, [work.row])
    own, place = row.config(config), row.paths(config)
    if work.stage == DATASET:
        ingest_corpora(own, place, progress)
        return
    if shares(config, row, work.stage):
        recipe = make_recipe(own, work.stage, work.seed, place.seed(work.seed), place.dataset)
        if take_over(recipe, RunPaths.of(config).seed(work.seed)):
            return
    run_stage(own, work.stage, work.seed, board, parent, place=place)


def evaluate_rows(
    config: RunConfig,
    rows: Sequence[Row],
    seed: int,
    progress: ConsoleProgress,
    parent: RunReference | None,
) -> Evaluation:
    """The table of one seed: rows that are not yet in it are evaluated, those of one dataset together."""
    whole: Evaluation | None = None
    for own_data in dict.fromkeys(row.paths(config).dataset for row in rows):
        group = [row for row in rows if row.paths(config).dataset == own_data]
        place, settings = group[0].paths(config), comparison_settings(config, group[0], seed)
        systems = [system_of(config, row, seed) for row in group]
        folder = f"{RunPaths.of(config).root}/{FOLDER}/evaluation/seed-{seed}"
        folder += f"-{group[0].name}" if group[0].has_own_data else ""
        result, new = evaluate_missing(systems, settings, folder, progress)
        file = partial(
            file_systems, result=result, systems=systems, parent=parent, prefix=f"{FOLDER}/", place=place
        )
        for row in group:
            file(row.config(config), names=[row.name] if row.name in new else [], stands_for=row.stands_for)
        named = {row.name for row in group}
        if group[0].has_own_data:  # its real videos are those of another dataset
            result = result.of([name for name in result.rows if name in named])
        else:
            file(config, names=[name for name in new if name not in named])
        whole = result if whole is None else result.joined(whole, [row.name for row in rows])
    assert whole is not None
    return whole


def comparison_settings(config: RunConfig, row: Row, seed: int) -> EvaluationSettings:
    """Of an evaluation in which all systems have as many videos, one draw, and figures of resampled ones."""
    place, plain = row.paths(config), settings_of(row.config(config), seed)
    wanted = dataclasses.replace(plain.evaluation, draws=1, resamples=RESAMPLES)
    references = f"{place.root if row.has_own_data else RunPaths.of(config).root}/references"
    return dataclasses.replace(plain, evaluation=wanted, dataset=place.dataset, references=references)


def system_of(config: RunConfig, row: Row, seed: int) -> System:
    """The trained system of a row.

    Raises:
        CheckpointError: its stage has not finished, or what it was made from has changed.
    """
    (stage, system), place = row.planned(config), row.paths(config)
    root = place.seed(seed)
    require_current(row.config(config), root, place.dataset, [stage])
    return dataclasses.replace(system, checkpoint=require_finished(root, stage, row.name).checkpoint, draws=1)


@dataclass(frozen=True)
class Budget:
    """What training a system took, from the teacher on."""

    cpu_seconds: float
    gradient_samples: float
    """Windows, clips and rollouts that a loss was taken of."""


def budget(config: RunConfig, row: Row, seed: int) -> Budget:
    """Added up over the finished stages that the system's weights come from."""
    own, root = row.config(config), row.paths(config).seed(seed)
    stages, waiting = set[str](), [row.planned(config)[0]]
    while waiting:
        stage = waiting.pop()
        stages.add(stage)
        waiting += set(stage_starts(own)[stage].values()) - stages
    seconds = samples = 0.0
    for stage in stages:
        outcome = finished_stage(root, stage)
        if outcome is not None:
            seconds += outcome.summary["cpu_seconds"]
            samples += outcome.summary["steps"] * samples_per_step(own, stage)
    return Budget(seconds, samples)


def samples_per_step(config: RunConfig, stage: str) -> int:
    """Windows, clips and rollouts of a step that the student or the teacher learns from, not its judges."""
    settings = bare_recipe(config, stage, config.seed).stage
    if not isinstance(settings, DistillConfig):
        return settings.short_batch + settings.long_batch
    mean = settings.long_batch if config.loss.flow_matching_weight else 0
    return mean + settings.rollout_batch
