"""Which windows a run began with, so that a dataset may grow while the run lasts, and what changed since."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from pipelines.data.store.index import read_index
from pipelines.data.store.info import MANIFEST_FILE, read_info
from pipelines.data.tables import read_table, table_of, write_table
from pipelines.data.types import CORPORA, CorpusName
from pipelines.storage import Storage


@dataclass(frozen=True)
class NotedRow:
    """A window as a run found it."""

    corpus: str
    window_id: str
    content: str
    """16 hex digits over its caption, its split and the latents of its video."""


@dataclass(frozen=True)
class RowChanges:
    """How many windows of a dataset are not as they were noted."""

    more: int = 0
    left_out: int = 0
    """Still there, but no longer kept: near duplicates of new ones."""
    gone: int = 0
    other: int = 0
    """Of other latents, another caption or the other split."""

    def __bool__(self) -> bool:
        return bool(self.more or self.left_out or self.lost)

    @property
    def lost(self) -> bool:
        """Whether a run can no longer read all that it began with."""
        return bool(self.gone or self.other)

    def __str__(self) -> str:
        parts = {
            "the dataset has {} more windows": self.more,
            "the dataset leaves out {} windows": self.left_out,
            "the dataset lacks {} windows": self.gone,
            "{} windows of the dataset have other latents or captions": self.other,
        }
        return "; ".join(text.format(count) for text, count in parts.items() if count)


def note_rows(dataset: str, storage: Storage, file: str) -> None:
    """Store which windows a dataset keeps, and their content."""
    rows = [row for row, kept in _rows(dataset) if kept]
    write_table(storage, file, table_of(NotedRow, rows))


def noted_ids(storage: Storage, file: str) -> dict[str, frozenset[str]]:
    """Ids of the noted windows by corpus."""
    noted = _noted(storage, file)
    return {corpus: frozenset(i for name, i in noted if name == corpus) for corpus in CORPORA}


def changes_since(storage: Storage, file: str, dataset: str, corpora: Iterable[CorpusName]) -> RowChanges:
    """How these corpora of a dataset differ from what was noted.

    Raises:
        DataError: there is no finished dataset, or the note is damaged.
    """
    wanted = set(corpora)
    then = {key: content for key, content in _noted(storage, file).items() if key[0] in wanted}
    now = {(row.corpus, row.window_id): (row.content, kept) for row, kept in _rows(dataset)}
    still = {key: now[key] for key in then.keys() & now.keys()}
    same = [kept for key, (content, kept) in still.items() if content == then[key]]
    new = (key for key, (_, kept) in now.items() if kept and key[0] in wanted and key not in then)
    return RowChanges(
        more=sum(1 for _ in new),
        left_out=same.count(False),
        gone=len(then) - len(still),
        other=len(still) - len(same),
    )


def _noted(storage: Storage, file: str) -> Mapping[tuple[str, str], str]:
    table: pa.Table = read_table(storage, file)
    columns = (table[name].to_pylist() for name in ("corpus", "window_id", "content"))
    return {(corpus, window): content for corpus, window, content in zip(*columns, strict=True)}


def _rows(dataset: str) -> Iterable[tuple[NotedRow, bool]]:
    """Every window of a dataset, and whether it is kept."""
    storage = Storage(dataset)
    videos = read_table(storage, MANIFEST_FILE, ["corpus", "source_id", "status", "latents_sha256"])
    latents = {
        (video["corpus"], video["source_id"]): video["latents_sha256"]
        for video in videos.to_pylist()
        if video["status"] == "written"
    }
    names = ["corpus", "window_id", "source_id", "caption", "split", "kept"]
    index = read_index(storage, read_info(storage).index_sha256, names)
    for corpus, window, source, caption, split, kept in zip(
        *(index[name].to_pylist() for name in names), strict=True
    ):
        plain = "\0".join((caption, split, latents.get((corpus, source), "")))
        yield NotedRow(corpus, window, hashlib.sha256(plain.encode()).hexdigest()[:16]), kept
