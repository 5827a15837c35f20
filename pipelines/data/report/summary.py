"""A dataset in numbers: counts, readers, what was refused or dropped and why, and scores of windows."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.store.index import read_index
from pipelines.data.store.info import MANIFEST_FILE, Bucket, CorpusInfo, DatasetInfo, read_info
from pipelines.data.tables import read_table
from pipelines.data.types import CORPORA
from pipelines.storage import Storage

MANIFEST_COLUMNS = (
    "corpus source_id source caption num_bytes status stage reason reader reader_reason width height "
    "source_fps num_frames seconds num_windows"
).split()
INDEX_COLUMNS = (
    "corpus window_id source_id source caption file start_frame num_frames shot brightness motion flash "
    "sharpness split kept reason"
).split()
MEASURES = ("brightness", "motion", "flash", "sharpness")
"""Columns of a window's scores in the index."""
EXAMPLES = 3
"""Most examples per kind."""
COMMONEST = 10
"""Captions listed with their number of windows."""


class DatasetTables(NamedTuple):
    info: DatasetInfo
    manifest: pa.Table
    """MANIFEST_COLUMNS, a row per video."""
    index: pa.Table
    """INDEX_COLUMNS, a row per window, kept or dropped."""

    def of_corpus(self, corpus: str) -> tuple[pa.Table, pa.Table]:
        manifest, index = (t.filter(pc.equal(t["corpus"], corpus)) for t in (self.manifest, self.index))
        return manifest, index


@dataclass(frozen=True, kw_only=True)
class KindCount:
    kind: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    low: float
    """The 5th percentile; `high` is the 95th."""
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """One corpus in numbers. Videos are the written ones and windows the kept ones, unless noted."""

    videos: int
    rejected_videos: int
    windows: int
    holdout_windows: int
    dropped_windows: int
    frames: int
    """After resampling."""
    hours: float
    source_bytes: int
    shard_bytes: int
    shard_files: int
    captions: int
    """Distinct ones."""
    seconds: Percentiles | None
    """Length of a video; None without any."""
    measures: dict[str, Percentiles]
    """Scores of windows, by MEASURES; empty without windows."""
    readers: tuple[KindCount, ...]
    """Videos by reader; an example is a reason why it was not decord."""
    rejects: tuple[KindCount, ...]
    """Rejected videos by stage; an example is a path and the reason."""
    drops: tuple[KindCount, ...]
    """Dropped windows by kind of reason; an example is a whole reason."""
    commonest: tuple[KindCount, ...]
    """Captions with most windows."""
    buckets: tuple[Bucket, ...]
    """The shapes of its windows, where there may be several."""
    note: str
    """As `CorpusInfo` has it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    version: str
    data_hash: str
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    autoencoder: dict[str, Any]
    """kind, channels, temporal_factor, reconstruction_error."""
    short: CorpusSummary
    long: CorpusSummary

    def corpus(self, name: str) -> CorpusSummary:
        return {"short": self.short, "long": self.long}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not known are None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain


def read_tables(dataset: str | Storage) -> DatasetTables:
    """Description, manifest and index of a finished dataset.

    Raises:
        DataError: there is no finished dataset, or a file of it is damaged.
        ClusterError: a file of it is missing, or the storage cannot be read.
    """
    storage = Storage(dataset)
    info = read_info(storage)
    index = read_index(storage, info.index_sha256, INDEX_COLUMNS)
    return DatasetTables(info, read_table(storage, MANIFEST_FILE, MANIFEST_COLUMNS), index)


def summarise(tables: DatasetTables) -> Summary:
    info = tables.info
    return Summary(
        version=info.version,
        data_hash=info.data_hash,
        height=info.height,
        width=info.width,
        autoencoder=info.autoencoder,
        **{corpus: _summarise(info.corpus(corpus), *tables.of_corpus(corpus)) for corpus in CORPORA},
    )


def _summarise(info: CorpusInfo, manifest: pa.Table, index: pa.Table) -> CorpusSummary:
    videos, windows = written_videos(manifest), kept_windows(index)
    captions = windows["caption"].to_pylist()
    readers = zip(videos["reader"].to_pylist(), videos["reader_reason"].to_pylist(), strict=True)
    return CorpusSummary(
        videos=len(videos),
        rejected_videos=len(manifest) - len(videos),
        windows=len(windows),
        holdout_windows=_sum(pc.equal(windows["split"], "holdout")),
        dropped_windows=len(index) - len(windows),
        frames=_sum(videos["num_frames"]),
        hours=float(pc.sum(videos["seconds"]).as_py() or 0.0) / 3600,
        source_bytes=_sum(videos["num_bytes"]),
        shard_bytes=sum(file.num_bytes for file in info.files),
        shard_files=len(info.files),
        captions=len(pc.unique(videos["caption"])),
        seconds=_percentiles(videos["seconds"]) if len(videos) else None,
        measures={name: _percentiles(windows[name]) for name in MEASURES if len(windows)},
        readers=count_kinds(readers),
        rejects=count_rejects(manifest),
        drops=count_drops(index),
        commonest=count_kinds((caption, "") for caption in captions)[:COMMONEST],
        buckets=info.buckets,
        note=info.note,
    )


def written_videos(manifest: pa.Table) -> pa.Table:
    return manifest.filter(pc.equal(manifest["status"], "written"))


def kept_windows(index: pa.Table) -> pa.Table:
    """The windows of an index to train on or to hold out."""
    return index.filter(index["kept"])


def count_rejects(manifest: pa.Table) -> tuple[KindCount, ...]:
    """Rejected videos of a manifest by stage; an example is a path and the reason."""
    rejected = manifest.filter(pc.equal(manifest["status"], "rejected"))
    columns = (rejected[name].to_pylist() for name in ("stage", "source", "reason"))
    return count_kinds((stage, f"{path}: {reason}") for stage, path, reason in zip(*columns, strict=True))


def count_drops(index: pa.Table) -> tuple[KindCount, ...]:
    """Dropped windows of an index by the setting that refuses them, or as `near duplicate`; an example is a
    whole reason."""
    reasons = index.filter(pc.invert(index["kept"]))["reason"].to_pylist()
    return count_kinds((reason.split(" of ")[0], reason) for reason in reasons)


def count_kinds(pairs: Iterable[tuple[str, str]]) -> tuple[KindCount, ...]:
    """Kinds by falling count, each with its first distinct examples.

    Args:
        pairs: (kind, example); an empty example is none.
    """
    counts: Counter[str] = Counter()
    examples: dict[str, dict[str, None]] = {}
    for kind, example in pairs:
        counts[kind] += 1
        own = examples.setdefault(kind, {})
        if example and len(own) < EXAMPLES:
            own[example] = None
    return tuple(
        KindCount(kind=kind, count=count, examples=tuple(examples[kind]))
        for kind, count in counts.most_common()
    )


def _sum(values: Any) -> int:
    return int(pc.sum(values).as_py() or 0)


def _percentiles(values: Any) -> Percentiles:
    low, median, high = np.percentile(values.to_numpy(), [5, 50, 95])
    return Percentiles(low=float(low), median=float(median), high=float(high))
