"""The decoding process: reads requests on stdin, answers with frames on stdout, touches nothing else.

It imports its decoders, then gives up what it will not need: its memory is capped, no file it writes grows
beyond LOG_BYTES, it leaves no core dump, and it ends when its parent does. decoder.py starts it.
"""

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from pipelines.data.config import LimitsConfig
from pipelines.data.decode import protocol
from pipelines.data.decode.readers import Opened, open_video
from pipelines.data.decode.still import open_still
from pipelines.data.decode.transforms import Timed, nearest, pick, resample, resize
from pipelines.data.types import Rejected

CHUNK_BYTES = 1 << 20
BUSY_EVERY_S = 1.0
LOG_BYTES = 1 << 20


def main() -> None:
    """Serve requests until stdin ends. The first request carries the limits."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    first = protocol.receive(requests)
    if first is None:
        return
    limits = LimitsConfig(**first["limits"])
    _fence(limits.memory_bytes)
    protocol.send(answers, {"kind": protocol.READY})
    while (request := protocol.receive(requests)) is not None:
        _serve(request, limits, answers)


def _fence(memory_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        baseline = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    fences = {resource.RLIMIT_AS: baseline + memory_bytes, resource.RLIMIT_CORE: 0}
    for kind, value in (fences | {resource.RLIMIT_FSIZE: LOG_BYTES}).items():
        resource.setrlimit(kind, (value, value))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _serve(request: dict[str, Any], limits: LimitsConfig, answers: BinaryIO) -> None:
    """Answer one request: a probe, chunks of frames, an end; or a reject in place of the rest."""
    try:
        if request["still"]:
            _send_still(request, limits, answers)
        else:
            opened = open_video(request["path"], limits)
            protocol.send(answers, {"kind": protocol.PROBE, **asdict(opened.probe)})
            _send_frames(opened, request, limits, answers)
        protocol.send(answers, {"kind": protocol.END})
    except Rejected as rejected:
        _reject(answers, rejected.reject.stage, rejected.reject.reason)
    except MemoryError:
        _reject(answers, "memory", f"more memory than data.limits.memory_bytes = {limits.memory_bytes}")
    except OSError as error:
        _reject(answers, "fetch", f"it cannot be read: {error.strerror or error}")


def _reject(answers: BinaryIO, stage: str, reason: str) -> None:
    protocol.send(answers, {"kind": protocol.REJECT, "stage": stage, "reason": reason})


def _send_still(request: dict[str, Any], limits: LimitsConfig, answers: BinaryIO) -> None:
    probe, frame = open_still(request["path"], limits)
    protocol.send(answers, {"kind": protocol.PROBE, **asdict(probe)})
    size = nearest(probe.height, probe.width, request["sizes"])
    pixels = np.ascontiguousarray(resize(frame, *size))
    protocol.send(answers, {"kind": protocol.FRAMES, "takes": []}, pixels.data.cast("B"))


def _send_frames(opened: Opened, request: dict[str, Any], limits: LimitsConfig, answers: BinaryIO) -> None:
    timed = _report_busy(opened.frames, answers)
    takes: list[int] = []
    if request["picks"]:
        frames = pick(timed, len(opened.header.times), request["picks"], request["horizon"])
    else:
        header = opened.header
        frames = resample(timed, header.rate, request["fps"], takes, header.pause, header.last)
    height, width = nearest(opened.probe.height, opened.probe.width, request["sizes"])
    chunk = np.empty((max(1, CHUNK_BYTES // (height * width * 3)), height, width, 3), np.uint8)
    filled = sent = 0
    for frame in frames:
        chunk[filled] = resize(frame, height, width, opened.header.picture.pixel_aspect)
        filled += 1
        if filled == len(chunk):
            protocol.send(answers, {"kind": protocol.FRAMES, "takes": takes}, chunk.data.cast("B"))
            sent, filled = sent + filled, 0
            if sent > limits.max_frames:
                raise Rejected("limits", f"more than data.limits.max_frames = {limits.max_frames} frames")
    if filled:
        protocol.send(answers, {"kind": protocol.FRAMES, "takes": takes}, chunk[:filled].data.cast("B"))


def _report_busy(frames: Iterator[Timed], answers: BinaryIO) -> Iterator[Timed]:
    """Pass the frames on, and report now and then that decoding goes on, though none may be due."""
    reported = time.monotonic()
    for timed in frames:
        if time.monotonic() - reported > BUSY_EVERY_S:
            reported = time.monotonic()
            protocol.send(answers, {"kind": protocol.BUSY})
        yield timed
