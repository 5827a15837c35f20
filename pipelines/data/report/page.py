"""The inspection of a dataset as files: a page that opens in a browser, contact sheets and histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.data.report.contact_sheets import SampledWindow, sample_windows, sheet_png
from pipelines.data.report.histograms import histograms
from pipelines.data.report.summary import (
    CorpusSummary,
    DatasetTables,
    Summary,
    read_tables,
    summarise,
)
from pipelines.data.store.info import DatasetInfo, dataset_autoencoder, reconstruction_error
from pipelines.data.types import CORPORA
from pipelines.media.html import render
from pipelines.storage import Storage

REPORT = "report.html"
FILES = 40
"""Most shards that are listed."""
BUCKET_HEAD = ["corpus", "frames", "picture", "latents", "windows"]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A dataset's summary and where its files are."""

    summary: Summary
    folder: str
    files: tuple[str, ...]
    """Names in the folder; the report is the first."""


def inspect_dataset(dataset: str | Storage, out: str, title: str) -> Inspection:
    """Write `report.html`, `short.png`, `long.png` (contact sheets), `videos.png` and `windows.png`
    (histograms).

    Args:
        dataset: folder or URI of a finished dataset.
        out: folder or URI for the files; those of an earlier inspection are replaced.

    Raises:
        DataError: there is no finished dataset, or it is damaged.
        CheckpointError: its autoencoder is missing or damaged.
        ClusterError: a file is missing, or the storage cannot be used.
    """
    tables, target = read_tables(dataset), Storage(out)
    summary, autoencoder = summarise(tables), dataset_autoencoder(dataset)
    sampled: dict[str, list[SampledWindow]] = {
        corpus: sample_windows(dataset, tables, corpus, autoencoder) for corpus in CORPORA
    }
    pictures = {}
    for corpus, windows in sampled.items():
        if windows:
            own = summary.corpus(corpus)
            heading = (
                f"{corpus.upper()}: {len(windows)} of {own.windows} windows of {own.videos} videos; first, "
                "middle and last frame, as the model sees them"
            )
            pictures[f"{corpus}.png"] = sheet_png(heading, windows)
    pictures |= histograms(tables)
    for name, data in pictures.items():
        target.write_bytes(name, data)
    target.write_bytes(REPORT, report_html(title, tables, summary, sampled, pictures).encode())
    return Inspection(summary=summary, folder=str(target), files=(REPORT, *pictures))


def report_html(
    title: str,
    tables: DatasetTables,
    summary: Summary,
    sampled: Mapping[str, Sequence[SampledWindow]],
    pictures: Mapping[str, bytes],
) -> str:
    """The page: counts, contact sheets, histograms, then everything that was refused, and the files."""
    corpora: dict[str, CorpusSummary] = {corpus: summary.corpus(corpus) for corpus in CORPORA}
    windows = [
        (corpus.upper(), window.caption, window.source, window.span, window.window_id)
        for corpus, shown in sampled.items()
        for window in shown
    ]
    measures = [
        (corpus.upper(), name, *(f"{value:.4g}" for value in (found.low, found.median, found.high)))
        for corpus, own in corpora.items()
        for name, found in own.measures.items()
    ]
    sections = {
        "Windows shown": (["corpus", "caption", "video", "seconds", "window"], windows),
        "Scores of windows": (["corpus", "score", "5 %", "median", "95 %"], measures),
        "Readers": (["corpus", "reader", "videos", "why not decord"], count_rows(corpora, "readers")),
        "Rejected videos": (["corpus", "stage", "videos", "such as"], count_rows(corpora, "rejects")),
        "Dropped windows": (["corpus", "reason", "windows", "such as"], count_rows(corpora, "drops")),
        "Commonest captions": (
            ["corpus", "caption", "windows"],
            [row[:3] for row in count_rows(corpora, "commonest")],
        ),
        "Files": (["file", "windows", "bytes", "sha256"], _file_rows(tables.info)),
    }
    return render(
        "data/report/page.html.j2",
        title=title,
        summary=summary,
        error=reconstruction_error(summary.autoencoder),
        totals=total_rows(summary),
        notes=corpus_notes(corpora),
        bucket_head=BUCKET_HEAD,
        buckets=bucket_rows(summary),
        pictures=pictures,
        sections=sections,
    )


def total_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """(what, of SHORT, of LONG), formatted."""
    short, long = (
        {
            "videos": f"{corpus.videos:,}",
            "rejected videos": f"{corpus.rejected_videos:,}",
            "windows": f"{corpus.windows:,}",
            "of these held out": f"{corpus.holdout_windows:,}",
            "dropped windows": f"{corpus.dropped_windows:,}",
            "different captions": f"{corpus.captions:,}",
            "frames": f"{corpus.frames:,}",
            "hours of video": f"{corpus.hours:.3g}",
            "median video, s": f"{corpus.seconds.median:.3g}" if corpus.seconds else "-",
            "video files, MB": f"{corpus.source_bytes / 1e6:,.1f}",
            "shards, MB": f"{corpus.shard_bytes / 1e6:,.1f}",
            "shards": f"{corpus.shard_files:,}",
        }
        for corpus in (summary.short, summary.long)
    )
    return [(name, short[name], long[name]) for name in short]


def corpus_notes(corpora: Mapping[str, Any]) -> list[str]:
    """A line for each corpus whose `note` has something to tell."""
    notes = ((corpus.upper(), own.note) for corpus, own in corpora.items())
    return [f"{corpus}: {note}" for corpus, note in notes if note]


def bucket_rows(summary: Summary) -> list[tuple[str, int, str, str, int]]:
    """BUCKET_HEAD of each bucket; none of a corpus that has only one."""
    return [
        (corpus.upper(), bucket.pixels[0], bucket.size, str(list(bucket.latent_shape)), bucket.windows)
        for corpus in CORPORA
        if len(summary.corpus(corpus).buckets) > 1
        for bucket in summary.corpus(corpus).buckets
    ]


def count_rows(
    corpora: Mapping[str, object], field: str, examples: int | None = None
) -> list[tuple[str, str, int, str]]:
    """(corpus, kind, count, examples) of each KindCount in a field such as `rejects`.

    Args:
        examples: most examples per kind; None is all there are.
    """
    return [
        (corpus.upper(), found.kind, found.count, "; ".join(found.examples[:examples]))
        for corpus, own in corpora.items()
        for found in getattr(own, field)
    ]


def _file_rows(info: DatasetInfo) -> list[tuple[str, int, int, str]]:
    files = [file for corpus in CORPORA for file in info.corpus(corpus).files]
    rows = [(file.file, file.rows, file.num_bytes, file.sha256[:16]) for file in files[:FILES]]
    if rest := files[FILES:]:
        rows.append((f"{len(rest)} more", sum(f.rows for f in rest), sum(f.num_bytes for f in rest), ""))
    return rows
