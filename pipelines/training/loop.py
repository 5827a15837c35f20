"""The loop of a Ray Train worker: data, checkpoints, previews and tracking around a pure stage."""

import time
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from models.blocks import checkpoint_blocks
from models.device import half_precision
from models.errors import ClusterError, SostenutoError, TrainingDiverged
from models.rng import Key
from pipelines.context import Exchanges, FrameGroup
from pipelines.data.store.caption_embeddings import text_encoder
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.store.rows import noted_ids
from pipelines.storage import Storage
from pipelines.tracking import NullTracker, Progress, RunStatus, Tracker
from pipelines.training.batches import BatchSource, caption_pool
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distill import DistillStage
from pipelines.training.lineage import DIVERGED_FILE, ROWS_FILE, explain_divergence
from pipelines.training.monitors.board import relayed_warnings
from pipelines.training.monitors.critic_gap import remember_gaps
from pipelines.training.monitors.log import Log
from pipelines.training.monitors.phases import Phases, Plan
from pipelines.training.monitors.preview import preview
from pipelines.training.monitors.watch import Watch
from pipelines.training.recipes import Recipe
from pipelines.training.sharding import Shards
from pipelines.training.stage import Batch, Stage
from pipelines.training.state import load_state
from pipelines.training.supervised import SupervisedStage
from pipelines.training.survival.keeper import Keeper
from pipelines.training.survival.pulse import Pulse
from pipelines.training.teacher_gate import WINDOWS, check_teacher


def train_worker(given: dict[str, Any]) -> dict[str, float] | SostenutoError:
    """Runs a recipe to its last step, from its latest checkpoint if there is one.

    Args:
        given: `recipe`; `tracker` opens the tracker on rank 0; `progress` or None; `plan` or None; `guard`,
            the actor that knows what workers do.

    Returns:
        a summary, or what a user has to mend: trying again would not help, so it is a result here and is
        raised by the driver. Other errors are raised, and Ray starts again: what may pass, such as a store
        that fails, and what one of several workers may meet alone, for the others would wait for it.
    """
    recipe: Recipe = given["recipe"]
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(not recipe.cluster.use_gpu)
    if recipe.cluster.use_gpu:
        torch.cuda.set_device(ray.train.torch.get_device())
    context = ray.train.get_context()
    workers = placed(recipe, context.get_world_rank(), context.get_world_size())
    with relayed_warnings(given["progress"]), Pulse(given["guard"], workers) as pulse:
        tracker: Tracker = NullTracker() if workers.place else given["tracker"]()
        try:
            result = _Loop(recipe, workers, tracker, given["progress"], given["plan"], pulse).run()
        except SostenutoError as error:
            tracker.close("FAILED")
            alone = workers.count > 1 and not isinstance(error, TrainingDiverged)
            if alone or type(error) is ClusterError:
                raise
            return error
        except BaseException:
            tracker.close("FAILED")
            raise
        failed: RunStatus = "KILLED" if pulse.stop else "FAILED"
        tracker.close(failed if isinstance(result, SostenutoError) else "FINISHED")
        return result


def placed(recipe: Recipe, rank: int, size: int) -> Workers:
    """A worker's place: neighbours share the frames of a student's clips, `cluster.context_parallel` at a
    time, and weights, all workers or `cluster.shard_group` at a time."""
    cluster, exchanges = recipe.cluster, Exchanges()
    kind = "cuda" if cluster.use_gpu else "cpu"
    alike = cluster.context_parallel if recipe.start else 1
    context, shards, peers = None, None, None
    if alike > 1:
        mesh = init_device_mesh(kind, (size // alike, alike), mesh_dim_names=("data", "context"))
        context = FrameGroup(rank % alike, alike, mesh.get_group("context"), exchanges)
        peers = mesh.get_group("data")
    if cluster.shard != "none":
        group = size if cluster.shard == "full" else cluster.shard_group
        mesh = init_device_mesh(kind, (size // group, group), mesh_dim_names=("copies", "shards"))
        shards = Shards(mesh if cluster.shard == "hybrid" else mesh["shards"], exchanges)
    return Workers(rank // alike, size // alike, context, exchanges, shards, peers)


def make_stage(
    recipe: Recipe, workers: Workers, only: Mapping[str, Collection[str]], device: torch.device
) -> Stage:
    """The stage a recipe asks for, by the type of its settings; `only` is as in `BatchSource`."""
    encoder = text_encoder(recipe.text, recipe.dataset)
    if isinstance(recipe.stage, DistillConfig):
        reencoded = recipe.stage.first_latent == "reencoded" and not recipe.crop_safe
        autoencoder = dataset_autoencoder(recipe.dataset, device) if reencoded else None
        pool = caption_pool(recipe.stage, recipe.dataset, only)
        return DistillStage(recipe, pool, workers, encoder, autoencoder)
    return SupervisedStage(recipe, workers, encoder)


class _Loop:
    """One worker's stage with everything that it runs on."""

    def __init__(
        self,
        recipe: Recipe,
        workers: Workers,
        tracker: Tracker,
        progress: Progress | None,
        plan: Plan | None,
        pulse: Pulse,
    ) -> None:
        self.recipe, self.workers, self.tracker, self.progress = recipe, workers, tracker, progress
        self.plan, self.pulse = plan, pulse
        self.config, on_gpu = recipe.stage, recipe.cluster.use_gpu
        self.device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
        only = noted_ids(Storage(recipe.root), f"{recipe.name}/{ROWS_FILE}")
        self.stage = make_stage(recipe, workers, only, self.device)
        self.batches = BatchSource(recipe.dataset, self.config, recipe.seed, workers, only)
        self.state = self.stage.init(self.device)
        for module in self.state.modules.values():
            checkpoint_blocks(module, recipe.cluster.activation_checkpointing)
        self.watch = Watch(self.stage, recipe, workers, self.device)
        self.phases = self.stage.phases = Phases(self.device)
        self.log: Log | None = None

    def run(self) -> dict[str, float] | SostenutoError:
        """Resumes, steps until the stage is done, and saves; its summary, or why it ended before."""
        state = self.state
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                load_state(state, Path(folder))
            if self.progress is not None and self.workers.place == 0:
                self.progress(self.recipe.name, state.step, self.config.steps, "goes on from its checkpoint")
        if self.workers.place == 0:
            self.log = Log(
                self.recipe,
                self.workers.count,
                self.phases,
                self.plan,
                self.tracker,
                self.progress,
                state.step,
            )
        place = self.workers, self.device, self.pulse, self.tracker
        with closing(Keeper(self.recipe, self.stage.spec, state.step, *place)) as keeper:
            return self._train(keeper)

    def _train(self, keeper: Keeper) -> dict[str, float] | SostenutoError:
        state, config = self.state, self.config
        if state.step == 0:
            self._judge_start()
        videos: Tensor | None = None
        measured: dict[str, float] | None = None
        self.phases.lap()
        while state.step < config.steps:
            if state.step in config.skip_steps:
                state.step, metrics = state.step + 1, {}
            else:
                metrics = self._step()
            shown = config.is_shown(state.step)
            videos = self._videos() if shown or config.is_watched(state.step) else None
            measured = None if videos is None else self._measured(videos)
            self.phases.begin("log")
            if self.log is not None:
                self.log.add(state.step, metrics, measured or {}, keeper.note)
                self.pulse.stop |= self.log.unwell is not None
            self.phases.begin("checkpoint")
            if state.step == config.steps:
                break
            if ended := keeper.between_steps(state, measured, self._losses):
                return self._unwell() or ended
            if shown and videos is not None:
                self._preview(videos)
        summary = self._summary(measured)
        if refused := keeper.save(state, summary) or keeper.settle():
            return refused
        if config.preview_every:
            self._preview(self._videos() if videos is None else videos)
        return summary

    def _step(self) -> dict[str, float]:
        """A step of the stage, timed; its metrics.

        Raises:
            TrainingDiverged: names the step and its windows, which rank 0 writes beside the checkpoints.
        """
        state = self.state
        step, began = state.step, time.process_time()
        try:
            with self.pulse.step(step):
                self.phases.begin("data")
                batches = self.batches.at(step, self.device)
                with self._precision():
                    result = self.stage.step(state, batches, Key(self.recipe.seed, step, purpose="step"))
        except TrainingDiverged as error:
            windows = self.batches.ids(step)
            if self.workers.place == 0:
                told = {"step": step, "problem": error.problem, "windows": windows}
                Storage(self.recipe.root).write_json(f"{self.recipe.name}/{DIVERGED_FILE}", told)
            raise explain_divergence(error, self.recipe, step, windows) from error
        state.cpu_seconds += time.process_time() - began
        return result.metrics

    def _judge_start(self) -> None:
        """What the stage starts from: the teacher gate, and the student before its first step."""
        found = self._check_teacher() | self.watch.short()
        found |= self._measured(self._videos()) if self.config.watch_every else self._losses()
        self.state.held_out_start = found.get("held_out_loss")
        if self.log is not None:
            self.log.add(0, {}, found)

    def _unwell(self) -> SostenutoError | None:
        """What `stop_on` has ended the stage for, on the first worker."""
        if self.log is None or self.log.unwell is None:
            return None
        verdict, step = self.log.unwell, self.state.step
        problem = f"{self.recipe.name} has stopped after step {step}, for it is not well: {verdict.sentence}"
        return SostenutoError(problem, f"{verdict.remedy}. Without {verdict.name} in stop_on it goes on")

    def _precision(self) -> torch.autocast:
        return half_precision(self.device, self.recipe.cluster.use_gpu)

    def _check_teacher(self) -> dict[str, float]:
        """The teacher gate before distillation; a pretrained teacher is let through: it never saw SHORT."""
        if not isinstance(self.stage, DistillStage) or self.recipe.model.pretrained is not None:
            return {}
        rows = ShardDataset(self.recipe.dataset, "short")
        main = rows.main
        count = min(len(main), 2 * WINDOWS)
        read = rows.read([main[i * len(main) // count] for i in range(count)])
        short = Batch(read.latents.to(self.device), read.captions, range(count), count)
        with self._precision():
            ratio = check_teacher(self.stage.teacher, short, self.recipe, self.stage.captions, self.workers)
        return {} if ratio is None else {"teacher_gate_ratio": ratio}

    def _videos(self) -> Tensor:
        self.phases.begin("watch")
        with self._precision():
            return self.watch.videos(self.state)

    def _measured(self, videos: Tensor) -> dict[str, float]:
        with self._precision():
            found = self.watch.of(self.state, videos)
        remember_gaps(self.state, found)
        return found

    def _losses(self) -> dict[str, float]:
        with self._precision():
            return self.watch.losses(self.state)

    def _preview(self, videos: Tensor) -> None:
        self.phases.begin("preview")
        if self.workers.place == 0:
            watch = self.watch
            preview(videos, watch.captions, self.recipe.dataset, watch.corpus, self.state.step, self.tracker)

    def _summary(self, measured: dict[str, float] | None) -> dict[str, float]:
        """Of the stage; `measured` after its last step, if anything was."""
        summary = {"steps": float(self.state.step), "cpu_seconds": self.state.cpu_seconds}
        if (start := self.state.held_out_start) is not None:
            last = self._losses() if measured is None else measured
            summary |= {"held_out_loss_start": start, "held_out_loss": last["held_out_loss"]}
        self.tracker.metrics(self.state.step, {f"train/{name}": value for name, value in summary.items()})
        return summary
