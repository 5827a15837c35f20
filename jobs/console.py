"""What the user of a command sees: lines, tables, progress, and how the command ends.

A failed command ends in one line that names the remedy, an interrupted one in a line that says how to resume.
"""

import itertools
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from models.errors import SostenutoError

LINE_EVERY_S = 5.0
"""Seconds between two lines of one task without a terminal; the first and last are always shown."""

TABLE_WIDTH = 200
"""Characters of a table without a terminal."""

CELL_LETTERS = 90
"""Longest text in a table; reports have all of it."""

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
"""Exit codes."""


def print_line(text: str = "") -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_table(table: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=TABLE_WIDTH)).print(table)


def titled_table(title: str) -> Table:
    """An empty table under a heading, without a frame."""
    return Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def tally_table(
    title: str, columns: tuple[str, str, str], rows: Iterable[tuple[str, str, int, str]]
) -> Table:
    """Rows of (corpus, kind, count, examples) under the names of the last three."""
    table = titled_table(title)
    for name in ("corpus", *columns):
        table.add_column(name, justify="right" if name == columns[1] else "left")
    for row in rows:
        table.add_row(*map(safe_text, row))
    return table


def safe_text(value: object) -> Text:
    """A literal cell: no markup or control characters of a file name or caption reach the terminal."""
    text = "".join(letter if letter.isprintable() else " " for letter in str(value))
    return Text(text if len(text) <= CELL_LETTERS else f"{text[:CELL_LETTERS]}...")


def format_metrics(values: Mapping[str, float]) -> str:
    """`loss 0.3214  rate 0.0015`: names without their group, four significant digits."""
    return "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.4g}" for name, value in values.items())


class ConsoleProgress:
    """Progress of named tasks, in a `with` block: bars on a terminal, lines otherwise.

    Args:
        terminal: draw bars; None draws them if the stream is a terminal.
        to_stderr: keep standard output free.
    """

    def __init__(self, *, terminal: bool | None = None, to_stderr: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self._terminal = stream.isatty() if terminal is None else terminal
        self._to_stderr = to_stderr
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._shown: dict[str, float] = {}
        self._began: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._terminal:
            self._bars = Progress(
                TextColumn("{task.description:<16}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=self._to_stderr),
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
        text = note if isinstance(note, str) else format_metrics(note)
        if self._bars is not None:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, note=text)
            self._bars.update(self._tasks[task], completed=done, total=total, note=text)
            return
        now = time.monotonic()
        began = self._began.setdefault(task, now)
        due = now - self._shown.get(task, -LINE_EVERY_S) >= LINE_EVERY_S
        if due or done >= total or text:
            self._shown[task] = now
            write = warn if self._to_stderr else print_line
            write(f"{task:<10} {done:>6}/{total:<6} {now - began:6.0f} s  {text}".rstrip())


class Terminated(KeyboardInterrupt):
    """SIGTERM, such as `ray job stop` sends; handled as Ctrl-C is."""


def raise_on_sigterm() -> None:
    """Turn SIGTERM into an exception, so that runs close as after Ctrl-C. Ray replaces the handler."""

    def handler(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextmanager
def exit_on_error(*, debug: bool = False) -> Iterator[None]:
    """End the process with one line on standard error instead of a traceback; `debug` shows it as well."""
    raise_on_sigterm()
    try:
        yield
    except KeyboardInterrupt as error:
        if debug:
            traceback.print_exception(error)
        code = TERMINATED if isinstance(error, Terminated) else INTERRUPTED
        _exit(f"interrupted. What is finished is kept; to resume: {this_command()}", code)
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        if debug:
            traceback.print_exception(error)
        message = find_cause(error) or _message_in(str(error))
        if message is None:
            reason = " ".join(str(error).split())[:300] or "no message"
            message = f"{type(error).__name__}: {reason}. Run it again with --debug to see where"
        _exit(f"error: {message}", FAILED)


def this_command(change: str = "") -> str:
    """The command that runs, as it is given again to go on: as before, or with one `name=value` changed."""
    words, given = [], iter(word for word in sys.argv[1:] if word not in ("--fresh", "--resume-changed"))
    for word in given:
        pair = [word, *itertools.islice(given, 1 if word == "--set" else 0)]
        if not change or pair[-1].partition("=")[0] != change.partition("=")[0]:
            words += pair
    return shlex.join(["sostenuto", *words, *(["--set", change, "--resume-changed"] if change else [])])


def _exit(line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    warn(line)
    raise SystemExit(code)


def find_cause(error: BaseException) -> SostenutoError | None:
    """The SostenutoError that Ray wrapped, if any."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        candidate = waiting.pop(0)
        if not isinstance(candidate, BaseException) or id(candidate) in seen:
            continue
        seen.add(id(candidate))
        # Ray derives a class from ours; the original error is inside it
        if isinstance(candidate, SostenutoError) and type(candidate).__module__ == SostenutoError.__module__:
            return candidate
        waiting += [getattr(candidate, name, None) for name in ("cause", "__cause__", "controller_failure")]
        failures = getattr(candidate, "worker_failures", None)
        waiting += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _message_in(text: str) -> str | None:
    """Our error's message, where Ray kept only a worker's traceback as text."""
    found = re.findall(r"^models\.errors\.\w+: (.+)$", text, flags=re.MULTILINE)
    return found[-1] if found else None
