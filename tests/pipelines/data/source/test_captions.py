"""Captions are found in every accepted form, and what is malformed is named with its place."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.data.source.captions import (
    CONFLICT,
    Caption,
    caption_of,
    json_object,
    metadata_files,
    read_captions,
)
from pipelines.data.source.corpus import Corpus
from tests.pipelines.data.source.archives import json_lines, put

ROWS = [
    {"file_name": "a.mp4", "caption": "a cat, asleep", "label": "x"},
    {"file_name": "sub/b.mp4", "caption": 'two "dogs"\nand a hill', "label": "y"},
]


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def of_rows(rows: list[dict[str, Any]]) -> bytes:
    return as_parquet(pa.Table.from_pylist(rows))


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "list.csv": as_csv,
    "list.jsonl": lambda rows: json_lines(rows).encode(),
    "list.parquet": of_rows,
}


def read(root: Path, name: str, content: bytes) -> dict[str, Any]:
    put(root, name).write_bytes(content)
    return read_captions(Corpus(root), [name])


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_form_says_the_same(name: str, mark: bytes, tmp_path: Path) -> None:
    mark = b"" if name.endswith("parquet") else mark
    assert read(tmp_path, f"in/{name}", mark + WRITERS[name](ROWS)) == {
        "in/a.mp4": Caption("a cat, asleep", {"label": "x"}),
        "in/sub/b.mp4": Caption('two "dogs"\nand a hill', {"label": "y"}),
    }


@given(rows=st.dictionaries(st.from_regex(r"[a-z]{1,9}\.mp4", fullmatch=True), st.text("ab,\"' \n;\t\u00e9")))
@pytest.mark.parametrize("name", WRITERS)
def test_any_caption_comes_back(
    name: str, tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str]
) -> None:
    given_rows = [{"file_name": file, "caption": text} for file, text in rows.items()] or ROWS
    found = read(tmp_path_factory.mktemp("x"), name, WRITERS[name](given_rows))
    assert {file: caption.text for file, caption in found.items()} == {
        row["file_name"]: row["caption"].strip() for row in given_rows
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_two_files_belong_together(end: str, tmp_path: Path) -> None:
    put(tmp_path, "in/prompts.txt", f"a cat{end}{end}a \u2028 hill{end}")
    found = read(tmp_path, "in/videos.txt", f"a.mp4{end}b.mp4{end}./sub/c.mp4".encode())
    assert {path: caption.text for path, caption in found.items()} == {
        "in/a.mp4": "a cat",
        "in/b.mp4": "",
        "in/sub/c.mp4": "a \u2028 hill",
    }


@pytest.mark.parametrize(("videos", "prompts"), [("a.mp4\n", "one\ntwo\n"), ("a.mp4\nb.mp4\n", "one\n")])
def test_two_files_of_different_length(videos: str, prompts: str, tmp_path: Path) -> None:
    put(tmp_path, "prompts.txt", prompts)
    with pytest.raises(DataError, match=r"videos\.txt has \d lines, prompts\.txt beside it \d") as caught:
        read(tmp_path, "videos.txt", videos.encode())
    assert "as many lines" in caught.value.remedy


def test_a_line_that_names_no_video(tmp_path: Path) -> None:
    put(tmp_path, "prompts.txt", "one\ntwo\n")
    with pytest.raises(DataError, match=r"videos\.txt, line 2: no file_name"):
        read(tmp_path, "videos.txt", b"a.mp4\n \n")


def test_one_of_two_files_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.txt is missing") as caught:
        read(tmp_path, "videos.txt", b"a.mp4\n")
    assert "side by side" in caught.value.remedy


def test_which_files_are_metadata() -> None:
    names = (
        "a.mp4 metadata.csv x/metadata.jsonl x/prompts.txt x/videos.txt y/prompts.txt z.csv notes.txt".split()
    )
    assert metadata_files(names) == ["metadata.csv", "x/metadata.jsonl", "x/videos.txt", "y/videos.txt"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", b"name,caption\na.mp4,c\n", "line 2: no file_name"),
        ("l.csv", b"file_name,caption\na.mp4,c\n,c\n", "line 3: no file_name"),
        ("l.csv", b"file_name,caption\na.mp4,a cat, asleep\n", "line 2: more fields than columns"),
        ("l.csv", b'file_name,caption\na.mp4,"never closed\nb.mp4,c\n', "cannot be read: unexpected end"),
        ("l.csv", b"file_name,caption\na.mp4,\xff\n", "cannot be read: 'utf-8'"),
        ("l.jsonl", b'{"file_name": "a.mp4"}\n\n{oops\n', "line 3: Expecting"),
        ("l.jsonl", b'{"file_name": "a.mp4"}\n[1]\n', "line 2: not an object"),
        ("l.jsonl", b'{"file_name": 5}\n', "line 1: no file_name"),
        ("l.jsonl", b'{"file_name": "a.mp4", "caption": ["c"]}\n', "line 1: caption is list, not text"),
        ("l.jsonl", b'{"file_name": "a.mp4", "text": 5}\n', "line 1: text is int, not text"),
        ("l.jsonl", b'{"file_name": "a.mp4", "caption": "\\ud800"}\n', "line 1: the caption holds half"),
        ("l.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
        ("l.jsonl", b'{"file_name": "\xe9.mp4"}\n', "cannot be read: 'utf-8'"),
        ("l.parquet", of_rows([{"name": "a.mp4"}]), "its schema: no file_name"),
        ("l.parquet", of_rows([{"file_name": 5}]), "column file_name is int64, not text"),
        ("l.parquet", of_rows([{"file_name": "a", "caption": [1]}]), "column caption is list<"),
        ("l.parquet", of_rows([{"file_name": "a", "text": 1.5}]), "column text is double, not text"),
        ("l.parquet", of_rows([{"file_name": "a"}, {"file_name": None}]), "row 2: no file_name"),
        ("l.parquet", b"PAR1 and no more", "cannot be read"),
        ("l.parquet", of_rows(ROWS)[:-20], "cannot be read"),
        ("l.parquet", b"", "cannot be read"),
    ],
)
def test_what_is_malformed_is_named_with_its_place(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert words in caught.value.problem
    assert f"{tmp_path}/{name}" in caught.value.problem
    assert "\n" not in str(caught.value)


def test_dictionaries_and_missing_captions_in_parquet(tmp_path: Path) -> None:
    names = pa.array(["a.mp4", "b.mp4"]).dictionary_encode()
    table = pa.table(
        {"file_name": names, "caption": pa.nulls(2), "text": pa.array(["c", None], pa.large_string())}
    )
    found = read(tmp_path, "l.parquet", as_parquet(table))
    assert found == {"a.mp4": Caption("c", {}), "b.mp4": Caption("", {})}


def test_a_file_named_twice(tmp_path: Path) -> None:
    rows = [
        ("a", "one"),
        ("./a", " one"),
        ("b", "one"),
        ("b", "two"),
        ("b", "one"),
        ("sub//c", ""),
        ("sub/c", ""),
    ]
    text = json_lines({"file_name": name, "caption": caption} for name, caption in rows)
    assert read(tmp_path, "l.jsonl", text.encode()) == {
        "a": Caption("one", {}),
        "b": CONFLICT,
        "sub/c": Caption("", {}),
    }


def test_two_metadata_files_that_disagree(tmp_path: Path) -> None:
    put(tmp_path, "metadata.csv", "file_name,caption\nsub/a.mp4,one\n")
    put(tmp_path, "sub/metadata.jsonl", json.dumps({"file_name": "a.mp4", "caption": "two"}))
    assert read_captions(Corpus(tmp_path), ["metadata.csv", "sub/metadata.jsonl"]) == {"sub/a.mp4": CONFLICT}


def test_metadata_is_not_read_through_a_link_out(tmp_path: Path) -> None:
    put(tmp_path, "outside.jsonl", "{}")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "metadata.jsonl").symlink_to(tmp_path / "outside.jsonl")
    with pytest.raises(DataError, match="a link out of the corpus folder"):
        read_captions(Corpus(tmp_path / "corpus"), ["metadata.jsonl"])


def test_the_first_column_with_words_is_the_caption() -> None:
    assert caption_of({"caption": " ", "text": " b ", "x": 1}) == Caption("b", {"x": 1})
    assert caption_of({"caption": "a", "text": "b"}) == Caption("a", {})
    assert caption_of({"caption": None}) == Caption("", {})


def test_objects_only() -> None:
    assert json_object('{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="not an object"):
        json_object("5")


def test_a_name_of_half_a_character_is_told_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, "metadata.jsonl", '{"file_name": "\\ud800.mp4", "caption": "c"}\n')
    with pytest.raises(DataError, match=r"line 1: file_name holds half a character"):
        read_captions(Corpus(tmp_path), ["metadata.jsonl"])
