"""Promises about long runs: a killed driver loses nothing, and workers change nothing."""

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import MADE_BY_DISTILLATION, copy_runs, kill, sostenuto, start, succeed

pytestmark = pytest.mark.long

STEPS, EVERY = 8, 2
DISTILL = ("--set", f"distill.steps={STEPS}", "--set", f"distill.checkpoint_every={EVERY}")


@pytest.fixture(scope="module")
def prepared(finished_quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose dataset, teacher and long-SFT student are finished."""
    return copy_runs(finished_quickstart, tmp_path_factory.mktemp("prepared"), *MADE_BY_DISTILLATION)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a distillation that nothing happened to."""
    return _distilled(prepared, tmp_path_factory.mktemp("undisturbed"))


def _distilled(prepared: Path, folder: Path, *more: str) -> Path:
    copy_runs(prepared, folder)
    succeed(folder, "train", "distill", "--config", "ci", *DISTILL, *more)
    return _last_checkpoint(folder)


def _last_checkpoint(folder: Path) -> Path:
    outcome = json.loads((folder / "runs/ci/seed-0/distill/outcome.json").read_text())
    return Path(outcome["checkpoint"])


def _sums(checkpoint: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in checkpoint.glob("*.safetensors")}


@pytest.mark.timeout(900)
def test_a_killed_driver_resumes_to_the_same_weights(
    prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = copy_runs(prepared, tmp_path)
    process = start(folder, "train", "distill", "--config", "ci", *DISTILL)
    deadline = time.monotonic() + 240
    while not list(folder.glob("runs/ci/seed-0/distill/step-*/manifest.json")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    kill(process)
    assert not (folder / "runs/ci/seed-0/distill/outcome.json").exists()
    succeed(folder, "train", "distill", "--config", "ci", *DISTILL)
    assert _sums(_last_checkpoint(folder)) == _sums(undisturbed)


@pytest.mark.timeout(900)
def test_two_workers_reach_the_same_weights(prepared: Path, undisturbed: Path, tmp_path: Path) -> None:
    checkpoint = _distilled(prepared, tmp_path, "--set", "cluster.num_workers=2")
    for name in ("student", "critic"):
        alone = load_file(undisturbed / f"{name}.safetensors")
        together = load_file(checkpoint / f"{name}.safetensors")
        for key, tensor in alone.items():
            assert torch.allclose(tensor, together[key], atol=1e-4), key


@pytest.mark.timeout(600)
def test_what_one_of_two_workers_meets_is_told(prepared: Path, tmp_path: Path) -> None:
    folder = copy_runs(prepared, tmp_path)
    for shard in folder.glob("runs/ci/dataset/*/long/*.parquet"):
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    words = ("--set", "cluster.num_workers=2", "--set", "cluster.max_failures=0")
    refused = sostenuto(folder, "train", "distill", "--config", "ci", *words)
    assert refused.returncode == 1
    assert "is damaged" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.timeout(600)
def test_a_finished_stage_is_not_trained_again_and_other_settings_are_refused(prepared: Path) -> None:
    before = (prepared / "runs/ci/seed-0/teacher/outcome.json").stat().st_mtime_ns
    succeed(prepared, "train", "teacher", "--config", "ci")
    assert (prepared / "runs/ci/seed-0/teacher/outcome.json").stat().st_mtime_ns == before
    refused = sostenuto(prepared, "train", "teacher", "--config", "ci", "--set", "teacher.learning_rate=1e-4")
    assert refused.returncode == 1
    assert "other settings" in refused.stderr
    assert "--fresh" in refused.stderr
