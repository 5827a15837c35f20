"""What is said of a corpus's videos: captions and other columns, from tables (metadata.py) and sidecars.

`a/0001.mp4` is captioned by `a/0001.txt`, `a/0001.caption` or the columns of `a/0001.json`; what else lies
there and is not used is told. Names and captions are compared composed (NFC) and kept as they are.
"""

import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from models.errors import DataError
from pipelines.data.source.corpus import Corpus, File, escapes, is_video
from pipelines.data.source.metadata import (
    CAPTION_COLUMNS,
    FILE_COLUMNS,
    READERS,
    NotATableOfVideos,
    Table,
    columns_among,
    decoded,
    json_value,
    plain,
    rows_of,
)
from pipelines.data.types import Reject

SIDECARS = (".json", ".txt", ".caption")
"""Endings of the files that caption the video beside them."""
MAX_SIDECAR_BYTES = 1 << 20
WORDY = (*SIDECARS, *READERS, *".srt .vtt .xlsx .ods .xml .yaml .yml".split())
"""Endings of files that may hold captions: told when they are not used."""
NAMED = 8
"""Most columns, files or videos that a message names."""
JOINERS = "\u200c\u200d"
"""They stand within words of some scripts."""


class Caption(NamedTuple):
    text: str
    """Empty where nothing is said."""
    extra: dict[str, Any]
    """The other columns, and the further captions of a column of several."""


def caption_of(row: Mapping[str, Any]) -> Caption:
    """The caption in a row, of the first column that has one, and the rest of it.

    Raises:
        ValueError: it is not text.
    """
    text, extra, no_text = "", dict(row), ""
    for column in columns_among(row, CAPTION_COLUMNS):
        said = _texts(row[column])
        if said is None:
            no_text = no_text or column
        elif not text and said:
            text, *further = said
            del extra[column]
            extra |= {column: further} if further else {}
        elif said in ([], [text]):
            del extra[column]
    if no_text and not text:
        raise ValueError(f"{no_text} is {type(row[no_text]).__name__}, not text")
    if not is_text(text):
        raise ValueError("the caption holds half a character (a lone surrogate)")
    return Caption(text, extra)


def _texts(value: object) -> list[str] | None:
    """The different captions in a column's value, where it is text, texts or nothing; else None."""
    values = value if isinstance(value, list) else [value]
    values = [one for one in values if one is not None and one == one]  # a missing value may be NaN
    if not all(isinstance(one, str) for one in values):
        return None
    return [text for text in dict.fromkeys(map(str.strip, values)) if text]


def words_of(path: str) -> str:
    """The words of a file's name: letters and digits with their marks and joiners, composed (NFC)."""
    name = unicodedata.normalize("NFC", PurePosixPath(path).stem)
    kept = (c if c.isalnum() or c in JOINERS or unicodedata.category(c)[0] == "M" else " " for c in name)
    words = (word.strip(JOINERS) for word in "".join(kept).split())
    return " ".join(word for word in words if any(map(str.isalnum, word)))


def is_text(text: str) -> bool:
    """Whether a text can be written as UTF-8; names of files and escapes in JSON may hold what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def composed(text: str) -> str:
    """In NFC: the same letters are the same text."""
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """In NFC, without regard to case."""
    return composed(text).casefold()


def stem_of(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


SPELLINGS: tuple[Callable[[str], str], ...] = (str, composed, folded)
"""How names are compared, one after the other, until one fits."""


class Names:
    """Finds the videos that tables name: as they are spelled, or else the only one whose name differs in
    Unicode form, case, kind of slash or a missing ending.

    Args:
        videos: their paths in the corpus; None looks on the disk when a name is not found.
    """

    def __init__(self, corpus: Corpus, videos: Collection[str] | None) -> None:
        self._corpus = corpus
        self._videos = None if videos is None else set(videos)

    def path(self, table: str, name: str) -> str:
        """The path in the corpus of a file named by a table: relative to it, to the corpus, or absolute.

        A name that leaves the corpus comes back as it is; of one that is not there, what it should be.

        Raises:
            ValueError: it is no name.
        """
        if not name.strip():
            raise ValueError("no file_name")
        if not is_text(name):
            raise ValueError("file_name holds half a character (a lone surrogate)")
        tried: list[str] = []
        for spelled in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
            inside = self._corpus.relative(spelled)
            tried += [inside] if inside else [posixpath.join(posixpath.dirname(table), spelled), spelled]
        tried = [path for path in map(posixpath.normpath, tried) if not escapes(path)]
        found = next(filter(self._is_there, tried), None)
        if found is None:
            found = next((near[s(path)] for path in tried for s, near in self._near if s(path) in near), None)
        return found or (tried[0] if tried else name)

    def _is_there(self, path: str) -> bool:
        if self._videos is not None:
            return path in self._videos
        return isinstance(self._corpus.stat(path), File)

    @cached_property
    def _near(self) -> list[tuple[Callable[[str], str], dict[str, str]]]:
        """A spelling, and the videos that it tells apart; the last is of names without their ending."""
        videos = self._videos if self._videos is not None else set(self._corpus.walk().files)
        near: list[tuple[Callable[[str], str], dict[str, str]]] = []
        for spell, end in ((composed, False), (folded, False), (folded, True)):
            alike = defaultdict(list)
            for path in filter(is_video, videos):
                alike[spell(stem_of(path) if end else path)].append(path)
            near.append((spell, {key: paths[0] for key, paths in alike.items() if len(paths) == 1}))
        return near


def sidecars_of(
    videos: Iterable[str], files: Iterable[str], *, by_key: bool = False
) -> Iterator[tuple[str, str]]:
    """(video, file) of each file that captions the video beside it.

    Args:
        by_key: a name up to its first dot serves, too, as in WebDataset.
    """
    beside: dict[tuple[int, str], list[str]] = defaultdict(list)
    for file in files:
        if file.lower().endswith(SIDECARS):
            for level, spell in enumerate(SPELLINGS):
                beside[level, spell(stem_of(file))].append(file)

    def of(base: str) -> list[str]:
        places = ((level, spell(base)) for level, spell in enumerate(SPELLINGS))
        return next((beside[place] for place in places if place in beside), [])

    for video in videos:
        path = PurePosixPath(video)
        found = of(video) + of(stem_of(video))
        if by_key and not found:
            found = of(str(path.with_name(path.name.split(".", 1)[0])))
        yield from ((video, file) for file in found)


def read_sidecar(name: str, data: bytes) -> Caption | Reject:
    """What a sidecar says; JSON that is no object says nothing."""
    try:
        text = decoded(data)
        if not name.lower().endswith(".json"):
            return caption_of({"caption": text})
        value = json_value(text)
        value = {"caption": value} if isinstance(value, str) else value
        return caption_of(value if isinstance(value, dict) else {})
    except ValueError as error:
        return Reject("manifest", f"its caption {PurePosixPath(name).name}: {error}")


def too_large(name: str, num_bytes: int) -> Reject | None:
    """Refuses the video of a sidecar that cannot be a caption."""
    if num_bytes <= MAX_SIDECAR_BYTES:
        return None
    return Reject("manifest", f"its caption {PurePosixPath(name).name} has {num_bytes} bytes")


class Captions:
    """What all sources say of each video. Those that agree are one."""

    def __init__(self) -> None:
        self.of: dict[str, Caption | Reject] = {}
        """By the video's path in the corpus."""
        self.used: set[str] = set()
        """Files that something was taken from."""
        self._said: dict[str, tuple[str, str]] = {}
        self._disagreements: list[str] = []

    def add(self, path: str, caption: Caption | Reject, file: str, where: str = "") -> None:
        """Take what a file says of a video.

        Two lines of one table that disagree refuse the video; two files, the corpus (`check`).
        """
        before = self.of.get(path, Caption("", {}))
        if isinstance(before, Reject) or isinstance(caption, Reject):
            self.of[path] = before if isinstance(before, Reject) else caption
            self.used.add(file)
            return
        if caption.text or caption.extra:
            self.used.add(file)
        if before.text and caption.text and _compared(before.text) != _compared(caption.text):
            first, line = self._said[path]
            if first == file:
                reason = f"{file} gives it two different captions, in {line} and {where}"
                self.of[path] = Reject("manifest", reason)
            else:
                told = f"{first} {before.text[:60]!r}, {file} {caption.text[:60]!r}"
                self._disagreements.append(f"of {path} {told}")
            return
        self.of[path] = Caption(before.text or caption.text, {**before.extra, **caption.extra})
        if caption.text:
            self._said.setdefault(path, (file, where))

    def read_table(self, corpus: Corpus, table: Table, names: Names) -> None:
        """Take what a table says.

        Raises:
            DataError: it cannot be read or is malformed, with its line.
        """
        for number, (where, row) in enumerate(_rows(corpus, table)):
            try:
                if not isinstance(row, dict):
                    raise NotATableOfVideos("not an object")
                named = [column for column in columns_among(row, FILE_COLUMNS) if row[column]]
                named = [column for column in named if isinstance(row[column], str)]
                if not named:
                    raise NotATableOfVideos("no file_name")
                path = names.path(table.file, row[named[0]])
                rest = {column: value for column, value in row.items() if column != named[0]}
                self.add(path, caption_of(rest), table.file, where)
            except ValueError as error:
                if isinstance(error, NotATableOfVideos) and not number and not table.required:
                    return
                raise DataError(
                    f"{corpus.address(table.file)}, {where}: {error}",
                    'Each line needs "file_name" (or video, path) and "caption" (or text, prompt)',
                ) from error
        self.used |= {table.file, table.prompts}

    def check(self, root: str) -> None:
        """Raises DataError where two files disagree, and names both."""
        if self._disagreements:
            rest = len(self._disagreements) - 1
            more = f"; so of {rest} more" if rest else ""
            raise DataError(
                f"{root}: two sources give different captions: {self._disagreements[0]}{more}",
                "Keep one of them: move the other out of the folder, or empty its captions",
            )


def _rows(corpus: Corpus, table: Table) -> Iterator[tuple[str, Any]]:
    """As `rows_of`; what is no table of videos is one row that names none."""
    try:
        yield from rows_of(corpus, table)
    except NotATableOfVideos:
        yield "its rows", {}


def _compared(text: str) -> str:
    return " ".join(composed(text).split())


def caption_note(by_name: int, videos: int, extra: Iterable[Mapping[str, Any]], files: Iterable[str]) -> str:
    """The line that tells what was found beside the captions and not used; empty where there is nothing.

    Args:
        by_name: how many of the videos are captioned by their names.
        extra: columns of each video beside its caption; where all have captions, only those count that could
            have been one.
        files: those that could have held captions, for videos without.
    """
    columns = dict.fromkeys(column for one in extra for column in one)
    unused = [column for column in columns if by_name or plain(column) in CAPTION_COLUMNS]
    if not by_name and not unused:
        return ""
    parts = [f"columns {_listed(unused)}"] * bool(unused)
    parts += [f"files {_listed(found)}" for found in [sorted(files)] if by_name and found]
    line = f"{by_name} of {videos} videos are captioned by their names"
    return "; not used: ".join([line, ", ".join(parts)] if parts else [line])


def _listed(names: list[str]) -> str:
    shown = ("".join(c if c.isprintable() else "?" for c in name) for name in names[:NAMED])
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
