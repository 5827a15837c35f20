"""What ingest would keep and why, without an autoencoder, a shard or a dataset."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.config import DataConfig
from pipelines.data.fit import Progress
from pipelines.data.groups import Task
from pipelines.data.index import build_index
from pipelines.data.ingest import Statuses, check, refused, write_all
from pipelines.data.ledger import Status, read_ledgers
from pipelines.data.listed import list_corpora
from pipelines.data.shards import CORPORA
from pipelines.data.tasks import judge_group
from pipelines.storage import Storage


@dataclass(frozen=True, kw_only=True)
class CorpusPreview:
    """One corpus."""

    videos: int
    """That give at least one window."""
    windows: int
    """That are kept."""
    hours: float
    """Of those videos."""
    rejected: dict[str, int]
    """Stage and reason -> videos, the commonest first."""
    dropped: dict[str, int]
    """Reason -> windows, the commonest first."""


def preview(
    short: str, long: str, out: str, data: DataConfig, progress: Progress
) -> dict[str, CorpusPreview]:
    """Decode and judge both corpora on the running Ray.

    Args:
        short: the SHORT corpus, as `sources` takes it.
        long: the LONG corpus.
        out: where ingest would write; beside it a folder is used and removed, and what an earlier listing
            hashed is read from it.
        progress: called with a corpus, videos done and videos in all.

    Raises:
        ConfigError, DataError, ClusterError: as `ingest` does; too many rejects are no error here.
    """
    check(data)
    listings = list_corpora(Storage(out), {"short": short, "long": long})
    scratch = Storage(f"{out}-preview")
    folders = {corpus: listing.root for corpus, listing in listings.items()}
    task = Task(out=str(scratch), folders=folders, version="preview", data=data)
    videos = {corpus: listing.sources for corpus, listing in listings.items()}
    ends: Statuses = {}
    try:
        write_all(task, videos, ends, judge_group, progress)
        ledgers = {corpus: read_ledgers(scratch, corpus) for corpus in CORPORA}
        index = build_index(ledgers, videos, data.holdout, data.curation)
    finally:
        scratch.delete("")
    statuses = [*ends.values(), *(s for corpus in CORPORA for s in refused(corpus, listings[corpus]))]
    return {
        corpus: _of(
            [s for s in statuses if s.corpus == corpus], index.filter(pc.equal(index["corpus"], corpus))
        )
        for corpus in CORPORA
    }


def _of(statuses: Sequence[Status], windows: pa.Table) -> CorpusPreview:
    written = [s for s in statuses if s.status == "written"]
    rejected = Counter(f"{s.stage}: {s.reason}" for s in statuses if s.status == "rejected")
    dropped = Counter(_kind(reason) for reason in windows["reason"].to_pylist() if reason)
    return CorpusPreview(
        videos=len(written),
        windows=sum(windows["kept"].to_pylist()),
        hours=sum(s.seconds for s in written) / 3600,
        rejected=dict(rejected.most_common()),
        dropped=dict(dropped.most_common()),
    )


def _kind(reason: str) -> str:
    """A reason without the window that it names."""
    return reason.split(" of ")[0]
