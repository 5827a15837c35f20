"""What all workers do together between two steps: save, report what has been written, stop when told to."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode

from models.errors import ClusterError, StorageRefused
from pipelines.checkpoints import NetworkSpec
from pipelines.tracking import Tracker
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.recipes import Recipe
from pipelines.training.state import TrainState
from pipelines.training.survival.pulse import Pulse
from pipelines.training.survival.saver import Saver, Written

NOTICE_S = 5.0
"""Seconds between two questions to Ray whether a machine will be taken away."""


@dataclass(frozen=True)
class Wishes:
    """What all workers do after a step, because one of them wants it.

    Args:
        save: begin a checkpoint.
        report: one has been written.
        stop: end once this step is saved.
        ask: whether a machine will be taken away.
    """

    save: bool
    report: bool
    stop: bool
    ask: bool


class Keeper:
    """A worker's part in the checkpoints of a stage; every worker calls every method.

    Args:
        recipe, spec: the stage's, and the network that is sampled.
        step: at which training goes on.
        workers, device: this worker's place, and where they communicate.
        pulse: knows whether to stop.
        tracker: told what checkpoints cost.
    """

    def __init__(
        self,
        recipe: Recipe,
        spec: NetworkSpec,
        step: int,
        workers: Workers,
        device: torch.device,
        pulse: Pulse,
        tracker: Tracker,
    ) -> None:
        self._recipe, self._workers, self._device = recipe, workers, device
        self._pulse, self._tracker = pulse, tracker
        shards, self._leads = workers.shards, workers.place == 0
        writes = self._leads if shards is None else shards.first_group
        self._saver = Saver(recipe, spec, step, shards) if writes else None
        self._begun, self._writing = step, False
        self._asked = 0.0
        self._leaving, self._scored = False, not isinstance(recipe.stage, DistillConfig)
        self.note = ""
        """What the last checkpoint cost, for people."""

    def between_steps(
        self, state: TrainState, measured: Mapping[str, float] | None, losses: Callable[[], dict[str, float]]
    ) -> ClusterError | None:
        """Saves when it is time, and reports what has been written; why training ends, if it does.

        Args:
            state: after a step.
            measured: on its averaged weights, if anything was.
            losses: measures them, for the figure by which the best checkpoint of a supervised stage is kept.
        """
        wishes = self._agree(state.step)
        if wishes.ask:
            self._leaving = ray.train.get_preemption_info() is not None
        if wishes.report and (refused := self.settle()):
            return refused
        if not (wishes.save or wishes.stop):
            return None
        if measured is None and self._scored and not (wishes.stop or self._leaving):
            measured = losses()
            self._tracker.metrics(state.step, {f"train/{name}": value for name, value in measured.items()})
        if refused := self.save(state, measured or {}):
            return refused
        if not wishes.stop:
            return None
        place = f"{self._recipe.name} has stopped after step {state.step}"
        return self.settle() or ClusterError(place, "Give the command again: it goes on from there")

    def _agree(self, step: int) -> Wishes:
        save, busy, ask = False, False, False
        if self._saver is not None:
            busy = self._writing and not self._saver.ready
        if self._saver is not None and self._leads:
            ask = time.monotonic() - self._asked >= NOTICE_S
            # while a machine is being taken away, every step is saved for which the disk has time
            save = self._saver.due(step) or (self._leaving and not busy)
            self._asked = time.monotonic() if ask else self._asked
        own = [save, busy, self._pulse.stop, ask]
        with self._pulse.step(step):
            save, busy, stop, ask = map(bool, self._workers.largest([*map(int, own)], self._device))
        return Wishes(save, self._writing and not busy, stop, ask)

    def save(self, state: TrainState, figures: Mapping[str, float]) -> StorageRefused | None:
        """Begins a checkpoint of this step, unless there is one; why the one before could not be written."""
        # Ray Train would take two checkpoints with one name for two
        if self._begun == state.step:
            return None
        if refused := self.settle():
            return refused
        if self._saver is not None:
            self._saver.begin(state, figures)
        self._begun, self._writing = state.step, True
        return None

    def settle(self) -> StorageRefused | None:
        """Waits for the checkpoint that is being written, if any, which everybody then reports to Ray Train;
        why that failed, on every worker."""
        if not self._writing:
            return None
        self._writing, metrics, checkpoint, written, refused = False, {}, None, None, None
        if self._saver is not None:
            try:
                written = self._saver.finish()
            except StorageRefused as error:
                refused = error
        if any(self._workers.largest([refused is not None], self._device)):
            return refused or StorageRefused("a checkpoint was not written", "Another worker says why")
        if self._saver is not None and self._leads and written is not None:
            self._saver.seal(written)
            self._tell(written)
            metrics, storage = written.metrics, ray.train.get_context().get_storage()
            path = storage.build_checkpoint_path_from_name(written.name)
            checkpoint = Checkpoint(path, storage.storage_filesystem)
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        if self._saver is not None and self._leads:
            self._saver.forget_old()
        return None

    def _tell(self, written: Written) -> None:
        cost = {"seconds": written.seconds, "stalled": written.stalled_s, "bytes": float(written.bytes)}
        metrics = {f"train/checkpoint_{name}": value for name, value in cost.items()}
        self._tracker.metrics(int(written.metrics["step"]), metrics)
        took = f"{written.seconds:.2f} s ({written.stalled_s:.2f} s stalled)"
        self.note = f"checkpoint {written.bytes / 1e6:.1f} MB in {took}"

    def close(self) -> None:
        """Waits until nothing is being written."""
        if self._saver is not None:
            self._saver.close()
