"""One place for datasets, checkpoints and runs: a plain folder or any fsspec URI (file://, s3://, gs://,
memory://).

A file appears whole or not at all. On a local disk it is written aside, synced and renamed; on an object
store it is written to a local temporary file and uploaded in one piece.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from models.errors import ClusterError, SostenutoError, StorageRefused

ASIDE = ".aside-"
"""Prefix of unfinished files; they may be deleted when nothing is being written."""
TEMPORARY, FOLDER = "sostenuto-file-", "sostenuto-"
"""Prefixes of temporary files and folders."""
OWNED = ".owner"
"""Suffix of the file beside a temporary folder that its owner has locked."""
UNBORN = "-new"
"""Suffix of that file's name until it is locked."""
YOUNG_S = 60.0
"""A temporary file younger than this may belong to an owner that has not locked it yet."""
LAST_WRITES_S = 5.0
"""How long a folder is deleted again and again while processes that end still write into it."""
Names = list[str]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class Pending:
    """A file being written: fill `.path`, then commit or abort."""

    def __init__(self, storage: "Storage", name: str) -> None:
        self._storage = storage
        self._name = name
        self._copy: IO[bytes] | None = None
        with storage.errors_about(name):
            if storage.is_local:
                target = Path(storage.local(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                self.path = str(_aside(target))
                # unlike mkstemp(), open() leaves the rights to the umask
                open(self.path, "xb").close()
            else:
                self._copy = temporary_file()
                self.path = self._copy.name

    def commit(self) -> None:
        """Make the file appear under its name, replacing what was there."""
        with self._storage.errors_about(self._name):
            if self._copy is not None:
                self._storage.upload(self.path, self._name)
                self._copy.close()
                return
            _sync(self.path)
            target = self._storage.local(self._name)
            os.replace(self.path, target)
            _sync(os.path.dirname(target))

    def abort(self) -> None:
        if self._copy is not None:
            self._copy.close()
        else:
            Path(self.path).unlink(missing_ok=True)


class Storage:
    """Files under one root. Small enough to be sent to other processes.

    Args:
        root: a folder (made absolute), an fsspec URI, or another storage. It need not exist.

    Raises:
        ClusterError: the URI's file system is unknown or not installed. Every method raises it, with the
            remedy, when a file is missing or the storage fails.
        StorageRefused: by every method, when the disk is full or read-only, or permission is denied.
    """

    def __init__(self, root: "str | Path | Storage") -> None:
        try:
            # a folder may have :: or :// in its name
            absolute = str(root).startswith("/")
            self._fs, path = (LocalFileSystem(), str(root)) if absolute else fsspec.core.url_to_fs(str(root))
        except (ValueError, ImportError) as error:
            raise ClusterError(
                f"storage {root!s} cannot be used: {error}", "Give a folder or a URI such as s3://bucket/runs"
            ) from error
        self._root = path.rstrip("/") or "/"
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._text = self._root if self.is_local else self._fs.unstrip_protocol(self._root)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"Storage({self._text!r})"

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self._text,)

    def child(self, path: str) -> "Storage":
        return Storage(f"{self._text}/{path}")

    def local(self, path: str = "") -> str:
        """The path on this machine's disk.

        Raises:
            ClusterError: the storage is not a local folder.
        """
        if not self.is_local:
            raise ClusterError(
                f"{self}/{path} is not on this machine's disk", "Use get_folder to copy it here"
            )
        return self._at(path)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/") if path else self._root

    @contextmanager
    def errors_about(self, path: str) -> Iterator[None]:
        """Turn what a disk or a store raises about `path` into a ClusterError with its remedy."""
        try:
            with os_errors():
                yield
        except OSError as error:
            # Arrow, shutil.copytree and safetensors give the number in their text only
            found = re.search(r"(?:\[errno|\(os error) (\d+)", str(error), re.IGNORECASE)
            number = error.errno or (int(found[1]) if found else None)
            reason = os.strerror(number) if number else one_line(error)
            kind = StorageRefused if number in _FULL | _FORBIDDEN else ClusterError
            raise kind(f"{self._text}/{path}: {reason}", _remedy(number, self._text)) from error

    @contextmanager
    def open(self, path: str) -> Iterator[BufferedIOBase]:
        with self.errors_about(path), self._fs.open(self._at(path), "rb") as file:
            yield file

    def pending(self, path: str) -> Pending:
        """Start a file that appears when it is committed."""
        return Pending(self, path)

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file, atomically."""
        pending = self.pending(path)
        try:
            with self.errors_about(path), open(pending.path, "wb") as file:
                file.write(data)
            pending.commit()
        except ClusterError:
            pending.abort()
            raise

    def read_bytes(self, path: str) -> bytes:
        with self.errors_about(path):
            return bytes(self._fs.cat_file(self._at(path)))

    def sha256(self, path: str) -> str:
        with self.open(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write_json(self, path: str, value: object) -> None:
        """Write a value as JSON, keys in their given order, atomically."""
        self.write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())

    def read_json(self, path: str) -> Any:
        """A JSON file's value.

        Raises:
            ClusterError: also when the file is not JSON.
        """
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise ClusterError(f"{self}/{path} is damaged: {error}", "Delete it and make it again") from error

    def exists(self, path: str = "") -> bool:
        with self.errors_about(path):
            return bool(self._fs.exists(self._at(path)))

    def list(self, path: str = "") -> Names:
        """Names in a folder, sorted, without unfinished files; a folder that does not exist is empty."""
        with self.errors_about(path):
            self._fs.invalidate_cache()
            if not self._fs.isdir(self._at(path)):
                return []
            entries = self._fs.ls(self._at(path), False)
        names = (str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries)
        return sorted(name for name in names if not name.startswith(ASIDE))

    @contextmanager
    def on_disk(self, path: str = "", only: Sequence[str] | None = None) -> Iterator[Path]:
        """A folder of this storage on the local disk for as long as the context lasts: itself, or a copy.

        Args:
            path: the folder.
            only: names to copy, those that are not there left out; None copies all.
        """
        if self.is_local:
            yield Path(self.local(path))
            return
        with temporary_folder() as copy:
            self.get_folder(path, copy, only)
            yield copy

    def delete(self, path: str) -> None:
        """Delete a file or a folder, if it is there."""
        with self.errors_about(path):
            if self._fs.exists(self._at(path)):
                self._fs.rm(self._at(path), recursive=True)

    def delete_unfinished(self, path: str) -> None:
        """Delete what killed writers left in a local folder; call it when nothing is being written."""
        if not self.is_local:
            return
        for leftover in Path(self.local(path)).glob(f"{ASIDE}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    def upload(self, local: str, path: str) -> None:
        with self.errors_about(path):
            target = self._at(path)
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(local, target)

    def put_folder(self, local: str | Path, path: str, last: str = "") -> None:
        """Copy a local folder here, replacing `path`; on a local disk it appears whole.

        On an object store the files arrive one by one in the order of their names.

        Args:
            last: the file to upload after all others, by which readers know that the folder is whole.
        """
        if not self.is_local:
            files = [file for file in Path(local).rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: (file.name == last, file)):
                self.upload(str(file), f"{path}/{file.relative_to(local).as_posix()}")
            return
        target = Path(self.local(path))
        with self.errors_about(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            for leftover in target.parent.iterdir():
                if leftover.name.startswith(f"{ASIDE}{target.name}-") and leftover.is_dir():
                    with suppress(OSError), _locked(leftover):  # its writer was killed
                        shutil.rmtree(leftover)
            aside = _aside(target)
            aside.mkdir()
            rights, owner = aside.stat().st_mode, os.open(aside, os.O_RDONLY)
            with suppress(OSError):  # a disk without locks: nobody can lock it there, and it stays
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                # safetensors lets nobody else read what it writes; copyfile() leaves the rights to the umask
                shutil.copytree(local, aside, dirs_exist_ok=True, copy_function=shutil.copyfile)
                aside.chmod(rights)
                for copied in [aside, *aside.rglob("*")]:
                    _sync(str(copied))
                self.delete(path)
                os.replace(aside, target)
                _sync(str(target.parent))
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                os.close(owner)

    def put_files(self, local: str | Path, path: str) -> None:
        """Copy the files of a local folder into a folder here, beside others; each appears whole."""
        for file in sorted(Path(local).iterdir()):
            pending = self.pending(f"{path}/{file.name}")
            try:
                with self.errors_about(path):
                    shutil.copyfile(file, pending.path)
                pending.commit()
            except ClusterError:
                pending.abort()
                raise

    def get_folder(self, path: str, local: str | Path, only: Sequence[str] | None = None) -> None:
        """Copy a folder from here into a local folder, which is made: all of it, or `only` some names."""
        with self.errors_about(path):
            if not self._fs.isdir(self._at(path)):
                raise FileNotFoundError(errno.ENOENT, "no such folder")
            for file in self._fs.find(self._at(path)):
                name = str(file)[len(self._at(path)) :].lstrip("/")
                if only is None or name in only:
                    target = Path(local) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(file, str(target))


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn a store's own errors, which have no type in common, into OSError; this program's own pass."""
    try:
        yield
    except (OSError, SostenutoError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def one_line(error: BaseException) -> str:
    """An error's message on one line; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def hash_of(value: object) -> str:
    """sha256 of a plain value's JSON, as 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_file(suffix: str = "") -> IO[bytes]:
    """An open file with a name on the local disk, private; it is gone when it is closed.

    Not even a killed process leaves one behind: the owner holds a lock, which ends with its process, and
    whoever makes the next file deletes those that nobody holds.

    Raises:
        OSError: the disk for temporary files cannot take it.
    """
    _delete_orphans(Path(tempfile.gettempdir()), f"{TEMPORARY}*")
    file = tempfile.NamedTemporaryFile(prefix=TEMPORARY, suffix=suffix)  # noqa: SIM115  it outlives this call
    with suppress(OSError):  # a disk without locks: orphans there cannot be told from files in use, and stay
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


@contextmanager
def temporary_folder(parent: str | None = None) -> Iterator[Path]:
    """A private folder on the local disk for as long as the context lasts.

    Its owner holds the lock of a file beside it, which ends with the owner's process. Whoever makes the next
    folder in the same place deletes those that nobody owns, unless a process listens on a socket in them.

    Args:
        parent: where; None is the place for temporary files.

    Raises:
        OSError: the disk cannot take it.
    """
    place, sockets = Path(parent or tempfile.gettempdir()), Path("/proc/net/unix")
    listening = sockets.read_text() if sockets.exists() else ""
    for mark in place.glob(f"{FOLDER}*{OWNED}"):
        with suppress(OSError):
            if mark.stat().st_uid == os.getuid() and f"{mark.with_suffix('')}/" not in listening:
                with _locked(mark):
                    _delete(mark)
    _delete_orphans(place, f"{FOLDER}*{OWNED}{UNBORN}")
    mark = place / f"{FOLDER}{secrets.token_hex(4)}{OWNED}"
    with open(f"{mark}{UNBORN}", "xb") as owner:
        with suppress(OSError):  # a disk without locks: nobody can lock it there, and it stays
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(owner.name, mark)
        try:
            mark.with_suffix("").mkdir(mode=0o700)
            yield mark.with_suffix("")
        finally:
            _delete(mark)


def _delete_orphans(place: Path, pattern: str) -> None:
    """Delete the files that nobody holds and that are not young."""
    for path in place.glob(pattern):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > YOUNG_S:
                with _locked(path):
                    path.unlink()


def _delete(mark: Path) -> None:
    """Delete a temporary folder, into which processes that end may still write, and its mark."""
    folder, deadline = mark.with_suffix(""), time.monotonic() + LAST_WRITES_S
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
        shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        mark.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file or folder; raises OSError where somebody else does."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _aside(target: Path) -> Path:
    """A name beside a file or folder for what is to become it."""
    return target.with_name(f"{ASIDE}{target.name}-{secrets.token_hex(6)}")


def _remedy(number: int | None, root: str) -> str:
    if number in _FULL:
        return f"Free space on the disk of {root}, or set storage.root to another place, and run it again"
    if number in _FORBIDDEN:
        return f"Give this user the right to write below {root}, or set storage.root to another place"
    if number == errno.ENOENT:
        return "Check the path, and that the step that makes it has run"
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return f"A file stands where a folder is needed: move it away, or move storage.root from {root}"
    return f"Check that {root} can be reached and written, and run the command again"


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
