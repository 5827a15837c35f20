"""A video of any corpus as a local file, for as long as it is read."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import IO

from models.errors import ClusterError
from pipelines.data.source.corpus import OUTSIDE, Corpus, leaves, why
from pipelines.data.source.manifest import Source
from pipelines.data.types import Reject, Rejected
from pipelines.temporary import temporary_file

STAGE = "fetch"


@contextmanager
def local_copy(root: str, source: Source) -> Iterator[str]:
    """The local path of a video.

    A file on a local disk is its own copy. Anything else is streamed into a private temporary file, which is
    gone when the context ends; if the process is killed, when another makes the next. A store's own client
    tries again what fails in passing.

    Args:
        root: of the listing that the source is from.

    Raises:
        Rejected: at stage `fetch`: it cannot be read, or has changed since it was listed.
        ClusterError: the disk for temporary files cannot take it.
    """
    corpus = Corpus(root)
    if leaves(source.path):
        raise Rejected(Reject(STAGE, OUTSIDE.reason))
    if corpus.is_local:
        _check_file(corpus, source)
    if corpus.is_local and not source.tar:
        yield corpus.at(source.path)
        return
    with ExitStack() as stack:
        try:
            suffix = PurePosixPath(source.path).suffix
            copy = stack.enter_context(temporary_file(suffix))
            _fill(corpus, source, copy)
        except OSError as error:
            raise ClusterError(
                f"No temporary copy of a video in {tempfile.gettempdir()}: {why(error)}",
                "Free space there, or set TMPDIR to a folder with more",
            ) from error
        yield copy.name


def _check_file(corpus: Corpus, source: Source) -> None:
    """The file is still inside the root, and not written to since it was listed."""
    file = corpus.look(source.tar or source.path)
    if isinstance(file, Reject):
        raise Rejected(Reject(STAGE, file.reason))
    if not source.tar and file.num_bytes != source.num_bytes:
        raise Rejected(_changed(source, file.num_bytes))
    if not source.tar and source.stamp not in ("", file.stamp):
        raise Rejected(Reject(STAGE, "it was written to since it was listed"))


def _fill(corpus: Corpus, source: Source, copy: IO[bytes]) -> None:
    digest = hashlib.sha256()
    for block in _blocks(corpus, source):
        digest.update(block)
        copy.write(block)
    copy.flush()
    if copy.tell() != source.num_bytes:
        raise Rejected(_changed(source, copy.tell()))
    if digest.hexdigest() != source.id:
        raise Rejected(Reject(STAGE, "its bytes have changed since it was listed"))


def _blocks(corpus: Corpus, source: Source) -> Iterator[bytes]:
    try:
        yield from corpus.blocks(source.tar or source.path, source.offset, source.num_bytes)
    except OSError as error:
        raise Rejected(Reject(STAGE, f"it cannot be read: {why(error)}")) from error


def _changed(source: Source, num_bytes: int) -> Reject:
    return Reject(STAGE, f"it has {num_bytes} bytes, and had {source.num_bytes} when it was listed")
