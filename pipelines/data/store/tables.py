"""Small parquet files read and written whole, with page checksums; and their rows in order.

Nothing here starts pyarrow's own threads, as its dataset and query engines do: they may crash a process that
ends.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import DataError
from pipelines.storage import Storage, one_line

REMEDY = "Delete the dataset and ingest again"


def packed(table: pa.Table) -> bytes:
    """A table as the bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def unpacked(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a parquet file; None is all columns.

    Raises:
        pa.ArrowException: the bytes are damaged.
    """
    return open_parquet(io.BytesIO(data)).read(columns=columns, use_threads=False)


def write_table(storage: Storage, file: str, table: pa.Table) -> str:
    """Store a table; the file's sha256."""
    data = packed(table)
    storage.write_bytes(file, data)
    return hashlib.sha256(data).hexdigest()


def read_table(
    storage: Storage, file: str, columns: Sequence[str] | None = None, sha256: str | None = None
) -> pa.Table:
    """A stored table.

    Args:
        columns: which; None is all.
        sha256: what the file must be; None when that is not known.

    Raises:
        DataError: it is damaged.
        ClusterError: it is missing.
    """
    data = storage.read_bytes(file)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{storage}/{file} is damaged: its sha256 differs", REMEDY)
    with explained(storage, file):
        return unpacked(data, columns)


def sort(table: pa.Table, *columns: str) -> pa.Table:
    """The rows in rising order of columns."""
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in columns]))


def open_parquet(handle: IO[bytes] | pa.NativeFile) -> pq.ParquetFile:
    """A pyarrow file that verifies page checksums."""
    return pq.ParquetFile(handle, page_checksum_verification=True)


@contextmanager
def explained(storage: Storage, file: str) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into a DataError, and what the disk or the store raises
    about one that cannot be read now into a ClusterError."""
    with storage.explained(file):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno or type(error) is not OSError):
                raise
            raise DataError(f"{storage}/{file} is damaged: {one_line(error)[:200]}", REMEDY) from error
