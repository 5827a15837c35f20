"""Decoding behind a fence: one child process reads the untrusted bytes, this side sees frames or a reason.

The child lives across videos (a start costs 0.3 s) and is replaced when it dies, falls silent or is left in
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
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from models.errors import DataError
from pipelines.data.config import LimitsConfig
from pipelines.data.decode import protocol as wire
from pipelines.data.decode.transforms import Size, nearest
from pipelines.data.types import Reject, Rejected

Frames = NDArray[np.uint8]

START_SECONDS = 60.0
PIPE_BYTES = 1 << 20
"""A chunk of frames passes in one piece; with the usual 64 KiB the two processes wake each other 16 times."""
VIDEOS_PER_CHILD = 1000
PICK_HORIZON = 1024
"""Frames of a long video that a sample is drawn from, so that sampling never decodes hours."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is known of a video before its frames are read."""

    reader: str
    """`decord` or `pyav`."""
    reader_reason: str
    """Why not decord; empty where it is."""
    container: str
    codec: str
    width: int
    """Pixels, upright, before resizing."""
    height: int
    """Pixels, upright, before resizing."""
    fps: float
    """Frames a second, before resampling."""
    num_frames: int
    """Frames by the packets; decoding has the last word."""
    seconds: float


class TimedFrame(NamedTuple):
    """One frame of a stream."""

    number: int
    """From 0."""
    time_s: float
    rgb: Frames
    """[height, width, 3]"""


class VideoStream:
    """One video being read in order: `.probe`, then frames one by one or in chunks. Read it once, to the
    end."""

    def __init__(self, decoder: "Decoder", probe: Probe, height: int, width: int) -> None:
        self.probe = probe
        self._decoder = decoder
        self._size = (height, width, 3)

    def chunks(self) -> Iterator[tuple[list[float], Frames]]:
        """Pairs of seconds [n] and frames [n, height, width, 3]; about 1 MiB each.

        Raises:
            Rejected: the video turned out damaged or too greedy; what came before is to be dropped.
        """
        while (message := self._decoder.next_message())[0]["kind"] != wire.END:
            head, payload = message
            if head["kind"] == wire.FRAMES:
                yield self._frames(head, payload)

    def _frames(self, head: dict[str, Any], payload: bytearray) -> tuple[list[float], Frames]:
        try:
            times = [float(t) for t in head["times"]]
            return times, np.frombuffer(payload, np.uint8).reshape(len(times), *self._size)
        except (KeyError, TypeError, ValueError) as error:
            raise self._decoder.crashed("a chunk of another shape") from error

    def __iter__(self) -> Iterator[TimedFrame]:
        number = 0
        for times, frames in self.chunks():
            for time_s, rgb in zip(times, frames, strict=True):
                yield TimedFrame(number, time_s, rgb)
                number += 1


class Decoder:
    """Owns the decoding process. Use as a context, or close it.

    Args:
        limits: what one video may ask of the machine.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._log: Any = None
        self._videos = 0
        self._reading = False

    @property
    def pid(self) -> int | None:
        """Of the decoding process, or None when there is none."""
        return self._child.pid if self._child else None

    def probe(self, path: str | Path) -> Probe | Reject:
        """Open a video and read its first frame only."""
        try:
            probe = self._request(str(path), {"probe_only": True})
            self.next_message()
        except Rejected as rejected:
            return rejected.reject
        return probe

    def stream(
        self,
        path: str | Path,
        height: int,
        width: int,
        fps: float | None = None,
        picks: int = 0,
        others: Sequence[Size] = (),
    ) -> VideoStream:
        """Start reading a video, each frame resized and cropped to height x width.

        Args:
            fps: resample by timestamps to so many frames a second; None keeps every frame.
            picks: read only so many frames, spread over the first PICK_HORIZON.
            others: sizes that are taken instead where their aspect ratio is nearer the video's.

        Raises:
            Rejected: the video cannot be read.
        """
        sizes = [(height, width), *others]
        wanted = {"sizes": sizes, "fps": fps, "picks": picks, "horizon": PICK_HORIZON}
        probe = self._request(str(path), wanted)
        return VideoStream(self, probe, *nearest(probe.height, probe.width, sizes))

    def _request(self, path: str, wanted: dict[str, Any]) -> Probe:
        if self._reading or self._videos >= VIDEOS_PER_CHILD:
            self.close()
        child = self._child or self._start()
        self._reading = True
        self._videos += 1
        self._send(child, {"path": os.path.abspath(path), **wanted})
        while (message := self.next_message()[0])["kind"] == wire.BUSY:
            continue
        try:
            return Probe(**{k: message[k] for k in Probe.__dataclass_fields__})
        except KeyError as error:
            raise self.crashed("an answer without a probe") from error

    def next_message(self) -> tuple[dict[str, Any], bytearray]:
        """The child's next message; for VideoStream.

        Raises:
            Rejected: it says so, died, or was silent too long; in the latter two cases it is gone.
        """
        if self._child is None or self._child.stdout is None:
            raise self.crashed("the decoder is closed")
        try:
            head, payload = wire.receive_within(self._child.stdout.fileno(), self._limits.timeout_s)
        except wire.Silence:
            self.close()
            reason = f"silent for data.limits.timeout_s = {self._limits.timeout_s:g} s"
            raise Rejected(Reject("timeout", reason)) from None
        except wire.Garbled as error:
            raise self.crashed(str(error)) from error
        self._reading = head["kind"] not in (wire.END, wire.REJECT)
        if head["kind"] == wire.REJECT:
            if head.get("stage") == "memory":
                self.close()
            raise Rejected(Reject(str(head.get("stage"))[:20], str(head.get("reason"))[:300]))
        return head, payload

    def crashed(self, what: str) -> Rejected:
        """Put the child away; the Rejected says how it died, or `what` if it had not."""
        code, log = self._put_away()
        if code is not None and code < 0:
            what = f"the decoder died of {signal.Signals(-code).name}"
        elif code:
            what = f"the decoder ended with code {code}"
        return Rejected(Reject("crash", f"{what}: {log}" if log else what))

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parents[3])
        code = (
            f"import sys; sys.path.insert(0, {root!r}); from pipelines.data.decode.worker import main; main()"
        )
        environment = os.environ | {"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it outlives this call
        self._child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        with suppress(OSError):  # a user's pipes have room for so many bytes only
            fcntl.fcntl(cast(BinaryIO, self._child.stdout), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._send(self._child, {"limits": asdict(self._limits)})
        try:
            wire.receive_within(cast(BinaryIO, self._child.stdout).fileno(), START_SECONDS)
        except (wire.Garbled, wire.Silence) as error:
            _, log = self._put_away()
            raise DataError(
                f"The decoding process does not start: {log or 'no word from it'}",
                "Check that decord, av and Pillow import in this Python, and that memory is left",
            ) from error
        return self._child

    @staticmethod
    def _send(child: "subprocess.Popen[bytes]", message: dict[str, Any]) -> None:
        """A child that is gone is noticed when its answer is read."""
        try:
            wire.send(cast(BinaryIO, child.stdin), message)
        except BrokenPipeError:
            return

    def _put_away(self) -> tuple[int | None, str]:
        """End the child; its exit code if it had died by itself, and the last line it wrote."""
        child, log, self._child, self._log = self._child, self._log, None, None
        self._videos, self._reading = 0, False
        if child is None:
            return None, ""
        code = _exit_code(child)
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            _close(pipe)
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        log.close()
        return code, lines[-1][:200] if lines else ""

    def close(self) -> None:
        """End the decoding process, if there is one."""
        self._put_away()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exit_code(child: "subprocess.Popen[bytes]") -> int | None:
    """The code of a child that hung up, given a moment to die; None if it lives."""
    try:
        return child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return None


def _close(pipe: Any) -> None:
    """A pipe to a dead child may still hold bytes that cannot be flushed."""
    try:
        pipe.close()
    except BrokenPipeError:
        return
