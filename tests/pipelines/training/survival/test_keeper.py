"""What happens between two steps: who reports what, when, and what ends training."""

import dataclasses
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.errors import ClusterError, StorageRefused
from pipelines.storage import Storage
from pipelines.training.collectives import ALONE
from pipelines.training.state import Snapshot, TrainState
from pipelines.training.supervised import SupervisedStage
from pipelines.training.survival import keeper as keepers
from pipelines.training.survival.keeper import Keeper
from pipelines.training.survival.pulse import Pulse
from pipelines.training.survival.saver import SCORE
from tests.pipelines.training import makers


class Told:
    """A tracker that remembers metrics."""

    def __init__(self) -> None:
        self.values: dict[int, dict[str, float]] = {}

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.values.setdefault(step, {}).update(values)


@dataclasses.dataclass
class Scene:
    """A keeper of one worker, without Ray: what it reports, and what it is told."""

    keeper: Keeper
    pulse: Pulse
    state: TrainState
    told: Told
    reports: list[tuple[float, str]]
    notice: list[bool]
    measured: int = 0

    def after(self, step: int, measured: dict[str, float] | None = None) -> ClusterError | None:
        self.state.step = step
        return self.keeper.between_steps(self.state, measured, self.losses)

    def written(self) -> None:
        """Waits until the disk has what was begun."""
        self.keeper._saver._thread.submit(int).result()  # type: ignore[union-attr]

    def losses(self) -> dict[str, float]:
        self.measured += 1
        return {SCORE: 0.5, "other": 1.0}


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scene]:
    def make(**settings: Any) -> Scene:
        reports: list[tuple[float, str]] = []
        notice = [False]
        storage = SimpleNamespace(
            build_checkpoint_path_from_name=lambda name: f"{tmp_path}/stage/{name}", storage_filesystem=None
        )
        train = SimpleNamespace(
            get_context=lambda: SimpleNamespace(get_storage=lambda: storage),
            get_preemption_info=lambda: object() if notice[0] else None,
            report=lambda metrics, checkpoint, **_: reports.append((metrics["step"], checkpoint)),
        )
        monkeypatch.setattr(keepers, "ray", SimpleNamespace(train=train))
        monkeypatch.setattr(keepers, "Checkpoint", lambda path, _: Path(path).name)
        monkeypatch.setattr(keepers.Pulse, "__init__", lambda self: None)
        recipe = makers.recipe(dataclasses.replace(makers.TEACHER, **{"checkpoint_every": 2, **settings}))
        stage = SupervisedStage(dataclasses.replace(recipe, root=str(tmp_path)))
        told, pulse = Told(), Pulse()  # type: ignore[call-arg]
        pulse.stop = False
        keeper = Keeper(stage.recipe, stage.spec, 0, ALONE, torch.device("cpu"), pulse, told)  # type: ignore[arg-type]
        return Scene(keeper, pulse, stage.init("cpu"), told, reports, notice)

    return make


def test_a_checkpoint_is_reported_at_the_end_of_a_later_step_when_it_is_whole(
    scene: Callable[..., Scene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, write = threading.Event(), Snapshot.write
    monkeypatch.setattr(Snapshot, "write", lambda *given: (free.wait(60), write(*given)))
    here = scene(checkpoint_every=3)
    for step in (1, 2, 3, 4):
        assert here.after(step) is None
    assert here.reports == []
    free.set()
    here.written()
    assert here.after(5) is None
    assert here.reports == [(3.0, "step-000003")]
    assert here.told.values[3]["train/checkpoint_bytes"] > 1000
    assert here.told.values[3][f"train/{SCORE}"] == 0.5
    assert "checkpoint" in here.keeper.note
    assert here.measured == 1


def test_the_next_checkpoint_waits_for_the_one_before(scene: Callable[..., Scene]) -> None:
    here = scene(checkpoint_every=1)
    for step in range(1, 6):
        assert here.after(step, {SCORE: float(step)}) is None
    assert here.keeper.save(here.state, {}) is here.keeper.settle() is None
    assert here.reports == [(float(step), f"step-00000{step}") for step in range(1, 6)]
    assert here.measured == 0


def test_a_stop_saves_this_step_and_ends(scene: Callable[..., Scene], tmp_path: Path) -> None:
    here = scene(checkpoint_every=100)
    here.after(6)
    here.pulse.stop = True
    ended = here.after(7)
    assert "stopped after step 7" in str(ended)
    assert here.reports == [(7.0, "step-000007")]
    assert Storage(tmp_path / "stage").list() == ["step-000007"]
    assert here.measured == 0, "nothing is measured while somebody waits"


def test_a_machine_that_will_be_taken_away_has_every_step_saved(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "NOTICE_S", 0.0)
    here = scene(checkpoint_every=100)
    for step in range(1, 9):
        here.notice[0] = 2 <= step < 6
        here.after(step)
        here.written()
    assert [step for step, _ in here.reports] == [3.0, 4.0, 5.0, 6.0]


def test_a_full_disk_ends_training_in_a_sentence(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    here = scene()
    monkeypatch.setattr(Snapshot, "write", full)
    assert here.after(2) is None
    here.written()
    assert isinstance(here.after(3), StorageRefused)
    assert here.reports == []
