"""The decoding process: reads requests on stdin, answers with frames on stdout, touches nothing else.

It imports its decoders, then gives up what it will not need: its memory is capped, no file it writes grows
beyond LOG_BYTES, it leaves no core dump, and it ends when its parent does. decode.py starts it.
"""

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from pipelines.data.config import LimitsConfig
from pipelines.data.decode import protocol as wire
from pipelines.data.decode.readers import Opened, Refused, open_video
from pipelines.data.decode.transforms import Timed, nearest, pick, resample, resize

CHUNK_BYTES = 1 << 20
BUSY_EVERY_S = 1.0
LOG_BYTES = 1 << 20


def main() -> None:
    """Serve requests until stdin ends. The first request carries the limits."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    first = wire.receive(requests)
    if first is None:
        return
    limits = LimitsConfig(**first[0]["limits"])
    _fence(limits.memory_bytes)
    wire.send(answers, {"kind": wire.READY})
    while (request := wire.receive(requests)) is not None:
        _serve(request[0], limits, answers)


def _fence(memory_bytes: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        baseline = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    space = baseline + memory_bytes
    for kind, value in (
        (resource.RLIMIT_AS, space),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, LOG_BYTES),
    ):
        resource.setrlimit(kind, (value, value))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _serve(request: dict[str, Any], limits: LimitsConfig, answers: BinaryIO) -> None:
    """Answer one request: a probe, chunks of frames, an end; or a reject in place of whatever is missing."""
    try:
        opened = open_video(request["path"], limits)
        wire.send(answers, _probe(opened))
        if not request.get("probe_only"):
            _send_frames(opened, request, limits, answers)
        wire.send(answers, {"kind": wire.END})
    except Refused as refused:
        wire.send(answers, {"kind": wire.REJECT, "stage": refused.stage, "reason": refused.reason})
    except MemoryError:
        reason = f"more memory than data.limits.memory_bytes = {limits.memory_bytes}"
        wire.send(answers, {"kind": wire.REJECT, "stage": "memory", "reason": reason})
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
        wire.send(answers, {"kind": wire.REJECT, "stage": "fetch", "reason": reason})


def _probe(opened: Opened) -> dict[str, Any]:
    header = opened.header
    return {
        "kind": wire.PROBE,
        "reader": opened.reader,
        "reader_reason": opened.why,
        "container": header.container,
        "codec": header.codec,
        "width": opened.width,
        "height": opened.height,
        "fps": header.rate,
        "num_frames": len(header.times),
        "seconds": header.seconds,
    }


def _send_frames(opened: Opened, request: dict[str, Any], limits: LimitsConfig, answers: BinaryIO) -> None:
    frames = _alive(opened.frames, answers)
    if request["picks"]:
        frames = pick(frames, len(opened.header.times), request["picks"], request["horizon"])
    else:
        frames = resample(frames, opened.header.rate, request["fps"])
    height, width = nearest(opened.height, opened.width, request["sizes"])
    size = max(1, CHUNK_BYTES // (height * width * 3))
    sent = 0
    times: list[float] = []
    pixels = np.empty((size, height, width, 3), np.uint8)
    for now, frame in frames:
        pixels[len(times)] = resize(frame, height, width)
        times.append(now)
        if len(times) == size:
            sent += _flush(answers, times, pixels)
            if sent > limits.max_frames:
                raise Refused("limits", f"more than data.limits.max_frames = {limits.max_frames} frames")
    _flush(answers, times, pixels)


def _flush(answers: BinaryIO, times: list[float], pixels: np.ndarray) -> int:
    count = len(times)
    if count:
        wire.send(answers, {"kind": wire.FRAMES, "times": times}, pixels[:count].data.cast("B"))
        times.clear()
    return count


def _alive(frames: Iterator[Timed], answers: BinaryIO) -> Iterator[Timed]:
    """Say now and then that frames are being decoded, though none may be due."""
    said = time.monotonic()
    for timed in frames:
        if time.monotonic() - said > BUSY_EVERY_S:
            said = time.monotonic()
            wire.send(answers, {"kind": wire.BUSY})
        yield timed
