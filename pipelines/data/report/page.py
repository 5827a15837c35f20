"""The inspection of a dataset as files: a report that opens in a browser, contact sheets and histograms."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from pipelines.data.report.contact_sheets import Shown, contact_sheet, shown_windows
from pipelines.data.report.histograms import histograms
from pipelines.data.report.inspection import CorpusSummary, Summary, Tables, Tally, read_tables, summarise
from pipelines.data.store.info import DatasetInfo, dataset_autoencoder, reconstruction_error
from pipelines.data.types import CORPORA
from pipelines.media.html import page, picture, table
from pipelines.storage import Storage

REPORT = "report.html"
FILES = 40
"""Shards that are listed; of more, the first."""
BUCKET_HEAD = ["corpus", "frames", "picture", "latents", "windows"]

TallyRow = tuple[str, str, int, str]
"""(corpus, kind, count, examples)."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was seen, and where it is written."""

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
        title: heading.

    Raises:
        DataError: there is no finished dataset, or it is damaged.
        CheckpointError: its autoencoder is missing or damaged.
        ClusterError: a file is missing, or the storage cannot be used.
    """
    tables, target = read_tables(dataset), Storage(out)
    summary, autoencoder = summarise(tables), dataset_autoencoder(dataset)
    shown: dict[str, list[Shown]] = {
        corpus: shown_windows(dataset, tables, corpus, autoencoder) for corpus in CORPORA
    }
    pictures = {
        f"{corpus}.png": _sheet(summary, corpus, windows) for corpus, windows in shown.items() if windows
    }
    pictures |= histograms(tables)
    for name, data in pictures.items():
        target.write_bytes(name, data)
    target.write_bytes(REPORT, report(title, tables, summary, shown, pictures).encode())
    return Inspection(summary=summary, folder=str(target), files=(REPORT, *pictures))


def _sheet(summary: Summary, corpus: str, windows: Sequence[Shown]) -> bytes:
    own = summary.corpus(corpus)
    title = f"{corpus.upper()}: {len(windows)} of {own.windows} windows of {own.videos} videos"
    return _png(contact_sheet(f"{title}; first, middle and last frame, as the model sees them", windows))


def _png(image: Image.Image) -> bytes:
    memory = io.BytesIO()
    image.save(memory, "PNG", optimize=True)
    return memory.getvalue()


def report(
    title: str,
    tables: Tables,
    summary: Summary,
    shown: Mapping[str, Sequence[Shown]],
    pictures: Mapping[str, bytes],
) -> str:
    """The page: counts, contact sheets, histograms, then everything that was refused, and the files."""
    parts = [f"<p>{escape(_about(summary))}</p>", table(["", "SHORT", "LONG"], count_rows(summary))]
    if buckets := bucket_rows(summary):
        parts.append(f"<h2>Buckets</h2>{table(BUCKET_HEAD, buckets)}")
    parts += [picture(name, data) for name, data in pictures.items()]
    sections = {
        "Windows shown": (["corpus", "caption", "video", "seconds", "window"], _shown_rows(shown)),
        "Measures of windows": (["corpus", "measure", "5 %", "median", "95 %"], _measure_rows(summary)),
        "Readers": (["corpus", "reader", "videos", "why not decord"], tally_rows(summary, "readers")),
        "Rejected videos": (["corpus", "stage", "videos", "such as"], tally_rows(summary, "rejects")),
        "Dropped windows": (["corpus", "reason", "windows", "such as"], tally_rows(summary, "drops")),
        "Commonest captions": (["corpus", "caption", "windows"], _caption_rows(summary)),
        "Files": (["file", "windows", "bytes", "sha256"], _file_rows(tables.info)),
    }
    for heading, (head, rows) in sections.items():
        held = list(rows)
        parts.append(f"<h2>{heading}</h2>{table(head, held, words=True) if held else '<p>None.</p>'}")
    return page(title, "".join(parts))


def _about(summary: Summary) -> str:
    code = summary.autoencoder
    return (
        f"{summary.width}x{summary.height} pixels; "
        f"autoencoder {code['kind']} of {code['channels']} channels, "
        f"reconstruction error {reconstruction_error(code)} (root mean square, pixels in 0 to 1); "
        f"version {summary.version}, data hash {summary.data_hash}"
    )


def count_rows(summary: Summary) -> list[tuple[str, str, str]]:
    """(what, of SHORT, of LONG), ready to be shown."""
    both = zip(_counts(summary.short), _counts(summary.long), strict=True)
    return [(name, short, long) for (name, short), (_, long) in both]


def _counts(corpus: CorpusSummary) -> Iterator[tuple[str, str]]:
    yield "videos", f"{corpus.videos:,}"
    yield "rejected videos", f"{corpus.rejected_videos:,}"
    yield "windows", f"{corpus.windows:,}"
    yield "of these held out", f"{corpus.holdout_windows:,}"
    yield "dropped windows", f"{corpus.dropped_windows:,}"
    yield "different captions", f"{corpus.captions:,}"
    yield "frames", f"{corpus.frames:,}"
    yield "hours of video", f"{corpus.hours:.3g}"
    yield "median video, s", f"{corpus.seconds.median:.3g}" if corpus.seconds else "-"
    yield "video files, MB", f"{corpus.source_bytes / 1e6:,.1f}"
    yield "shards, MB", f"{corpus.shard_bytes / 1e6:,.1f}"
    yield "shards", f"{corpus.shard_files:,}"


def bucket_rows(summary: Summary) -> list[tuple[str, int, str, str, int]]:
    """(corpus, frames, picture size, latents, windows) of each bucket; none where a corpus has one only."""
    several = [corpus for corpus in CORPORA if len(summary.corpus(corpus).buckets) > 1]
    return [
        (corpus.upper(), bucket.frames, bucket.size, str(list(bucket.latent_shape)), bucket.windows)
        for corpus in several
        for bucket in summary.corpus(corpus).buckets
    ]


def tally_rows(summary: Summary, name: str, examples: int | None = None) -> list[TallyRow]:
    """Rows of `readers`, `rejects`, `drops` or `commonest` of both corpora, as `rows_of`."""
    return rows_of({corpus: getattr(summary.corpus(corpus), name) for corpus in CORPORA}, examples)


def rows_of(corpora: Mapping[str, Sequence[Tally]], examples: int | None = None) -> list[TallyRow]:
    """Tallies of each corpus, ready to be shown.

    Args:
        examples: how many are told; None is all there are.
    """
    return [
        (corpus.upper(), tally.kind, tally.count, "; ".join(tally.examples[:examples]))
        for corpus, tallies in corpora.items()
        for tally in tallies
    ]


def _measure_rows(summary: Summary) -> Iterator[tuple[str, ...]]:
    for corpus in CORPORA:
        for name, spread in summary.corpus(corpus).measures.items():
            numbers = (f"{value:.4g}" for value in (spread.low, spread.median, spread.high))
            yield corpus.upper(), name, *numbers


def _caption_rows(summary: Summary) -> Iterator[tuple[str, str, int]]:
    for corpus, caption, count, _ in tally_rows(summary, "commonest"):
        yield corpus, caption, count


def _shown_rows(shown: Mapping[str, Sequence[Shown]]) -> Iterator[tuple[str, ...]]:
    for corpus, windows in shown.items():
        for window in windows:
            yield corpus.upper(), window.caption, window.source, window.span, window.window_id


def _file_rows(info: DatasetInfo) -> Iterator[tuple[object, ...]]:
    files = [file for corpus in CORPORA for file in info.corpus(corpus).files]
    for file in files[:FILES]:
        yield file.file, file.rows, file.num_bytes, file.sha256[:16]
    if files[FILES:]:
        rest = files[FILES:]
        yield f"{len(rest)} more", sum(f.rows for f in rest), sum(f.num_bytes for f in rest), ""
