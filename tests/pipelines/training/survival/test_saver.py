"""Checkpoints are written while training goes on, and say what it was when they were begun."""

import dataclasses
import threading
from pathlib import Path

import pytest
import torch

from models.errors import ClusterError
from pipelines.checkpoints import check_seal
from pipelines.storage import Storage
from pipelines.training.state import Snapshot, TrainState, load_state
from pipelines.training.supervised import SupervisedStage
from pipelines.training.survival import saver as savers
from pipelines.training.survival.saver import SCORE, Saver
from tests.pipelines.training import makers


def stage(root: Path | str, **settings: object) -> tuple[SupervisedStage, TrainState]:
    recipe = makers.recipe(dataclasses.replace(makers.TEACHER, **settings))  # type: ignore[arg-type]
    made = SupervisedStage(dataclasses.replace(recipe, root=str(root)))
    return made, made.init("cpu")


def step(made: SupervisedStage, state: TrainState) -> None:
    makers.run(made, state, 1, short=4, long=0)


def test_a_checkpoint_holds_the_step_at_which_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the disk takes, and however many steps are taken meanwhile."""
    made, state = stage(tmp_path)
    step(made, state)
    expected = {name: p.detach().clone() for name, p in state.modules["teacher"].named_parameters()}
    free, write = threading.Event(), Snapshot.write
    monkeypatch.setattr(Snapshot, "write", lambda *given: (free.wait(60), write(*given)))
    saver = Saver(made.recipe, made.spec, 0)
    saver.begin(state, {})
    step(made, state)
    assert not saver.ready
    assert not list(tmp_path.glob("stage/step-*"))
    free.set()
    written = saver.finish()
    assert (written.name, written.metrics["step"]) == ("step-000001", 1.0)
    assert written.bytes > 4 * sum(p.numel() for p in expected.values())
    assert 0 <= written.stalled_s <= written.seconds
    again = made.init("cpu")
    load_state(again, tmp_path / "stage" / written.name)
    assert again.step == 1
    assert all(torch.equal(p, expected[n]) for n, p in again.modules["teacher"].named_parameters())


@pytest.mark.parametrize("store", ["", "memory:/"], ids=["disk", "object store"])
def test_the_newest_and_the_best_are_kept_after_a_restart_too(store: str, tmp_path: Path) -> None:
    root = f"{store}{tmp_path}"
    made, state = stage(root, keep_checkpoints=2)
    saver = Saver(made.recipe, made.spec, 0)
    for number, score in enumerate([0.5, 0.3, 0.4, 0.6, None, 0.35], start=1):
        if number == 4:
            saver.close()
            saver = Saver(made.recipe, made.spec, 3)
        state.step = number
        saver.begin(state, {} if score is None else {SCORE: score, "more": 1.0})
        saver.finish()
        saver.forget_old()
    folder = Storage(f"{root}/stage")
    assert folder.list() == ["step-000002", "step-000005", "step-000006"]
    with folder.on_disk("step-000002") as whole:
        check_seal(whole)


def test_a_checkpoint_is_due_by_steps_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(savers.time, "monotonic", lambda: now[0])
    made, state = stage(tmp_path, checkpoint_every=10, checkpoint_minutes=2)
    saver = Saver(made.recipe, made.spec, 0)
    assert [number for number in range(1, 31) if saver.due(number)] == [10, 20, 30]
    now[0] = 119.0
    assert not saver.due(11)
    now[0] = 120.0
    assert saver.due(11)
    saver.begin(state, {})
    saver.finish()
    assert not saver.due(12)


def test_a_disk_that_refuses_is_told_by_finish(tmp_path: Path) -> None:
    made, state = stage(tmp_path)
    saver = Saver(made.recipe, made.spec, 0)
    (tmp_path / "stage").write_text("a file where the folder should be")
    saver.begin(state, {})
    with pytest.raises(ClusterError):
        saver.finish()
    assert not saver.ready
