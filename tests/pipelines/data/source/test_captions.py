"""What is said of a video is found however it is spelled; sources agree, or the corpus is refused."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.data.source.captions import (
    NAMED,
    Caption,
    Captions,
    Names,
    caption_note,
    caption_of,
    read_sidecar,
    sidecars_of,
    words_of,
)
from pipelines.data.source.corpus import Corpus
from pipelines.data.source.metadata import Table
from pipelines.data.types import Reject
from tests.pipelines.data.source.archives import json_lines, put


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ({"caption": " ", "text": " b ", "x": 1}, Caption("b", {"x": 1})),
        ({"caption": "a", "text": "b"}, Caption("a", {"text": "b"})),
        ({"text": "a", "Caption": "a"}, Caption("a", {})),
        ({"caption": None}, Caption("", {})),
        ({"caption": float("nan"), "prompt": "p"}, Caption("p", {})),
        ({"caption": 5, "text": "t"}, Caption("t", {"caption": 5})),
        ({"cap": ["", "a", "b", "a"]}, Caption("a", {"cap": ["b"]})),
        ({"caption": "2024-11-20"}, Caption("2024-11-20", {})),
        ({"description": {"long": "x"}, "caption": "c"}, Caption("c", {"description": {"long": "x"}})),
        ({}, Caption("", {})),
    ],
)
def test_the_first_column_with_words_is_the_caption(row: dict[str, Any], caption: Caption) -> None:
    assert caption_of(row) == caption


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("नमस्ते दुनिया.mp4", "नमस्ते दुनिया"),
        ("ทะเลยามเย็น.mp4", "ทะเลยามเย็น"),
        (unicodedata.normalize("NFD", "Café_ギター-2.mp4"), "Café ギター 2"),
        ("\u0645\u06cc\u200c\u062e\u0648.mp4", "\u0645\u06cc\u200c\u062e\u0648"),
        ("ශ්\u200dරී ලංකා.mp4", "ශ්\u200dරී ලංකා"),
        ("a \u2764\ufe0f b 👩\u200d🚀.mp4", "a b"),
        ("sub/two_cats-asleep (1).final.mkv", "two cats asleep 1 final"),
        ("--.mp4", ""),
    ],
)
def test_words_keep_their_marks(name: str, words: str) -> None:
    assert words_of(name) == unicodedata.normalize("NFC", words)


@given(st.text(min_size=1))
def test_words_are_all_letters_and_digits_of_the_name(name: str) -> None:
    path = f"{name.replace('/', ' ')}x.mp4"
    stem = unicodedata.normalize("NFC", path[:-4])
    assert [c for c in words_of(path) if c.isalnum()] == [c for c in stem if c.isalnum()]
    assert words_of(unicodedata.normalize("NFD", path)) == words_of(unicodedata.normalize("NFC", path))


VIDEOS = ["a.mp4", "sub/b.MP4", "sub/vel\u0065\u0301.mp4", "B.mkv", "b.mkv", "x.tar/1.mp4", "c:\\d.mp4"]


@pytest.mark.parametrize(
    ("table", "name", "path"),
    [
        ("t.csv", "a.mp4", "a.mp4"),
        ("t.csv", "./sub/../a.mp4", "a.mp4"),
        ("sub/t.csv", "b.MP4", "sub/b.MP4"),
        ("sub/t.csv", "../a.mp4", "a.mp4"),
        ("sub/t.csv", "sub/b.MP4", "sub/b.MP4"),
        ("sub/t.csv", "a.mp4", "a.mp4"),
        ("t.csv", "{root}/a.mp4", "a.mp4"),
        ("sub/t.csv", "{root}/sub/b.MP4", "sub/b.MP4"),
        ("t.csv", ".\\sub\\b.MP4", "sub/b.MP4"),
        ("t.csv", "A.MP4", "a.mp4"),
        ("t.csv", "Sub/B.mp4", "sub/b.MP4"),
        ("t.csv", "a", "a.mp4"),
        ("t.csv", " a.mp4 ", "a.mp4"),
        ("t.csv", "sub/vel\u00e9.mp4", "sub/vel\u0065\u0301.mp4"),
        ("t.csv", "SUB/VEL\u00c9", "sub/vel\u0065\u0301.mp4"),
        ("t.csv", "x.tar/1.mp4", "x.tar/1.mp4"),
        ("t.csv", "b.mkv", "b.mkv"),
        ("t.csv", "b", "b"),
        ("t.csv", "c:\\d.mp4", "c:\\d.mp4"),
        ("t.csv", "gone.mp4", "gone.mp4"),
        ("sub/t.csv", "gone.mp4", "sub/gone.mp4"),
        ("t.csv", "../out.mp4", "../out.mp4"),
        ("t.csv", "/etc/hostname", "/etc/hostname"),
        ("t.csv", "{root}/../a.mp4", "{root}/../a.mp4"),
    ],
)
@pytest.mark.parametrize("listed", [True, False])
def test_the_video_that_a_table_means(table: str, name: str, path: str, listed: bool, tmp_path: Path) -> None:
    root = tmp_path / "vel\u00e9"
    names = Names(Corpus(root), VIDEOS)
    if not listed:
        for video in VIDEOS:
            put(root, video)
        names = Names(Corpus(root), None)
    assert names.path(table, name.format(root=root)) == path.format(root=root)
    composed = unicodedata.normalize("NFD", name.format(root=root))
    assert names.path(table, composed) in (path.format(root=root), composed)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["a.txt", "a.json", "a.caption", "a.md"], ["a.txt", "a.json", "a.caption"]),
        (["A.TXT", "b.txt"], ["A.TXT"]),
        (["a.txt", "A.txt"], ["a.txt"]),
        (["a.mp4.txt", "a.json"], ["a.mp4.txt", "a.json"]),
        (["a.b.txt", "sub/a.txt", "ab.txt"], []),
    ],
)
def test_sidecars_stand_beside_their_video(files: list[str], found: list[str]) -> None:
    assert list(sidecars_of(["a.mp4"], files)) == [("a.mp4", file) for file in found]


def test_a_sidecar_in_the_other_form_of_unicode() -> None:
    nfd, nfc = (unicodedata.normalize(form, "é/café") for form in ("NFD", "NFC"))
    assert list(sidecars_of([f"{nfd}.mp4"], [f"{nfc}.txt"])) == [(f"{nfd}.mp4", f"{nfc}.txt")]


@pytest.mark.parametrize(
    ("name", "data", "caption"),
    [
        ("a.txt", b"\xef\xbb\xbf a bay \n", Caption("a bay", {})),
        ("a.CAPTION", "a bay".encode("utf-16"), Caption("a bay", {})),
        ("a.txt", b"2024-11-20", Caption("2024-11-20", {})),
        ("a.json", b'{"Prompt": "a bay", "n": 1}', Caption("a bay", {"n": 1})),
        ("a.json", b'"a bay"', Caption("a bay", {})),
        ("a.json", b"[[1, 2]]", Caption("", {})),
        ("a.json", b"{", Reject("manifest", "its caption a.json: Expecting property name")),
        ("a.json", b'{"text": 5}', Reject("manifest", "its caption a.json: text is int, not text")),
        ("a.txt", b"\xff", Reject("manifest", "its caption a.txt: 'utf-8' codec")),
    ],
)
def test_what_a_sidecar_says(name: str, data: bytes, caption: Caption | Reject) -> None:
    found = read_sidecar(f"sub/{name}", data)
    if isinstance(caption, Reject):
        assert isinstance(found, Reject)
        assert found.reason.startswith(caption.reason)
    else:
        assert found == caption


def test_what_is_said_twice_is_one_and_empty_says_nothing(tmp_path: Path) -> None:
    captions = Captions()
    said = [("", {"n": 1}), ("un vel\u00e9", {}), ("un  vele\u0301\n", {"m": 2}), ("", {})]
    for number, (text, extra) in enumerate(said):
        captions.add("a.mp4", Caption(text, extra), f"{number}.txt")
    captions.check("/c")
    assert captions.of == {"a.mp4": Caption("un vel\u00e9", {"n": 1, "m": 2})}
    assert captions.used == {"0.txt", "1.txt", "2.txt"}


def test_two_files_that_disagree_are_named_with_what_they_say() -> None:
    captions = Captions()
    for file, text in (("metadata.csv", "one"), ("sub/a.txt", "two"), ("sub/a.json", "one")):
        captions.add("sub/a.mp4", Caption(text, {}), file)
    captions.add("b.mp4", Caption("one", {}), "metadata.csv")
    with pytest.raises(DataError) as caught:
        captions.check("/corpus")
    assert "/corpus" in caught.value.problem
    assert "of sub/a.mp4 metadata.csv 'one', sub/a.txt 'two'" in caught.value.problem
    assert "Keep one" in caught.value.remedy


def test_two_lines_of_a_table_that_disagree_refuse_their_video(tmp_path: Path) -> None:
    said = ["a one", "./a  one", "b one", "b two", "b one", "sub//c ", "sub/c "]
    rows = [dict(zip(("file_name", "caption"), line.split(" ", 1), strict=True)) for line in said]
    put(tmp_path, "l.jsonl", json_lines(rows))
    captions = Captions()
    captions.read_table(Corpus(tmp_path), Table("l.jsonl"), Names(Corpus(tmp_path), []))
    captions.check("/c")
    reason = "l.jsonl gives it two different captions, in line 3 and line 4"
    assert captions.of == {
        "a": Caption("one", {}),
        "b": Reject("manifest", reason),
        "sub/c": Caption("", {}),
    }


def test_a_name_of_half_a_character_is_told_with_its_line(tmp_path: Path) -> None:
    put(tmp_path, "metadata.jsonl", '{"file_name": "\\ud800.mp4", "caption": "c"}\n')
    with pytest.raises(DataError, match=r"line 1: file_name holds half a character"):
        Captions().read_table(Corpus(tmp_path), Table("metadata.jsonl"), Names(Corpus(tmp_path), []))


@pytest.mark.parametrize(
    ("by_name", "extra", "files", "note"),
    [
        (0, [], ["x.csv"], ""),
        (0, [{"label": 1}], ["x.csv"], ""),
        (0, [{"label": 1, "Text": "t"}], ["x.csv"], "0 of 3 {named}; not used: columns Text"),
        (1, [], [], "1 of 3 {named}"),
        (3, [{"label": 1, "n": 2}, {"n": 3}], [], "3 of 3 {named}; not used: columns label, n"),
        (3, [], ["x.csv", "a\n.txt"], "3 of 3 {named}; not used: files a?.txt, x.csv"),
        (2, [{"n": 2}], ["x.csv"], "2 of 3 {named}; not used: columns n, files x.csv"),
        (2, [], [f"{n}.csv" for n in range(NAMED + 2)], "and 2 more"),
    ],
)
def test_what_was_not_used_is_told(
    by_name: int, extra: list[dict[str, Any]], files: list[str], note: str
) -> None:
    found = caption_note(by_name, 3, extra, files)
    assert found.endswith(note.format(named="videos are captioned by their names"))
    assert bool(found) == bool(note)


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4), st.text())
def test_a_row_loses_nothing_but_its_caption(row: dict[str, str], text: str) -> None:
    row = json.loads(json.dumps(row))
    found = caption_of({**row, "caption": f"x{text}"}) if "\ud800" not in text else Caption("", row)
    kept = {name: value for name, value in row.items() if name in found.extra}
    assert found.extra == kept
