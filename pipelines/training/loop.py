"""The loop of a Ray Train worker: data, checkpoints, previews and tracking around a pure stage."""

import json
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint, CheckpointUploadMode
from torch import Tensor

from models.blocks import checkpoint_blocks
from models.device import half_precision
from models.errors import ClusterError, SostenutoError, StorageRefused, TrainingDiverged
from models.rng import Key
from pipelines.checkpoints import MANIFEST_FILE
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.storage import Storage, temporary_folder
from pipelines.tracking import NullTracker, Progress, Tracker
from pipelines.training.batches import BatchSource
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distill import DistillStage
from pipelines.training.monitors.board import relayed_warnings
from pipelines.training.monitors.preview import preview
from pipelines.training.monitors.watch import Watch
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Stage
from pipelines.training.state import load_state, save_state
from pipelines.training.supervised import SupervisedStage
from pipelines.training.teacher_gate import WINDOWS, check_teacher

_SHOWN = "loss flow_matching reverse_kl critic_loss gradient_norm diversity sharpness saturation".split()
"""Metrics of a progress line."""


def train_worker(given: dict[str, Any]) -> dict[str, float] | SostenutoError:
    """Runs a recipe to its last step, from its latest checkpoint if there is one.

    Args:
        given: `recipe`; `tracker` opens the tracker on rank 0; `progress` or None.

    Returns:
        a summary, or what a user has to mend: trying again would not help, so it is a result here and is
        raised by the driver. Other errors are raised, and Ray starts again: what may pass, such as a store
        that fails, and what one of several workers may meet alone, for the others would wait for it.
    """
    recipe: Recipe = given["recipe"]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not recipe.cluster.use_gpu)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    with relayed_warnings(given["progress"]):
        tracker: Tracker = NullTracker() if workers.rank else given["tracker"]()
        try:
            result = _Loop(recipe, workers, tracker, given["progress"]).run()
        except SostenutoError as error:
            tracker.close("FAILED")
            alone = workers.size > 1 and not isinstance(error, TrainingDiverged)
            if alone or type(error) is ClusterError:
                raise
            return error
        except BaseException:
            tracker.close("FAILED")
            raise
        tracker.close("FAILED" if isinstance(result, SostenutoError) else "FINISHED")
        return result


def make_stage(recipe: Recipe, workers: Workers) -> Stage:
    """The stage a recipe asks for, by the type of its settings."""
    encoder = text_encoder(recipe.text, recipe.dataset)
    if isinstance(recipe.stage, DistillConfig):
        pool = {
            "long": ShardDataset(recipe.dataset, "long").captions,
            "short": ShardDataset(recipe.dataset, "short").captions,
        }
        return DistillStage(recipe, pool, workers, encoder)
    return SupervisedStage(recipe, workers, encoder)


class _Loop:
    """One worker's stage with everything that it runs on."""

    def __init__(self, recipe: Recipe, workers: Workers, tracker: Tracker, progress: Progress | None) -> None:
        self.recipe, self.workers, self.tracker, self.progress = recipe, workers, tracker, progress
        self.config, on_gpu = recipe.stage, recipe.cluster.use_gpu
        self.device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
        self.stage = make_stage(recipe, workers)
        self.batches = BatchSource(recipe.dataset, self.config, recipe.seed, workers)
        self.state = self.stage.init(self.device)
        if recipe.cluster.activation_checkpointing:
            for module in self.state.modules.values():
                checkpoint_blocks(module)
        self.watch = Watch(self.stage, recipe, workers, self.device)
        self.began = 0.0
        self.first_step = 0

    def run(self) -> dict[str, float] | StorageRefused:
        """Resumes, steps until the stage is done, and saves; its summary, or why it could not be saved."""
        state, config = self.state, self.config
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                load_state(state, Path(folder))
            if self.progress is not None and self.workers.rank == 0:
                self.progress(self.recipe.name, state.step, config.steps, "goes on from its checkpoint")
        if state.step == 0:
            self._check_teacher()
            measured = self._measured(self._videos()) if config.watch_every else self._losses()
            state.held_out_start = measured.get("held_out_loss")
            self._track(measured)
        videos: Tensor | None = None
        self.began, self.first_step = time.monotonic(), state.step
        while state.step < config.steps:
            began, key = time.process_time(), Key(self.recipe.seed, state.step, purpose="step")
            batches = self.batches.at(state.step, self.device)
            with self._precision():
                result = self.stage.step(state, batches, key)
            state.cpu_seconds += time.process_time() - began
            shown = config.is_shown(state.step)
            videos = self._videos() if shown or config.is_watched(state.step) else None
            self._log(result.metrics | ({} if videos is None else self._measured(videos)))
            if state.step == config.steps:
                break
            if state.step % config.checkpoint_every == 0 and (refused := self._save({})):
                return refused
            if shown and videos is not None:
                self._preview(videos)
        summary = self._summary()
        # Only once: Ray Train deletes both of two checkpoints with one name.
        if self.first_step < config.steps and (refused := self._save(summary)):
            return refused
        if config.preview_every:
            self._preview(self._videos() if videos is None else videos)
        return summary

    def _precision(self) -> torch.autocast:
        return half_precision(self.device, self.recipe.cluster.use_gpu)

    def _check_teacher(self) -> None:
        """The teacher gate before distillation; a pretrained teacher is let through: it never saw SHORT."""
        if not isinstance(self.stage, DistillStage) or self.recipe.model.pretrained is not None:
            return
        rows = ShardDataset(self.recipe.dataset, "short")
        main = rows.main
        count = min(len(main), 2 * WINDOWS)
        read = rows.read([main[i * len(main) // count] for i in range(count)])
        short = Batch(read.latents.to(self.device), read.captions, range(count), count)
        with self._precision():
            ratio = check_teacher(self.stage.teacher, short, self.recipe, self.stage.captions, self.workers)
        if ratio is not None and self.workers.rank == 0:
            self.tracker.metrics(0, {"train/teacher_gate_ratio": ratio})

    def _videos(self) -> Tensor:
        with self._precision():
            return self.watch.videos(self.state)

    def _measured(self, videos: Tensor) -> dict[str, float]:
        with self._precision():
            return self.watch.of(self.state, videos)

    def _losses(self) -> dict[str, float]:
        with self._precision():
            return self.watch.losses(self.state)

    def _track(self, metrics: dict[str, float]) -> None:
        self.tracker.metrics(self.state.step, {f"train/{name}": value for name, value in metrics.items()})

    def _log(self, metrics: dict[str, float]) -> None:
        """Metrics of every step; every `log_every` steps a line of progress."""
        if self.workers.rank:
            return
        step, steps = self.state.step, self.config.steps
        self._track(metrics)
        if step % self.config.log_every and step != steps:
            return
        elapsed_s = time.monotonic() - self.began
        self._track({"data_wait": self.batches.waited_s / elapsed_s})
        if self.progress is not None:
            numbers = [f"{name} {metrics[name]:.4g}" for name in _SHOWN if name in metrics]
            pace = elapsed_s / max(1, step - self.first_step)
            self.progress(self.recipe.name, step, steps, ", ".join([*numbers, f"{pace:.3f} s/step"]))

    def _preview(self, videos: Tensor) -> None:
        if self.workers.rank == 0:
            watch = self.watch
            preview(videos, watch.captions, self.recipe.dataset, watch.corpus, self.state.step, self.tracker)

    def _summary(self) -> dict[str, float]:
        summary = {"steps": float(self.state.step), "cpu_seconds": self.state.cpu_seconds}
        start, last = self.state.held_out_start, self._losses().get("held_out_loss")
        if last is not None and start is not None:
            summary |= {"held_out_loss_start": start, "held_out_loss": last}
        self._track(summary)
        return summary

    def _save(self, metrics: dict[str, float]) -> StorageRefused | None:
        """Rank 0 writes, everybody reports, and Ray Train keeps two; why that failed, on every worker."""
        name, checkpoint, refused = f"step-{self.state.step:06d}", None, None
        if self.workers.rank == 0:
            metrics = {"step": float(self.state.step), **metrics}
            storage = ray.train.get_context().get_storage()
            checkpoint = Checkpoint(storage.build_checkpoint_path_from_name(name), storage.storage_filesystem)
            try:
                self._write(name)
            except StorageRefused as error:
                refused = error
        if self.workers.largest(int(refused is not None), self.device):
            return refused or StorageRefused("a checkpoint was not written", "Rank 0 says why")
        ray.train.report(metrics, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
        return None

    def _write(self, name: str) -> None:
        """The state as a folder of the stage, which appears whole."""
        with temporary_folder() as made:
            with Storage(made).errors_about(""):
                (made / "config.json").write_text(json.dumps(self.recipe.settings, indent=1))
                save_state(self.state, self.stage.spec, made)
            Storage(self.recipe.root).put_folder(made, f"{self.recipe.name}/{name}", last=MANIFEST_FILE)
