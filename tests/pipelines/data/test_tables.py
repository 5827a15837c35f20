"""A damaged file is told as damaged; one that cannot be read now is not, for nobody should delete it."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from models.errors import ClusterError, DataError
from pipelines.data.tables import open_parquet, parquet_errors, to_parquet
from pipelines.storage import Storage
from tests.command import REPOSITORY

STALE = OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Failing(io.BytesIO):
    """A file that can be opened, but not read to the end."""

    def __init__(self, data: bytes, error: Exception) -> None:
        super().__init__(data)
        self._error = error
        self.broken = False

    def read(self, size: int | None = -1) -> bytes:
        if self.broken:
            raise self._error
        return super().read(size)


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError(104, "reset by peer"), STALE, TimeoutError(), RuntimeError("no route\nto host")],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_read_now_is_not_called_damaged(error: Exception, tmp_path: Path) -> None:
    file = Failing(to_parquet(pa.table({"a": list(range(100))})), error)
    table = open_parquet(file)
    file.broken = True
    with pytest.raises(ClusterError) as caught, parquet_errors(Storage(tmp_path), "a.parquet"):
        table.read(use_threads=False)
    assert "a.parquet" in caught.value.problem
    assert "\n" not in str(caught.value)
    assert "Delete" not in caught.value.remedy


@pytest.mark.parametrize(
    "error", [pa.ArrowInvalid(""), OSError("Corrupt data\nin a page"), OSError()], ids=repr
)
def test_what_pyarrow_says_of_bytes_is_damage(error: Exception, tmp_path: Path) -> None:
    damaged = pytest.raises(DataError, match=r"a\.parquet is damaged: \S")
    with damaged as caught, parquet_errors(Storage(tmp_path), "a.parquet"):
        raise error
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_damaged(tmp_path: Path) -> None:
    data = to_parquet(pa.table({"a": list(range(1000))}))
    with pytest.raises(DataError, match="damaged"), parquet_errors(Storage(tmp_path), "a.parquet"):
        open_parquet(io.BytesIO(data[:-5]))


READS = """
import os, sys
from pipelines.data.tables import read_table
from pipelines.storage import Storage

before = os.listdir("/proc/self/task")
print(read_table(Storage(sys.argv[1]), "a.parquet").num_rows)
print(len(os.listdir("/proc/self/task")) - len(before))
"""


def test_reading_starts_no_thread(tmp_path: Path) -> None:
    """A thread of pyarrow's that holds a Python file aborts a process that ends."""
    (tmp_path / "a.parquet").write_bytes(to_parquet(pa.table({"a": list(range(1000))})))
    command = [sys.executable, "-c", READS, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1000", "0"]
