"""What a command shows: one line a step or bars, tables, and at its end one line with the remedy."""

import os
import signal
import sys

import pytest
from rich.table import Table

from jobs import console
from jobs.console import (
    CELL_LETTERS,
    ConsoleProgress,
    exit_on_error,
    format_metrics,
    print_table,
    safe_text,
    tally_table,
)
from models.errors import ClusterError, ConfigError, DataError


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_first_and_last_steps_are_told_and_those_between_when_due(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with ConsoleProgress(terminal=False) as progress:
        for step in range(1, 11):
            clock[0] += 1.0
            progress("ingest", step, 10)
    told = [line.split()[1] for line in lines(capsys)]
    assert told == ["1/10", "6/10", "10/10"]


def test_metrics_are_always_told(capsys):
    with ConsoleProgress(terminal=False) as progress:
        progress("teacher", 1, 3, {"train/loss": 0.51234, "train/rate": 1e-3})
        progress("teacher", 2, 3, {"train/loss": 0.4, "train/rate": 1e-3})
    told = lines(capsys)
    assert len(told) == 2
    assert told[0].endswith("loss 0.5123  rate 0.001")


def test_tasks_are_told_apart(capsys):
    with ConsoleProgress(terminal=False) as progress:
        progress("short", 1, 2)
        progress("long", 1, 9)
    assert [line.split()[0] for line in lines(capsys)] == ["short", "long"]


def test_bars_are_drawn_on_a_terminal_and_the_note_is_shown(capsys):
    with ConsoleProgress(terminal=True) as progress:
        progress("teacher", 1, 2, "loss 0.5")
        progress("teacher", 2, 2, "loss 0.4")
    out = capsys.readouterr().out
    assert "teacher" in out
    assert "2/2" in out
    assert "loss 0.4" in out


def test_names_lose_their_group():
    assert format_metrics({"train/loss": 1.0, "steps": 2.0}) == "loss 1  steps 2"


def test_standard_output_can_be_kept_free(capsys):
    for terminal in (True, False):
        with ConsoleProgress(terminal=terminal, to_stderr=True) as progress:
            progress("short", 1, 2)
            progress("short", 2, 2)
        told = capsys.readouterr()
        assert told.out == ""
        assert "2/2" in told.err


def test_a_table_is_not_cut_where_there_is_no_terminal(capsys):
    table = Table("name", "reason", box=None)
    table.add_row("x" * 60, "y" * 100)
    print_table(table)
    assert "x" * 60 + "  " + "y" * 100 in capsys.readouterr().out


def test_a_table_takes_no_orders_from_what_it_shows(capsys):
    rows = [("SHORT", "open", 1, "a[/b].mp4\x1b[31m: x")]
    print_table(tally_table("Rejected videos", ("stage", "videos", "such as"), rows))
    out = capsys.readouterr().out
    assert "a[/b].mp4 [31m: x" in out
    assert "\x1b" not in out


def test_a_long_text_is_cut():
    assert safe_text("x" * 1000).plain == "x" * CELL_LETTERS + "..."
    assert safe_text(12).plain == "12"


def leave(error, capsys, *, debug=False):
    with pytest.raises(SystemExit) as caught, exit_on_error(debug=debug):
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
        == "interrupted. What is finished is kept; to resume: sostenuto train distill --set 'name=my run'\n"
    )


def test_sigterm_ends_as_ctrl_c_does(capsys):
    before = signal.getsignal(signal.SIGTERM)
    code = None
    try:
        with exit_on_error():
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
    except SystemExit as end:
        code = end.code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 143
    assert "to resume" in capsys.readouterr().err


def test_what_ends_well_is_left_alone(capsys):
    with exit_on_error():
        pass
    assert capsys.readouterr().err == ""
