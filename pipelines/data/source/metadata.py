"""The tables that people keep beside their videos, read as rows, and which columns say what.

Names of files and of columns count without regard to case, spaces and punctuation.

| table | rows |
|---|---|
| `.csv`, `.tsv` | separated by comma, semicolon, tab or bar |
| `.jsonl`, `.ndjson` | an object a line |
| `.json` | a list of objects, alone or within an object; or an object of captions by the videos' names |
| `.parquet` | its rows |
| `prompts.txt` with `videos.txt` | line i of one is the caption of the file that line i of the other names |
"""

import codecs
import csv
import io
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from models.errors import DataError
from pipelines.data.source.corpus import MISSING, REMEDY, Corpus, is_video, reason_of
from pipelines.data.tables import open_parquet
from pipelines.data.types import Reject
from pipelines.storage import one_line

FILE_COLUMNS = (
    "filename file filepath video videopath videofile videoname videofilename path clip clippath clipname "
    "media mediapath vid videoid clipid"
).split()
"""Columns that name the video, as `plain` spells them, the surest first."""
CAPTION_COLUMNS = (
    "caption text prompt description captions texts prompts descriptions cap sentence sentences "
    "longcaption densecaption detailedcaption shortcaption videocaption"
).split()
"""Columns that hold the caption, likewise."""
CAPTION_TABLES = "metadata meta captions caption videos2caption video2caption prompts descriptions".split()
"""Tables of captions, by their names without suffix, likewise."""
OTHER_TABLES = "annotations annotation labels label index videos video clips dataset data manifest".split()
"""Tables that hold captions if they name videos."""
SEPARATORS = ",;\t|"
PROMPTS = "prompts prompt captions caption".split()
VIDEOS = "videos"
SAVE_AS_UTF8 = "Save it as UTF-8 text"

Rows = Iterator[tuple[str, Any]]
"""(`line 3`, what stands there)."""


class Table(NamedTuple):
    file: str
    prompts: str = ""
    """Of two files that belong together line by line, the one with captions."""
    required: bool = True
    """Whether it has to name videos; another may be about something else."""


class NotATableOfVideos(ValueError):
    """No row names a video."""


def plain(name: str) -> str:
    """A name without case, spaces, punctuation and forms of letters."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name).casefold()))


def columns_among(row: Mapping[str, Any], known: list[str]) -> list[str]:
    """The columns of a row whose plain names are known, in the order of those."""
    return sorted((name for name in row if plain(name) in known), key=lambda name: known.index(plain(name)))


def tables_among(files: Iterable[str]) -> list[Table]:
    """The tables among the files of a corpus, in the order of their paths."""
    tables: list[Table] = []
    texts: dict[PurePosixPath, dict[str, str]] = {}
    for file in files:
        path = PurePosixPath(file)
        stem, suffix = plain(path.stem), path.suffix.lower()
        if suffix in READERS and stem in (*CAPTION_TABLES, *OTHER_TABLES):
            tables.append(Table(file, required=stem in CAPTION_TABLES))
        elif suffix == ".txt" and stem in (*PROMPTS, VIDEOS):
            texts.setdefault(path.parent, {})[stem] = file
    for folder, found in texts.items():
        prompts = next((found[stem] for stem in PROMPTS if stem in found), "")
        if VIDEOS in found or "prompts" in found:
            videos = found.get(VIDEOS, str(folder / "videos.txt"))
            tables.append(Table(videos, prompts or str(folder / "prompts.txt")))
    return sorted(tables)


def rows_of(corpus: Corpus, table: Table) -> Rows:
    """The rows of a table, each with its place.

    Raises:
        DataError: it cannot be read or is malformed.
        NotATableOfVideos: it is JSON of some other kind.
    """
    if table.prompts:
        yield from _paired_rows(corpus, table)
        return
    suffix = PurePosixPath(table.file).suffix.lower()
    data = read_file(corpus, table.file)
    try:
        yield from READERS[suffix](corpus.address(table.file), data)
    except NotATableOfVideos:
        raise
    except (ValueError, OSError, csv.Error, pa.ArrowException) as error:
        remedy = "Write it again" if suffix == ".parquet" else SAVE_AS_UTF8
        raise DataError(f"{corpus.address(table.file)} cannot be read: {one_line(error)}", remedy) from error


def read_file(corpus: Corpus, name: str) -> bytes:
    """The whole of a small file.

    Raises:
        DataError: it cannot be read.
    """
    file = corpus.stat(name)
    if file == MISSING:
        raise DataError(f"{corpus.address(name)} is missing", "prompts.txt and videos.txt stand side by side")
    if isinstance(file, Reject):
        raise DataError(
            f"{corpus.address(name)}: {file.reason}", "Put the file itself into the corpus folder"
        )
    try:
        return corpus.read(name)
    except OSError as error:
        raise DataError(f"{corpus.address(name)} cannot be read: {reason_of(error)}", REMEDY) from error


def decoded(data: bytes) -> str:
    """Text in UTF-8, or in UTF-16 that says so. Raises UnicodeDecodeError."""
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_utf16 else "utf-8-sig")


def json_value(text: str) -> Any:
    """Raises ValueError where it is no JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _csv_rows(address: str, data: bytes) -> Rows:
    text = io.StringIO(decoded(data), newline="")
    first = text.readline()
    text.seek(0)
    heads = {mark: next(csv.reader([first], delimiter=mark), []) for mark in SEPARATORS}
    mark = next((m for m, head in heads.items() if columns_among(dict.fromkeys(head), FILE_COLUMNS)), ",")
    spaced = any(name.startswith(" ") for name in heads[mark])
    reader = csv.DictReader(text, restkey="", strict=True, delimiter=mark, skipinitialspace=spaced)
    names = reader.fieldnames or []
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{address}: two columns are called {min(twice)!r}", "Rename or remove one of them")
    for row in reader:
        where = f"line {reader.line_num}"
        if "" in row and isinstance(row[""], list):
            raise DataError(
                f"{address}, {where}: more fields than columns", "Put captions with commas in double quotes"
            )
        yield where, row


def _json_rows(address: str, data: bytes) -> Rows:
    text = decoded(data)
    try:
        value = json_value(text)
    except ValueError as error:
        if address.lower().endswith(".json") and "Extra data" not in str(error):
            raise
        yield from _json_lines(address, text)
        return
    if isinstance(value, list):
        yield from ((f"entry {number}", row) for number, row in enumerate(value, start=1))
        return
    if not isinstance(value, dict):
        raise NotATableOfVideos("not an object")
    if columns_among(value, FILE_COLUMNS):
        yield "line 1", value
        return
    lists = {key: part for key, part in value.items() if isinstance(part, list)}
    lists = {key: part for key, part in lists.items() if all(isinstance(row, dict) for row in part)}
    for key, part in lists.items():
        yield from ((f"{key}, entry {number}", row) for number, row in enumerate(part, start=1))
    if not any(lists.values()):
        if not any(map(is_video, value)):
            raise NotATableOfVideos("no file_name")
        for name, said in value.items():
            yield repr(name), {"file_name": name, **(said if isinstance(said, dict) else {"caption": said})}


def _json_lines(address: str, text: str) -> Rows:
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            try:
                yield f"line {number}", json_value(line.strip().removesuffix(","))
            except ValueError as error:
                raise DataError(
                    f"{address}, line {number}: {error}", "Each line is one JSON object"
                ) from error


def _parquet_rows(_address: str, data: bytes) -> Rows:
    with open_parquet(data) as table:
        rows = (row for batch in table.iter_batches(use_threads=False) for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _paired_rows(corpus: Corpus, table: Table) -> Rows:
    lines = []
    for name in (table.file, table.prompts):
        try:
            text = decoded(read_file(corpus, name))
        except UnicodeDecodeError as error:
            raise DataError(f"{corpus.address(name)} cannot be read: {error}", SAVE_AS_UTF8) from error
        lines.append([line.rstrip("\n") for line in io.StringIO(text, None)])
    videos, prompts = lines
    for longer, shorter in (lines, lines[::-1]):
        while len(longer) > len(shorter) and not longer[-1].strip():
            longer.pop()
    beside = PurePosixPath(table.prompts).name
    if len(videos) != len(prompts):
        raise DataError(
            f"{corpus.address(table.file)} has {len(videos)} lines, {beside} beside it {len(prompts)}",
            f"Give them as many lines: line i of {beside} captions the file in line i of videos.txt",
        )
    for number, (file, prompt) in enumerate(zip(videos, prompts, strict=True), start=1):
        yield f"line {number}", {"file_name": file, "caption": prompt}


READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".parquet": _parquet_rows} | dict.fromkeys(
    (".json", ".jsonl", ".ndjson"), _json_rows
)
"""By suffix, in lower case."""
