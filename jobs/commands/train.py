"""`sostenuto train`: one stage on Ray Train, or what training would take."""

from jobs.config.load import config_hash, flatten
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from jobs.estimate.report import dry_run as estimate
from jobs.estimate.report import plan
from jobs.ray_session import ray_session
from jobs.tracking import RunReference, factory, open_run
from pipelines.data.store.caption_embeddings import embed_captions
from pipelines.ray_map import Pool
from pipelines.storage import Storage
from pipelines.training.batches import caption_pool
from pipelines.training.config import DistillConfig
from pipelines.training.monitors.board import BoardProgress, progress_board
from pipelines.training.recipes import BASELINES, StageOutcome, make_recipe
from pipelines.training.trainer import adopt_teacher, train_stage


def run_stage(
    config: RunConfig, stage: str, seed: int, progress: BoardProgress, parent: RunReference | None = None
) -> StageOutcome:
    """Train one stage of one seed, resume it, or return what had finished.

    The stage's MLflow run is a child of `parent`.
    """
    paths = RunPaths.of(config)
    recipe = make_recipe(config, stage, seed, paths.seed(seed), paths.dataset)
    if stage == "teacher" and config.model.pretrained is not None:
        return adopt_teacher(recipe, config.model.pretrained)
    if isinstance(recipe.stage, DistillConfig):
        # rollouts may have captions that ingest has not embedded
        captions = {text for source in caption_pool(recipe.stage, paths.dataset).values() for text in source}
        embed_captions(config.text, paths.dataset, captions, pool=Pool(1, 1, config.cluster.use_gpu))
    tags = {"sostenuto.config_hash": config_hash(config)}
    tracker = factory(open_run(config, f"seed-{seed}/{stage}", parent=parent, tags=tags))
    begun = tracker()
    begun.params(flatten(config))
    begun.close(None)
    return train_stage(recipe, tracker, progress, plan=plan(config, BASELINES.get(stage, stage)))


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
        fresh: delete the stage first.
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
    with ray_session(config.cluster), ConsoleProgress() as progress, progress_board(progress) as board:
        outcome = run_stage(config, stage, config.seed, board)
    print_line(f"{stage}: {outcome.summary['steps']:.0f} steps, {outcome.summary['cpu_seconds']:.0f} CPU-s")
    print_line(f"checkpoint: {outcome.checkpoint}")
    return outcome
