"""SIGTERM, such as `ray job stop` sends: training saves at the end of its step."""

import re
import threading
import time
from pathlib import Path

import pytest

from tests.command import copy_runs, start, succeed
from tests.reliability.distillation import sums

pytestmark = [pytest.mark.kill, pytest.mark.long, pytest.mark.timeout(900)]

STAGE = "runs/ci/seed-0/mixed"
STEPS = 400
WORDS = ["train", "mixed", "--config", "ci"]
for setting in ("checkpoint_every=100000", "log_every=1", "watch_every=0", "preview_every=0"):
    WORDS += ["--set", f"mixed.{setting}"]


def test_sigterm_loses_one_step_at_most(prepared: Path, tmp_path: Path) -> None:
    folder = copy_runs(prepared, tmp_path / "stopped", "mixed")
    process = start(folder, *WORDS, "--set", f"mixed.steps={STEPS}")
    assert process.stdout is not None
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True)
    reader.start()
    deadline = time.monotonic() + 240
    while not taken(said) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(120) == 143, "".join(said)
    reader.join(10)
    process.stdout.close()
    (checkpoint,) = (folder / STAGE).glob("step-*/manifest.json")
    step = int(checkpoint.parent.name.removeprefix("step-"))
    assert taken(said) <= step < STEPS, "".join(said)
    assert "saves at the end of this step" in "".join(said)
    more = ("--set", f"mixed.steps={STEPS}")
    assert f"mixed: {STEPS} steps" in succeed(folder, *WORDS, *more)
    whole = copy_runs(prepared, tmp_path / "whole", "mixed")
    succeed(whole, *WORDS, *more)
    last = f"{STAGE}/step-{STEPS:06d}"
    assert sums(folder / last) == sums(whole / last)


def taken(said: list[str]) -> int:
    """The last step that was told of."""
    return max((int(step) for step in re.findall(r"^mixed +(\d+)/", "".join(said), re.MULTILINE)), default=0)
