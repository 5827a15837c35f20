"""Videos by which a stage is judged: averaged weights, the sampler of inference, fixed captions and noise."""

import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.rng import Key
from pipelines.checkpoints import Network
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.types import CorpusName
from pipelines.generation import Method, generate_latents
from pipelines.training.batches import HELD_OUT_WINDOWS, fixed_batch
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.distill import DistillStage
from pipelines.training.monitors.critic_gap import critic_gap
from pipelines.training.monitors.diagnostics import Diagnostics
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Batch, Stage
from pipelines.training.state import TrainState
from pipelines.training.supervised import held_out_loss, supervised_velocity

VIDEOS = 4
EULER_STEPS = 25
LAYOUTS = 16
"""LONG windows of the training part on which distillation watches its flow-matching loss."""


class Watch:
    """What is measured on a stage's averaged weights.

    Args:
        stage, recipe: what is trained.
        workers: they share the work; every one has to call every method.
        device: of the stage.
    """

    def __init__(self, stage: Stage, recipe: Recipe, workers: Workers, device: torch.device) -> None:
        self.stage, self.recipe, self.workers, self.device = stage, recipe, workers, device
        self.corpus: CorpusName = "short" if stage.spec.role == "teacher" else "long"
        captions = sorted(set(ShardDataset(recipe.dataset, self.corpus).captions))
        self.captions = [captions[i * len(captions) // VIDEOS] for i in range(VIDEOS)]
        self.held_out: Batch | None = None
        self.layouts: Batch | None = None
        if isinstance(recipe.stage, DistillConfig):
            self.layouts = fixed_batch(recipe, "long", "train", LAYOUTS, workers, device)
        else:
            self.held_out = fixed_batch(recipe, self.corpus, "holdout", HELD_OUT_WINDOWS, workers, device)
        self.diagnostics = Diagnostics(recipe.dataset, self.corpus, device) if workers.place == 0 else None

    def videos(self, state: TrainState) -> Tensor:
        """Latents [VIDEOS, T, C, h, w] on every worker; as many at once as a step trains on."""
        spec, workers, recipe = self.stage.spec, self.workers, self.recipe
        model = state.modules[spec.role]
        assert isinstance(model, DiT | Student)
        if spec.role == "teacher":
            method = Method("teacher", "ode", EULER_STEPS)
        elif isinstance(recipe.stage, DistillConfig):
            method = Method("dm", "few_step", len(recipe.sampling.steps))
        else:
            method = Method("fm", "ode", EULER_STEPS)
        total = workers.even(VIDEOS)  # a worker without a video of its own makes one that is not used
        own = torch.tensor(workers.share(total)) % VIDEOS
        with state.averages[spec.role].standing_in(model):
            made = [
                generate_latents(
                    Network(model, spec),
                    method,
                    spec.shape,
                    self.stage.captions.encode([self.captions[i] for i in samples], self.device),
                    Key(recipe.seed, purpose="preview"),
                    samples,
                    sampling=recipe.sampling,
                    flow=recipe.flow,
                )
                for samples in (part.tolist() for part in own.split(recipe.stage.at_once(workers.size)))
            ]
        return workers.gather(torch.cat(made), total)[:VIDEOS]

    def of(self, state: TrainState, videos: Tensor) -> dict[str, float]:
        """Their measures, on rank 0 alone, and the losses on fixed windows."""
        looks = self.diagnostics.of(videos) if self.diagnostics is not None else {}
        return looks | self.losses(state)

    def short(self) -> dict[str, float]:
        """What SHORT measures beside LONG, as `short_<name>`, on rank 0 of a student's stage."""
        measured = self.diagnostics.short if self.diagnostics is not None else {}
        return {f"short_{name}": value for name, value in measured.items()}

    def losses(self, state: TrainState) -> dict[str, float]:
        """Flow-matching losses of the averaged weights, with the same windows and noise at every call.

        `held_out_loss`: of a supervised stage, on windows that training never sees, where there are any.
        `layout_loss`: of the FM head in distillation, on some LONG windows.
        `critic_gap_exit_K`: see critic_gap.py.
        """
        role = self.stage.spec.role
        model, found = state.modules[role], {}
        with state.averages[role].standing_in(model):
            for name, batch in (("held_out_loss", self.held_out), ("layout_loss", self.layouts)):
                if batch is not None:
                    velocity = supervised_velocity(model)
                    found[name] = held_out_loss(
                        velocity, batch, self.recipe, self.stage.captions, self.workers
                    )
            if isinstance(self.stage, DistillStage):
                found |= critic_gap(self.stage, state, self.captions)
        return found
