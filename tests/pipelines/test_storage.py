"""Storage: a file is whole or absent, wherever it lies, and what fails says what to do.

Temporary files and folders are private and gone at the end; a killed owner's go when the next is made.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from models.errors import ClusterError, DataError
from pipelines import storage as module
from pipelines.storage import (
    ASIDE,
    OWNED,
    TEMPORARY,
    UNBORN,
    Storage,
    hash_of,
    one_line,
    os_errors,
    temporary_file,
    temporary_folder,
)
from tests.command import REPOSITORY, sent


@pytest.fixture(params=["folder", "file-uri", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """The same promises on a path, a file URI and an object store."""
    roots = {
        "folder": str(tmp_path),
        "file-uri": f"file://{tmp_path}",
        "memory": f"memory://{tmp_path.name}",
    }
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_bucket") + "/runs")
    return Storage(roots[request.param])


def test_bytes_and_json_come_back(storage: Storage) -> None:
    storage.write_bytes("a/b.bin", b"\x00\xff")
    storage.write_json("a/c.json", {"z": 1, "a": [1.5, None]})
    assert storage.read_bytes("a/b.bin") == b"\x00\xff"
    assert storage.read_json("a/c.json") == {"z": 1, "a": [1.5, None]}
    assert list(storage.read_json("a/c.json")) == ["z", "a"]


def test_a_file_is_replaced(storage: Storage) -> None:
    storage.write_bytes("x", b"old, and longer")
    storage.write_bytes("x", b"new")
    assert storage.read_bytes("x") == b"new"


def test_listing_is_sorted_and_a_missing_folder_is_empty(storage: Storage) -> None:
    for name in ("d/b", "d/a", "d/sub/c"):
        storage.write_bytes(name, b"")
    assert storage.list("d") == ["a", "b", "sub"]
    assert storage.list("nowhere") == []


def test_exists_and_delete(storage: Storage) -> None:
    storage.write_bytes("d/a", b"1")
    assert storage.exists("d/a")
    storage.delete("d")
    storage.delete("d")
    assert not storage.exists("d/a")


def test_a_child_is_the_folder_below(storage: Storage) -> None:
    storage.child("d").write_bytes("a", b"1")
    assert storage.read_bytes("d/a") == b"1"
    assert str(storage.child("d")) == f"{storage}/d"


def test_it_travels_between_processes(storage: Storage) -> None:
    storage.write_bytes("a", b"1")
    copy = sent(storage)
    assert str(copy) == str(storage)
    assert copy.read_bytes("a") == b"1"


def test_a_folder_goes_in_and_comes_out(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> None:
    source, target = tmp_path_factory.mktemp("from"), tmp_path_factory.mktemp("to")
    (source / "sub").mkdir()
    (source / "sub" / "a").write_bytes(b"1")
    (source / "b").write_bytes(b"2")
    storage.put_folder(source, "x/folder")
    storage.get_folder("x/folder", target)
    assert (target / "sub" / "a").read_bytes() == b"1"
    assert (target / "b").read_bytes() == b"2"


def test_put_folder_replaces_a_folder_on_disk(tmp_path: Path) -> None:
    for content in ("old", "new"):
        source = tmp_path / content
        source.mkdir()
        (source / content).write_text(content)
        Storage(tmp_path).put_folder(source, "target")
    assert os.listdir(tmp_path / "target") == ["new"]
    assert not list(tmp_path.glob(f"{ASIDE}*"))


def test_what_killed_writers_of_a_folder_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    source, killed, lives = (tmp_path / name for name in ("from", f"{ASIDE}to-1", f"{ASIDE}to-2"))
    for folder in (source, killed / "sub", lives, tmp_path / f"{ASIDE}other-1"):
        folder.mkdir(parents=True)
    (tmp_path / f"{ASIDE}to-3").write_text("a file that is being written")
    owner = os.open(lives, os.O_RDONLY)
    fcntl.flock(owner, fcntl.LOCK_EX)
    Storage(tmp_path).put_folder(source, "to")
    os.close(owner)
    left = {name for name in os.listdir(tmp_path) if name.startswith(ASIDE)}
    assert left == {lives.name, f"{ASIDE}other-1", f"{ASIDE}to-3"}


def test_on_disk_is_the_folder_itself_or_a_copy(storage: Storage) -> None:
    storage.write_bytes("d/a", b"1")
    with storage.on_disk("d") as local:
        assert (local / "a").read_bytes() == b"1"
    assert local.exists() == storage.is_local


def test_a_copy_holds_only_what_is_wanted(storage: Storage) -> None:
    for name in ("a", "b", "c"):
        storage.write_bytes(f"d/{name}", name.encode())
    with storage.on_disk("d", only=("a", "c", "not there")) as local:
        assert (local / "c").read_bytes() == b"c"
        if not storage.is_local:
            assert sorted(path.name for path in local.iterdir()) == ["a", "c"]


def test_an_aborted_file_leaves_nothing(storage: Storage) -> None:
    pending = storage.pending("d/a")
    Path(pending.path).write_bytes(b"half")
    assert storage.list("d") == []
    pending.abort()
    assert not storage.exists("d/a")
    assert not Path(pending.path).exists()


def test_a_pending_file_of_a_store_outlives_nobody(tmp_path: Path) -> None:
    """It lies where the next writer clears up after those that were killed."""
    pending = Storage(f"memory://{tmp_path.name}").pending("d/a")
    assert Path(pending.path).name.startswith(TEMPORARY)
    pending.abort()


def test_a_pending_file_appears_when_committed(storage: Storage) -> None:
    pending = storage.pending("d/a")
    Path(pending.path).write_bytes(b"whole")
    assert not storage.exists("d/a")
    pending.commit()
    assert storage.read_bytes("d/a") == b"whole"
    assert not Path(pending.path).exists()


@pytest.mark.parametrize(
    ("umask", "file", "folder"),
    [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)],
)
def test_who_may_read_is_the_umasks_to_say(umask: int, file: int, folder: int, tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    before = os.umask(umask)
    try:
        (private / "b").touch(0o600)
        Storage(tmp_path).write_bytes("a", b"")
        Storage(tmp_path).put_folder(private, "d")
    finally:
        os.umask(before)
    rights = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "d", "d/b")]
    assert rights == [file, folder, file]


def test_leftovers_of_killed_writers_are_swept(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("d/done", b"1")
    storage.pending("d/half")
    (tmp_path / "d" / f"{ASIDE}folder" / "sub").mkdir(parents=True)
    storage.delete_unfinished("d")
    assert os.listdir(tmp_path / "d") == ["done"]


def test_a_relative_root_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(Storage("runs")) == str(tmp_path / "runs")


def test_a_file_is_read_and_hashed_as_a_stream(storage: Storage) -> None:
    storage.write_bytes("log/a.txt", b"one")
    with storage.open("log/a.txt") as file:
        assert file.read() == b"one"
    assert storage.sha256("log/a.txt") == hashlib.sha256(b"one").hexdigest()


def test_a_hash_is_of_the_values_not_of_their_order() -> None:
    assert hash_of({"b": (1, 2), "a": None}) == hash_of({"a": None, "b": [1, 2]})
    assert hash_of([1, 2]) != hash_of([2, 1])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "Free space"),
        (errno.EDQUOT, "Free space"),
        (errno.EACCES, "right to write"),
        (errno.EROFS, "right to write"),
        (errno.EIO, "can be reached"),
    ],
)
def test_a_failed_write_names_the_remedy_and_leaves_nothing(
    number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: str) -> None:
        raise OSError(number, os.strerror(number))

    storage = Storage(tmp_path)
    monkeypatch.setattr(module, "_sync", fail)
    with pytest.raises(ClusterError) as caught:
        storage.write_bytes("d/a", b"1")
    assert words in caught.value.remedy
    assert os.strerror(number) in caught.value.problem
    assert os.listdir(tmp_path / "d") == []


def test_arrow_errors_carry_their_number_in_the_text(tmp_path: Path) -> None:
    with pytest.raises(ClusterError) as caught, Storage(tmp_path).errors_about("a.parquet"):
        raise OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")
    assert "Free space" in caught.value.remedy


def test_errors_of_any_library_become_one_kind() -> None:
    with pytest.raises(OSError, match="RuntimeError: no route"), os_errors():
        raise RuntimeError("no route")
    with pytest.raises(FileNotFoundError), os_errors():
        raise FileNotFoundError
    with pytest.raises(DataError), os_errors():
        raise DataError("its own", "Pass it on")


def test_an_error_is_one_line_and_never_empty() -> None:
    assert one_line(ValueError("two\n lines")) == "two lines"
    assert one_line(TimeoutError()) == "TimeoutError"


def test_a_stores_own_error_names_the_remedy(tmp_path: Path) -> None:
    for error in (RuntimeError("no route\nto host"), TimeoutError()):
        with pytest.raises(ClusterError) as caught, Storage(tmp_path).errors_about("a"):
            raise error
        assert "can be reached" in caught.value.remedy
        assert "\n" not in str(caught.value)
        assert type(error).__name__ in caught.value.problem


def test_a_store_that_fails_while_a_file_is_read_is_told(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_bytes("a", b"1")
    with pytest.raises(ClusterError, match="no route"), storage.open("a"):
        raise RuntimeError("no route")


@pytest.mark.long
def test_a_store_that_does_not_answer_is_told(
    s3_bucket: str, s3_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody listens at the port: the store's library raises an error of its own kind."""
    (tmp_path / "config").write_text("[default]\nretries =\n    max_attempts = 1\n")
    s3_settings.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    s3_settings.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    type(fsspec.filesystem("s3")).clear_instance_cache()
    storage = Storage(f"{s3_bucket}/runs")
    with pytest.raises(ClusterError, match=r"127[.]0[.]0[.]1:9"):
        storage.read_bytes("a")
    with pytest.raises(ClusterError, match=r"127[.]0[.]0[.]1:9"):
        storage.write_bytes("a", b"1")


def test_a_folder_arrives_in_a_store_with_its_mark_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.json", "a.bin", "z.bin"):
        (tmp_path / name).write_bytes(b"1")
    storage = Storage(f"memory://{tmp_path.name}")
    arrived: list[str] = []
    monkeypatch.setattr(Storage, "upload", lambda self, local, path: arrived.append(path))
    storage.put_folder(tmp_path, "x", last="b.json")
    assert arrived == ["x/a.bin", "x/z.bin", "x/b.json"]


def test_a_folder_that_finds_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied folder's error is a list of its files' errors: its user sees the one reason."""

    def fail(*_files: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_bytes(b"1")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fail)
        with pytest.raises(ClusterError) as caught:
            Storage(tmp_path).put_folder(tmp_path / "here", "there")
    assert caught.value.problem == f"{tmp_path}/there: No space left on device"
    assert "Free space" in caught.value.remedy
    assert os.listdir(tmp_path) == ["here"]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "d").write_text("a file")
    with pytest.raises(ClusterError) as caught:
        Storage(tmp_path).write_bytes("d/a", b"1")
    assert "file stands where a folder" in caught.value.remedy
    assert (tmp_path / "d").read_text() == "a file"


def test_a_missing_file(storage: Storage) -> None:
    with pytest.raises(ClusterError) as caught:
        storage.read_bytes("nowhere/a")
    assert "nowhere/a" in caught.value.problem
    with pytest.raises(ClusterError), storage.open("nowhere/b"):
        pass
    with pytest.raises(ClusterError):
        storage.get_folder("nowhere", "unused")


def test_damaged_json_is_named(storage: Storage) -> None:
    storage.write_bytes("a.json", b"{")
    with pytest.raises(ClusterError, match="damaged"):
        storage.read_json("a.json")


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ClusterError) as caught:
        Storage("nonsense://bucket/runs")
    assert "URI" in caught.value.remedy


def test_only_a_folder_has_local_paths() -> None:
    with pytest.raises(ClusterError, match="not on this machine"):
        Storage("memory://somewhere").local("a")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty; whatever lies there is old enough."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "YOUNG_S", -1.0)
    return tmp_path


def test_a_file_is_private_and_gone_when_it_is_closed(folder: Path) -> None:
    with temporary_file(".mp4") as file:
        path = Path(file.name)
        assert path.parent == folder
        assert path.suffix == ".mp4"
        assert path.stat().st_mode & 0o077 == 0
    assert os.listdir(folder) == []


@contextmanager
def living(script: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process whose temporary files are in `folder`, and the place that it prints."""
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        yield owner, Path(owner.stdout.readline().strip())


OWNER = "import sys, time; from pipelines.storage import temporary_file; file = temporary_file(); "
OWNER += "print(file.name, flush=True); time.sleep(60)"


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(folder: Path) -> None:
    with living(OWNER, folder) as (owner, held):
        with temporary_file():
            assert held.exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
    assert held.exists(), "nobody has cleared up yet"
    with temporary_file() as file:
        assert os.listdir(folder) == [Path(file.name).name]


def test_a_young_file_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may not have come to lock it."""
    monkeypatch.setattr(module, "YOUNG_S", 60.0)
    (folder / f"{TEMPORARY}new").touch()
    with temporary_file():
        assert (folder / f"{TEMPORARY}new").exists()


def test_other_files_and_what_links_point_at_stay(folder: Path) -> None:
    (folder / "sostenuto-ray").touch()
    (folder / f"{TEMPORARY}link").symlink_to(folder / "sostenuto-ray")
    os.mkfifo(folder / f"{TEMPORARY}pipe")
    with temporary_file():
        assert (folder / "sostenuto-ray").exists()


FOLDER_OWNER = """
import time
from pipelines.storage import temporary_folder
with temporary_folder() as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "a").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_a_folder_is_private_and_gone_at_the_end(folder: Path) -> None:
    with temporary_folder() as made:
        assert made.parent == folder
        assert made.stat().st_mode & 0o777 == 0o700
        (made / "a").touch()
    assert os.listdir(folder) == []


def test_a_killed_owners_folder_goes_at_once_and_a_living_ones_stays(folder: Path) -> None:
    with living(FOLDER_OWNER, folder) as (owner, held):
        with temporary_folder():
            assert (held / "sub" / "a").exists(), "its owner lives"
        owner.send_signal(signal.SIGKILL)
    assert held.exists(), "nobody has cleared up yet"
    with temporary_folder() as made:
        assert sorted(os.listdir(folder)) == [made.name, f"{made.name}{OWNED}"]


def orphan(folder: Path, name: str) -> Path:
    """A folder as a killed owner leaves it."""
    (folder / f"{name}{OWNED}").touch()
    (folder / name).mkdir()
    return folder / name


def test_what_an_owner_leaves_that_is_killed_before_its_lock_goes_after_a_minute(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "YOUNG_S", 60.0)
    unborn = folder / f"sostenuto-89abcdef{OWNED}{UNBORN}"
    unborn.touch()
    with temporary_folder():
        assert unborn.exists(), "its owner may be about to lock it"
    os.utime(unborn, (0, 0))
    with temporary_folder():
        assert not unborn.exists()


def test_a_folder_with_a_living_socket_stays_until_nobody_listens(folder: Path) -> None:
    left = orphan(folder, "sostenuto-0123abcd")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(left / "raylet"))
        with temporary_folder():
            assert left.exists()
    with temporary_folder():
        assert not left.exists()


def test_folders_of_other_names_or_owners_stay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sostenuto-runs").mkdir()
    others = orphan(folder, "sostenuto-4567cdef")
    (folder / f"sostenuto-link{OWNED}").symlink_to(folder / "sostenuto-runs")
    monkeypatch.setattr(module.os, "getuid", lambda: others.stat().st_uid + 1)
    with temporary_folder():
        assert others.exists()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with temporary_folder():
        assert not others.exists()
        assert (folder / "sostenuto-runs").exists()
