"""What a worker says reaches whoever watches."""

import logging

import pytest
import ray

from pipelines.training.monitors.board import BoardProgress, progress_board, relayed_warnings


@ray.remote(num_cpus=0)
def work(progress: BoardProgress, text: str) -> None:
    log = logging.getLogger("sostenuto.somewhere")
    with relayed_warnings(progress):
        log.warning("%s 1", text)
        log.info("not this")
        log.warning("%s 1", text)
    log.warning("%s after", text)
    progress("task", 1, 2, "note")


@ray.remote(num_cpus=0)
def hurry(progress: BoardProgress) -> None:
    """Ends when all that it told is there."""
    for step in range(20):
        progress("task", step, 20, f"note {step}")
    ray.get(progress.board.warn.remote("done"))


@pytest.mark.usefixtures("ray_local")
def test_no_update_is_overtaken_by_the_next() -> None:
    shown = []
    with progress_board(lambda *told: shown.append(told)) as board:
        ray.get(hurry.remote(board))
    assert shown == [("task", step, 20, f"note {step}") for step in range(20)]


@pytest.mark.usefixtures("ray_local")
def test_a_workers_warnings_are_said_once_by_the_process_that_watches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = []
    with progress_board(lambda *told: shown.append(told)) as board:
        ray.get([work.remote(board, text) for text in ("a", "b", "a")])
    own = [record.getMessage() for record in caplog.records if record.name.startswith("sostenuto")]
    assert sorted(own) == ["a 1", "b 1"]
    assert shown == [("task", 1, 2, "note")] * 3


def test_without_a_board_warnings_stay_where_they_are(caplog: pytest.LogCaptureFixture) -> None:
    with relayed_warnings(None):
        logging.getLogger("sostenuto.somewhere").warning("here")
    assert caplog.messages == ["here"]
