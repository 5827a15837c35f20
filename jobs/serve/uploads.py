"""Files that people send to go on from: written as they come, cut off at the limit, and looked at."""

import asyncio
import dataclasses
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from jobs.config.schema import ServeConfig
from models.errors import DataError
from pipelines.creation import stream_start
from pipelines.data.config import LimitsConfig

STILLS = (".png", ".jpg", ".jpeg", ".webp")
KEPT = 64
"""The files that came last; those that requests go on from have copies of their own."""
SILENCE_S = 30.0
MEMORY_BYTES = 2 << 30


class TooLarge(DataError):
    """More bytes than a file may have."""


class Uploads:
    """A folder of files that were sent, each under the sha256 of its bytes.

    Args:
        folder: made if it is not there.
        limits: of the server.
        decode: of the run's decoder, which the server's limits narrow.
        size, fps: height and width of frames, and their rate.
    """

    def __init__(
        self, folder: Path, limits: ServeConfig, decode: LimitsConfig, size: tuple[int, int], fps: float
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limits, self._size, self._fps = folder, limits, size, fps
        self._decode = dataclasses.replace(
            decode,
            max_bytes=limits.upload_bytes,
            max_pixels=min(decode.max_pixels, limits.upload_pixels),
            max_seconds=min(decode.max_seconds, limits.longest_seconds),
            timeout_s=min(decode.timeout_s, SILENCE_S),
            memory_bytes=min(decode.memory_bytes, MEMORY_BYTES),
        )
        self._looking = asyncio.Semaphore(2)

    def path(self, name: str) -> Path:
        """Of a file that was sent.

        Raises:
            DataError: it is not there, or not any more.
        """
        path = self._folder / name
        if not path.is_file():
            raise DataError("the file to go on from is not here any more", "Send it again")
        return path

    def check_size(self, size: int) -> None:
        """Raises TooLarge for a file of so many bytes, if they are too many."""
        if size > self._limits.upload_bytes:
            most = f"{self._limits.upload_bytes} bytes, which serve.upload_bytes allows"
            raise TooLarge(f"the file has more than {most}", "Send a shorter or smaller one")

    async def receive(self, chunks: AsyncIterator[bytes], called: str) -> tuple[str, float]:
        """Write a file and look at it.

        Args:
            chunks: its bytes.
            called: its name; only what it ends with counts.

        Returns:
            The name to ask for it by, and its seconds.

        Raises:
            TooLarge: it is longer than the limit; what came after that was not read.
            DataError: it cannot be read as a video or a picture, or is too long.
        """
        ending = Path(called).suffix.lower()
        sha256, size = hashlib.sha256(), 0
        aside = self._folder / f"{secrets.token_hex(8)}.part"
        try:
            with aside.open("wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    self.check_size(size)
                    sha256.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            name = f"{sha256.hexdigest()[:16]}{ending if ending in STILLS else '.mp4'}"
            aside.rename(self._folder / name)
        finally:
            aside.unlink(missing_ok=True)
        try:
            async with self._looking:
                frames = await asyncio.to_thread(self._look, self._folder / name)
        except DataError as error:
            (self._folder / name).unlink(missing_ok=True)
            problem = error.problem.replace(str(self._folder / name), "the file")
            raise DataError(problem, error.remedy) from error
        self._forget()
        return name, frames / self._fps

    def _look(self, path: Path) -> int:
        """How many frames a file has."""
        return sum(len(frames) for frames in stream_start(path, self._decode, self._size, self._fps))

    def _forget(self) -> None:
        files = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[KEPT:]:
            path.unlink(missing_ok=True)
