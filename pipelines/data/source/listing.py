"""sources.parquet: what both corpora held when they were listed: the next listing reads only the new."""

from collections.abc import Mapping

import pyarrow as pa

from pipelines.data.source.manifest import Known, Listing, sources
from pipelines.data.store.tables import read_table, write_table
from pipelines.storage import Storage

SOURCES_FILE = "sources.parquet"
_COLUMNS = pa.schema(
    [
        ("corpus", pa.string()),
        ("path", pa.string()),
        ("num_bytes", pa.int64()),
        ("stamp", pa.string()),
        ("sha256", pa.string()),
    ]
)


def list_corpora(storage: Storage, locations: Mapping[str, str], *, anew: bool = False) -> dict[str, Listing]:
    """List each corpus. Files that are as they were when the dataset was last listed are not read.

    Args:
        storage: of the dataset.
        locations: corpus -> where it is.
        anew: read every file.

    Raises:
        DataError: a corpus is missing, empty or unreadable; the earlier list is damaged.
    """
    known = {} if anew else _read(storage)
    return {corpus: sources(location, known.get(corpus)) for corpus, location in locations.items()}


def keep_list(storage: Storage, listings: Mapping[str, Listing]) -> None:
    """Store what was hashed, for the next listing; the same list leaves the file as it is."""
    known = {corpus: listing.known for corpus, listing in listings.items()}
    if storage.exists(SOURCES_FILE) and _read(storage) == known:
        return
    rows = [
        (corpus, path, num_bytes, stamp, sha256)
        for corpus, entries in known.items()
        for (path, num_bytes, stamp), sha256 in sorted(entries.items())
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _COLUMNS, strict=True)]
    write_table(storage, SOURCES_FILE, pa.Table.from_arrays(arrays, schema=_COLUMNS))


def _read(storage: Storage) -> dict[str, Known]:
    if not storage.exists(SOURCES_FILE):
        return {}
    known: dict[str, dict[tuple[str, int, str], str]] = {}
    for row in read_table(storage, SOURCES_FILE).to_pylist():
        known.setdefault(row["corpus"], {})[row["path"], row["num_bytes"], row["stamp"]] = row["sha256"]
    return dict(known)
