"""`sostenuto compare`: the paper's table and ablations on one corpus, with intervals and verdicts."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import ray

from jobs.commands.ingest import ingest_corpora, require_inputs
from jobs.commands.quickstart import SLOTS, run_graph
from jobs.comparing import (
    DATASET,
    NO_SEED,
    Work,
    budget,
    comparison_settings,
    do,
    evaluate_rows,
    shares,
    work_graph,
)
from jobs.config.comparison import FOLDER, HERO, Row, chosen_rows
from jobs.config.load import config_hash, override
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.console import ConsoleProgress, print_line, print_table, this_command, titled_table
from jobs.estimate.comparison import plan
from jobs.ray_session import ray_session
from jobs.system_runs import file_artifact, file_report
from jobs.tracking import command_run, this_commit
from pipelines.data.store.info import read_info
from pipelines.evaluation.claims import (
    CLAIM_COLUMNS,
    CLAIMS,
    Interval,
    Judged,
    judge,
    metric_interval,
    not_won,
)
from pipelines.evaluation.report.page import write_report
from pipelines.evaluation.report.summary import remarks, table
from pipelines.evaluation.run import Evaluation, prepare
from pipelines.storage import Storage
from pipelines.training.monitors.board import progress_board

RESULT = "compare.json"


def compare(
    config: RunConfig,
    *,
    seeds: int = 3,
    systems: str | None = None,
    fresh: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
) -> dict[str, Any] | None:
    """Train what is missing of every row and seed, evaluate it, and judge the claims.

    Args:
        config: the run's settings, over which rows have theirs.
        seeds: how many, from `config.seed` on.
        systems: names of the rows, separated by commas; None is all.
        fresh: train and evaluate the rows that have settings of their own again; the run's stages stay.
        dry_run: print what it would take; do nothing.
        as_json: print one JSON object on standard output and nothing else there.

    Returns:
        What compare.json holds; None of a dry run.

    Raises:
        ConfigError: there is no such row.
        SostenutoError: as `ingest`, `train` and `evaluate`.
    """
    names = [name.strip() for name in (systems or "").split(",") if name.strip()]
    rows, chosen = chosen_rows(config, names), list(range(config.seed, config.seed + seeds))
    graph = work_graph(config, rows, chosen)
    if dry_run:
        show_plan(config, rows, graph, as_json=as_json)
        return None
    began, paths = time.monotonic(), RunPaths.of(config)
    require_inputs(config, paths)
    with (
        ray_session(config.cluster),
        ConsoleProgress(to_stderr=as_json) as progress,
        command_run(config, FOLDER) as (parent, tracker),
        progress_board(progress) as board,
    ):
        if fresh:
            Storage(paths.root).delete(FOLDER)
        ingest_corpora(config, paths, progress)
        run_graph(graph, lambda work: do(work, config, progress, board, parent), slots(config))
        prepare(comparison_settings(config, rows[0], config.seed), progress)
        results = [evaluate_rows(config, rows, seed, progress, parent) for seed in chosen]
        claims = judge(CLAIMS, results)
        lost = list(not_won(HERO, results)) if HERO in {row.name for row in rows} else []
        found = result_of(config, rows, results, claims, lost)
        storage = Storage(f"{paths.root}/{FOLDER}")
        storage.write_json(RESULT, found)
        report = write_report(
            results,
            str(storage),
            f"{config.name}: {FOLDER}",
            read_info(paths.dataset).long.fps,
            claims,
            lost,
        )
        file_report(tracker, results, report)
        file_artifact(tracker, f"{storage}/{RESULT}", "report")
    if as_json:
        print_line(json.dumps(found))
    else:
        show(config, results, found, claims, lost)
        print_line(f"report: {report.html}")
        print_line(f"figures: {storage}/{RESULT}")
        print_line(f"done in {(time.monotonic() - began) / 60:.1f} minutes")
    return found


def show_plan(config: RunConfig, rows: Sequence[Row], graph: Collection[Work], *, as_json: bool) -> None:
    """Print each row with its settings, each stage that is trained, and what all of it takes."""
    own = {row.name: row.config(config) for row in rows} | {"": config}
    by_name = {row.name: row for row in rows}
    seeds = sorted({work.seed for work in graph} - {NO_SEED})
    trained = {
        f"{work.row} {work.stage}".strip(): (own[work.row], work.stage)
        for work in graph
        if work.seed == seeds[0] and not (work.row and shares(config, by_name[work.row], work.stage))
    }
    datasets = [config, *(own[work.row] for work in graph if work.stage == DATASET)]
    sampled = {row.name: (own[row.name], row.planned(config)[1]) for row in rows}
    planned = plan(trained, sampled, datasets, len(seeds))
    if as_json:
        plain = [
            {"name": row.name, "stands_for": row.stands_for, "overrides": row.settings(config)}
            for row in rows
        ]
        print_line(json.dumps({"systems": plain, **planned.to_json()}, indent=1))
        return
    listed = titled_table("Systems")
    for name in ("system", "what it stands for", "settings"):
        listed.add_column(name)
    for row in rows:
        listed.add_row(
            row.name, row.stands_for, ", ".join(override(*one) for one in row.settings(config).items())
        )
    print_table(listed)
    for line in planned.lines():
        print_line(line)


def slots(config: RunConfig) -> int:
    """Stages that train side by side: as many as a cluster's machines have room for."""
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        return SLOTS
    resource = "GPU" if config.cluster.use_gpu else "CPU"
    return max(1, int(ray.cluster_resources().get(resource, 0)) // config.cluster.most_workers)


def result_of(
    config: RunConfig,
    rows: Sequence[Row],
    results: Sequence[Evaluation],
    claims: Sequence[Judged],
    lost: Sequence[Judged],
) -> dict[str, Any]:
    """What compare.json holds: systems with every metric's mean and interval, and every claim's verdict."""
    by_name = {row.name: row for row in rows}
    systems = {}
    for name in results[0].rows:
        row = by_name.get(name)
        figures = {
            metric: _figure(results, name, metric, found)
            for metric in results[0].rows[name].metrics
            if (found := metric_interval(results, name, metric)) is not None
        }
        systems[name] = (_row(config, row, results) if row else {"stands_for": "real videos"}) | {
            "metrics": figures
        }
    return {
        "command": this_command(),
        "config": config.name,
        "config_hash": config_hash(config),
        "commit": this_commit(),
        "data_hash": read_info(RunPaths.of(config).dataset).data_hash,
        "seeds": [one.seed for one in results],
        "systems": systems,
        "claims": [_claim(one) for one in claims],
        "not_won": [_claim(one) for one in lost],
    }


def _row(config: RunConfig, row: Row, results: Sequence[Evaluation]) -> dict[str, Any]:
    spent = [budget(config, row, one.seed) for one in results]
    return {
        "stands_for": row.stands_for,
        "overrides": row.settings(config),
        "cpu_seconds": float(np.mean([one.cpu_seconds for one in spent])),
        "gradient_samples": float(np.mean([one.gradient_samples for one in spent])),
    }


def _figure(results: Sequence[Evaluation], name: str, metric: str, found: Interval) -> dict[str, Any]:
    """`n` is what a distance compares: windows or videos."""
    distance = results[0].rows[name].distances.get(metric)
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "n": distance.n if distance else None,
        "seeds": len(results),
        "values": list(found.values),
    }


def _claim(judged: Judged) -> dict[str, Any]:
    claim, gain = judged.claim, judged.gain
    return {
        "name": claim.name,
        "verdict": judged.verdict,
        "effect": gain and gain.mean,
        "interval": gain and [gain.low, gain.high],
        "system": claim.system,
        "against": claim.against,
        "metric": claim.metric,
        "better": claim.better,
        "at_least": claim.at_least,
        "in_every_seed": claim.in_every_seed,
        "note": judged.note,
    }


def show(
    config: RunConfig,
    results: Sequence[Evaluation],
    found: Mapping[str, Any],
    claims: Sequence[Judged],
    lost: Sequence[Judged],
) -> None:
    """Print the table, the budgets, the claims, and everything in which MMM does not win."""
    print_table(table(results, config.name))
    for remark in remarks(results):
        print_line(f"  {remark}")
    budgets = titled_table("Training, from the teacher on, mean over seeds")
    for name in ("system", "CPU-s", "gradient samples", "settings"):
        budgets.add_column(name, justify="left" if name in ("system", "settings") else "right")
    for name, row in found["systems"].items():
        if "overrides" in row:
            changed = ", ".join(override(*one) for one in row["overrides"].items())
            budgets.add_row(name, f"{row['cpu_seconds']:,.0f}", f"{row['gradient_samples']:,.0f}", changed)
    print_table(budgets)
    judged = titled_table("Claims: gain over the other system, with its 95 % interval")
    for name in CLAIM_COLUMNS:
        judged.add_column(name)
    for one in claims:
        judged.add_row(*one.cells)
    print_table(judged)
    print_line(f"\nWhere {HERO} does not clearly win:")
    for one in lost:
        metric, other = one.claim.metric, one.claim.against
        mine, theirs = (found["systems"][name]["metrics"][metric]["mean"] for name in (HERO, other))
        assert one.gain is not None
        print_line(f"  {metric}: {mine:.3g}, {other} {theirs:.3g}; gain {one.gain.percent}")
    if not lost:
        print_line("  nowhere among these systems and metrics")
    if len(results) == 1:
        print_line("One seed: intervals are over its videos alone. Give --seeds 3 for those over seeds.")
