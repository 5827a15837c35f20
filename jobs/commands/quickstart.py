"""`sostenuto quickstart`: from two folders of video to a few-step generator, its samples and its table."""

import time
from dataclasses import dataclass
from functools import partial

from jobs.commands.evaluate import evaluate_seed, publish, settings_of
from jobs.commands.graph import run_graph
from jobs.commands.ingest import ingest_corpora, require_inputs
from jobs.commands.memory import PeakMemory
from jobs.commands.recipes import BASELINES, longer, stage_plan
from jobs.commands.sample import sample
from jobs.commands.train import progress_board, run_stage
from jobs.config.load import config_hash, flatten, to_dict
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from jobs.ray_session import ray_session
from jobs.tracking import RunReference, factory, open_run, tracking_uri
from pipelines.data.ingest.lease import require_free
from pipelines.evaluation.report.summary import write_summary
from pipelines.evaluation.run import Evaluation, prepare
from pipelines.storage import Storage
from pipelines.training.progress import BoardReporter

SLOTS = 2
SAMPLES = 6
REFERENCES = "references"


def quickstart(config: RunConfig, *, seeds: int, fresh: bool) -> str:
    """The whole path; what an interrupted run has finished is not done again.

    Args:
        config: the run's settings.
        seeds: how many, from `config.seed` on.
        fresh: remove the run, once Ray and MLflow answer and the corpora are found.

    Returns:
        Path of summary.json.

    Raises:
        SostenutoError: as the commands it is made of.
    """
    began, paths = time.monotonic(), RunPaths.of(config)
    require_inputs(config, paths)
    with PeakMemory() as memory, ray_session(config.cluster):
        parent = open_run(config, "quickstart", tags={"sostenuto.config_hash": config_hash(config)})
        if fresh:
            require_free(Storage(paths.dataset))
            Storage(paths.root).delete("")
        with ConsoleProgress() as progress, progress_board(progress) as reporter:
            ingest_corpora(config, paths, progress)
            factory(parent)().params(flatten(config))
            work = _Work(config, progress, reporter, parent)
            chosen = list(range(config.seed, config.seed + seeds))
            run_graph(stage_graph(config, chosen), work.do, SLOTS)
            results = [evaluate_seed(config, seed, progress, parent=parent) for seed in chosen]
        report = publish(config, results)
        summary = write_summary(
            results,
            paths.root,
            wall_seconds=time.monotonic() - began,
            peak_rss_bytes=memory.peak_bytes,
            config_hash=config_hash(config),
            config=to_dict(config),
        )
        sample(config, checkpoint=None, count=SAMPLES, captions=None, head="dm", steps=None, out=None)
        factory(parent)().close()
    _closing_words(config, results, report.html, summary, time.monotonic() - began)
    return summary


def stage_graph(config: RunConfig, seeds: list[int]) -> dict[str, set[str]]:
    """Every piece of work as `seed/stage`, and what it waits for; a seed's stages come before the next's."""
    names = ["teacher", "sft", "mixed", *(["warmup"] if config.warmup.steps else []), "distill", *BASELINES]
    graph: dict[str, set[str]] = {}
    for seed in seeds:
        for name in names:
            waits = set(stage_plan(config, name).starts.values()) | (
                {"distill"} if name in BASELINES else set()
            )
            graph[f"{seed}/{name}"] = {f"{seed}/{other}" for other in waits}
        if seed == seeds[0]:
            graph[REFERENCES] = set()
    return graph


@dataclass(frozen=True)
class _Work:
    """Does one piece of the graph."""

    config: RunConfig
    progress: ConsoleProgress
    reporter: BoardReporter
    parent: RunReference | None

    def do(self, name: str) -> None:
        """`seed/stage`, or the references of the evaluation."""
        if name == REFERENCES:
            prepare(settings_of(self.config, self.config.seed), self.progress)
            return
        text, stage = name.split("/")
        seed = int(text)
        make = partial(longer, self.config, RunPaths.of(self.config).seed(seed))
        plan = make(stage) if stage in BASELINES else stage_plan(self.config, stage)
        run_stage(self.config, plan, seed, self.reporter, self.parent)


def _closing_words(
    config: RunConfig, results: list[Evaluation], page: str, summary: str, seconds: float
) -> None:
    """Where everything is, and how to look at it."""
    clips = results[0].clips.get("mmm_4", ())
    print_line(f"clips:   {clips[0].rsplit('/', 1)[0] if clips else '-'}")
    print_line(f"samples: {RunPaths.of(config).samples}")
    print_line(f"report:  {page}")
    print_line(f"summary: {summary}")
    if config.tracking.enabled:
        print_line(f"runs:    mlflow ui --backend-store-uri {tracking_uri(config)}")
    print_line(f"done in {seconds / 60:.1f} minutes")
