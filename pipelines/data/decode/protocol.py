"""Messages between the decoding process and its parent: JSON with an optional block of bytes.

Nothing is pickled: the decoding process reads untrusted files, so its parent trusts nothing that it sends.
"""

import json
import os
import select
import struct
import time
from dataclasses import dataclass
from typing import Any, BinaryIO

HEADER = struct.Struct("<II")
MAX_TEXT = 1 << 20
MAX_PAYLOAD = 1 << 28
READY, PROBE, FRAMES, BUSY, END, REJECT = "ready", "probe", "frames", "busy", "end", "reject"


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is known of a video before its frames are read."""

    reader: str
    """`decord` or `pyav`."""
    reader_reason: str
    """Why not decord; empty where it is."""
    applied: str
    """What was done to show the picture as a player does; empty where frames are shown as stored."""
    width: int
    """Square pixels, upright, before resizing."""
    height: int
    """Square pixels, upright, before resizing."""
    fps: float
    """Frames per second, before resampling."""
    seconds: float
    """From the first frame to the end of the last, without pauses of the recording."""


class Silence(Exception):
    """No byte arrived for longer than allowed."""


class Garbled(Exception):
    """The other side hung up, or sent no message."""


def send(file: BinaryIO, message: dict[str, Any], payload: bytes | memoryview = b"") -> None:
    text = json.dumps(message).encode()
    file.write(HEADER.pack(len(text), len(payload)) + text)
    if len(payload):
        file.write(payload)
    file.flush()


def receive(file: BinaryIO) -> dict[str, Any] | None:
    """The next message of a file, waiting for it; None at its end."""
    head = file.read(HEADER.size)
    if len(head) < HEADER.size:
        return None
    text, _ = HEADER.unpack(head)
    message: dict[str, Any] = json.loads(file.read(text))
    return message


def receive_within(fd: int, seconds: float) -> tuple[dict[str, Any], bytearray]:
    """The next message of a file descriptor, and its bytes.

    Raises:
        Silence: `seconds` passed without a byte.
        Garbled: the other side hung up, or the message is too long or not JSON.
    """
    text, payload = HEADER.unpack(_exactly(fd, HEADER.size, seconds))
    if text > MAX_TEXT or payload > MAX_PAYLOAD:
        raise Garbled(f"a message of {text} + {payload} bytes")
    try:
        message = json.loads(_exactly(fd, text, seconds))
    except ValueError as error:
        raise Garbled("a message that is not JSON") from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise Garbled("a message without a kind")
    return message, _exactly(fd, payload, seconds)


def _exactly(fd: int, count: int, seconds: float) -> bytearray:
    """`count` bytes; `seconds` bounds each silence, not the whole."""
    data = bytearray(count)
    view, have = memoryview(data), 0
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    while have < count:
        deadline = time.monotonic() + seconds
        while not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            if time.monotonic() >= deadline:
                raise Silence
        got = os.readv(fd, [view[have:]])
        if got == 0:
            raise Garbled("the decoder hung up")
        have += got
    return data
