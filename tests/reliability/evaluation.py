"""What the tests that disturb an evaluation give, and compare."""

import json
from pathlib import Path
from typing import Any

WORDS = ("evaluate", "--config", "ci", "--set", "evaluation.batch_size=1", "--set", "evaluation.resamples=5")
"""Many small pieces of work."""


def figures(folder: Path) -> Any:
    """All numbers of an evaluation but times."""
    rows = json.loads((folder / "runs/ci/seed-0/evaluation/evaluation.json").read_text())["rows"]
    for row in rows.values():
        for part in ("metrics", "resampled"):
            row[part] = {name: value for name, value in row[part].items() if "seconds" not in name}
    return rows
