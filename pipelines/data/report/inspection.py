"""What is in a dataset, as numbers: counts, readers, what was refused or dropped, how windows measure."""

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
"""Of every window, by their columns in the index."""
EXAMPLES = 3
"""Of each kind of refusal."""
COMMONEST = 10
"""Captions that are named with their number of windows."""


class Tables(NamedTuple):
    """What a dataset says of itself."""

    info: DatasetInfo
    manifest: pa.Table
    """MANIFEST_COLUMNS, a row a video."""
    index: pa.Table
    """INDEX_COLUMNS, a row a window that was looked at."""


@dataclass(frozen=True, kw_only=True)
class Tally:
    """How many there are of a kind, and a few of them."""

    kind: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Percentiles of a measure."""

    low: float
    """The fifth."""
    median: float
    high: float
    """The ninety-fifth."""


@dataclass(frozen=True, kw_only=True)
class CorpusSummary:
    """One corpus in numbers. Videos are those written, windows those kept, unless it says otherwise."""

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
    """Different ones."""
    seconds: Spread | None
    """Length of a video; None without any."""
    measures: dict[str, Spread]
    """Of windows, by MEASURES; without a window none."""
    readers: tuple[Tally, ...]
    """Videos by reader; an example is a reason why it was not decord."""
    rejects: tuple[Tally, ...]
    """Rejected videos by stage; an example is a path and the reason."""
    drops: tuple[Tally, ...]
    """Dropped windows by kind of reason; an example is a whole reason."""
    commonest: tuple[Tally, ...]
    """Captions with most windows."""
    buckets: tuple[Bucket, ...]
    """The shapes of its windows, where there may be several."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A dataset in numbers."""

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
        """`short` or `long`."""
        return {"short": self.short, "long": self.long}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not known are None."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return plain


def read_tables(dataset: str | Storage) -> Tables:
    """Description, manifest and index of a finished dataset.

    Raises:
        DataError: there is no finished dataset, or a file of it is damaged.
        ClusterError: a file of it is missing, or the storage cannot be read.
    """
    storage = dataset if isinstance(dataset, Storage) else Storage(dataset)
    info = read_info(storage)
    index = read_index(storage, info.index_sha256, INDEX_COLUMNS)
    return Tables(info, read_table(storage, MANIFEST_FILE, MANIFEST_COLUMNS), index)


def summarise(tables: Tables) -> Summary:
    """The numbers of a dataset."""
    info = tables.info
    return Summary(
        version=info.version,
        data_hash=info.data_hash,
        height=info.height,
        width=info.width,
        autoencoder=info.autoencoder,
        **{corpus: _summarise(info.corpus(corpus), *of_corpus(tables, corpus)) for corpus in CORPORA},
    )


def of_corpus(tables: Tables, corpus: str) -> tuple[pa.Table, pa.Table]:
    """Manifest and index of one corpus."""
    manifest, index = (t.filter(pc.equal(t["corpus"], corpus)) for t in (tables.manifest, tables.index))
    return manifest, index


def written(manifest: pa.Table) -> pa.Table:
    """Its videos that were not rejected."""
    return manifest.filter(pc.equal(manifest["status"], "written"))


def kept(index: pa.Table) -> pa.Table:
    """Its windows that are trained on or held out."""
    return index.filter(index["kept"])


def _summarise(info: CorpusInfo, manifest: pa.Table, index: pa.Table) -> CorpusSummary:
    videos, windows = written(manifest), kept(index)
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
        seconds=_spread(videos["seconds"]) if len(videos) else None,
        measures={name: _spread(windows[name]) for name in MEASURES if len(windows)},
        readers=tallies(_pairs(videos, "reader", "reader_reason")),
        rejects=rejects_of(manifest),
        drops=drops_of(index),
        commonest=tallies((caption, "") for (caption,) in _pairs(windows, "caption"))[:COMMONEST],
        buckets=info.buckets,
    )


def rejects_of(manifest: pa.Table) -> tuple[Tally, ...]:
    """Rejected videos of a manifest by stage; an example is a path and the reason."""
    rejected = manifest.filter(pc.equal(manifest["status"], "rejected"))
    pairs = _pairs(rejected, "stage", "source", "reason")
    return tallies((stage, f"{path}: {reason}") for stage, path, reason in pairs)


def drops_of(index: pa.Table) -> tuple[Tally, ...]:
    """Dropped windows of an index by the setting that refuses them, or as `near duplicate` whatever
    it is that each resembles; an example is a whole reason."""
    reasons = index.filter(pc.invert(index["kept"]))["reason"].to_pylist()
    return tallies((reason.split(" of ")[0], reason) for reason in reasons)


def _sum(values: Any) -> int:
    return int(pc.sum(values).as_py() or 0)


def _pairs(table: pa.Table, *columns: str) -> Iterable[Any]:
    """Rows of a few columns as tuples."""
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def _spread(values: Any) -> Spread:
    low, median, high = np.percentile(values.to_numpy(), [5, 50, 95])
    return Spread(low=float(low), median=float(median), high=float(high))


def tallies(pairs: Iterable[tuple[str, str]]) -> tuple[Tally, ...]:
    """Kinds by falling count, each with its first different examples.

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
        Tally(kind=kind, count=count, examples=tuple(examples[kind])) for kind, count in counts.most_common()
    )
