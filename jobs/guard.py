"""How a command ends: errors in one line that names the remedy, and a word on how to go on after Ctrl-C."""

import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from models.errors import SostenutoError

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes."""

_WRAPPED = ("cause", "__cause__", "controller_failure")


class Terminated(KeyboardInterrupt):
    """SIGTERM, such as `ray job stop` sends; handled as Ctrl-C is."""


@contextmanager
def guarded(*, debug: bool = False) -> Iterator[None]:
    """End the process with one line on standard error instead of a traceback.

    Args:
        debug: show the traceback as well.
    """
    install_terminator()
    try:
        yield
    except KeyboardInterrupt as error:
        _leave(error, debug=debug)
    except Exception as error:  # noqa: BLE001 - the one place where every error ends
        found = find_cause(error)
        if debug:
            traceback.print_exception(error)
        if found is not None:
            _end(f"error: {found}", FAILED)
        if told := told_in(str(error)):
            _end(f"error: {told}", FAILED)
        reason = " ".join(str(error).split())[:300] or "no message"
        _end(f"error: {type(error).__name__}: {reason}. Run it again with --debug to see where", FAILED)


def told_in(text: str) -> str | None:
    """What our error said, where Ray kept only the text of a worker's traceback."""
    found = re.findall(r"^models\.errors\.\w+: (.+)$", text, flags=re.MULTILINE)
    return found[-1] if found else None


def find_cause(error: BaseException) -> SostenutoError | None:
    """The SostenutoError inside what Ray made of it, if there is one."""
    waiting: list[Any] = [error]
    seen: set[int] = set()
    while waiting:
        candidate = waiting.pop(0)
        if not isinstance(candidate, BaseException) or id(candidate) in seen:
            continue
        seen.add(id(candidate))
        if type(candidate).__mro__[1:2] and isinstance(candidate, SostenutoError) and _is_plain(candidate):
            return candidate
        waiting += [getattr(candidate, name, None) for name in _WRAPPED]
        failures = getattr(candidate, "worker_failures", None)
        waiting += list(failures.values()) if isinstance(failures, dict) else []
    return None


def _is_plain(error: SostenutoError) -> bool:
    """Whether this is our own error, not Ray's class made of ours and its own."""
    return type(error).__module__ == SostenutoError.__module__


def install_terminator() -> None:
    """Turn SIGTERM into an exception, so that runs are closed as after Ctrl-C; Ray puts its own in place."""

    def handler(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _leave(error: KeyboardInterrupt, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    command = shlex.join(["sostenuto", *words])
    _end(
        f"interrupted. What is finished is kept; to go on: {command}",
        TERMINATED if isinstance(error, Terminated) else INTERRUPTED,
    )


def _end(line: str, code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    raise SystemExit(code)
