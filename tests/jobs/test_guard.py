"""How commands end: one line with the remedy, the right exit code, and a word on how to go on."""

import os
import signal
import sys

import pytest

from jobs import guard
from models.errors import ClusterError, ConfigError, DataError


def leave(error, capsys, *, debug=False):
    with pytest.raises(SystemExit) as caught, guard.guarded(debug=debug):
        raise error
    return caught.value.code, capsys.readouterr().err


def test_our_error_is_one_line_with_its_remedy(capsys):
    code, err = leave(ConfigError("seed is -1", "Set seed=0"), capsys)
    assert (code, err) == (1, "error: seed is -1. Set seed=0\n")


def test_debug_shows_the_traceback_too(capsys):
    code, err = leave(ConfigError("seed is -1", "Set seed=0"), capsys, debug=True)
    assert code == 1
    assert "Traceback" in err
    assert err.endswith("error: seed is -1. Set seed=0\n")


def test_an_unknown_error_says_how_to_see_more(capsys):
    code, err = leave(KeyError("lost\nthings"), capsys)
    assert code == 1
    assert err.count("\n") == 1
    assert "KeyError" in err
    assert "--debug" in err


class Wrapped(Exception):
    """As Ray wraps what a worker raised."""

    def __init__(self, cause=None, worker_failures=None):
        super().__init__("wrapped")
        self.cause = cause
        self.worker_failures = worker_failures


@pytest.mark.parametrize(
    "wrapped",
    [
        Wrapped(cause=DataError("no clips", "Add some")),
        Wrapped(worker_failures={1: Wrapped(cause=DataError("no clips", "Add some"))}),
    ],
)
def test_our_error_is_found_inside_what_ray_makes_of_it(wrapped, capsys):
    assert leave(wrapped, capsys) == (1, "error: no clips. Add some\n")


def test_our_error_is_found_as_a_cause(capsys):
    try:
        raise ClusterError("no head", "Start one")
    except ClusterError as error:
        outer = RuntimeError("task failed")
        outer.__cause__ = error
    assert leave(outer, capsys)[1] == "error: no head. Start one\n"


def test_causes_in_a_circle_end(capsys):
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert leave(first, capsys)[0] == 1


def test_interrupting_says_how_to_go_on_without_starting_over(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sostenuto", "train", "distill", "--fresh", "--set", "name=my run"])
    code, err = leave(KeyboardInterrupt(), capsys)
    assert code == 130
    assert (
        err
        == "interrupted. What is finished is kept; to go on: sostenuto train distill --set 'name=my run'\n"
    )


def test_sigterm_ends_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    code = None
    try:
        with guard.guarded():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 143
    assert "to go on" in capsys.readouterr().err


def test_what_ends_well_is_left_alone(capsys):
    with guard.guarded():
        pass
    assert capsys.readouterr().err == ""
