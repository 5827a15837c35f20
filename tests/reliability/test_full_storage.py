"""A storage that fills up, or turns read-only, while checkpoints are written: one sentence, nothing lost."""

import subprocess
from pathlib import Path

import pytest

from tests.command import copy_runs, environment
from tests.pipelines.data.store.test_damage import can_mount
from tests.reliability.distillation import DISTILL, sums

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_mount(), reason="not run: this user cannot mount a small disk of its own"),
]

ON_A_SMALL_DISK = r"""
here=$1 spoil=$2
shift 2
mount -t tmpfs -o size=200m tmpfs "$here/disk"
cp -r "$here/runs" "$here/disk/"
cd "$here/disk"
stage=runs/ci/seed-0/distill
( until [ -e $stage/step-000002/manifest.json ]; do sleep .01; done
  if [ $spoil = full ]; then cat /dev/zero > filler
  else until mount -o remount,ro "$here/disk"; do sleep .01; done; fi ) 2>/dev/null &
"$@" > "$here/first.txt" 2>&1; echo $? > "$here/first.code"
ls $stage > "$here/left.txt"
wait
if [ $spoil = full ]; then rm filler; else mount -o remount,rw "$here/disk"; fi
"$@" > "$here/again.txt" 2>&1; echo $? > "$here/again.code"
cp -r runs/ci/seed-0/distill "$here/made"
"""
"""Runs a command on a disk of its own that takes nothing after the first checkpoint, and again with room."""


@pytest.mark.parametrize("spoil", ["full", "read-only"])
def test_a_storage_that_takes_no_checkpoint_ends_in_a_sentence_and_loses_nothing(
    spoil: str, prepared: Path, undisturbed: Path, tmp_path: Path
) -> None:
    copy_runs(prepared, tmp_path)
    (tmp_path / "disk").mkdir()
    words = [
        "train",
        "distill",
        "--config",
        "ci",
        *DISTILL,
        "--set",
        f"tracking.uri=sqlite:///{tmp_path}/ml.db",
    ]
    command = ["unshare", "-Urm", "bash", "-c", ON_A_SMALL_DISK, "-", str(tmp_path), spoil]
    subprocess.run(
        [*command, "python", "-m", "jobs", *words],
        env=environment(tmp_path / "home"),
        timeout=800,
        check=True,
    )
    told = (tmp_path / "first.txt").read_text()
    assert (tmp_path / "first.code").read_text() == "1\n", told
    assert "Traceback" not in told
    assert told.splitlines()[-1].startswith("error: "), told
    assert ("Free space on" if spoil == "full" else "the right to write") in told.splitlines()[-1]
    left = (tmp_path / "left.txt").read_text().split()
    assert "step-000002" in left, "the last checkpoint stands"
    assert not [name for name in left if name.startswith("step-") and name > "step-000004"]
    assert (tmp_path / "again.code").read_text() == "0\n", (tmp_path / "again.txt").read_text()
    assert sums(tmp_path / "made" / undisturbed.name) == sums(undisturbed)
