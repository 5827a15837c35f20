"""Preview videos of a stage that trains."""

import copy

import torch

from models.ddt import Student
from models.dit import DiT
from models.rng import Key
from pipelines.checkpoints import Network
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import CorpusName
from pipelines.generation import Method, generate_latents
from pipelines.media.contact_sheet import contact_sheet, video_strip
from pipelines.media.video import write_mp4
from pipelines.storage import temporary_folder
from pipelines.tracking import Tracker
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Stage
from pipelines.training.state import TrainState

PREVIEW_VIDEOS = 4
PREVIEW_COLUMNS = 8
PREVIEW_EULER_STEPS = 25


def preview(state: TrainState, stage: Stage, recipe: Recipe, workers: Workers, tracker: Tracker) -> None:
    """Samples a few videos with the averaged weights, always the same captions and noise, and files them.

    The workers share the sampling, a video at a time; the first decodes, and files MP4s and a contact sheet
    under `preview/step-...`. The state is not changed.
    """
    spec = stage.spec
    model = copy.deepcopy(state.modules[spec.role]).eval()
    state.averages[spec.role].copy_to(model)
    assert isinstance(model, DiT | Student)
    device = next(model.parameters()).device
    corpus: CorpusName = "short" if spec.role == "teacher" else "long"
    captions = sorted(set(ShardDataset(recipe.dataset, corpus).captions))[::PREVIEW_VIDEOS][:PREVIEW_VIDEOS]
    if spec.role == "teacher":
        method = Method("teacher", "ode", PREVIEW_EULER_STEPS)
    elif isinstance(recipe.stage, DistillConfig):
        method = Method("dm", "few_step", len(recipe.sampling.steps))
    else:
        method = Method("fm", "ode", PREVIEW_EULER_STEPS)
    own = [workers.rank + i * workers.size for i in range(-(-len(captions) // workers.size))]
    made = [
        generate_latents(
            Network(model, spec),
            method,
            spec.shape,
            stage.captions.encode([captions[sample % len(captions)]], device),
            Key(recipe.seed, purpose="preview"),
            [sample],
            sampling=recipe.sampling,
            flow=recipe.flow,
        )
        for sample in own
    ]
    latents = torch.cat([workers.gather(video, workers.size) for video in made])[: len(captions)]
    if workers.rank:
        return
    autoencoder = dataset_autoencoder(recipe.dataset, device)
    frames = torch.cat([autoencoder.decode(video[None]) for video in latents.cpu()]).numpy()
    fps = read_info(recipe.dataset).corpus(corpus).fps
    with temporary_folder() as folder:
        for index, video in enumerate(frames):
            write_mp4(folder / f"{index}.mp4", iter(video), fps)
        strips = [video_strip(video, c, PREVIEW_COLUMNS) for c, video in zip(captions, frames, strict=True)]
        contact_sheet(f"{spec.role}, step {state.step}", strips).save(folder / "sheet.png")
        for path in sorted(folder.iterdir()):
            tracker.artifact(str(path), f"preview/step-{state.step:06d}")
