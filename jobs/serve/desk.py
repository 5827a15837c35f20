"""What the API answers: requests taken, told about and ended, and the files of their clips."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from fastapi import HTTPException, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.responses import Response

from jobs.config.schema import RunConfig
from jobs.serve.history import History, Job, new_id
from jobs.serve.queue import Make, Queue
from jobs.serve.remake import remake
from jobs.serve.studio import PROGRESS, START
from jobs.serve.uploads import Uploads
from jobs.serve.wanted import SYSTEMS, Clip, Start, Wanted, checkpoints
from models.errors import ConfigError
from pipelines.data.store.info import DatasetInfo
from pipelines.media.video import copy_mp4, read_mp4, write_gif

GIF_PIXELS = 64 << 20
"""Most pixels of a clip that a GIF is made of; they are in memory together."""
FOLLOW_S = 0.1


@dataclass(frozen=True)
class Page:
    """What the page knows of its run."""

    config: RunConfig
    config_file: Path
    """The settings, as `keep_config` has them."""
    info: DatasetInfo
    examples: tuple[str, ...]
    """Captions of LONG."""


class Desk:
    """The endpoints of the API.

    Args:
        page: of the run.
        history: of its requests.
        make: has a replica make clips.
    """

    def __init__(self, page: Page, history: History, make: Make) -> None:
        limits, info = page.config.serve, page.info
        self._page, self._history, self._limits = page, history, limits
        self.queue = Queue(history, make, most=limits.max_replicas, length=limits.queue_length)
        self._uploads = Uploads(
            history.folder / "uploads",
            limits,
            page.config.data.limits,
            (info.height, info.width),
            info.long.fps,
        )
        self._drawing = asyncio.Semaphore(1)

    async def about(self) -> dict[str, Any]:
        """What this server makes, and its limits."""
        config, info, limits = self._page.config, self._page.info, self._limits
        known = checkpoints(config)
        return {
            "name": config.name,
            "systems": [
                {"name": one.name, "title": one.title, "heads": one.heads, "checkpoint": known[one.name]}
                for one in SYSTEMS
                if one.name in known
            ],
            "fps": info.long.fps,
            "height": info.height,
            "width": info.width,
            "trained_seconds": info.long.window_frames / info.long.fps,
            "loops": info.autoencoder["crop_safe"],
            "times": config.sampling.steps,
            "steps": config.sampling.ode_steps,
            "examples": self._page.examples,
            "limits": {
                "seconds": limits.longest_seconds,
                "prompt": limits.prompt_length,
                "bytes": limits.upload_bytes,
                "queue": limits.queue_length,
            },
        }

    async def send(self, request: Request, name: Annotated[str, Query(max_length=300)]) -> dict[str, Any]:
        """Send a video or a picture to go on from, as the body of the request."""
        self._uploads.check_size(int(request.headers.get("content-length", 0)))
        upload, seconds = await self._uploads.receive(request.stream(), name)
        return {"upload": upload, "seconds": seconds}

    async def ask(self, wanted: Wanted) -> dict[str, Any]:
        """Ask for clips: every system makes one of every seed."""
        wanted.check(self._limits, checkpoints(self._page.config))
        self.queue.check_room()
        name = new_id()
        if wanted.start is not None:
            source, frames = self._source(wanted.start)
            await asyncio.to_thread(put_start, source, frames, self._history.files(name))
        return self._view(self.queue.add(wanted.model_dump_json(), name))

    async def jobs(
        self, before: int | None = None, count: Annotated[int, Query(ge=1, le=100)] = 20
    ) -> list[dict[str, Any]]:
        """The newest requests, those before a number where one is given."""
        return [self._view(job) for job in self._history.page(before, count)]

    async def job(self, job: str) -> dict[str, Any]:
        """How a request fares."""
        return self._view(self._found(job))

    async def cancel(self, job: str) -> dict[str, Any]:
        """End a request; its finished clips stay."""
        self.queue.cancel(self._found(job))
        return self._view(self._found(job))

    async def delete(self, job: str) -> None:
        """Forget a request that has ended, with its clips."""
        known = self._found(job)
        if known.state in ("queued", "running"):
            raise HTTPException(409, "the request has not ended. Cancel it first")
        self.queue.delete(known)

    async def file(self, job: str, clip: str, kind: str, download: bool = False) -> Response:
        """A clip as mp4, in ranges, or while it is made; as gif; or the yaml that makes it again."""
        known = self._found(job)
        wanted, folder = wanted_of(known), self._history.files(known.id)
        chosen = next((one for one in wanted.clips if one.name == clip), None)
        if chosen is None or kind not in ("mp4", "gif", "yaml"):
            raise HTTPException(404, "the request has no such clip")
        told, path = read_json(folder / f"{clip}.json"), folder / f"{clip}.{kind}"
        if not told and kind == "mp4" and path.exists():
            return StreamingResponse(follow(path, folder / f"{clip}.json"), media_type="video/mp4")
        if "frames" not in told:
            raise HTTPException(404, told.get("error", "the clip is not there yet"))
        if kind == "yaml":
            start = next(folder.glob(f"{START}.*"), None)
            text = remake(wanted, chosen, self._page.config_file, told["checkpoint"], start)
            named = {"content-disposition": f'attachment; filename="{path.name}"'}
            return PlainTextResponse(text, headers=named, media_type="application/yaml")
        if kind == "gif" and not path.exists():
            if told["frames"] * self._page.info.height * self._page.info.width > GIF_PIXELS:
                raise ConfigError("the clip is too long for a GIF", "Take the MP4")
            async with self._drawing:
                await asyncio.to_thread(make_gif, path, self._page.info.long.fps)
        return FileResponse(path, filename=path.name if download else None)

    def _found(self, name: str) -> Job:
        job = self._history.get(name)
        if job is None:
            raise HTTPException(404, "there is no such request")
        return job

    def _source(self, start: Start) -> tuple[Path, int | None]:
        """The file that clips go on from, and how many of its frames; None is all.

        Raises:
            DataError, ConfigError: it is not there.
        """
        if start.upload is not None:
            return self._uploads.path(start.upload), None
        job = self._found(start.job or "")
        folder = self._history.files(job.id)
        known = start.clip in [clip.name for clip in wanted_of(job).clips]
        made = read_json(folder / f"{start.clip}.json") if known else {}
        if "frames" not in made:
            raise ConfigError("the clip to go on from has not been made", "Choose a finished one")
        frames = made["frames"]
        if start.second is not None:
            frames = max(1, round(start.second * self._page.info.long.fps))
        return folder / f"{start.clip}.mp4", frames if frames < made["frames"] else None

    def _view(self, job: Job) -> dict[str, Any]:
        """A request as JSON."""
        folder, wanted = self._history.files(job.id), wanted_of(job)
        progress = read_json(folder / PROGRESS) if job.state == "running" else {}

        def told(clip: Clip) -> dict[str, Any]:
            own = read_json(folder / f"{clip.name}.json")
            return own or ({"progress": progress} if progress.get("clip") == clip.name else {})

        return {
            "id": job.id,
            "number": job.number,
            "state": job.state,
            "position": self._history.position(job) if job.state == "queued" else None,
            "created": job.created,
            "seconds": job.ended - job.started if job.ended and job.started else None,
            "error": job.error,
            "wanted": wanted.model_dump(mode="json"),
            "clips": [
                {"name": clip.name, "system": clip.system, "seed": clip.seed, **told(clip)}
                for clip in wanted.clips
            ],
        }


def wanted_of(job: Job) -> Wanted:
    return Wanted.model_validate_json(job.wanted)


def read_json(path: Path) -> dict[str, Any]:
    """A small file; empty while it is not there."""
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return value


def put_start(source: Path, frames: int | None, folder: Path) -> None:
    """Give a request its own copy of what it goes on from: of so many frames, or whole."""
    folder.mkdir(parents=True)
    target = folder / f"{START}{source.suffix}"
    if frames is None:
        shutil.copyfile(source, target)
    else:
        copy_mp4(source, target, frames)


def make_gif(path: Path, fps: float) -> None:
    """A GIF beside the MP4 of the same name, unless it is there."""
    if not path.exists():
        write_gif(path, read_mp4(path.with_suffix(".mp4")), fps)


async def follow(path: Path, end: Path) -> AsyncIterator[bytes]:
    """A file that grows, until the file `end` is there or another has taken its place."""
    with path.open("rb") as file:
        while True:
            ended = end.exists() or not _is_at(file, path)
            while chunk := file.read(1 << 16):
                yield chunk
            if ended:
                return
            await asyncio.sleep(FOLLOW_S)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
