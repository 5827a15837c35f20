"""Tables say the same in every form, and what is malformed is named with its place."""

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
from pipelines.data.source.captions import Caption, Captions, Names
from pipelines.data.source.corpus import Corpus
from pipelines.data.source.metadata import Table, plain, tables_among
from tests.pipelines.data.source.archives import json_lines, put

ROWS = [
    {"file_name": "a.mp4", "caption": "a cat, asleep", "label": "x"},
    {"file_name": "sub/b.mp4", "caption": 'two "dogs"\nand a hill', "label": "y"},
]


def as_csv(rows: list[dict[str, Any]], mark: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), delimiter=mark)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def of_rows(rows: list[dict[str, Any]]) -> bytes:
    return as_parquet(pa.Table.from_pylist(rows))


def by_name(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(
        {row["file_name"]: {k: row[k] for k in row if k != "file_name"} for row in rows}
    ).encode()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "list.csv": as_csv,
    "semicolons.csv": lambda rows: as_csv(rows, ";"),
    "tabs.csv": lambda rows: as_csv(rows, "\t"),
    "bars.csv": lambda rows: as_csv(rows, "|"),
    "list.TSV": lambda rows: as_csv(rows, "\t"),
    "utf16.csv": lambda rows: as_csv(rows).decode().encode("utf-16"),
    "list.jsonl": lambda rows: json_lines(rows).encode(),
    "commas.jsonl": lambda rows: json_lines(rows).replace("}\n", "},\n").encode(),
    "list.ndjson": lambda rows: json_lines(rows).encode(),
    "lines.json": lambda rows: json_lines(rows).encode(),
    "list.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "inside.json": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "names.json": by_name,
    "list.parquet": of_rows,
}


def read(root: Path, name: str, content: bytes, prompts: str = "") -> dict[str, Any]:
    put(root, name).write_bytes(content)
    corpus, captions = Corpus(root), Captions()
    captions.read_table(corpus, Table(name, prompts), Names(corpus, None))
    return captions.of


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_form_says_the_same(name: str, mark: bytes, tmp_path: Path) -> None:
    mark = b"" if name in ("list.parquet", "utf16.csv") else mark
    assert read(tmp_path, f"in/{name}", mark + WRITERS[name](ROWS)) == {
        "in/a.mp4": Caption("a cat, asleep", {"label": "x"}),
        "in/sub/b.mp4": Caption('two "dogs"\nand a hill', {"label": "y"}),
    }


@given(
    rows=st.dictionaries(st.from_regex(r"[a-z]{1,9}\.mp4", fullmatch=True), st.text("ab,\"' \n;\t|\u00e9"))
)
@pytest.mark.parametrize("name", ["list.csv", "bars.csv", "list.jsonl", "names.json", "list.parquet"])
def test_any_caption_comes_back(
    name: str, tmp_path_factory: pytest.TempPathFactory, rows: dict[str, str]
) -> None:
    given_rows = [{"file_name": file, "caption": text} for file, text in rows.items()] or ROWS
    found = read(tmp_path_factory.mktemp("x"), name, WRITERS[name](given_rows))
    assert {file: caption.text for file, caption in found.items()} == {
        row["file_name"]: row["caption"].strip() for row in given_rows
    }


FILES = ["file_name", "File Name", "VIDEO", "video_path", "path", " filename", "video-id", "\ufeffclip"]
SAYS = ["caption", " Caption", "PROMPT", "Text", "description", "cap", "Long_Caption"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("says", SAYS)
def test_columns_by_their_usual_names(file: str, says: str, tmp_path: Path) -> None:
    rows = [{file: "a.mp4", "score": "1", says: "a cat, asleep"}]
    for name in ("list.csv", "list.json", "list.parquet"):
        assert read(tmp_path, name, WRITERS[name](rows)) == {
            "a.mp4": Caption("a cat, asleep", {"score": "1"})
        }


def test_spaces_after_commas_belong_to_a_head_that_has_them(tmp_path: Path) -> None:
    spaced = b'file_name, caption\na.mp4, "waves, at dusk"\n'
    assert read(tmp_path, "l.csv", spaced) == {"a.mp4": Caption("waves, at dusk", {})}
    put(tmp_path, " b.mp4")
    assert list(read(tmp_path, "l.csv", b"caption,file_name\nc, b.mp4\n")) == [" b.mp4"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_two_files_belong_together(end: str, tmp_path: Path) -> None:
    put(tmp_path, "in/prompts.txt", f"a cat{end}{end}a \u2028 hill{end}{end}")
    found = read(tmp_path, "in/videos.txt", f"a.mp4{end}b.mp4{end}./sub/c.mp4".encode(), "in/prompts.txt")
    assert {path: caption.text for path, caption in found.items()} == {
        "in/a.mp4": "a cat",
        "in/b.mp4": "",
        "in/sub/c.mp4": "a \u2028 hill",
    }


@pytest.mark.parametrize(("videos", "prompts"), [("a.mp4\n", "one\ntwo\n"), ("a.mp4\nb.mp4\n", "one\n")])
def test_two_files_of_different_length(videos: str, prompts: str, tmp_path: Path) -> None:
    put(tmp_path, "prompts.txt", prompts)
    with pytest.raises(DataError, match=r"videos\.txt has \d lines, prompts\.txt beside it \d") as caught:
        read(tmp_path, "videos.txt", videos.encode(), "prompts.txt")
    assert "as many lines" in caught.value.remedy


def test_a_line_that_names_no_video(tmp_path: Path) -> None:
    put(tmp_path, "prompts.txt", "one\ntwo\n")
    with pytest.raises(DataError, match=r"videos\.txt, line 2: no file_name"):
        read(tmp_path, "videos.txt", b"a.mp4\n \n", "prompts.txt")


def test_one_of_two_files_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.txt is missing") as caught:
        read(tmp_path, "videos.txt", b"a.mp4\n", "prompts.txt")
    assert "side by side" in caught.value.remedy


def test_which_files_are_tables() -> None:
    names = "a.mp4 metadata.csv x/Meta-Data.JSONL x/prompts.txt x/videos.txt y/Prompts.TXT z.csv notes.txt"
    others = "videos2caption.json labels.tsv w/prompt.txt w/Videos.txt v/prompt.txt Index.parquet a.json"
    assert tables_among([*names.split(), *others.split()]) == sorted(
        [
            Table("metadata.csv"),
            Table("x/Meta-Data.JSONL"),
            Table("x/videos.txt", "x/prompts.txt"),
            Table("y/videos.txt", "y/Prompts.TXT"),
            Table("videos2caption.json"),
            Table("labels.tsv", required=False),
            Table("w/Videos.txt", "w/prompt.txt"),
            Table("Index.parquet", required=False),
        ]
    )


@given(st.text())
def test_a_plain_name_stays_plain(name: str) -> None:
    assert plain(plain(name)) == plain(name)
    assert plain(f" {name}_") == plain(name)


MALFORMED: list[tuple[str, bytes, str]] = [
    ("l.csv", b"name,caption\na.mp4,c\n", "line 2: no file_name"),
    ("l.csv", b"file_name,caption\na.mp4,c\n,c\n", "line 3: no file_name"),
    ("l.csv", b"file_name,caption\na.mp4,a cat, asleep\n", "line 2: more fields than columns"),
    ("l.csv", b'file_name,caption\na.mp4,"never closed\nb.mp4,c\n', "cannot be read: unexpected end"),
    ("l.csv", b"file_name,caption\na.mp4,\xff\n", "cannot be read: 'utf-8'"),
    ("l.csv", b"file_name,caption,caption\na.mp4,b,c\n", "two columns are called 'caption'"),
    ("l.jsonl", b'{"file_name": "a.mp4"}\n\n{oops\n', "line 3: Expecting"),
    ("l.jsonl", b'{"file_name": "a.mp4"}\n[1]\n', "line 2: not an object"),
    ("l.jsonl", b'{"file_name": 5}\n', "line 1: no file_name"),
    ("l.jsonl", b'{"file_name": "a.mp4", "caption": [5]}\n', "line 1: caption is list, not text"),
    ("l.jsonl", b'{"file_name": "a.mp4", "text": 5}\n', "line 1: text is int, not text"),
    ("l.jsonl", b'{"file_name": "a.mp4", "caption": "\\ud800"}\n', "line 1: the caption holds half"),
    ("l.jsonl", b"[" * 100_000, "line 1: nested too deeply"),
    ("l.jsonl", b'{"file_name": "\xe9.mp4"}\n', "cannot be read: 'utf-8'"),
    ("l.json", b'[{"file_name": "a.mp4"},\n {"file_name": }]', "cannot be read: Expecting value: line 2"),
    ("l.json", b'["a.mp4"]', "entry 1: not an object"),
    ("l.json", b'{"a": 1}', "no file_name"),
    ("l.json", b'{"videos": [{"id": 1}]}', "videos, entry 1: no file_name"),
    ("l.parquet", of_rows([{"name": "a.mp4"}]), "row 1: no file_name"),
    ("l.parquet", of_rows([{"file_name": 5}]), "row 1: no file_name"),
    ("l.parquet", of_rows([{"file_name": "a", "caption": [1]}]), "row 1: caption is list"),
    ("l.parquet", of_rows([{"file_name": "a", "text": 1.5}]), "row 1: text is float, not text"),
    ("l.parquet", of_rows([{"file_name": "a"}, {"file_name": None}]), "row 2: no file_name"),
    ("l.parquet", b"PAR1 and no more", "cannot be read"),
    ("l.parquet", of_rows(ROWS)[:-20], "cannot be read"),
    ("l.parquet", b"", "cannot be read"),
]


@pytest.mark.parametrize(("name", "content", "words"), MALFORMED)
def test_what_is_malformed_is_named_with_its_place(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    assert words in caught.value.problem
    assert f"{tmp_path}/{name}" in caught.value.problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.json", b'{"shardlist": [{"url": "a.tar"}]}'),
        ("labels.json", b'["cat", "dog"]'),
        ("labels.csv", b"id,label\n0,cat\n"),
        ("data.json", b'{"a": 1}'),
        ("index.parquet", of_rows([{"name": "a.mp4"}])),
    ],
)
def test_a_table_of_something_else_is_passed_over(name: str, content: bytes, tmp_path: Path) -> None:
    put(tmp_path, name, content)
    corpus, captions = Corpus(tmp_path), Captions()
    (table,) = tables_among([name])
    captions.read_table(corpus, table, Names(corpus, []))
    assert (captions.of, captions.used) == ({}, set())
    with pytest.raises(DataError, match=r"no file_name|not an object"):
        captions.read_table(corpus, Table(name), Names(corpus, []))


def test_dictionaries_and_missing_captions_in_parquet(tmp_path: Path) -> None:
    names = pa.array(["a.mp4", "b.mp4"]).dictionary_encode()
    table = pa.table(
        {"file_name": names, "caption": pa.nulls(2), "text": pa.array(["c", None], pa.large_string())}
    )
    found = read(tmp_path, "l.parquet", as_parquet(table))
    assert found == {"a.mp4": Caption("c", {}), "b.mp4": Caption("", {})}


def test_metadata_is_not_read_through_a_link_out(tmp_path: Path) -> None:
    put(tmp_path, "outside.jsonl", "{}")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "metadata.jsonl").symlink_to(tmp_path / "outside.jsonl")
    corpus = Corpus(tmp_path / "corpus")
    with pytest.raises(DataError, match="a link out of the corpus folder"):
        Captions().read_table(corpus, Table("metadata.jsonl"), Names(corpus, []))
