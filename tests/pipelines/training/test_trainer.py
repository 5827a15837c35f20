"""What a full disk leaves of a stage's folder, and how the stage goes on from it."""

import errno
import json
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from models.errors import ClusterError, StorageRefused
from pipelines.checkpoints import MANIFEST_FILE
from pipelines.storage import Storage
from pipelines.training.trainer import LISTING, _mend_listing


@pytest.mark.parametrize("cut_off", [b"", b'{"ray_version": "2.6', b"\xff"])
def test_a_list_that_a_full_disk_cut_off_is_made_anew_of_whole_checkpoints(
    cut_off: bytes, tmp_path: Path
) -> None:
    for name in ("step-000002", "step-000004", "step-000006", "pretrained"):
        (tmp_path / "sft" / name).mkdir(parents=True)
        if name != "step-000006":
            (tmp_path / "sft" / name / MANIFEST_FILE).write_text("{}")
    (tmp_path / "sft" / LISTING).write_bytes(cut_off)
    _mend_listing(Storage(tmp_path), "sft")
    made = json.loads((tmp_path / "sft" / LISTING).read_text())
    names = [result["checkpoint_dir_name"] for result in made["checkpoint_results"]]
    assert names == ["step-000002", "step-000004"]
    assert made["latest_checkpoint_result"]["checkpoint_dir_name"] == "step-000004"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray calls pydantic by its old names
def test_ray_train_reads_the_list_that_is_made(tmp_path: Path) -> None:
    from ray.train import CheckpointConfig
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
    from ray.train.v2._internal.execution.storage import StorageContext

    (tmp_path / "sft" / "step-000002").mkdir(parents=True)
    (tmp_path / "sft" / "step-000002" / MANIFEST_FILE).write_text("{}")
    (tmp_path / "sft" / LISTING).write_text("")
    _mend_listing(Storage(tmp_path), "sft")
    manager = CheckpointManager(CheckpointConfig(num_to_keep=2), StorageContext(str(tmp_path), "sft"))
    latest = manager.latest_checkpoint_result
    assert latest is not None
    assert latest.checkpoint.path == f"{tmp_path}/sft/step-000002"


def test_a_whole_list_is_left_alone(tmp_path: Path) -> None:
    _mend_listing(Storage(tmp_path), "sft")
    assert not (tmp_path / "sft").exists()
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / LISTING).write_text('{"theirs": 1}')
    _mend_listing(Storage(tmp_path), "sft")
    assert (tmp_path / "sft" / LISTING).read_text() == '{"theirs": 1}'


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (OSError("[Errno 30] Error writing. Detail: [errno 30] Read-only file system"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (TimeoutError("the store does not answer"), False),
    ],
)
def test_what_trying_again_cannot_help_is_told_apart(error: Exception, refused: bool) -> None:
    with pytest.raises(ClusterError) as caught, Storage("/mnt/runs").errors_about("step-000002"):
        raise error
    assert isinstance(caught.value, StorageRefused) is refused
