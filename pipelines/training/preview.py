"""What a stage makes at this step, as videos beside its numbers."""

import copy
import tempfile
from pathlib import Path

import torch

from models.ddt import Student
from models.dit import DiT
from models.rng import Key
from pipelines.checkpoints import Network, NetworkSpec
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import CorpusName
from pipelines.generation import Method, generate_latents
from pipelines.media.contact_sheet import contact_sheet, video_strip
from pipelines.media.video import write_mp4
from pipelines.tracking import Tracker
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.state import TrainState
from pipelines.training.supervised import Recipe, Stage

VIDEOS = 4
"""Captions that are shown."""
COLUMNS = 8
EULER_STEPS = 25


def preview(
    state: TrainState, stage: Stage, recipe: Recipe, dataset: str, workers: Workers, tracker: Tracker
) -> None:
    """Samples a few videos with the averaged weights, always the same captions and noise, and files them.

    The workers share the sampling, a video at a time; the first decodes and files them.

    Args:
        state: the stage's state; it is not changed.
        stage, recipe: what is sampled, and how.
        dataset: folder of the dataset: captions, frame rate and autoencoder.
        workers: this worker's place.
        tracker: gets MP4s and a contact sheet under `preview/step-...`.
    """
    spec = stage.spec
    model = copy.deepcopy(state.modules[spec.role]).eval()
    state.averages[spec.role].copy_to(model)
    assert isinstance(model, DiT | Student)
    device = next(model.parameters()).device
    corpus: CorpusName = "short" if spec.role == "teacher" else "long"
    captions = sorted(set(ShardDataset(dataset, corpus).captions))[:: max(1, VIDEOS)][:VIDEOS]
    own = [workers.rank + i * workers.size for i in range(-(-len(captions) // workers.size))]
    made = [
        generate_latents(
            Network(model, spec),
            _method(spec, recipe),
            spec.shape,
            stage.captions.encode([captions[sample % len(captions)]], device),
            Key(recipe.seed, purpose="preview"),
            [sample],
            sampling=recipe.sampling,
            flow=recipe.flow,
        )
        for sample in own
    ]
    latents = torch.cat([workers.gather(video) for video in made])[: len(captions)]
    if workers.rank:
        return
    autoencoder = dataset_autoencoder(dataset, device)
    frames = torch.cat([autoencoder.decode(video[None]) for video in latents.cpu()]).numpy()
    fps, folder = read_info(dataset).corpus(corpus).fps, f"preview/step-{state.step:06d}"
    with tempfile.TemporaryDirectory() as name:
        for index, video in enumerate(frames):
            write_mp4(Path(name) / f"{index}.mp4", iter(video), fps)
        strips = [video_strip(video, text, COLUMNS) for text, video in zip(captions, frames, strict=True)]
        contact_sheet(f"{spec.role}, step {state.step}", strips).save(Path(name) / "sheet.png")
        for path in sorted(Path(name).iterdir()):
            tracker.artifact(str(path), folder)


def _method(spec: NetworkSpec, recipe: Recipe) -> Method:
    if spec.role == "teacher":
        return Method("teacher", "ode", EULER_STEPS)
    if isinstance(recipe.stage, DistillConfig):
        return Method("dm", "few_step", len(recipe.sampling.steps))
    return Method("fm", "ode", EULER_STEPS)
