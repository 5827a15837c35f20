"""A video of any corpus is a local file while it is read, and nothing is left afterwards."""

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from models.errors import ClusterError
from pipelines.data.source import corpus as corpus_module
from pipelines.data.source.manifest import Source, list_corpus, local_copy
from pipelines.data.types import Rejected
from tests.pipelines.data.source.archives import put, tar_bytes

FILES = {
    "a.mp4": b"a" * 1000,
    "sub/b.webm": b"b",
    "t/x.tar": tar_bytes([("one.mp4", b"1" * 777), ("one.txt", b"one"), ("deep/two.mkv", b"")]),
}
CONTENTS = {
    "a.mp4": FILES["a.mp4"],
    "sub/b.webm": b"b",
    "t/x.tar/one.mp4": b"1" * 777,
    "t/x.tar/deep/two.mkv": b"",
}


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(params=["folder", "file-uri", "memory", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """FILES, everywhere."""
    if request.param in ("folder", "file-uri"):
        for name, content in FILES.items():
            put(tmp_path / "corpus", name, content)
        return f"{tmp_path}/corpus" if request.param == "folder" else f"file://{tmp_path}/corpus"
    uri = f"memory://{tmp_path.name}/corpus"
    if request.param == "s3":
        uri = request.getfixturevalue("s3_bucket") + "/corpus"
    write(uri, FILES)
    return uri


def write(uri: str, files: dict[str, bytes]) -> None:
    fs, path = fsspec.core.url_to_fs(uri)
    for name, content in files.items():
        fs.pipe_file(f"{path}/{name}", content)


def only(location: str | Path, path: str) -> tuple[str, Source]:
    """Root and source of one video."""
    listing = list_corpus(location)
    return listing.root, next(source for source in listing.sources if source.path == path)


def rejection(root: str, source: Source) -> str:
    with pytest.raises(Rejected) as caught, local_copy(root, source):
        pass
    assert caught.value.reject.stage == "fetch"
    assert "\n" not in caught.value.reject.reason
    return caught.value.reject.reason


def test_every_video_is_there_while_it_is_read(
    location: str, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 100)
    listing = list_corpus(location)
    assert {source.path for source in listing.sources} == set(CONTENTS)
    for source in listing.sources:
        with local_copy(listing.root, source) as path:
            content = Path(path).read_bytes()
            copied = Path(path).parent == temporary
            assert os.stat(path).st_mode & 0o077 == 0 or not copied
            assert path.endswith(Path(source.path).suffix)
        assert content == CONTENTS[source.path]
        assert hashlib.sha256(content).hexdigest() == source.id
        assert copied == (bool(source.tar) or "memory" in location or "s3" in location)
        assert not list(temporary.iterdir())


def test_an_error_inside_the_context_passes_and_leaves_nothing(location: str, temporary: Path) -> None:
    root, source = only(location, "t/x.tar/one.mp4")
    with pytest.raises(OSError, match="mine"), local_copy(root, source):
        raise OSError("mine")
    assert not list(temporary.iterdir())


def test_a_tar_and_a_manifest_have_the_root_of_their_folder(location: str) -> None:
    write(location, {"list.jsonl": b'{"file_name": "a.mp4", "caption": "c"}\n'})
    for name, path in (("t/x.tar", "x.tar/one.mp4"), ("list.jsonl", "a.mp4")):
        with local_copy(*only(f"{location}/{name}", path)) as copy:
            assert os.path.getsize(copy) == (777 if name.endswith("tar") else 1000)


@pytest.mark.parametrize("path", ["a.mp4", "t/x.tar/one.mp4"])
@pytest.mark.parametrize("change", ["gone", "shorter", "other"])
def test_a_change_since_the_listing_is_seen(change: str, path: str, location: str, temporary: Path) -> None:
    root, source = only(location, path)
    file = source.tar or source.path
    if change == "gone":
        fs, place = fsspec.core.url_to_fs(location)
        fs.rm(f"{place}/{file}")
        assert rejection(root, source)
    elif change == "shorter":
        write(location, {file: FILES[file][: source.offset + 500]})
        assert "500 bytes, and had" in rejection(root, source)
    else:
        write(location, {file: bytes(len(FILES[file]))})
        if os.path.exists(f"{root}/{file}"):
            os.utime(f"{root}/{file}", ns=(1, 1))
        rejected = rejection(root, source)
        assert rejected in (
            "its bytes have changed since it was listed",
            "it was written to since it was listed",
        )
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("path", ["a.mp4", "x.tar/one.mp4"])
def test_a_file_swapped_for_a_link_out_is_refused(path: str, tmp_path: Path) -> None:
    put(tmp_path / "corpus", "a.mp4", "the same size")
    put(tmp_path / "corpus", "x.tar", FILES["t/x.tar"])
    root, source = only(tmp_path / "corpus", path)
    file = tmp_path / "corpus" / (source.tar or source.path)
    shutil.move(file, tmp_path / "secret")
    file.symlink_to(tmp_path / "secret")
    assert rejection(root, source).startswith("it is a link out of the corpus folder, into")


@pytest.mark.parametrize("path", ["../secret.mp4", "/etc/hostname"])
def test_a_path_outside_is_refused(path: str, tmp_path: Path) -> None:
    put(tmp_path, "secret.mp4", "s")
    (tmp_path / "corpus").mkdir()
    source = Source(id="", path=path, caption="", num_bytes=1)
    assert rejection(str(tmp_path / "corpus"), source) == "its path leaves the corpus folder"


def test_a_path_outside_is_refused_in_a_store(tmp_path: Path) -> None:
    uri = f"memory://{tmp_path.name}"
    write(uri, {"secret.mp4": b"s"})
    source = Source(id=hashlib.sha256(b"s").hexdigest(), path="../secret.mp4", caption="", num_bytes=1)
    assert rejection(f"{uri}/corpus", source) == "its path leaves the corpus folder"


def test_a_store_that_fails_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"memory://{tmp_path.name}"
    write(uri, {"a.mp4": b"a"})
    root, source = only(uri, "a.mp4")

    def fail(*_: object, **__: object) -> bytes:
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    assert rejection(root, source) == "it cannot be read: RuntimeError: no route to host"


def test_a_full_disk_is_not_the_videos_fault(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "corpus", "x.tar", FILES["t/x.tar"])
    root, source = only(tmp_path / "corpus", "x.tar/one.mp4")
    made = tempfile.NamedTemporaryFile

    def full(**options: str) -> object:
        file = made(**options)

        def fail(_data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(file, "write", fail)
        return file

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(ClusterError, match="No space left") as caught, local_copy(root, source):
        pass
    assert "TMPDIR" in caught.value.remedy
    assert not list(temporary.iterdir())


def test_an_empty_source_in_another_s3_key_is_not_its_whole_file(s3_bucket: str) -> None:
    write(s3_bucket, {"x.tar": FILES["t/x.tar"]})
    with local_copy(*only(s3_bucket, "x.tar/deep/two.mkv")) as copy:
        assert os.path.getsize(copy) == 0


class Relay:
    """Passes connections on to a server; the next `drops` of them it cuts."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.drops = 0
        self.dropped = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            if self.drops:
                self.drops -= 1
                self.dropped += 1
                client.close()
                continue
            server = socket.create_connection(self._server)
            for one, other in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, one: socket.socket, other: socket.socket) -> None:
        with ExitStack() as stack:
            stack.callback(one.close)
            stack.callback(other.close)
            try:
                while data := one.recv(1 << 16):
                    other.sendall(data)
                other.shutdown(socket.SHUT_WR)
            except OSError:
                return

    def close(self) -> None:
        """No more connections."""
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()


@pytest.fixture
def relay(s3_server: str) -> Iterator[Relay]:
    """Between this process and the S3 server."""
    relay = Relay(s3_server)
    yield relay
    relay.close()


def test_what_fails_in_passing_is_tried_again(
    relay: Relay, s3_bucket: str, s3_settings: pytest.MonkeyPatch
) -> None:
    write(s3_bucket, FILES)
    root, source = only(s3_bucket, "a.mp4")
    s3_settings.setenv("AWS_ENDPOINT_URL", relay.address)
    type(fsspec.filesystem("s3")).clear_instance_cache()
    relay.drops = 2
    with local_copy(root, source) as copy:
        assert Path(copy).read_bytes() == FILES["a.mp4"]
    assert relay.dropped == 2


def test_the_copy_is_made_only_of_the_listed_version(tmp_path: Path, temporary: Path) -> None:
    put(tmp_path / "corpus", "x.tar", FILES["t/x.tar"])
    root, source = only(tmp_path / "corpus", "x.tar/one.mp4")
    assert "changed" in rejection(root, replace(source, offset=source.offset + 1))
    assert not list(temporary.iterdir())
