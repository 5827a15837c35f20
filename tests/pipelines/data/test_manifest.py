"""A corpus is what its folder holds, and nothing outside it."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from models.errors import DataError
from pipelines.data.manifest import sources


def put(root: Path, name: str, content: str = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content or name)
    return path


def captions(root: Path) -> dict[str, str]:
    return {source.path: source.caption for source in sources(root).sources}


def test_videos_are_found_in_every_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/z.MKV", "a/deep/x.webm", "readme.txt", ".hidden.mp4", ".git/y.mp4", "list.m3u8"):
        put(tmp_path, name)
    assert [s.path for s in sources(tmp_path).sources] == ["a/deep/x.webm", "a/z.MKV", "b.mp4"]


def test_a_source_is_known_by_its_bytes(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", "content")
    (source,) = sources(tmp_path).sources
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
    assert sources(tmp_path).sources[0].extra == {"label": 3}


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
    listing = sources(root)
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
    listing = sources(root)
    assert [s.path for s in listing.sources] == ["a.mp4"]
    assert {path for path, _ in listing.rejects} == {"link.mp4", "folder", "dangling.mp4"}
    assert all("link" in reject.reason for _, reject in listing.rejects)


def test_links_inside_the_folder_are_read_once(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    os.symlink(tmp_path / "a.mp4", tmp_path / "b.mp4")
    listing = sources(tmp_path)
    assert [s.path for s in listing.sources] == ["a.mp4"]
    assert listing.rejects[0][1].reason == "the same bytes as a.mp4"


def test_a_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": "gone.mp4", "caption": "c"}))
    listing = sources(tmp_path)
    assert len(listing.sources) == 1
    assert "no such file" in listing.rejects[0][1].reason


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder") as caught:
        sources(tmp_path / "nowhere")
    assert "data.short" in caught.value.remedy


def test_an_empty_folder(tmp_path: Path) -> None:
    put(tmp_path, "notes.txt")
    with pytest.raises(DataError, match="holds no video") as caught:
        sources(tmp_path)
    assert ".mp4" in caught.value.remedy


def test_captions_without_files(tmp_path: Path) -> None:
    put(tmp_path, "metadata.jsonl", json.dumps({"file_name": "gone.mp4", "caption": "c"}))
    with pytest.raises(DataError, match="none of them is there") as caught:
        sources(tmp_path)
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
        sources(tmp_path)


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        sources(tmp_path)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path, "real/a.mp4")
    os.symlink(tmp_path / "real", tmp_path / "corpus")
    assert [s.path for s in sources(tmp_path / "corpus").sources] == ["a.mp4"]
