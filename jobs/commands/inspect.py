"""`sostenuto inspect`: what is in an ingested dataset, in numbers and pictures."""

import json

from jobs.config.paths import RunPaths, absolute_root
from jobs.config.schema import RunConfig
from jobs.console import print_line, print_table, safe_text, tally_table, titled_table
from jobs.tracking import command_run
from models.errors import DataError
from pipelines.data.report.page import (
    BUCKET_HEAD,
    Inspection,
    bucket_rows,
    corpus_notes,
    count_rows,
    inspect_dataset,
    total_rows,
)
from pipelines.data.report.summary import CorpusSummary, Summary
from pipelines.data.store.info import INFO_FILE, read_info, reconstruction_error
from pipelines.data.types import CORPORA
from pipelines.storage import Storage


def inspect(
    config: RunConfig, *, dataset: str | None = None, out: str | None = None, as_json: bool = False
) -> Inspection:
    """Print what a dataset holds; write a report, contact sheets and histograms beside it.

    Args:
        config: the run's settings.
        dataset: folder or URI of another dataset, of which nothing is recorded; the run's if left out.
        out: folder or URI for the files; `inspection` beside the dataset if left out.
        as_json: print one JSON object and nothing else.

    Raises:
        DataError: there is no finished dataset, or it is damaged.
        ClusterError: the storage or MLflow cannot be used.
    """
    paths = RunPaths.of(config)
    if dataset is not None:
        folder = _dataset(absolute_root(dataset))
        looks = absolute_root(out) if out else f"{folder.rsplit('/', 1)[0]}/inspection"
        seen = inspect_dataset(folder, looks, folder)
    else:
        read_info(paths.dataset)
        with command_run(config, "dataset") as (_, tracker):
            looks = absolute_root(out) if out else paths.inspection
            seen = inspect_dataset(paths.dataset, looks, config.name)
            tracker.tags({"sostenuto.data_hash": seen.summary.data_hash})
            tracker.metrics(0, metrics(seen.summary))
            with Storage(seen.folder).on_disk() as local:
                for name in seen.files:
                    tracker.artifact(str(local / name), "inspection")
    if as_json:
        print_line(json.dumps(seen.summary.to_json() | {"report": f"{seen.folder}/{seen.files[0]}"}))
    else:
        _print(seen)
    return seen


def _dataset(folder: str) -> str:
    """The folder itself, or the one dataset in it: a run keeps one folder per version of its settings.

    Raises:
        DataError: there are several.
    """
    storage = Storage(folder)
    if storage.exists(INFO_FILE):
        return folder
    versions = [name for name in storage.list() if storage.exists(f"{name}/{INFO_FILE}")]
    if len(versions) > 1:
        raise DataError(
            f"{folder} holds the datasets {', '.join(versions)}", "Name one of them, or give --config"
        )
    return f"{folder}/{versions[0]}" if versions else folder


def metrics(summary: Summary) -> dict[str, float]:
    """Metrics such as `data/windows.short`."""
    found: dict[str, float] = {}
    for corpus in CORPORA:
        own = summary.corpus(corpus)
        values = {
            "videos": own.videos,
            "rejects": own.rejected_videos,
            "windows": own.windows,
            "dropped": own.dropped_windows,
            "captions": own.captions,
            "hours": own.hours,
        }
        values |= {name: spread.median for name, spread in own.measures.items()}
        found |= {f"data/{name}.{corpus}": float(value) for name, value in values.items()}
    return found


def _print(seen: Inspection) -> None:
    summary = seen.summary
    counts = titled_table(f"Dataset {summary.data_hash}")
    counts.add_column("")
    for corpus in CORPORA:
        counts.add_column(corpus.upper(), justify="right")
    for row in total_rows(summary):
        counts.add_row(*row)
    print_table(counts)
    if buckets := bucket_rows(summary):
        shapes = titled_table("Buckets")
        for name in BUCKET_HEAD:
            shapes.add_column(name)
        for bucket in buckets:
            shapes.add_row(*map(safe_text, bucket))
        print_table(shapes)
    corpora: dict[str, CorpusSummary] = {corpus: summary.corpus(corpus) for corpus in CORPORA}
    for heading, name, columns in (
        ("Readers", "readers", ("reader", "videos", "why not decord")),
        ("Rejected videos", "rejects", ("stage", "videos", "such as")),
        ("Dropped windows", "drops", ("reason", "windows", "such as")),
    ):
        if rows := count_rows(corpora, name, examples=1):
            print_table(tally_table(heading, columns, rows))
    print_line("\n".join(["", *corpus_notes(corpora)]))
    print_line(f"reconstruction error {reconstruction_error(summary.autoencoder)}")
    print_line(f"report: {seen.folder}/{seen.files[0]}")
    print_line(f"pictures: {', '.join(seen.files[1:])} beside it")
