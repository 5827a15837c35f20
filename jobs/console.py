"""What a command shows while it works: bars on a terminal, one line per step otherwise."""

import sys
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 5.0
"""Least seconds between two lines of one task where there is no terminal; first and last are always shown."""

TABLE_WIDTH = 200
"""Characters of a table where there is no terminal."""


CELL_LETTERS = 90
"""Of a text in a table; reports have all of it."""


def say(text: str = "") -> None:
    """A line for the user on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """A line for the user on standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def show(table: Table) -> None:
    """A table for the user on standard output."""
    console = Console()
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(table)


def plain_table(title: str) -> Table:
    """An empty table under a heading, without a frame."""
    return Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def tally_table(
    title: str, columns: tuple[str, str, str], rows: Iterable[tuple[str, str, int, str]]
) -> Table:
    """Rows of (corpus, kind, count, examples) under the names of the last three."""
    table = plain_table(title)
    for name in ("corpus", *columns):
        table.add_column(name, justify="right" if name == columns[1] else "left")
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def plain(value: object) -> Text:
    """A text as it is: file names and captions carry neither markup nor control letters to a terminal."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return Text(text if len(text) <= CELL_LETTERS else f"{text[:CELL_LETTERS]}...")


def format_metrics(values: Mapping[str, float]) -> str:
    """`loss 0.3214  rate 0.0015`: names without their group, four significant digits."""
    return "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in values.items())


class Progress:
    """Progress of named tasks. Use it by `with`, and call `progress(task, done, total, note)`.

    Args:
        terminal: draw bars; None looks whether there is a terminal.
        to_stderr: keep standard output free.
    """

    def __init__(self, *, terminal: bool | None = None, to_stderr: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self._terminal = stream.isatty() if terminal is None else terminal
        self._to_stderr = to_stderr
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._terminal:
            columns = (
                TextColumn("{task.description:<16}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            self._bars = Bars(
                *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=self._to_stderr)
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, task: str, done: int, total: int, note: str | Mapping[str, float] = "") -> None:
        """Show that `done` of `total` units of `task` are done, with a note or metrics beside it."""
        text = note if isinstance(note, str) else format_metrics(note)
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, note=text)
            self._bars.update(self._tasks[task], completed=done, total=total, note=text)
        else:
            self._line(task, done, total, text)

    def _line(self, task: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        began = self._began.setdefault(task, now)
        due = now - self._shown.get(task, -LINE_EVERY_S) >= LINE_EVERY_S
        if due or done >= total or note:
            self._shown[task] = now
            tell = warn if self._to_stderr else say
            tell(f"{task:<10} {done:>6}/{total:<6} {now - began:6.0f} s  {note}".rstrip())
