"""The same corpus is the same wherever it lies, and no path leads out of it."""

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError, DataError
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
from pipelines.data.source.manifest import list_corpus, local_copy
from pipelines.data.types import Reject, Rejected
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


PLACES = ("root", "root/sub", "links", "links/deep", "links-2", "beside", "")
"""Where links and what they end in may lie; links that end in the first four are allowed."""
chains = st.lists(
    st.tuples(st.sampled_from(PLACES), st.sampled_from("relative absolute dotted".split())), max_size=4
)


def chain(top: Path, steps: list[tuple[str, str]], end: Path) -> list[Path]:
    """Links that lead to a file one after the other, the last of them `root/it.mp4`."""
    made, target = [], end
    for number, (place, kind) in enumerate([*steps, ("root", "relative")]):
        link = top / place / (f"{number}.link" if number < len(steps) else "it.mp4")
        text = os.path.relpath(target, link.parent) if kind != "absolute" else str(target)
        link.symlink_to(
            f"{target.parent}/../{target.parent.name}/{target.name}" if kind == "dotted" else text
        )
        made.append(link)
        target = link
    return made


@given(steps=chains, end=st.sampled_from(PLACES), turned=st.integers(0, 4), away=st.sampled_from(PLACES[4:]))
def test_a_link_is_followed_where_it_ends_within_and_nowhere_else(
    steps: list[tuple[str, str]],
    end: str,
    turned: int,
    away: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    top = tmp_path_factory.mktemp("links")
    for place in PLACES:
        (top / place).mkdir(parents=True, exist_ok=True)
    content = put(top, f"{end}/blob", "of some length")
    made = chain(top, steps, content)
    root, links = top / "root", str(top / "links")
    corpus = Corpus(root, links)
    if end in PLACES[4:]:
        reject = corpus.stat("it.mp4")
        assert isinstance(reject, Reject)
        assert (
            f"out of the corpus folder, into {content.parent}: data.links={content.parent}" in reject.reason
        )
        for read in (corpus.read, corpus.open, lambda path: next(corpus.blocks(path, 0, 1))):
            with pytest.raises(OSError, match="out of the corpus folder"):
                read("it.mp4")
        return
    assert corpus.read("it.mp4") == b"of some length"
    if not end.startswith("root"):
        assert isinstance(Corpus(root).stat("it.mp4"), Reject)
    (source,) = list_corpus(root, None, links).sources
    with local_copy(corpus.root, source, links) as path:
        assert path == str(content)
    other = put(top, f"{away}/other", "of other bytes")
    os.utime(other, ns=(content.stat().st_mtime_ns,) * 2)
    link = made[turned % len(made)]
    link.unlink()
    link.symlink_to(other)
    with pytest.raises(Rejected, match="out of the corpus folder"), local_copy(corpus.root, source, links):
        pass
    with pytest.raises(OSError, match="out of the corpus folder"):
        corpus.read("it.mp4")


def test_a_file_turned_into_a_link_between_the_look_and_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "root/a.mp4", "of some length")
    put(tmp_path, "other.mp4", "of other bytes")
    (source,) = list_corpus(tmp_path / "root").sources
    look = Corpus.stat

    def turn(self: Corpus, path: str) -> File | Reject:
        found = look(self, path)
        (tmp_path / "root" / "a.mp4").unlink()
        (tmp_path / "root" / "a.mp4").symlink_to(tmp_path / "other.mp4")
        return found

    monkeypatch.setattr(Corpus, "stat", turn)
    with (
        pytest.raises(Rejected, match="out of the corpus folder"),
        local_copy(str(tmp_path / "root"), source),
    ):
        pass


def test_a_cache_of_links_says_how_to_read_it(tmp_path: Path) -> None:
    """As huggingface_hub lays out a data set: named files that are links to blobs named by their hash."""
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "1a2b", tmp_path / "hub" / "blobs"
    for number, name in enumerate(("a.mp4", "sub/b.mp4", "metadata.csv")):
        put(blobs, f"{number:064x}", "file_name,caption\na.mp4,a bay" if name.endswith("csv") else name)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blobs / f"{number:064x}", (snapshot / name).parent))
    with pytest.raises(DataError, match=f"into {blobs}: data.links={blobs} allows those"):
        list_corpus(snapshot)
    (snapshot / "metadata.csv").rename(tmp_path / "aside")
    assert {path for path, _ in list_corpus(snapshot).rejects} == {"a.mp4", "sub/b.mp4"}
    (tmp_path / "aside").rename(snapshot / "metadata.csv")
    listing = list_corpus(snapshot, None, str(blobs))
    assert [(source.path, source.caption) for source in listing.sources] == [
        ("a.mp4", "a bay"),
        ("sub/b.mp4", "b"),
    ]


def test_the_place_of_links_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.links = /nowhere"):
        Corpus(tmp_path, "/nowhere")


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("{real}/a.mp4", "a.mp4"),
        ("{link}/sub/a.mp4", "sub/a.mp4"),
        ("{real}-2/a.mp4", None),
        ("{real}", None),
        ("a.mp4", None),
        ("/a.mp4", None),
    ],
)
def test_an_absolute_path_below_the_root(path: str, found: str | None, tmp_path: Path) -> None:
    real, link = tmp_path / "vel\u00e9", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    for root in (real, link):
        for form in ("\u00e9", "e\u0301"):
            given_path = path.format(real=str(real).replace("\u00e9", form), link=link)
            assert Corpus(root).relative(given_path) == (
                found if str(link) not in given_path or root == link else None
            )
    uri = Corpus("memory://videos")
    assert uri.relative(f"{uri.root}/sub/a.mp4") == "sub/a.mp4"
