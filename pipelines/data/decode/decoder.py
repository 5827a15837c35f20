"""Decoding behind a fence: a worker process reads the untrusted bytes, this side sees frames or a reason.

The worker lives across videos (a start costs 0.3 s) and is replaced when it dies, falls silent or is left in
the middle of a video. What it may ask of the machine is LimitsConfig.
"""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np

from models.errors import DataError
from pipelines.data.config import LimitsConfig
from pipelines.data.decode import protocol
from pipelines.data.decode.protocol import Probe
from pipelines.data.decode.transforms import Size, nearest
from pipelines.data.types import Rejected
from pipelines.media.color import Frames

START_SECONDS = 60.0
PIPE_BYTES = 1 << 20
"""A chunk of frames passes in one piece; with the usual 64 KiB the two processes wake each other 16 times."""
VIDEOS_PER_WORKER = 1000
PICK_HORIZON = 1024
"""Frames of a long video that a sample is drawn from, so that sampling never decodes hours."""


class Clip(NamedTuple):
    """A video being decoded; read it once, to the end."""

    probe: Probe
    size: Size
    """Height and width of its frames after resizing."""
    frames: Iterator[Frames]
    """Chunks [n, height, width, 3] of about 1 MiB, in order. Raises Rejected when the video turns out damaged
    or exceeds the limits: drop the chunks before, too."""
    takes: list[int]
    """Number of the first frame after each pause of the recording; complete for the frames that came."""


class Decoder:
    """Owns the worker process. Use as a context, or close it."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._worker: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._videos = 0
        self._reading = False

    @property
    def pid(self) -> int | None:
        """Of the worker process; None without one."""
        return self._worker.pid if self._worker else None

    def open(
        self,
        path: str | Path,
        sizes: Sequence[Size],
        fps: float | None = None,
        picks: int = 0,
        *,
        still: bool = False,
    ) -> Clip:
        """Start reading a video.

        Args:
            sizes: height and width that its frames may be resized and cropped to; the one whose aspect ratio
                is nearest the video's is taken.
            fps: resample by timestamps to this frame rate; None keeps every frame.
            picks: read only so many frames, spread over the first PICK_HORIZON; 0 reads all.
            still: it is a still picture, a clip of one frame.

        Raises:
            Rejected: the video cannot be read.
            DataError: the worker does not start.
        """
        if self._reading or self._videos >= VIDEOS_PER_WORKER:
            self.close()
        worker = self._worker or self._start()
        self._reading = True
        self._videos += 1
        wanted = {
            "sizes": list(sizes),
            "fps": fps,
            "picks": picks,
            "horizon": PICK_HORIZON,
            "still": still,
        }
        self._send(worker, {"path": os.path.abspath(path), **wanted})
        while (message := self._receive()[0])["kind"] == protocol.BUSY:
            continue
        try:
            probe = Probe(**{name: message[name] for name in Probe.__dataclass_fields__})
        except KeyError as error:
            raise self._crashed("an answer without a probe") from error
        size = nearest(probe.height, probe.width, sizes)
        takes: list[int] = []
        return Clip(probe, size, self._frames(size, takes), takes)

    def _frames(self, size: Size, takes: list[int]) -> Iterator[Frames]:
        while (message := self._receive())[0]["kind"] != protocol.END:
            head, payload = message
            if head["kind"] == protocol.FRAMES:
                try:
                    takes[:] = sorted(map(int, head["takes"]))
                    yield np.frombuffer(payload, np.uint8).reshape(-1, *size, 3)
                except (KeyError, TypeError, ValueError) as error:
                    raise self._crashed("a chunk of another shape") from error

    def _receive(self) -> tuple[dict[str, Any], bytearray]:
        """The worker's next message.

        Raises:
            Rejected: the worker rejects the video, died, or was silent too long.
        """
        if self._worker is None or self._worker.stdout is None:
            raise self._crashed("the decoder is closed")
        try:
            head, payload = protocol.receive_within(self._worker.stdout.fileno(), self._limits.timeout_s)
        except protocol.Silence:
            self.close()
            reason = f"silent for data.limits.timeout_s = {self._limits.timeout_s:g} s"
            raise Rejected("timeout", reason) from None
        except protocol.Garbled as error:
            raise self._crashed(str(error)) from error
        self._reading = head["kind"] not in (protocol.END, protocol.REJECT)
        if head["kind"] == protocol.REJECT:
            if head.get("stage") == "memory":
                self.close()
            raise Rejected(str(head.get("stage"))[:20], str(head.get("reason"))[:300])
        return head, payload

    def _crashed(self, problem: str) -> Rejected:
        """End the worker; the Rejected says how it died, or `problem` if it had not."""
        code, log = self._put_away()
        if code is not None and code < 0:
            problem = f"the decoder died of {signal.Signals(-code).name}"
        elif code:
            problem = f"the decoder ended with code {code}"
        return Rejected("crash", f"{problem}: {log}" if log else problem)

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parents[3])
        main = "from pipelines.data.decode.worker import main; main()"
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it outlives this call
        self._worker = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r}); {main}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"},
        )
        answers = cast(BinaryIO, self._worker.stdout).fileno()
        with suppress(OSError):  # a user's pipes have room for so many bytes only
            fcntl.fcntl(answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._send(self._worker, {"limits": asdict(self._limits)})
        try:
            protocol.receive_within(answers, START_SECONDS)
        except (protocol.Garbled, protocol.Silence) as error:
            _, log = self._put_away()
            raise DataError(
                f"The decoding process does not start: {log or 'no word from it'}",
                "Check that decord, av and Pillow import in this Python, and that memory is left",
            ) from error
        return self._worker

    @staticmethod
    def _send(worker: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # that the worker is gone is noticed when its answer is read
            protocol.send(cast(BinaryIO, worker.stdin), message)

    def _put_away(self) -> tuple[int | None, str]:
        """End the worker; its exit code if it had died by itself, and the last line it wrote."""
        worker, log, self._worker, self._log = self._worker, self._log, None, None
        self._videos, self._reading = 0, False
        if worker is None:
            return None, ""
        code = None
        with suppress(subprocess.TimeoutExpired):  # one that hung up is given a moment to die
            code = worker.wait(timeout=0.5)
        worker.kill()
        worker.wait()
        for pipe in (worker.stdin, worker.stdout):
            with suppress(BrokenPipeError):  # it may still hold bytes that cannot be flushed
                cast(BinaryIO, pipe).close()
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        log.close()
        return code, lines[-1][:200] if lines else ""

    def close(self) -> None:
        self._put_away()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
