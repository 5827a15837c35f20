"""The watched numbers beside the checkpoints: one value a step, whatever was killed and resumed."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from models.errors import StorageRefused
from pipelines.storage import Storage
from pipelines.training.monitors import series
from pipelines.training.monitors.series import ABOUT, FOLDER, Recorder, read_series


@dataclass
class About:
    stage: str = "sft"


def values(storage: Storage, name: str = "loss") -> list[tuple[int, float]]:
    curve = read_series(storage).curves[name]
    return list(zip(curve.steps, curve.values, strict=True))


@pytest.mark.parametrize("root", ["disk", "memory://series"])
def test_a_session_that_resumes_leaves_no_step_twice(root: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path) if root == "disk" else f"{root}/{tmp_path.name}")
    first = Recorder(storage, About(), 0)
    for step in range(1, 6):
        first.add(step, {"loss": float(step)})
    second = Recorder(storage, About(), 3)
    assert values(storage) == [(1, 1), (2, 2), (3, 3)]
    assert second.series.curves == read_series(storage).curves
    for step in (5, 7):
        second.add(step, {"loss": -float(step), "other": 0.0})
    assert values(storage) == [(1, 1), (2, 2), (3, 3), (5, -5), (7, -7)]
    Recorder(storage, About("sft"), 7)
    assert len(values(storage)) == 5
    assert storage.read_json(f"{FOLDER}/{ABOUT}") == {"stage": "sft"}


def test_long_series_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "ROWS", 4)
    storage = Storage(tmp_path)
    recorder = Recorder(storage, About(), 0)
    for step in range(1, 11):
        recorder.add(step, {"loss": 1.0 / step})
    assert values(storage) == [(step, 1 / step) for step in range(1, 11)]
    assert storage.list(FOLDER) == ["000000.jsonl", "000001.jsonl", "000002.jsonl", ABOUT]


def test_a_storage_that_fails_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(Storage(tmp_path), About(), 0)

    def refuse(*_: object) -> None:
        raise StorageRefused("the disk is full", "Make room")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write_bytes", refuse)
        for step in (1, 2):
            recorder.add(step, {"loss": 0.0})
    assert len(caplog.messages) == 1
    assert "the disk is full" in caplog.text
    recorder.add(3, {"loss": 0.0})
    assert [step for step, _ in values(Storage(tmp_path))] == [1, 2, 3]
