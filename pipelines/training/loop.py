"""The loop of a Ray Train worker: data, checkpoints, previews and tracking around a pure stage."""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import Checkpoint

from models.blocks import checkpoint_blocks
from models.device import half_precision
from models.errors import SostenutoError, TrainingDiverged
from models.rng import Key
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.types import CorpusName
from pipelines.tracking import NullTracker, Tracker, TrackerFactory
from pipelines.training.batches import BatchSource
from pipelines.training.checkpoint import load_state, save_state
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.diagnostics import Diagnostics
from pipelines.training.distill import DistillStage
from pipelines.training.preview import preview
from pipelines.training.progress import Progress, Reporter
from pipelines.training.supervised import (
    HELD_OUT_WINDOWS,
    Batch,
    Recipe,
    Stage,
    SupervisedStage,
    held_out_loss,
    supervised_velocity,
)
from pipelines.training.teacher_gate import WINDOWS, check_teacher


@dataclass(frozen=True)
class WorkerJob:
    """What a training worker is told; travels by pickle within one Ray cluster.

    Args:
        name: the stage's name in progress and metrics.
        recipe: what the stage is made from.
        dataset: folder of the dataset.
        settings: the resolved settings of the run, kept in every checkpoint.
        tracker: opens the tracker on rank 0.
        reporter: takes progress.
        use_gpu: train in bfloat16 on this worker's GPU.
        activation_checkpointing: compute the activations of a block again in the backward pass.
    """

    name: str
    recipe: Recipe
    dataset: str
    settings: dict[str, Any]
    tracker: TrackerFactory
    reporter: Reporter | None
    use_gpu: bool
    activation_checkpointing: bool


def train_worker(config: dict[str, WorkerJob]) -> dict[str, float] | SostenutoError:
    """Runs `config["job"]` to its last step, from its latest checkpoint if there is one.

    Returns:
        a summary, or what a user has to mend: trying again would not help, so it is a result here and is
        raised by the driver. Other errors are raised, and Ray starts again; so is what one of several workers
        may meet alone, for the others would wait for it.
    """
    job = config["job"]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not job.use_gpu)
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if job.use_gpu else torch.device("cpu")
    tracker = job.tracker() if workers.rank == 0 else NullTracker()
    try:
        summary = _Loop(job, workers, device, tracker).run()
    except SostenutoError as error:
        tracker.close("FAILED")
        if workers.size > 1 and not isinstance(error, TrainingDiverged):
            raise
        return error
    except BaseException:
        tracker.close("FAILED")
        raise
    tracker.close("FINISHED")
    return summary


def make_stage(recipe: Recipe, dataset: str, workers: Workers) -> Stage:
    """The stage a recipe asks for, by the type of its settings."""
    encoder = text_encoder(recipe.text, dataset)
    if isinstance(recipe.stage, DistillConfig):
        pool = {
            "long": ShardDataset(dataset, "long").captions,
            "short": ShardDataset(dataset, "short").captions,
        }
        return DistillStage(recipe, pool, workers, recipe.critic_only, encoder)
    return SupervisedStage(recipe, workers, encoder)


class _Loop:
    def __init__(self, job: WorkerJob, workers: Workers, device: torch.device, tracker: Tracker) -> None:
        self.job, self.workers, self.device, self.tracker = job, workers, device, tracker
        self.config = job.recipe.stage
        self.stage = make_stage(job.recipe, job.dataset, workers)
        self.batches = BatchSource(job.dataset, self.config, job.recipe.seed, workers)
        self.state = self.stage.init(device)
        if job.activation_checkpointing:
            for module in self.state.modules.values():
                checkpoint_blocks(module)
        self.diagnostics: Diagnostics | None = None
        self.held_out: Batch | None = None
        if isinstance(self.stage, SupervisedStage):
            self.held_out = _held_out(job.dataset, self.stage.spec.shape[0], job.recipe, workers, device)
        elif workers.rank == 0:
            self.diagnostics = Diagnostics(job.dataset, device)
        self._resume()
        self._check_teacher()
        self.first_step = self.state.step
        if self.state.step == 0:
            self.state.held_out_start = self._held_out_loss()
        self.began = time.monotonic()

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                load_state(self.state, Path(folder))

    def _check_teacher(self) -> None:
        """The teacher gate, once, before the first step of distillation; a pretrained one never saw SHORT."""
        pretrained = self.job.recipe.model.pretrained is not None
        if self.state.step or pretrained or not isinstance(self.stage, DistillStage):
            return
        rows = ShardDataset(self.job.dataset, "short")
        main = rows.main
        count = min(len(main), 2 * WINDOWS)
        read = rows.read([main[i * len(main) // count] for i in range(count)])
        short = Batch(read.latents.to(self.device), read.captions, range(count))
        with self._precision():
            ratio = check_teacher(
                self.stage.teacher, short, self.job.recipe, self.stage.captions, self.workers
            )
        if ratio is not None and self.workers.rank == 0:
            self.tracker.metrics(0, {"train/teacher_gate_ratio": ratio})

    def _precision(self) -> torch.autocast:
        return half_precision(self.device, self.job.use_gpu)

    def run(self) -> dict[str, float]:
        """Steps until the stage is done; the last state is saved, once: a checkpoint with the name of another
        would make Ray delete both."""
        while self.state.step < self.config.steps:
            began = time.process_time()
            step = self.state.step
            batches = self.batches.at(step, self.device)
            with self._precision():
                result = self.stage.step(self.state, batches, Key(self.job.recipe.seed, step, purpose="step"))
            self.state.cpu_seconds += time.process_time() - began
            self._log(result.metrics)
            if self._last():
                break
            if self.state.step % self.config.checkpoint_every == 0:
                self._save({})
            if self.config.preview_every and self.state.step % self.config.preview_every == 0:
                self._preview()
        summary = self._summary()
        if self.first_step < self.config.steps:
            self._save(summary)
        if self.config.preview_every:
            self._preview()
        return summary

    def _log(self, metrics: dict[str, float]) -> None:
        if self.workers.rank:
            return
        self.tracker.metrics(self.state.step, {f"train/{k}": v for k, v in metrics.items()})
        if self.state.step % self.config.log_every and not self._last():
            return
        extra = self.diagnostics.of(self.state.pool[-1].latents) if self.diagnostics else {}
        extra["data_wait"] = self.batches.waited_s / (time.monotonic() - self.began)
        self.tracker.metrics(self.state.step, {f"train/{k}": v for k, v in extra.items()})
        self._say(metrics | extra)

    def _preview(self) -> None:
        job = self.job
        with self._precision():
            preview(self.state, self.stage, job.recipe, job.dataset, self.workers, self.tracker)

    def _last(self) -> bool:
        return self.state.step == self.config.steps

    def _say(self, values: dict[str, float]) -> None:
        if self.job.reporter is None:
            return
        pace = (time.monotonic() - self.began) / max(1, self.state.step - self.first_step)
        shown = [f"{name} {values[name]:.4g}" for name in _SHOWN if name in values]
        text = ", ".join([*shown, f"{pace:.3f} s/step"])
        self.job.reporter(Progress(self.job.name, self.state.step, self.config.steps, text))

    def _held_out_loss(self) -> float | None:
        model = self.state.modules[self.stage.spec.role]
        if self.held_out is None or not isinstance(self.stage, SupervisedStage):
            return None
        with self._precision():
            return held_out_loss(
                supervised_velocity(model),
                self.held_out,
                self.job.recipe,
                self.stage.captions,
                self.workers,
            )

    def _summary(self) -> dict[str, float]:
        summary = {"steps": float(self.state.step), "cpu_seconds": self.state.cpu_seconds}
        start, last = self.state.held_out_start, self._held_out_loss()
        if last is not None and start is not None:
            summary |= {"held_out_loss_start": start, "held_out_loss": last}
        if self.workers.rank == 0:
            self.tracker.metrics(self.state.step, {f"train/{k}": v for k, v in summary.items()})
        return summary

    def _save(self, metrics: dict[str, float]) -> None:
        """Rank 0 writes, everybody reports; Ray keeps the latest two."""
        if self.workers.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "config.json").write_text(json.dumps(self.job.settings, indent=1))
            save_state(self.state, self.stage.spec, folder)
            report: Callable[..., None] = ray.train.report
            report(
                {"step": float(self.state.step), **metrics},
                checkpoint=Checkpoint.from_directory(name),
                checkpoint_dir_name=f"step-{self.state.step:06d}",
            )


_SHOWN = (
    "loss",
    "flow_matching",
    "reverse_kl",
    "critic_loss",
    "gradient_norm",
    "diversity",
    "sharpness",
    "light_drift",
)


def _held_out(
    dataset: str, frames: int, recipe: Recipe, workers: Workers, device: torch.device
) -> Batch | None:
    """This worker's part of up to 64 windows that training never sees, of the main bucket of the corpus whose
    windows have `frames` frames."""
    name: CorpusName = "short" if frames == recipe.short_shape[0] else "long"
    rows = ShardDataset(dataset, name, split="holdout")
    chosen = rows.main[:HELD_OUT_WINDOWS]
    if not chosen:
        return None
    samples = range(len(chosen))[workers.rank :: workers.size]
    read = rows.read([chosen[sample] for sample in samples])
    return Batch(read.latents.to(device), read.captions, samples)
