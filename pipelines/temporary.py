"""Temporary files that no process leaves behind, not even one that is killed.

The owner of a file holds a lock on it, which ends with its process. Whoever makes the next file deletes those
that nobody holds.
"""

import fcntl
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

PREFIX = "sostenuto-file-"
YOUNG_S = 60.0
"""A file younger than this may belong to an owner that has not locked it yet."""


def temporary_file(suffix: str = "") -> IO[bytes]:
    """An open file with a name on the local disk, private; it is gone when it is closed.

    Raises:
        OSError: the disk for temporary files cannot take it.
    """
    _sweep()
    file = tempfile.NamedTemporaryFile(prefix=PREFIX, suffix=suffix)  # noqa: SIM115  it outlives this call
    with suppress(OSError):  # a disk without locks: there the files of the dead cannot be told, and stay
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _sweep() -> None:
    """Delete the files of processes that are gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > YOUNG_S:
                _delete_if_free(path)


def _delete_if_free(path: Path) -> None:
    """Delete a file that nobody has locked; raises OSError where somebody has."""
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(handle)
