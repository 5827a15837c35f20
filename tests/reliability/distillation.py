"""One distillation of the `ci` preset, and what it made."""

import hashlib
import json
from pathlib import Path

from tests.command import copy_runs, succeed

DISTILL = ("--set", "distill.steps=8", "--set", "distill.checkpoint_every=2")


def distilled(prepared: Path, folder: Path, *more: str) -> Path:
    """Distil in a copy of a prepared run; the last checkpoint."""
    copy_runs(prepared, folder)
    succeed(folder, "train", "distill", "--config", "ci", *DISTILL, *more)
    return last_checkpoint(folder)


def last_checkpoint(folder: Path) -> Path:
    outcome = json.loads((folder / "runs/ci/seed-0/distill/outcome.json").read_text())
    return Path(outcome["checkpoint"])


def sums(checkpoint: Path) -> dict[str, str]:
    """sha256 of its weights and optimisers."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in checkpoint.glob("*.safetensors")}
