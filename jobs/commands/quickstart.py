"""`sostenuto quickstart`: from two folders of video to a few-step generator, its samples and its table."""

import os
import shlex
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TypeVar

import psutil

from jobs.commands.evaluate import RUN as EVALUATION
from jobs.commands.evaluate import evaluate_seed, publish, settings_of
from jobs.commands.ingest import ingest_corpora, ingest_notes, require_inputs
from jobs.commands.sample import sample
from jobs.commands.train import run_stage
from jobs.config.load import config_hash, to_dict
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line
from jobs.ray_session import ray_session
from jobs.tracking import command_run, tracking_uri
from pipelines.data.ingest.lease import require_free
from pipelines.evaluation.report.summary import write_summary
from pipelines.evaluation.run import prepare
from pipelines.storage import Storage
from pipelines.training.monitors.board import progress_board
from pipelines.training.recipes import stage_graph

K = TypeVar("K", bound=Hashable)

SLOTS = min(2, len(os.sched_getaffinity(0)))
"""Stages that run side by side; one where there is one CPU."""
SAMPLES = 6
REFERENCES = "references"
MEMORY_POLL_S = 2.0


def quickstart(
    config: RunConfig, *, seeds: int, fresh: bool, resume_changed: bool = False, allow_stale: bool = False
) -> str:
    """The whole path; a repeated command skips what an interrupted one finished.

    Args:
        config: the run's settings.
        seeds: how many, from `config.seed` on.
        fresh: delete the run first, once Ray and MLflow answer and the corpora are found.
        resume_changed: go on with settings that have changed, where they may.
        allow_stale: use what was made from inputs that have changed.

    Returns:
        Path of summary.json.

    Raises:
        SostenutoError: as its commands.
    """
    began, paths = time.monotonic(), RunPaths.of(config)
    require_inputs(config, paths)
    with (
        peak_memory() as memory,
        ray_session(config.cluster),
        command_run(config, "quickstart") as (parent, _),
    ):
        if fresh:
            require_free(Storage(paths.dataset))
            Storage(paths.root).delete("")
        with ConsoleProgress() as progress, progress_board(progress) as board:
            ingest_corpora(config, paths, progress)

            def work(name: str) -> None:
                if name == REFERENCES:
                    prepare(settings_of(config, config.seed), progress)
                else:
                    seed, stage = name.split("/")
                    run_stage(
                        config,
                        stage,
                        int(seed),
                        board,
                        parent,
                        resume_changed=resume_changed,
                        allow_stale=allow_stale,
                    )

            chosen = list(range(config.seed, config.seed + seeds))
            run_graph(work_graph(config, chosen), work, SLOTS)
            with command_run(config, EVALUATION) as (run, tracker):
                results = [
                    evaluate_seed(config, seed, progress, parent=run, allow_stale=allow_stale)
                    for seed in chosen
                ]
                report = publish(config, results, tracker)
        summary = write_summary(
            results,
            paths.root,
            wall_seconds=time.monotonic() - began,
            peak_rss_bytes=memory.bytes,
            config_hash=config_hash(config),
            config=to_dict(config),
        )
        sample(config, checkpoint=None, count=SAMPLES, captions=None, head="dm", steps=None, out=None)
    for note in ingest_notes(config, paths.dataset):
        print_line(note)
    clips = results[0].clips.get("mmm_4", ())
    print_line(f"clips:   {clips[0].rsplit('/', 1)[0] if clips else '-'}")
    print_line(f"samples: {paths.samples}")
    print_line(f"report:  {report.html}")
    print_line(f"summary: {summary}")
    if config.tracking.enabled:
        words = ["mlflow", "ui", "--backend-store-uri", tracking_uri(config)]
        print_line(f"runs:    {shlex.join(words)}")
    print_line(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return summary


def work_graph(config: RunConfig, seeds: list[int]) -> dict[str, set[str]]:
    """What each piece of work waits for, in order of preference: the first seed's stages (`seed/stage`), the
    real videos that evaluation compares with, the other seeds' stages."""
    graph: dict[str, set[str]] = {}
    for seed in seeds:
        for stage, waits in stage_graph(config).items():
            graph[f"{seed}/{stage}"] = {f"{seed}/{other}" for other in waits}
        graph.setdefault(REFERENCES, set())
    return graph


def run_graph(graph: Mapping[K, set[K]], work: Callable[[K], None], slots: int) -> None:
    """Call `work(name)` for every name once all that it waits for is done, at most `slots` at a time.

    Names that are ready together start in the graph's order; the first exception cancels the rest.
    """
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    pool = ThreadPoolExecutor(slots, thread_name_prefix="stage")
    running: dict[Future[None], K] = {}
    order = list(graph)
    try:
        while sorter.is_active():
            for name in sorted(sorter.get_ready(), key=order.index):
                running[pool.submit(work, name)] = name
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                sorter.done(running.pop(future))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Peak:
    bytes: int = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak proportional memory of this process and its descendants during a `with` block."""
    peak, stop = Peak(), threading.Event()

    def watch() -> None:
        while not stop.wait(MEMORY_POLL_S):
            own = psutil.Process()
            total = sum(_proportional_bytes(p) for p in [own, *own.children(recursive=True)])
            peak.bytes = max(peak.bytes, total)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def _proportional_bytes(process: psutil.Process) -> int:
    """Memory of a process, shared pages split among their users; 0 once it has ended."""
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return 0
