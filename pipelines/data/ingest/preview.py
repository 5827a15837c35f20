"""What ingest would keep and why, without an autoencoder, a shard or a dataset."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.config import DataConfig
from pipelines.data.ingest.fit_autoencoder import Progress
from pipelines.data.ingest.groups import Task
from pipelines.data.ingest.pipeline import Statuses, check, refused, write_all
from pipelines.data.ingest.worker import judge_group
from pipelines.data.report.summary import (
    KindCount,
    count_drops,
    count_rejects,
    kept_windows,
    written_videos,
)
from pipelines.data.source.manifest import list_corpora
from pipelines.data.store.index import build_index
from pipelines.data.store.ledger import Ledger, Status, read_ledgers
from pipelines.data.tables import table_of
from pipelines.data.types import CORPORA
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
    rejects: tuple[KindCount, ...]
    """Rejected videos by stage."""
    drops: tuple[KindCount, ...]
    """Dropped windows by kind of reason."""


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
        ledgers: dict[str, list[Ledger]] = {corpus: read_ledgers(scratch, corpus) for corpus in CORPORA}
        index = build_index(ledgers, videos, data.holdout, data.curation)
    finally:
        scratch.delete("")
    statuses = [*ends.values(), *(s for corpus in CORPORA for s in refused(corpus, listings[corpus]))]
    manifest = table_of(Status, statuses)
    return {
        corpus: _of(*(table.filter(pc.equal(table["corpus"], corpus)) for table in (manifest, index)))
        for corpus in CORPORA
    }


def _of(manifest: pa.Table, index: pa.Table) -> CorpusPreview:
    videos = written_videos(manifest)
    return CorpusPreview(
        videos=len(videos),
        windows=len(kept_windows(index)),
        hours=sum(videos["seconds"].to_pylist()) / 3600,
        rejects=count_rejects(manifest),
        drops=count_drops(index),
    )
