"""Promises about long runs: a killed driver loses nothing, and workers change nothing."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import copy_runs, kill, sostenuto, start, succeed
from tests.reliability.distillation import DISTILL, distilled, last_checkpoint, sums

pytestmark = pytest.mark.long


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
    assert sums(last_checkpoint(folder)) == sums(undisturbed)


@pytest.mark.timeout(900)
def test_two_workers_reach_the_same_weights(prepared: Path, undisturbed: Path, tmp_path: Path) -> None:
    checkpoint = distilled(prepared, tmp_path, "--set", "cluster.num_workers=2")
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
