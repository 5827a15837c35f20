"""index.parquet: every window of a dataset, where it lies and whether it is kept."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.data.config import CurationConfig
from pipelines.data.curate.dedup import near_duplicates
from pipelines.data.source.manifest import Source
from pipelines.data.store.ledger import Ledger, Window
from pipelines.data.tables import columns_of, read_table, sort, write_table
from pipelines.storage import Storage

INDEX_FILE = "index.parquet"
_HASHES = 3


def build_index(
    ledgers: Mapping[str, Sequence[Ledger]],
    listed: Mapping[str, Sequence[Source]],
    holdout: float,
    curation: CurationConfig,
) -> pa.Table:
    """One table of both corpora, ordered by corpus and window id.

    Columns: those of `Window`, and `corpus`, `source` (path), `caption`, `split` (`train` or `holdout`),
    `kept`.

    Args:
        listed: videos of each corpus; windows of others are left out.
        holdout: share of the windows that is not trained on.
    """
    table = pa.concat_tables(
        _of_corpus(corpus, ledgers[corpus], sources, holdout) for corpus, sources in listed.items()
    )
    if curation.duplicate_distance is None:
        return table
    rows = np.flatnonzero(table["kept"].to_numpy())
    kept = table.filter(table["kept"])
    ids, corpora, sources = (kept[name].to_pylist() for name in ("window_id", "corpus", "source_id"))
    distance, across = curation.duplicate_distance, curation.duplicates_across
    duplicates = near_duplicates(ids, corpora, sources, fingerprints(kept), distance, across)
    reasons = table["reason"].to_pylist()
    for dropped, like in duplicates.items():
        reasons[rows[dropped]] = f"near duplicate of {ids[like]}"
    reason = pa.array(reasons, pa.string())
    table = table.set_column(table.column_names.index("reason"), "reason", reason)
    return table.set_column(table.column_names.index("kept"), "kept", pc.equal(reason, ""))


def _of_corpus(corpus: str, ledgers: Sequence[Ledger], sources: Sequence[Source], holdout: float) -> pa.Table:
    known = {source.id: source for source in sources}
    parts = [columns_of(Window).empty_table(), *_own_rows(ledgers, set(known))]
    table = sort(pa.concat_tables(parts), "window_id")
    own = [known[i] for i in table["source_id"].to_pylist()]
    held_out = [is_holdout(i, holdout) for i in table["window_id"].to_pylist()]
    columns = {
        "corpus": pa.array([corpus] * len(own), pa.string()),
        "source": pa.array([source.path for source in own], pa.string()),
        "caption": pa.array([source.caption for source in own], pa.string()),
        "split": pa.array(["holdout" if out else "train" for out in held_out], pa.string()),
        "kept": pc.equal(table["reason"], ""),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _own_rows(ledgers: Sequence[Ledger], wanted: set[str]) -> Iterator[pa.Table]:
    """Each ledger's rows of wanted videos, a video's from one ledger only: one that wrote it, if any did."""
    owners: dict[str, int] = {}
    for end in ("rejected", "written"):
        for number, ledger in enumerate(ledgers):
            owners |= {s.source_id: number for s in ledger.statuses if s.status == end}
    for number, ledger in enumerate(ledgers):
        own = {s.source_id for s in ledger.statuses if owners[s.source_id] == number}
        ids = sorted(source_id for source_id in own if source_id in wanted)
        rows = ledger.windows.replace_schema_metadata(None)
        yield rows.filter(pc.is_in(rows["source_id"], pa.array(ids, pa.string())))


def fingerprints(table: pa.Table) -> NDArray[np.uint64]:
    """Perceptual hashes [rows, 3]."""
    packed = b"".join(table["fingerprint"].to_pylist())
    return np.frombuffer(packed, "<u8").reshape(-1, _HASHES)


def is_holdout(window_id: str, share: float) -> bool:
    """Whether a window is kept out of training: a fixed property of its id and the share."""
    number = int.from_bytes(hashlib.sha256(window_id.encode()).digest()[:8], "big")
    return number < share * 2.0**64


def write_index(storage: Storage, table: pa.Table) -> str:
    """Store the index; its sha256."""
    return write_table(storage, INDEX_FILE, table)


def read_index(storage: Storage, sha256: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The stored index; as `read_table`, with the sha256 that dataset.json gives."""
    return read_table(storage, INDEX_FILE, columns, sha256)
