"""Whatever a kill or a full disk has left, the stage goes on from its newest whole checkpoint."""

import json
from pathlib import Path

import pytest

from pipelines.checkpoints import MANIFEST_FILE
from pipelines.storage import Storage
from pipelines.training.survival.listing import LISTING, discard, mend_listing, tidy


def checkpoints(stage: Path, *names: str) -> Storage:
    """A stage with these checkpoints; those with a `-` at the end of their names are half written."""
    for name in names:
        folder = stage / name.rstrip("-")
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")
        if not name.endswith("-"):
            (folder / MANIFEST_FILE).write_text("{}")
    return Storage(stage)


def list_of(*names: str) -> bytes:
    """Ray Train's list of checkpoints, the last one the latest."""
    results = [{"checkpoint_dir_name": name} for name in names]
    return json.dumps({"checkpoint_results": results, "latest_checkpoint_result": results[-1]}).encode()


def listed(stage: Storage) -> list[str]:
    listing = stage.read_json(LISTING)
    names = [result["checkpoint_dir_name"] for result in listing["checkpoint_results"]]
    assert listing["latest_checkpoint_result"]["checkpoint_dir_name"] == names[-1]
    return names


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b'{"ray_version": "2.6',
        b"\xff",
        b'{"theirs": 1}',
        list_of("step-000002"),
        list_of("step-000002", "step-000009"),
        None,
    ],
    ids=["empty", "cut off", "damaged", "other", "before the last report", "deleted ones", "none"],
)
def test_the_list_is_made_anew_of_whole_checkpoints(before: bytes | None, tmp_path: Path) -> None:
    stage = checkpoints(tmp_path, "step-000002", "step-000004", "step-000006-", "pretrained")
    if before is not None:
        (tmp_path / LISTING).write_bytes(before)
    mend_listing(stage)
    assert listed(stage) == ["step-000002", "step-000004"]
    assert not stage.exists("step-000006")
    assert stage.exists("pretrained")


def test_a_list_that_names_what_is_there_is_left_alone(tmp_path: Path) -> None:
    stage = checkpoints(tmp_path, "step-000002")
    mend_listing(stage)
    told = json.loads((tmp_path / LISTING).read_text()) | {"of theirs": 1}
    (tmp_path / LISTING).write_text(json.dumps(told))
    mend_listing(stage)
    assert stage.read_json(LISTING)["of theirs"] == 1


def test_a_stage_that_has_not_begun_gets_no_list(tmp_path: Path) -> None:
    mend_listing(Storage(tmp_path / "sft"))
    assert not (tmp_path / "sft").exists()


def test_what_is_later_than_the_step_to_go_on_from_is_deleted(tmp_path: Path) -> None:
    stage = checkpoints(tmp_path, "step-000999", "step-1000000", "step-1000001", "step-1000002-")
    (tmp_path / ".aside-step-1000003-abc").mkdir()
    assert tidy(stage, latest=1_000_000) == ["step-000999", "step-1000000"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000999", "step-1000000"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray calls pydantic by its old names
def test_ray_train_reads_the_list_that_is_made(tmp_path: Path) -> None:
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    mend_listing(checkpoints(tmp_path / "sft", "step-000002", "step-000004"))
    manager = CheckpointManager(CheckpointConfig(), StorageContext(str(tmp_path), "sft"))
    latest = manager.latest_checkpoint_result
    assert latest is not None
    assert latest.checkpoint.path == f"{tmp_path}/sft/step-000004"


def test_a_checkpoint_whose_deletion_is_cut_short_does_not_look_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, delete, seen = (
        checkpoints(tmp_path, "step-000002", "step-000004"),
        Storage.delete,
        list[list[str]](),
    )

    def deleted(self: Storage, path: str) -> None:
        seen.append([name for name in stage.list() if stage.exists(f"{name}/{MANIFEST_FILE}")])
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", deleted)
    discard(stage, "step-000002")
    assert seen == [["step-000002", "step-000004"], ["step-000004"]]
    assert stage.list() == ["step-000004"]
