"""What a corpus says of its videos: captions and other columns.

| file | says |
|---|---|
| `metadata.jsonl`, `.csv`, `.parquet` | `file_name`, `caption` (or `text`), and any other column |
| `prompts.txt` with `videos.txt` | line i of one is the caption of the file that line i of the other names |

They may lie in any folder of a corpus; file names are relative to it. A manifest is a file of the first kind
by any name.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from models.errors import DataError
from pipelines.data.source.corpus import MISSING, REMEDY, Corpus, escapes, reason_of
from pipelines.data.tables import open_parquet
from pipelines.data.types import Reject
from pipelines.storage import one_line

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PROMPTS, VIDEOS = "prompts.txt", "videos.txt"
CAPTION_COLUMNS = ("caption", "text")
SAVE_AS_UTF8 = "Save it as UTF-8 text"

CONFLICT = Reject("manifest", "its metadata gives it two different captions")

Rows = Iterator[tuple[str, dict[str, Any]]]
"""(`line 3`, its columns)."""


class Caption(NamedTuple):
    text: str
    """Empty where nothing is said."""
    extra: dict[str, Any]
    """The other columns."""


def metadata_files(names: Iterable[str]) -> list[str]:
    """The metadata files of a corpus; `prompts.txt` and `videos.txt` count once."""
    found = set()
    for path in map(PurePosixPath, names):
        if path.name in METADATA_FILES:
            found.add(str(path))
        elif path.name in (PROMPTS, VIDEOS):
            found.add(str(path.with_name(VIDEOS)))
    return sorted(found)


def read_captions(corpus: Corpus, names: Iterable[str]) -> dict[str, Caption | Reject]:
    """Captions by path, relative to the corpus, of all these files; a video with two of them is refused.

    Raises:
        DataError: a file cannot be read or is malformed, with its line.
    """
    captions: dict[str, Caption | Reject] = {}
    for name in names:
        for where, row in _rows(corpus, name):
            try:
                path = _path(name, row.pop("file_name", None))
                caption = caption_of(row)
            except ValueError as error:
                raise DataError(
                    f"{corpus.address(name)}, {where}: {error}",
                    'Each line needs "file_name" and "caption"',
                ) from error
            before = captions.setdefault(path, caption)
            if isinstance(before, Caption) and before.text != caption.text:
                captions[path] = CONFLICT
    return captions


def caption_of(row: Mapping[str, Any]) -> Caption:
    """The caption in a row and the rest of it.

    Raises:
        ValueError: it is not text.
    """
    for column in CAPTION_COLUMNS:
        if not isinstance(row.get(column), str | None):
            raise ValueError(f"{column} is {type(row[column]).__name__}, not text")
    given = ((row.get(column) or "").strip() for column in CAPTION_COLUMNS)
    text = next(filter(None, given), "")
    if not is_text(text):
        raise ValueError("the caption holds half a character (a lone surrogate)")
    return Caption(text, {name: value for name, value in row.items() if name not in CAPTION_COLUMNS})


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; names of files and escapes in JSON may hold what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _path(metadata: str, name: object) -> str:
    """The path, relative to the corpus, of a file named by metadata."""
    if not isinstance(name, str) or not name:
        raise ValueError("no file_name")
    if not is_text(name):
        raise ValueError("file_name holds half a character (a lone surrogate)")
    return name if escapes(name) else str(PurePosixPath(metadata).parent / name)


def _rows(corpus: Corpus, name: str) -> Rows:
    if PurePosixPath(name).name == VIDEOS:
        yield from _paired_rows(corpus, name)
        return
    suffix = PurePosixPath(name).suffix.lower()
    read = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}[suffix]
    data = _read(corpus, name)
    try:
        yield from read(corpus.address(name), data)
    except (ValueError, OSError, csv.Error, pa.ArrowException) as error:
        remedy = "Write it again" if suffix == ".parquet" else SAVE_AS_UTF8
        raise DataError(f"{corpus.address(name)} cannot be read: {one_line(error)}", remedy) from error


def _csv_rows(address: str, data: bytes) -> Rows:
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, restkey="", strict=True)
    for row in reader:
        where = f"line {reader.line_num}"
        if "" in row and isinstance(row[""], list):
            raise DataError(
                f"{address}, {where}: more fields than columns", "Put captions with commas in double quotes"
            )
        yield where, dict(row)


def _json_rows(address: str, data: bytes) -> Rows:
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig", newline="")
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                yield f"line {number}", json_object(line)
            except ValueError as error:
                raise DataError(
                    f"{address}, line {number}: {error}", "Each line is one JSON object"
                ) from error


def _parquet_rows(address: str, data: bytes) -> Rows:
    with open_parquet(data) as table:
        schema = table.schema_arrow
        if "file_name" not in schema.names:
            raise DataError(
                f"{address}, its schema: no file_name", 'It needs the columns "file_name" and "caption"'
            )
        for field in (field for field in schema if field.name in ("file_name", *CAPTION_COLUMNS)):
            kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise DataError(
                    f"{address}, its schema: column {field.name} is {field.type}, not text",
                    f"Write {field.name} as a column of strings",
                )
        rows = (row for batch in table.iter_batches(use_threads=False) for row in batch.to_pylist())
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))


def _paired_rows(corpus: Corpus, videos: str) -> Rows:
    prompts = str(PurePosixPath(videos).with_name(PROMPTS))
    lines = []
    for name in (videos, prompts):
        try:
            text = _read(corpus, name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{corpus.address(name)} cannot be read: {error}", SAVE_AS_UTF8) from error
        lines.append([line.rstrip("\n") for line in io.StringIO(text, None)])
    if len(lines[0]) != len(lines[1]):
        raise DataError(
            f"{corpus.address(videos)} has {len(lines[0])} lines, {PROMPTS} beside it {len(lines[1])}",
            f"Give them as many lines: line i of {PROMPTS} captions the file in line i of {VIDEOS}",
        )
    for number, (file, prompt) in enumerate(zip(*lines, strict=True), start=1):
        yield f"line {number}", {"file_name": file.strip(), "caption": prompt}


def _read(corpus: Corpus, name: str) -> bytes:
    file = corpus.stat(name)
    if file == MISSING:
        raise DataError(f"{corpus.address(name)} is missing", f"{PROMPTS} and {VIDEOS} stand side by side")
    if isinstance(file, Reject):
        raise DataError(
            f"{corpus.address(name)}: {file.reason}", "Put the file itself into the corpus folder"
        )
    try:
        return corpus.read(name)
    except OSError as error:
        raise DataError(f"{corpus.address(name)} cannot be read: {reason_of(error)}", REMEDY) from error
