"""What a replica of Ray Serve runs: it holds networks and makes the clips of a request, into files.

How far it is, is a file too; so is the wish to end it. A clip is finished when its JSON is there: a replica
that takes a request up again makes the others only.
"""

import json
import logging
import os
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from jobs.config.load import from_json
from jobs.config.paths import RunPaths
from jobs.config.systems import method_of
from jobs.serve.history import CANCEL
from jobs.serve.wanted import Clip, Wanted, checkpoints
from models.device import compute_device
from models.errors import SostenutoError
from models.rng import Key
from pipelines.checkpoints import load_network
from pipelines.creation import Maker, Request, read_start
from pipelines.data.store.caption_embeddings import embed_captions, text_encoder
from pipelines.data.store.info import dataset_autoencoder, read_info
from pipelines.media.color import Frames
from pipelines.media.video import StreamedMp4

PROGRESS, START = "progress.json", "start"
"""Files of a request: how far it is, and (with a suffix) what its clips go on from."""
TOLD_EVERY_S = 0.1
Outcome = tuple[Literal["done", "failed", "cancelled"], str]
"""How a request ended, and why it failed."""
log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Somebody wants the request to end."""


class Studio:
    """Makes clips.

    Args:
        settings: the run's, as JSON.

    Raises:
        DataError, CheckpointError, ConfigError: the run has no dataset, or no GPU is there.
    """

    def __init__(self, settings: str) -> None:
        self._config = from_json(settings)
        paths = RunPaths.of(self._config)
        self._dataset, self._jobs = paths.dataset, Path(paths.serve) / "jobs"
        self._device = compute_device(self._config.cluster.use_gpu)
        if self._device.type == "cpu":
            torch.set_num_threads(1)
        self._info = read_info(self._dataset)
        self._autoencoder = dataset_autoencoder(self._dataset, self._device)
        self._network = lru_cache(self._config.serve.networks)(partial(load_network, device=self._device))

    def make(self, job: str, asked: str) -> Outcome:
        """Make the clips of a request that are not there yet; one that cannot be made has its reason instead.

        Args:
            job: its id.
            asked: the Wanted, as JSON.
        """
        folder, wanted = self._jobs / job, Wanted.model_validate_json(asked)
        try:
            begins = self._start(folder)
        except SostenutoError as error:
            return "failed", str(error)
        errors = []
        for clip in wanted.clips:
            file = folder / f"{clip.name}.json"
            if not file.exists():
                try:
                    told = self._make_clip(folder, wanted, clip, begins)
                except Cancelled:
                    (folder / f"{clip.name}.mp4").unlink(missing_ok=True)
                    return "cancelled", ""
                except Exception as error:
                    log.exception("clip %s of request %s", clip.name, job)
                    (folder / f"{clip.name}.mp4").unlink(missing_ok=True)
                    told = {"error": _reason(error)}
                write_json(file, told)
            errors.append(json.loads(file.read_text()).get("error"))
        (folder / PROGRESS).unlink(missing_ok=True)
        return ("done", "") if None in errors else ("failed", errors[0])

    def _start(self, folder: Path) -> Frames | None:
        """What the clips of a request go on from."""
        found = next(folder.glob(f"{START}.*"), None)
        size = self._info.height, self._info.width
        if found is None:
            return None
        return read_start(found, self._config.data.limits, size, self._info.long.fps)

    def _make_clip(self, folder: Path, wanted: Wanted, clip: Clip, begins: Frames | None) -> dict[str, Any]:
        """What there is to know about a clip that is made now."""
        began, checkpoint = time.monotonic(), checkpoints(self._config)[clip.system]
        network, fps = self._network(checkpoint), self._info.long.fps
        text, first = network.spec.text, wanted.timeline[0].caption
        method, sampling = method_of(self._config, network.spec, clip.head, clip.steps, clip.times)
        embed_captions(
            text, self._dataset, [line.caption for line in wanted.timeline], device=self._device.type
        )
        encoder = text_encoder(text, self._dataset)
        maker = Maker(network, method, self._autoencoder, encoder, sampling, fps)
        request = Request(
            frames=max(1, round(wanted.seconds * fps)), begins=begins, loops=wanted.loop, cues=wanted.cues
        )
        maker.check(request)
        window = network.spec.shape[0]
        latents = maker.latents(request.frames) if method.sampler == "windows" else window
        watch = Watch(
            folder,
            clip.name,
            request.frames,
            method.evaluations(latents, window, sampling.guidance_scale),
        )
        # every network evaluation passes through the encoder once
        hook = network.model.encoder.register_forward_pre_hook(watch.evaluated)
        try:
            file = StreamedMp4(folder / f"{clip.name}.mp4", fps)
            for piece in maker.create(request, [first], Key(clip.seed, purpose="sample"), [0]):
                file.add(piece[0])
                watch.added(piece.shape[1])
            file.finish()
        finally:
            hook.remove()
        return {
            "latency": round(time.monotonic() - began, 3),
            "evaluations": watch.evaluations,
            "frames": request.frames,
            "checkpoint": checkpoint,
        }


class Watch:
    """Tells how far a clip is, and ends it when somebody wants that.

    Args:
        folder: of the request.
        clip, frames: name of the clip, and how many frames it is to have.
        expected: network evaluations of a piece, before captions that change within it.
    """

    def __init__(self, folder: Path, clip: str, frames: int, expected: int) -> None:
        self._folder, self._clip, self._of, self._expected = folder, clip, frames, expected
        self._frames = self._step = 0
        self.evaluations, self._last = 0, 0.0
        self._tell()

    def evaluated(self, *_: object) -> None:
        """The network is evaluated.

        Raises:
            Cancelled: it need not be.
        """
        if (self._folder / CANCEL).exists():
            raise Cancelled
        self.evaluations, self._step = self.evaluations + 1, self._step + 1
        if time.monotonic() - self._last >= TOLD_EVERY_S:
            self._tell()

    def added(self, frames: int) -> None:
        """So many more frames are in the file."""
        self._frames, self._step = self._frames + frames, 0
        self._tell()

    def _tell(self) -> None:
        self._last = time.monotonic()
        told = {"clip": self._clip, "frames": self._frames, "of": self._of, "step": self._step}
        write_json(self._folder / PROGRESS, told | {"steps": self._expected})


def write_json(path: Path, value: object) -> None:
    """Write a small file that no reader sees unfinished."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(json.dumps(value))
    os.replace(aside, path)


def _reason(error: Exception) -> str:
    """Why a clip could not be made, for who asked for it."""
    if isinstance(error, SostenutoError):
        return str(error)
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "the GPU's memory does not hold it. Ask for a shorter clip"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
