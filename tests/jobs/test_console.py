"""One line a step where there is no terminal, bars where there is one."""

from rich.table import Table

from jobs import console
from jobs.console import CELL_LETTERS, Progress, format_metrics, plain, show, tally_table


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_first_and_last_steps_are_told_and_those_between_when_due(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with Progress(terminal=False) as progress:
        for step in range(1, 11):
            clock[0] += 1.0
            progress("ingest", step, 10)
    told = [line.split()[1] for line in lines(capsys)]
    assert told == ["1/10", "6/10", "10/10"]


def test_metrics_are_always_told(capsys):
    with Progress(terminal=False) as progress:
        progress("teacher", 1, 3, {"train/loss": 0.51234, "train/rate": 1e-3})
        progress("teacher", 2, 3, {"train/loss": 0.4, "train/rate": 1e-3})
    told = lines(capsys)
    assert len(told) == 2
    assert told[0].endswith("loss 0.5123  rate 0.001")


def test_tasks_are_told_apart(capsys):
    with Progress(terminal=False) as progress:
        progress("short", 1, 2)
        progress("long", 1, 9)
    assert [line.split()[0] for line in lines(capsys)] == ["short", "long"]


def test_bars_are_drawn_on_a_terminal_and_the_note_is_shown(capsys):
    with Progress(terminal=True) as progress:
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
        with Progress(terminal=terminal, to_stderr=True) as progress:
            progress("short", 1, 2)
            progress("short", 2, 2)
        told = capsys.readouterr()
        assert told.out == ""
        assert "2/2" in told.err


def test_a_table_is_not_cut_where_there_is_no_terminal(capsys):
    table = Table("name", "reason", box=None)
    table.add_row("x" * 60, "y" * 100)
    show(table)
    assert "x" * 60 + "  " + "y" * 100 in capsys.readouterr().out


def test_a_table_takes_no_orders_from_what_it_shows(capsys):
    rows = [("SHORT", "open", 1, "a[/b].mp4\x1b[31m: x")]
    show(tally_table("Rejected videos", ("stage", "videos", "such as"), rows))
    out = capsys.readouterr().out
    assert "a[/b].mp4 [31m: x" in out
    assert "\x1b" not in out


def test_a_long_text_is_cut():
    assert plain("x" * 1000).plain == "x" * CELL_LETTERS + "..."
    assert plain(12).plain == "12"
