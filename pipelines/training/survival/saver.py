"""Checkpoints that are written behind the steps, and which of them are kept."""

import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.checkpoints import MANIFEST_FILE, NetworkSpec, seal_parts
from pipelines.storage import Storage, temporary_folder
from pipelines.training.recipes import LINEAGE_FILE, Recipe
from pipelines.training.sharding import Shards
from pipelines.training.state import STATE_FILE, Snapshot, TrainState, snapshot
from pipelines.training.survival.listing import discard, tidy

SCORE = "held_out_loss"
"""The figure of a checkpoint by which the best one is kept: less is better."""


@dataclass(frozen=True)
class Written:
    """A checkpoint that is whole, and what it cost.

    Args:
        name: its folder below the stage's.
        metrics: `step`, and those that it was saved with.
        stalled_s: seconds for which no step was taken.
        seconds: until it was whole.
        bytes: of the tensors that this worker has written.
    """

    name: str
    metrics: dict[str, float]
    stalled_s: float
    seconds: float
    bytes: int


class Saver:
    """Writes the checkpoints of a stage, one at a time, in a thread of its own. The first worker has it, and
    where weights are sharded each that has a part of them; the first one looks after the folder.

    Args:
        recipe: the stage's.
        spec: the network that is sampled.
        step: at which the worker goes on: later checkpoints, which nobody has been told of, are deleted.
        shards: this worker's part of the weights.

    Raises:
        ClusterError: the storage fails.
    """

    def __init__(self, recipe: Recipe, spec: NetworkSpec, step: int, shards: Shards | None = None) -> None:
        self._recipe, self._spec, self._stage = recipe, spec, Storage(f"{recipe.root}/{recipe.name}")
        self._shards, self._scores = shards, dict[str, float | None]()
        if shards is None or shards.number == 0:
            for name in tidy(self._stage, latest=step):
                self._scores[name] = self._stage.read_json(f"{name}/{STATE_FILE}").get(SCORE)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Written] | None = None
        self._last = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted at this step."""
        config = self._recipe.stage
        late = time.monotonic() - self._last >= 60 * config.checkpoint_minutes
        return late or step % config.checkpoint_every == 0

    @property
    def ready(self) -> bool:
        """Whether a checkpoint is whole, or has failed, and `finish` has not told of it."""
        return self._writing is not None and self._writing.done()

    def begin(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        """Copies a state and starts to write it; the one before has been finished."""
        began = time.monotonic()
        copied = snapshot(state, self._shards, **{SCORE: metrics.get(SCORE)})
        named = {"step": float(state.step), **metrics}
        self._last = time.monotonic()
        self._writing = self._thread.submit(self._write, copied, named, began, self._last - began)

    def finish(self) -> Written:
        """Waits for the checkpoint that is being written.

        Raises:
            StorageRefused: the storage is full or read-only.
            ClusterError: it fails otherwise.
        """
        assert self._writing is not None
        writing, self._writing = self._writing, None
        written = writing.result()
        self._scores[written.name] = written.metrics.get(SCORE)
        return written

    def seal(self, written: Written) -> None:
        """Makes a checkpoint whole that every worker has brought its part to."""
        if self._shards is not None:
            seal_parts(self._stage, written.name, self._shards.count)

    def forget_old(self) -> None:
        """Deletes what is neither among the newest nor the best."""
        names = [*self._scores]
        scored = {name: score for name, score in self._scores.items() if score is not None}
        kept = {*names[-self._recipe.stage.keep_checkpoints :], *sorted(scored, key=scored.__getitem__)[:1]}
        for name in names:
            if name not in kept:
                del self._scores[name]
                discard(self._stage, name)

    def close(self) -> None:
        """Waits until nothing is being written."""
        self._thread.shutdown()

    def _write(self, copied: Snapshot, metrics: dict[str, float], began: float, stalled_s: float) -> Written:
        """The copied state as a folder of the stage, which appears whole, or as some of its files."""
        name = f"step-{int(metrics['step']):06d}"
        with temporary_folder() as made:
            with Storage(made).errors_about(""):
                if copied.plain is not None:
                    (made / "config.json").write_text(json.dumps(self._recipe.settings, indent=1))
                    (made / LINEAGE_FILE).write_text(json.dumps(self._recipe.lineage, indent=1))
                copied.write(self._spec, made)
            if self._shards is None:
                self._stage.put_folder(made, name, last=MANIFEST_FILE)
            else:
                self._stage.put_files(made, name)
        return Written(name, metrics, stalled_s, time.monotonic() - began, copied.bytes)
