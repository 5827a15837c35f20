"""Parquet with page checksums: small tables read and written whole, and what a damaged file is called.

Nothing here starts pyarrow's own threads, as reading ahead and its dataset and query engines do: one that
lets go of a Python file while the interpreter ends aborts the process.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.errors import DataError
from pipelines.data.types import REMEDY
from pipelines.storage import Storage, one_line

_ARROW = {str: pa.string(), int: pa.int64(), float: pa.float64(), bytes: pa.binary()}


def columns_of(kind: type) -> pa.Schema:
    """Arrow columns of a dataclass of plain values."""
    return pa.schema([(f.name, _ARROW[cast(type, f.type)]) for f in fields(kind)])


def table_of(kind: type, rows: Iterable[Any]) -> pa.Table:
    rows, columns = list(rows), columns_of(kind)
    arrays = [pa.array([getattr(row, c.name) for row in rows], c.type) for c in columns]
    return pa.Table.from_arrays(arrays, schema=columns)


def sort(table: pa.Table, *columns: str) -> pa.Table:
    """The rows in ascending order of columns."""
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in columns]))


def to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def open_parquet(source: bytes | IO[bytes] | pa.NativeFile) -> pq.ParquetFile:
    """A pyarrow file that verifies the checksum of every page it reads.

    Raises:
        pa.ArrowException, OSError: it is damaged; also when reading.
    """
    handle = io.BytesIO(source) if isinstance(source, bytes) else source
    return pq.ParquetFile(handle, page_checksum_verification=True, pre_buffer=False)


@contextmanager
def parquet_errors(storage: Storage, file: str) -> Iterator[None]:
    """Turn what pyarrow raises about a damaged file into a DataError, and what the disk or the store raises
    about one that cannot be read now into a ClusterError."""
    with storage.errors_about(file):
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (error.errno or type(error) is not OSError):
                raise
            raise DataError(f"{storage}/{file} is damaged: {one_line(error)[:200]}", REMEDY) from error


def write_table(storage: Storage, file: str, table: pa.Table) -> str:
    """Store a table; the file's sha256."""
    data = to_parquet(table)
    storage.write_bytes(file, data)
    return hashlib.sha256(data).hexdigest()


def read_table(
    storage: Storage, file: str, columns: Sequence[str] | None = None, sha256: str | None = None
) -> pa.Table:
    """A stored table.

    Args:
        columns: which to read; None is all.
        sha256: what the file must be; None when that is not known.

    Raises:
        DataError: it is damaged.
        ClusterError: it is missing.
    """
    data = storage.read_bytes(file)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise DataError(f"{storage}/{file} is damaged: its sha256 differs", REMEDY)
    with parquet_errors(storage, file):
        return open_parquet(data).read(columns=columns, use_threads=False)
