"""`sostenuto train`: one stage on Ray Train, or what training would take."""

from jobs.config.load import config_hash, flatten, override
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line, this_command
from jobs.estimate.report import dry_run as estimate
from jobs.estimate.report import plan
from jobs.ray_session import ray_session
from jobs.tracking import RunReference, factory, open_run, this_commit
from jobs.used_dataset import used_dataset
from models.errors import TrainingDiverged
from pipelines.data.store.caption_embeddings import embed_captions
from pipelines.ray_map import Pool
from pipelines.storage import Storage
from pipelines.training.batches import caption_pool
from pipelines.training.config import DistillConfig
from pipelines.training.lineage import Lineage, begin_stage, group_of, require_current, told
from pipelines.training.monitors.board import BoardProgress, progress_board
from pipelines.training.recipes import StageOutcome, make_recipe, stages_behind
from pipelines.training.trainer import adopt_teacher, train_stage


def run_stage(
    config: RunConfig,
    stage: str,
    seed: int,
    progress: BoardProgress,
    parent: RunReference | None = None,
    *,
    place: RunPaths | None = None,
    fresh: bool = False,
    resume_changed: bool = False,
    allow_stale: bool = False,
) -> StageOutcome:
    """Train one stage of one seed, resume it, or return what had finished.

    Args:
        config: the run's settings.
        stage, seed: which.
        progress: shows it.
        parent: MLflow run that the stage's is a child of.
        place: where it reads and writes, below the run's own folder; None is there.
        fresh: delete the stage first, once what it starts from is found to be in order.
        resume_changed, allow_stale: as in `begin_stage`.

    Raises:
        CheckpointError: a stage before it has not finished, or what one was made from has changed.
        TrainingDiverged: with the commands that go on.
    """
    run = RunPaths.of(config)
    paths = place or run
    root = paths.seed(seed)
    recipe = make_recipe(config, stage, seed, root, paths.dataset, this_commit())
    if not allow_stale:
        own = set() if fresh else {stage}
        require_current(config, root, paths.dataset, stages_behind(config, stage) | own)
    if fresh:
        Storage(root).delete(stage)
    begun = begin_stage(recipe, resume_changed=resume_changed, allow_stale=allow_stale)
    if isinstance(begun, StageOutcome):
        return begun
    if config.model.pretrained is not None and recipe.adopts:
        return adopt_teacher(recipe, config.model.pretrained)
    if isinstance(recipe.stage, DistillConfig):
        # rollouts may have captions that ingest has not embedded
        captions = {text for source in caption_pool(recipe.stage, paths.dataset).values() for text in source}
        embed_captions(config.text, paths.dataset, captions, pool=Pool(1, 1, config.cluster.use_gpu))
    tags = {"sostenuto.config_hash": config_hash(config), "sostenuto.data_hash": begun.data_hash}
    tags |= {"sostenuto.seed": str(seed), "sostenuto.stage": stage}
    used = used_dataset(config, paths.dataset, "training")
    name = f"{root.removeprefix(f'{run.root}/')}/{stage}"
    tracker = factory(open_run(config, name, parent=parent, tags=tags, dataset=used, machine=True))
    opened = tracker()
    opened.params(flatten(config))
    opened.tags(change_tags(begun))
    opened.close(None)
    try:
        return train_stage(recipe, tracker, progress, plan=plan(config, group_of(stage)))
    except TrainingDiverged as error:
        ways = [this_command(override(*change)) for change in error.changes.items()]
        remedy = error.remedy if not ways else f"{error.remedy}: {' or: '.join(ways)}"
        raise TrainingDiverged(error.problem, remedy) from error


def change_tags(lineage: Lineage) -> dict[str, str]:
    """A tag for each step at which a stage went on with something changed, and what that was."""
    at: dict[int, dict[str, list[object]]] = {}
    for entry in lineage.changes:
        at[entry["step"]] = at.get(entry["step"], {}) | entry["changed"]
    return {f"sostenuto.changed.step-{step:06d}": told(changed) for step, changed in at.items()}


def train(
    config: RunConfig,
    *,
    stage: str | None,
    fresh: bool = False,
    resume_changed: bool = False,
    allow_stale: bool = False,
    dry_run: bool = False,
    gpu: str | None = None,
    as_json: bool = False,
) -> StageOutcome | None:
    """Train one stage with the config's seed: resumed where it stopped, skipped where it has finished.

    Args:
        config: the run's settings.
        stage: one of the run; None is all, with `dry_run` only.
        fresh: delete the stage first.
        resume_changed: go on with settings that have changed, where they may.
        allow_stale: use what was made from inputs that have changed.
        dry_run: print what it would take, and whether it fits on `gpu`, `as_json` or as text; train nothing.

    Returns:
        Its last checkpoint and summary; None of a dry run.

    Raises:
        CheckpointError: a stage before it has not finished, or what one was made from has changed.
        TrainingDiverged: a loss, score or gradient was not finite.
    """
    if dry_run:
        estimate(config, stage=stage, gpu=gpu, as_json=as_json)
        return None
    assert stage is not None
    with ray_session(config.cluster), ConsoleProgress() as progress, progress_board(progress) as board:
        outcome = run_stage(
            config,
            stage,
            config.seed,
            board,
            fresh=fresh,
            resume_changed=resume_changed,
            allow_stale=allow_stale,
        )
    print_line(f"{stage}: {outcome.summary['steps']:.0f} steps, {outcome.summary['cpu_seconds']:.0f} CPU-s")
    print_line(f"checkpoint: {outcome.checkpoint}")
    return outcome
