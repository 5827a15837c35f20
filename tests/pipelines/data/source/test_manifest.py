"""A corpus is what its folder holds, and nothing outside it."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from models.errors import DataError
from pipelines.data.source import corpus
from pipelines.data.source.corpus import Corpus, File, Walk
from pipelines.data.source.manifest import list_corpus
from pipelines.data.types import Reject
from tests.pipelines.data.source.archives import json_lines, put, special, tar_bytes


def captions(root: Path) -> dict[str, str]:
    return {source.path: source.caption for source in list_corpus(root).sources}


def test_videos_are_found_in_every_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/z.MKV", "a/deep/x.webm", "readme.txt", ".hidden.mp4", ".git/y.mp4", "list.m3u8"):
        put(tmp_path, name)
    assert [s.path for s in list_corpus(tmp_path).sources] == ["a/deep/x.webm", "a/z.MKV", "b.mp4"]


def test_a_source_is_known_by_its_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "content")
    (source,) = list_corpus(tmp_path).sources
    assert source.id == hashlib.sha256(b"content").hexdigest()
    assert source.num_bytes == 7


def test_captions_come_from_jsonl(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "sub/b.mp4")
    rows = [
        {"file_name": "a.mp4", "caption": " a bay at dusk ", "label": 3},
        {"file_name": "sub/b.mp4", "text": "a dog"},
    ]
    put(tmp_path, "metadata.jsonl", "\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert captions(tmp_path) == {"a.mp4": "a bay at dusk", "sub/b.mp4": "a dog"}
    assert list_corpus(tmp_path).metadata == {"a.mp4": '{"label": 3}'}


def test_captions_come_from_csv(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "metadata.csv", 'file_name,caption\na.mp4,"a cat, asleep"\n')
    assert captions(tmp_path) == {"a.mp4": "a cat, asleep"}


def test_metadata_below_speaks_of_its_own_folder(tmp_path: Path) -> None:
    put(tmp_path, "sub/a.mp4")
    put(tmp_path, "sub/metadata.jsonl", json.dumps({"file_name": "./a.mp4", "caption": "here"}))
    assert captions(tmp_path) == {"sub/a.mp4": "here"}


@pytest.mark.parametrize(
    ("name", "caption"),
    [("two_cats-asleep.mp4", "two cats asleep"), ("clip 7.mp4", "clip 7"), ("vélo_été.mp4", "vélo été")],
)
def test_without_a_caption_the_words_of_the_name_serve(name: str, caption: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    assert captions(tmp_path) == {name: caption}


def test_an_empty_caption_is_none(tmp_path: Path) -> None:
    put(tmp_path, "red_car.mp4")
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": "red_car.mp4", "caption": "  "}))
    assert captions(tmp_path) == {"red_car.mp4": "red car"}


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/hostname", "sub/../../secret.mp4"])
def test_metadata_cannot_name_a_file_outside(name: str, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    put(tmp_path, "secret.mp4")
    put(root, "a.mp4")
    put(root, "metadata.jsonl", json.dumps({"file_name": name, "caption": "c"}))
    listing = list_corpus(root)
    assert [s.path for s in listing.sources] == ["a.mp4"]
    ((path, reject),) = listing.rejects
    assert path == name
    assert (reject.stage, reject.reason) == ("manifest", "its path leaves the corpus folder")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    secret = put(tmp_path, "secret.mp4")
    put(tmp_path, "elsewhere/b.mp4")
    put(root, "a.mp4")
    os.symlink(secret, root / "link.mp4")
    os.symlink(tmp_path / "elsewhere", root / "folder")
    os.symlink("/nowhere.mp4", root / "dangling.mp4")
    listing = list_corpus(root)
    assert [s.path for s in listing.sources] == ["a.mp4"]
    assert {path for path, _ in listing.rejects} == {"link.mp4", "folder", "dangling.mp4"}
    assert all("link" in reject.reason for _, reject in listing.rejects)


def test_links_inside_the_folder_are_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    os.symlink(tmp_path / "a.mp4", tmp_path / "b.mp4")
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["a.mp4"]
    assert listing.rejects[0][1].reason == "the same bytes as a.mp4"


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": "gone.mp4", "caption": "c"}))
    listing = list_corpus(tmp_path)
    assert len(listing.sources) == 1
    assert "no such file" in listing.rejects[0][1].reason


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder") as caught:
        list_corpus(tmp_path / "nowhere")
    assert "data.short" in caught.value.remedy


def test_an_empty_folder(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt")
    with pytest.raises(DataError, match="holds no video") as caught:
        list_corpus(tmp_path)
    assert ".mp4" in caught.value.remedy


def test_captions_without_files(tmp_path: Path) -> None:
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": "gone.mp4", "caption": "c"}))
    with pytest.raises(DataError, match="none of them is there") as caught:
        list_corpus(tmp_path)
    assert "file_name" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("metadata.jsonl", '{"file_name": "a.mp4"}\n{oops', "line 2"),
        ("metadata.jsonl", "[1, 2]", "not an object"),
        ("metadata.jsonl", '{"caption": "c"}', "no file_name"),
        ("metadata.csv", "name,caption\na.mp4,c\n", "line 2: no file_name"),
    ],
)
def test_malformed_metadata_names_the_line(name: str, content: str, words: str, tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, name, content)
    with pytest.raises(DataError, match=words):
        list_corpus(tmp_path)


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        list_corpus(tmp_path)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path, "real/a.mp4")
    os.symlink(tmp_path / "real", tmp_path / "corpus")
    assert [s.path for s in list_corpus(tmp_path / "corpus").sources] == ["a.mp4"]


TAR = tar_bytes(
    [
        ("./a/1.mp4", b"1"),
        ("./a/1.txt", b"the first"),
        ("a/2.mp4", b"22"),
        ("a/2.json", b'{"caption": "the second", "label": 2}'),
        ("a/two_cats.mp4", b"333"),
    ]
)
MIXED = {
    "z.mp4": b"z",
    "tars/x.tar": TAR,
    "metadata.csv": b"file_name,caption,label\nz.mp4,at the end,9\ntars/x.tar/a/2.mp4,the second,\n",
    "notes.txt": b"nothing",
}


@pytest.fixture(params=["folder", "file-uri", "memory", "s3"])
def mixed(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """MIXED, everywhere."""
    uri = f"{request.param}://{tmp_path.name}"
    if request.param == "folder":
        uri = str(tmp_path)
    elif request.param == "file-uri":
        uri = f"file://{tmp_path}"
    elif request.param == "s3":
        uri = request.getfixturevalue("s3_bucket")
    fs, path = fsspec.core.url_to_fs(uri)
    for name, content in MIXED.items():
        fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
        fs.pipe_file(f"{path}/{name}", content)
    return uri


def test_files_and_tars_are_listed_alike_everywhere(mixed: str) -> None:
    listing = list_corpus(mixed)
    assert listing.rejects == []
    found = [(s.path, s.caption, s.num_bytes, s.tar) for s in listing.sources]
    assert found == [
        ("tars/x.tar/a/1.mp4", "the first", 1, "tars/x.tar"),
        ("tars/x.tar/a/2.mp4", "the second", 2, "tars/x.tar"),
        ("tars/x.tar/a/two_cats.mp4", "two cats", 3, "tars/x.tar"),
        ("z.mp4", "at the end", 1, ""),
    ]
    assert [s.id for s in listing.sources] == [
        hashlib.sha256(b).hexdigest() for b in (b"1", b"22", b"333", b"z")
    ]
    assert json.loads(listing.metadata[listing.sources[3].path]) == {"label": "9"}
    for source in listing.sources[:3]:
        assert TAR[source.offset : source.offset + source.num_bytes] in (b"1", b"22", b"333")


def test_one_tar_is_a_corpus(mixed: str) -> None:
    listing = list_corpus(f"{mixed}/tars/x.tar")
    assert [s.path for s in listing.sources] == ["x.tar/a/1.mp4", "x.tar/a/2.mp4", "x.tar/a/two_cats.mp4"]
    assert [s.caption for s in listing.sources] == ["the first", "the second", "two cats"]
    assert json.loads(listing.metadata["x.tar/a/2.mp4"]) == {"label": 2}
    assert listing.root.endswith("/tars")


def test_one_tar_of_a_store_is_found_without_listing_what_lies_beside_it(
    mixed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_corpus: Corpus) -> Walk:
        raise AssertionError("a bucket may hold millions of files")

    monkeypatch.setattr(Corpus, "walk", refuse)
    assert len(list_corpus(f"{mixed}/tars/x.tar").sources) == 3


def test_a_manifest_is_a_corpus_of_what_it_names(mixed: str) -> None:
    fs, path = fsspec.core.url_to_fs(mixed)
    fs.pipe_file(f"{path}/other.mp4", b"of no manifest")
    fs.pipe_file(f"{path}/list.csv", b"file_name,text\nz.mp4,named\ngone.mp4,c\n../out.mp4,c\nnotes.txt,c\n")
    listing = list_corpus(f"{mixed}/list.csv")
    assert [(s.path, s.caption) for s in listing.sources] == [("z.mp4", "named")]
    assert {path: reject.reason for path, reject in listing.rejects} == {
        "gone.mp4": "its metadata names it, but there is no such file",
        "../out.mp4": "its path leaves the corpus folder",
        "notes.txt": "its name does not end as a video's does",
    }


def test_a_second_listing_reads_what_has_changed(mixed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    blocks = Corpus.blocks

    def counted(self: Corpus, path: str, offset: int, length: int) -> Iterator[bytes]:
        read.append((path, length))
        return blocks(self, path, offset, length)

    monkeypatch.setattr(Corpus, "blocks", counted)
    fs, path = fsspec.core.url_to_fs(mixed)
    fs.pipe_file(f"{path}/twin.mp4", b"z")
    first = list_corpus(mixed)
    assert len(read) == 5
    read.clear()
    assert list_corpus(mixed, first.hashes) == first
    assert read == []
    fs.pipe_file(f"{path}/z.mp4", b"!")
    if os.path.exists(f"{mixed}/z.mp4".removeprefix("file://")):
        os.utime(f"{mixed}/z.mp4".removeprefix("file://"), ns=(1, 1))
    second = list_corpus(mixed, first.hashes)
    assert read == [("z.mp4", 1)]
    assert [s.id for s in second.sources if s.path == "z.mp4"] == [hashlib.sha256(b"!").hexdigest()]
    assert second == list_corpus(mixed)


def test_without_a_stamp_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.mp4", "a")
    monkeypatch.setattr(Corpus, "stat", lambda self, path: File(1, ""))
    assert (
        list_corpus(tmp_path, {("a.mp4", 1, ""): "0" * 64}).sources[0].id == hashlib.sha256(b"a").hexdigest()
    )


def test_hashing_holds_a_block_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    cat_file = LocalFileSystem.cat_file

    def counted(self: LocalFileSystem, path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return bytes(cat_file(self, path, start=start, end=end))

    monkeypatch.setattr(corpus, "BLOCK_BYTES", 10)
    monkeypatch.setattr(LocalFileSystem, "cat_file", counted)
    put(tmp_path, "a.mp4", "a" * 25)
    assert list_corpus(tmp_path).sources[0].id == hashlib.sha256(b"a" * 25).hexdigest()
    assert asked == [10, 10, 5]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.mp4", "a")
    put(tmp_path, "b.mp4", "b")
    look = Corpus.stat
    monkeypatch.setattr(
        Corpus, "stat", lambda self, path: look(self, path)._replace(num_bytes=1 + (path < "b"))
    )
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["b.mp4"]
    assert listing.rejects == [("a.mp4", Reject("manifest", "it changed while it was read"))]


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.mp4", "a")

    def fail(*_: object, **__: object) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(LocalFileSystem, "cat_file", fail)
    assert list_corpus(tmp_path).rejects == [
        ("a.mp4", Reject("manifest", "it cannot be read: Permission denied"))
    ]


def test_prompts_and_videos_line_by_line(tmp_path: Path) -> None:
    put(tmp_path, "sub/a.mp4")
    put(tmp_path, "sub/b_2.mp4")
    put(tmp_path, "sub/videos.txt", "b_2.mp4\na.mp4\n")
    put(tmp_path, "sub/prompts.txt", "\na cat\n")
    assert captions(tmp_path) == {"sub/a.mp4": "a cat", "sub/b_2.mp4": "b 2"}


def test_two_captions_refuse_the_video_and_one_said_twice_does_not(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "x.tar", TAR)
    name = "x.tar/a/two_cats.mp4"
    rows = [("a.mp4", "one"), ("a.mp4", "one"), (name, "one"), (name, "two")]
    put(tmp_path, "metadata.jsonl", json_lines({"file_name": n, "caption": c} for n, c in rows))
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["a.mp4", "x.tar/a/1.mp4", "x.tar/a/2.mp4"]
    reason = "metadata.jsonl gives it two different captions, in line 3 and line 4"
    assert listing.rejects == [(name, Reject("manifest", reason))]


def test_a_table_and_a_tar_that_disagree_are_both_named(tmp_path: Path) -> None:
    put(tmp_path, "x.tar", TAR)
    put(tmp_path, "metadata.csv", "file_name,caption\nx.tar/a/2.mp4,not the first\n")
    with pytest.raises(DataError, match=r"of x.tar/a/2.mp4 x.tar/a/2.json 'the second', metadata.csv 'not"):
        list_corpus(tmp_path)


@pytest.mark.parametrize("name", ["list.m3u8", "list.ffconcat", "metadata.jsonl", "sub"])
def test_metadata_naming_what_is_no_video(name: str, tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "sub/b.mp4")
    put(tmp_path, "list.m3u8", "#EXTM3U\n/etc/hostname\n")
    put(tmp_path, "list.ffconcat", "ffconcat version 1.0\nfile a.mp4\n")
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": name, "caption": "c"}))
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["a.mp4", "sub/b.mp4"]
    assert [path for path, _ in listing.rejects] == [name]


def test_a_cut_tar_costs_what_is_behind_the_cut(tmp_path: Path) -> None:
    put(tmp_path, "x.tar", TAR[: TAR.index(b"22") + 1])
    put(tmp_path, "a.mp4")
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["a.mp4", "x.tar/a/1.mp4"]
    ((path, reject),) = listing.rejects
    assert path == "x.tar"
    assert "damaged: it ends within a/2.mp4" in reject.reason


def test_what_a_tar_may_not_hold(tmp_path: Path) -> None:
    link = special("a/link.mp4", tarfile.SYMTYPE, "/etc/hostname")
    put(tmp_path, "x.tar", tar_bytes([link, ("../out.mp4", b"o"), ("ok.mp4", b"k")]))
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["x.tar/ok.mp4"]
    assert [path for path, _ in listing.rejects] == ["x.tar/../out.mp4", "x.tar/a/link.mp4"]


def test_a_tar_linked_from_outside_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "x.tar", TAR)
    put(tmp_path, "corpus/a.mp4")
    os.symlink(tmp_path / "x.tar", tmp_path / "corpus" / "y.tar")
    listing = list_corpus(tmp_path / "corpus")
    assert [s.path for s in listing.sources] == ["a.mp4"]
    assert [(path, "link out" in reject.reason) for path, reject in listing.rejects] == [("y.tar", True)]


def test_a_tar_without_a_video(tmp_path: Path) -> None:
    put(tmp_path, "x.tar", tar_bytes([("a.txt", b"a")]))
    for location in (tmp_path, tmp_path / "x.tar"):
        with pytest.raises(DataError, match="holds no video"):
            list_corpus(location)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.mp4")).write_bytes(b"a")
    put(tmp_path, "x.tar", tar_bytes([("b.mp4", b"b")]).replace(b"b.mp4", b"\xff.mp4"))
    put(tmp_path, "c.mp4")
    listing = list_corpus(tmp_path)
    assert [s.path for s in listing.sources] == ["c.mp4"]
    assert listing.rejects[0][0] == "\\udcff.mp4"
    assert all(path.encode() for path, _ in listing.rejects)


@pytest.mark.parametrize("path", ["nowhere-at-all/videos", "nowhere-at-all", "nowhere-at-all/x.tar"])
def test_a_missing_bucket(path: str, s3_settings: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="is no folder, and no tar or manifest") as caught:
        list_corpus(f"s3://{path}")
    assert "\n" not in str(caught.value)
    assert "data.short" in caught.value.remedy


def test_a_store_without_credentials(s3_bucket: str, s3_settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        s3_settings.delenv(name)
    s3_settings.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    type(fsspec.filesystem("s3")).clear_instance_cache()
    with pytest.raises(DataError, match=r"cannot be read: .*credentials") as caught:
        list_corpus(s3_bucket)
    assert "\n" not in str(caught.value)
    assert "credentials" in caught.value.remedy


@pytest.mark.parametrize("name", ["a.flv", "a.WMV", "a.mxf", "a.gif", "a.webp", "a.rmvb"])
def test_whatever_is_named_as_a_video_is_listed(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    assert [source.path for source in list_corpus(tmp_path).sources] == [name]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "more/a.ZIP", "a.mp4.zst", "a.tar.xz"])
def test_what_is_compressed_is_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    put(tmp_path, "b.mp4")
    put(tmp_path, name)
    listing = list_corpus(tmp_path)
    assert [source.path for source in listing.sources] == ["b.mp4"]
    ((path, reject),) = listing.rejects
    assert (path, reject.stage) == (name, "manifest")
    assert "unpack it" in reject.reason


def test_every_file_is_read_refused_or_told(tmp_path: Path) -> None:
    for name in ("a cat.mp4", "b.tar.gz", "t/1.jpg", "t/2.JPG", "Makefile", "x.pdf"):
        put(tmp_path, name)
    listing = list_corpus(tmp_path)
    assert [source.path for source in listing.sources] == ["a cat.mp4"]
    assert [path for path, _ in listing.rejects] == ["b.tar.gz"]
    told = "no videos by their names: 2 .jpg, 1 without an ending, 1 .pdf, such as Makefile"
    assert listing.note.endswith(told)
