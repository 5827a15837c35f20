"""`sostenuto train`: one stage, or all that are missing, on Ray Train."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.train import UserCallback

from jobs.commands.recipes import StagePlan, make_recipe, stage_plan
from jobs.config.load import config_hash, flatten, to_dict
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from jobs.estimate.report import dry_run as estimate
from jobs.ray_session import ray_session
from jobs.tracking import RunReference, factory, open_run
from pipelines.data.store.info import read_info
from pipelines.storage import Storage
from pipelines.training.progress import BoardReporter, ProgressBoard
from pipelines.training.trainer import StageOutcome, TrainingRun, adopt_teacher, train_stage

POLL_S = 0.5


@contextmanager
def progress_board(progress: ConsoleProgress) -> Iterator[BoardReporter]:
    """Shows on this terminal what workers report, for the length of a `with` block."""
    board: Any = ProgressBoard.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    shown: dict[str, int] = {}

    def show() -> None:
        for entry in ray.get(board.read.remote()):
            if shown.get(entry.name) != entry.done:
                shown[entry.name] = entry.done
                progress(entry.name, entry.done, entry.total, entry.text)

    def watch() -> None:
        while not stop.wait(POLL_S):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield BoardReporter(board)
    finally:
        stop.set()
        watcher.join()
        show()
        ray.kill(board)


def run_stage(
    config: RunConfig,
    plan: StagePlan,
    seed: int,
    reporter: BoardReporter | None,
    parent: RunReference | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> StageOutcome:
    """Trains one stage of one seed, resumes it, or returns what it had finished.

    Args:
        config: the run's settings.
        plan: the stage.
        seed: seed of training.
        reporter: takes progress.
        parent: MLflow run that the stage's run is a child of.
        callbacks: passed to Ray Train.
    """
    paths = RunPaths.of(config)
    root = paths.seed(seed)
    recipe = make_recipe(config, plan, read_info(paths.dataset), root, seed)
    if plan.name == "teacher" and config.model.pretrained is not None:
        return adopt_teacher(root, recipe, config.model.pretrained)
    name = f"seed-{seed}/{plan.name}"
    reference = open_run(config, name, parent=parent, tags={"sostenuto.config_hash": config_hash(config)})
    tracker = factory(reference)
    tracker().params(flatten(config))
    run = TrainingRun(
        plan.name, root, paths.dataset, recipe, config.cluster, to_dict(config), tracker, reporter
    )
    return train_stage(run, callbacks)


def train(
    config: RunConfig,
    *,
    stage: str | None,
    fresh: bool = False,
    dry_run: bool = False,
    gpu: str | None = None,
    as_json: bool = False,
) -> StageOutcome | None:
    """Train one stage with the config's seed: resumed where it stopped, skipped where it has finished.

    Args:
        config: the run's settings.
        stage: teacher, sft, mixed, warmup or distill; None is all, with `dry_run` only.
        fresh: remove what the stage has first.
        dry_run: print what it would take, and whether it fits on `gpu`, `as_json` or as text; train nothing.

    Returns:
        Its last checkpoint and summary; None of a dry run.

    Raises:
        CheckpointError: a stage before it has not finished, or its folder holds a run of other settings.
        TrainingDiverged: a loss, score or gradient was not finite.
    """
    if dry_run:
        estimate(config, stage=stage, gpu=gpu, as_json=as_json)
        return None
    assert stage is not None
    root = RunPaths.of(config).seed(config.seed)
    if fresh:
        Storage(root).delete(stage)
    with ray_session(config.cluster), ConsoleProgress() as progress, progress_board(progress) as reporter:
        outcome = run_stage(config, stage_plan(config, stage), config.seed, reporter)
    print_line(f"{stage}: {outcome.summary['steps']:.0f} steps, {outcome.summary['cpu_seconds']:.0f} CPU-s")
    print_line(f"checkpoint: {outcome.checkpoint}")
    return outcome
