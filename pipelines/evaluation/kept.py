"""What an evaluation has measured and not yet stored as its result, in files below its folder.

A file appears whole, under a name that all that decides its content is hashed into: one that was stopped
goes on from what is there, and nothing of other networks, captions or settings is taken for its own.
"""

from collections.abc import Callable

from pipelines.storage import Storage

MEASURED = "measured"
"""Folder of these files."""


def once(folder: str, name: str, make: Callable[[], bytes]) -> bytes:
    """The content of a file, which is made if it is not there.

    Args:
        folder: of the evaluation; a path or any fsspec URI.
        name: of the file, in which everything that decides its content has a part.
        make: gives the content.
    """
    storage, file = Storage(folder), f"{MEASURED}/{name}"
    if not storage.exists(file):
        storage.write_bytes(file, make())
    return storage.read_bytes(file)


def forget(folder: str) -> None:
    """Delete what is kept: the result is stored, or everything is to be measured anew."""
    Storage(folder).delete(MEASURED)
