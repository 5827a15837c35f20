"""What ingest would keep and why, without an autoencoder, a shard or a dataset."""

from dataclasses import dataclass

import pyarrow.compute as pc

from pipelines.data.checks import check_ingest
from pipelines.data.config import DataConfig
from pipelines.data.ingest.pipeline import read_videos, refused_listings
from pipelines.data.ingest.worker import Task, judge_group
from pipelines.data.report.summary import KindCount, count_drops, count_rejects, kept_windows, written_videos
from pipelines.data.source.manifest import list_corpora
from pipelines.data.store.index import build_index
from pipelines.data.store.ledger import Ledger, Status, read_ledgers
from pipelines.data.tables import table_of
from pipelines.data.types import CORPORA
from pipelines.storage import Storage
from pipelines.tracking import Progress


@dataclass(frozen=True, kw_only=True)
class CorpusPreview:
    """What ingest would keep of one corpus."""

    videos: int
    """Videos with at least one window."""
    windows: int
    hours: float
    """Of those videos."""
    rejects: tuple[KindCount, ...]
    """Rejected videos by stage."""
    drops: tuple[KindCount, ...]
    """Dropped windows by kind of reason."""
    captions: frozenset[str]
    """Of those windows."""
    note: str
    """As `CorpusInfo` has it."""


def preview(
    short: str, long: str, out: str, data: DataConfig, progress: Progress
) -> dict[str, CorpusPreview]:
    """Decode and judge both corpora on the running Ray.

    Args:
        short, long: the corpora, as `ingest` takes them.
        out: where ingest would write: hashes of an earlier listing are read there, and a folder beside it is
            used and removed.
        progress: called with a corpus, videos done and videos in all.

    Raises:
        ConfigError, DataError, ClusterError: as `ingest` does; too many rejects are no error here.
    """
    check_ingest(data)
    listings = list_corpora(Storage(out), {"short": short, "long": long}, data.links)
    scratch = Storage(f"{out}-preview")
    folders = {corpus: listing.root for corpus, listing in listings.items()}
    task = Task(out=str(scratch), folders=folders, version="preview", data=data)
    videos = {corpus: listing.sources for corpus, listing in listings.items()}
    try:
        statuses = list(read_videos(task, videos, (), judge_group, progress))
        ledgers: dict[str, list[Ledger]] = {corpus: read_ledgers(scratch, corpus) for corpus in CORPORA}
        index = build_index(ledgers, videos, data.holdout, data.curation)
    finally:
        scratch.delete("")
    manifest = table_of(Status, [*statuses, *refused_listings(listings)])
    found: dict[str, CorpusPreview] = {}
    for corpus in CORPORA:
        own, windows = (table.filter(pc.equal(table["corpus"], corpus)) for table in (manifest, index))
        whole, kept = written_videos(own), kept_windows(windows)
        found[corpus] = CorpusPreview(
            videos=len(whole),
            windows=len(kept),
            hours=sum(whole["seconds"].to_pylist()) / 3600,
            rejects=count_rejects(own),
            drops=count_drops(windows),
            captions=frozenset(kept["caption"].to_pylist()),
            note=listings[corpus].note,
        )
    return found
