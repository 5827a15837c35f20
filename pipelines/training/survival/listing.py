"""The checkpoints that a stage's folder really holds, and Ray Train's own list of them."""

import json
from collections.abc import Sequence

import ray

from pipelines.checkpoints import MANIFEST_FILE
from pipelines.storage import Storage

LISTING = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a stage's checkpoints."""

_EMPTY = (
    "pending_training_results",
    "pending_validation_specs",
    "validated_checkpoint_dir_names",
    "timed_out_validation_checkpoint_dir_names",
    "failed_validation_checkpoint_dir_names",
)


def whole(stage: Storage) -> list[str]:
    """The names of a stage's whole checkpoints, in order of their steps."""
    names = [name for name in stage.list() if name.startswith("step-")]
    return sorted((name for name in names if stage.exists(f"{name}/{MANIFEST_FILE}")), key=step_of)


def tidy(stage: Storage, latest: int | None = None) -> list[str]:
    """As `whole`; what killed writers have left is deleted, and so are checkpoints after step `latest`, if
    given. Call it when nothing is being written."""
    stage.delete_unfinished("")
    kept = [name for name in whole(stage) if latest is None or step_of(name) <= latest]
    for name in stage.list():
        if name.startswith("step-") and name not in kept:
            discard(stage, name)
    return kept


def discard(stage: Storage, name: str) -> None:
    """Deletes a checkpoint, the manifest first: killed half-way, it leaves none that looks whole."""
    stage.delete(f"{name}/{MANIFEST_FILE}")
    stage.delete(name)


def step_of(name: str) -> int:
    """The step of a checkpoint's name."""
    return int(name.removeprefix("step-"))


def mend_listing(stage: Storage) -> None:
    """Lets Ray Train go on from the newest whole checkpoint: its own list is written anew where it names
    others, as after a kill between a checkpoint and its report, or where a full disk has cut it off."""
    names = tidy(stage)
    if names != _listed(stage) and (names or stage.exists(LISTING)):
        stage.write_json(LISTING, _listing(names))


def _listed(stage: Storage) -> list[str] | None:
    """The checkpoints that the list names, the latest last; None if it cannot be read."""
    try:
        listing = json.loads(stage.read_bytes(LISTING)) if stage.exists(LISTING) else {}
        named = [result["checkpoint_dir_name"] for result in listing["checkpoint_results"]]
        latest = listing["latest_checkpoint_result"] or {}
    except (ValueError, KeyError, TypeError):
        return None
    return named if named[-1:] == [latest.get("checkpoint_dir_name")] else None


def _listing(names: Sequence[str]) -> dict[str, object]:
    results = [{"checkpoint_dir_name": name, "metrics": {}} for name in names]
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": [*range(len(results))],
        "latest_checkpoint_result": results[-1] if results else None,
        "current_report_index": len(results),
        **dict.fromkeys(_EMPTY, ()),
    }
