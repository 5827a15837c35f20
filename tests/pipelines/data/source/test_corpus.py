"""The same corpus is the same wherever it lies, and no path leads out of it."""

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.data.source import corpus as module
from pipelines.data.source.corpus import (
    MISSING,
    OUTSIDE,
    UNSIZED,
    Corpus,
    File,
    escapes,
    is_hidden,
    locate,
    reason_of,
)
from pipelines.data.types import Reject
from tests.pipelines.data.source.archives import put

FILES = {"a.mp4": b"0123456789", "sub/b.mp4": b"", ".hidden/c.mp4": b"c", "sub/.d.mp4": b"d"}


@pytest.fixture(params=["folder", "file-uri", "memory", "s3"])
def corpus(request: pytest.FixtureRequest, tmp_path: Path) -> Corpus:
    """FILES, everywhere."""
    if request.param in ("folder", "file-uri"):
        for name, content in FILES.items():
            put(tmp_path, name).write_bytes(content)
        return Corpus(str(tmp_path) if request.param == "folder" else f"file://{tmp_path}")
    uri = f"memory://{tmp_path.name}"
    if request.param == "s3":
        uri = request.getfixturevalue("s3_bucket") + "/videos"
    fs, path = fsspec.core.url_to_fs(uri)
    for name, content in FILES.items():
        fs.pipe_file(f"{path}/{name}", content)
    fs.pipe_file(f"{path}-2/beside.mp4", b"of another corpus")
    return Corpus(uri)


def test_what_lies_below_is_listed_without_hidden_names(corpus: Corpus) -> None:
    assert corpus.is_folder()
    assert corpus.walk().files == ["a.mp4", "sub/b.mp4"]


@pytest.mark.parametrize("walked", [False, True])
def test_sizes_and_stamps(walked: bool, corpus: Corpus) -> None:
    if walked:
        corpus.walk()
    file = corpus.stat("a.mp4")
    assert isinstance(file, File)
    assert file.num_bytes == 10
    assert file.stamp
    assert file == corpus.stat("a.mp4")
    assert corpus.stat("nowhere.mp4") == MISSING
    assert corpus.stat("sub") != File(0, "")


def test_bytes_come_in_blocks(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 3)
    assert list(corpus.blocks("a.mp4", 0, 10)) == [b"012", b"345", b"678", b"9"]
    assert list(corpus.blocks("a.mp4", 4, 5)) == [b"456", b"78"]
    assert list(corpus.blocks("a.mp4", 6, 6)) == [b"678", b"9"]
    assert list(corpus.blocks("sub/b.mp4", 0, 0)) == []


def test_seeking_and_whole_files(corpus: Corpus) -> None:
    with corpus.open("a.mp4") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    assert corpus.read("a.mp4") == FILES["a.mp4"]
    with pytest.raises(OSError, match=r"\w"):
        corpus.read("nowhere")


def test_the_root_is_an_address_that_finds_it_again(corpus: Corpus) -> None:
    assert Corpus(corpus.root).root == corpus.root
    assert Corpus(corpus.root).stat("a.mp4") == corpus.stat("a.mp4")


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "one")
    before = Corpus(tmp_path).stat("a.mp4")
    put(tmp_path, "a.mp4", "two")
    os.utime(tmp_path / "a.mp4", ns=(1, 1))
    assert Corpus(tmp_path).stat("a.mp4") != before


@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "a..", "..b"]), max_size=6).map("/".join))
def test_a_path_leaves_when_walking_it_step_by_step_goes_out_or_may(path: str) -> None:
    depth, out = 0, path.startswith("/")
    for step in path.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(step, 1)
        out = out or depth < 0
    assert escapes(path) or not out
    assert escapes(path) == (path.startswith("/") or ".." in path.split("/"))


@pytest.mark.parametrize("path", ["/etc/hostname", "../a.mp4", "a/../../b", "s3://other/a.mp4", "a\0.mp4"])
def test_ways_out(path: str, corpus: Corpus) -> None:
    assert corpus.stat(path) == OUTSIDE


@pytest.mark.parametrize(("path", "hidden"), [(".a", True), ("a/.b/c", True), ("a.b/c.d", False)])
def test_hidden_names(path: str, hidden: bool) -> None:
    assert is_hidden(path) == hidden


def link(target: str) -> Callable[[Path], None]:
    return lambda path: os.symlink(target, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (link("/etc/hostname"), "a link out of the corpus folder"),
        (link("../beside/a.mp4"), "a link out of the corpus folder"),
        (link("gone.mp4"), "a link to nothing"),
        (link("it.mp4"), "a link to nothing"),
        (link("sub"), "a link to a folder"),
        (os.mkfifo, "no plain file"),
        (os.mkdir, "no plain file"),
    ],
)
def test_what_is_no_file_is_refused(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    put(tmp_path, "beside/a.mp4")
    put(tmp_path, "root/sub/a.mp4")
    make(tmp_path / "root" / "it.mp4")
    reject = Corpus(tmp_path / "root").stat("it.mp4")
    assert isinstance(reject, Reject)
    assert words in reject.reason


def test_a_folder_that_cannot_be_entered_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    put(tmp_path, "a.mp4")
    put(tmp_path, "sub/locked/b.mp4")
    monkeypatch.setattr(os, "scandir", refuse)
    walk = Corpus(tmp_path).walk()
    assert walk.files == ["a.mp4"]
    assert walk.refused == [("sub/locked", Reject("manifest", "it cannot be read: Permission denied"))]
    with pytest.raises(PermissionError):
        Corpus(tmp_path / "sub" / "locked").walk()


def test_one_file_is_found_in_its_folder(corpus: Corpus, tmp_path: Path) -> None:
    fs, path = fsspec.core.url_to_fs(corpus.root)
    fs.pipe_file(f"{path}/list.csv", b"file_name\n")
    parent, name = locate(f"{corpus.root}/list.csv")
    assert (parent.root, name) == (corpus.root, "list.csv")
    assert locate(corpus.root)[1] == ""
    for wrong in ("a.mp4", "nowhere", "gone.tar"):
        with pytest.raises(DataError, match="is no folder, and no tar or manifest"):
            locate(f"{corpus.root}/{wrong}")


def test_a_path_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "odd::name/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert Corpus("odd::name").root == f"{tmp_path}/odd::name"
    assert locate("odd::name")[0].walk().files == ["a.mp4"]


@pytest.mark.parametrize("uri", ["nonsense://bucket/videos", "memory-s3://x"])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(DataError, match="cannot be reached") as caught:
        Corpus(uri)
    assert "URI" in caught.value.remedy


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_uri: str) -> object:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", fail)
    with pytest.raises(DataError, match="Install s3fs") as caught:
        Corpus("s3://bucket/videos")
    assert "sostenuto[s3]" in caught.value.remedy


def test_a_reason_is_one_line() -> None:
    assert reason_of(OSError("two\n lines")) == "two lines"
    assert reason_of(OSError(13, "Permission denied")) == "Permission denied"


@pytest.mark.parametrize(("told", "found"), [(10, File(10, "")), (None, UNSIZED)])
def test_a_store_whose_list_has_no_sizes_is_asked_for_each(
    told: int | None, found: File | Reject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an http:// folder is: its page names files only."""
    fs = fsspec.filesystem("memory")
    path = f"/{tmp_path.name}/a.mp4"
    named = {"name": path, "size": None, "type": "file"}
    monkeypatch.setattr(type(fs), "find", lambda self, root, **_: {path: named})
    monkeypatch.setattr(type(fs), "info", lambda self, path, **_: named | {"size": told})
    corpus = Corpus(f"memory://{tmp_path.name}")
    assert corpus.walk().files == ["a.mp4"]
    assert corpus.stat("a.mp4") == found


def test_a_store_that_says_nonsense_of_a_file_refuses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = fsspec.filesystem("memory")
    monkeypatch.setattr(type(fs), "info", lambda self, path, **_: {"type": "file", "size": "large"})
    reject = Corpus(f"memory://{tmp_path.name}").stat("a.mp4")
    assert isinstance(reject, Reject)
    assert reject.reason.startswith("it cannot be read: ValueError")
