"""What people watch while a stage trains: preview videos, diagnostics of its rollouts, a progress line."""

import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from models.ddt import Student
from models.dit import DiT
from models.rng import Key
from pipelines.checkpoints import Network
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.data.types import CorpusName
from pipelines.generation import Method, generate_latents
from pipelines.media.color import BT601
from pipelines.media.contact_sheet import contact_sheet, video_strip
from pipelines.media.video import write_mp4
from pipelines.storage import temporary_folder
from pipelines.tracking import Progress, Tracker
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig
from pipelines.training.recipes import Recipe
from pipelines.training.stage import Stage
from pipelines.training.state import TrainState

PREVIEW_VIDEOS = 4
PREVIEW_COLUMNS = 8
PREVIEW_EULER_STEPS = 25

DIAGNOSED_VIDEOS = 8
EDGE = 8
"""The first and the last 1/8 of a video's latents are looked at."""
LUMA = torch.tensor(BT601)

POLL_S = 0.5


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
    latents = torch.cat([workers.gather(video) for video in made])[: len(captions)]
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


class Diagnostics:
    """How a distillation goes wrong: diversity falls, sharpness overshoots, light drifts too far.

    Args:
        dataset: folder of an ingested dataset; its autoencoder decodes the frames that are looked at, and
            its main bucket of LONG is what they are compared with.
        device: where a neural autoencoder works.
    """

    def __init__(self, dataset: str, device: torch.device) -> None:
        self.autoencoder = dataset_autoencoder(dataset, device)
        rows = ShardDataset(dataset, "long")
        chosen = rows.main[: 4 * DIAGNOSED_VIDEOS]
        self.reference = self._measure(rows.read(chosen).latents) if chosen else {}

    def of(self, latents: Tensor) -> dict[str, float]:
        """Measures latents [B, T, C, h, w]; every value is divided by LONG's own where that is not 0.

        `diversity`: rms distance of the videos' mean latents. `sharpness`: mean absolute difference of
        neighbouring pixels. `light_drift`: mean luma of the last eighth of the frames minus the first's.
        """
        own = self._measure(latents.detach().float().cpu())
        return {
            name: value / self.reference[name] if abs(self.reference.get(name, 0)) > 1e-6 else value
            for name, value in own.items()
        }

    def _measure(self, latents: Tensor) -> dict[str, float]:
        ends = map(self._ends, latents[:DIAGNOSED_VIDEOS])
        first, last = (torch.stack(end) for end in zip(*ends, strict=True))
        luma = torch.cat([first, last], dim=1)
        means = latents.mean(dim=1).flatten(1)
        return {
            "diversity": float((means - means.mean(dim=0)).square().mean().sqrt()),
            "sharpness": float(luma.diff(dim=-1).abs().mean() + luma.diff(dim=-2).abs().mean()),
            "light_drift": float(last.mean() - first.mean()),
        }

    def _ends(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Luma [F, H, W] of the first and the last eighth of one video's latents [T, C, h, w].

        A causal autoencoder needs a latent before those it decodes: that one's frame is left out.
        """
        edge = max(1, len(latents) // EDGE)
        before = 0 if self.autoencoder.crop_safe else min(1, len(latents) - edge)
        ends = latents[:edge], latents[len(latents) - edge - before :]
        first, last = (self.autoencoder.decode(end[None])[0].float() / 255 @ LUMA for end in ends)
        return first, last[before:]


@ray.remote(num_cpus=0)
class _Board:
    """An actor with the newest progress of every task, and all warnings."""

    def __init__(self) -> None:
        self._newest: dict[str, tuple[int, int, str]] = {}
        self._warnings: list[str] = []

    def update(self, task: str, done: int, total: int, note: str) -> None:
        self._newest[task] = (done, total, note)

    def warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.append(text)

    def read(self) -> tuple[dict[str, tuple[int, int, str]], list[str]]:
        return self._newest, self._warnings


@dataclass(frozen=True)
class BoardProgress:
    """A `Progress` for every process of the cluster: it sends to a board and does not wait."""

    board: Any

    def __call__(self, task: str, done: int, total: int, note: str = "", /) -> None:
        self.board.update.remote(task, done, total, note)


class _ToBoard(logging.Handler):
    """Sends warnings to a board, and waits until they are there: a worker may end right after."""

    def __init__(self, board: Any) -> None:
        super().__init__(logging.WARNING)
        self._board = board

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(self._board.warn.remote(record.getMessage()), timeout=POLL_S)


@contextmanager
def relayed_warnings(progress: Progress | None) -> Iterator[None]:
    """What this process's `sostenuto` loggers warn of is said by the process that watches the board, once."""
    if not isinstance(progress, BoardProgress):
        yield
        return
    log, handler = logging.getLogger("sostenuto"), _ToBoard(progress.board)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


@contextmanager
def progress_board(progress: Progress) -> Iterator[BoardProgress]:
    """Shows by `progress` what other processes report to the board, and repeats what they warn of, for the
    length of a `with` block."""
    board: Any = _Board.remote()  # type: ignore[attr-defined]
    stop = threading.Event()
    shown: dict[str, int] = {}
    said: list[str] = []

    def show() -> None:
        newest, warnings = ray.get(board.read.remote())
        for task, (done, total, note) in newest.items():
            if shown.get(task) != done:
                shown[task] = done
                progress(task, done, total, note)
        for text in warnings[len(said) :]:
            said.append(text)
            logging.getLogger("sostenuto").warning(text)

    def watch() -> None:
        while not stop.wait(POLL_S):
            show()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield BoardProgress(board)
    finally:
        stop.set()
        watcher.join()
        show()
        ray.kill(board)
