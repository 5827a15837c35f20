"""What comes from the decoding process is bounded in time and in size, and is never believed."""

import io
import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.data.decode import protocol as wire


@pytest.fixture
def pipe() -> Iterator[tuple[int, io.FileIO]]:
    reader, writer = os.pipe()
    file = os.fdopen(writer, "wb", buffering=0)
    yield reader, file
    if not file.closed:
        file.close()
    os.close(reader)


def test_a_message_and_its_bytes_arrive(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    wire.send(file, {"kind": "frames", "times": [0.0, 0.5]}, b"\x01\x02")
    assert wire.receive_within(reader, 1) == ({"kind": "frames", "times": [0.0, 0.5]}, b"\x01\x02")


def test_messages_arrive_in_order_however_large(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    payloads = [bytes([i]) * (1 << 18) for i in range(6)]
    thread = threading.Thread(target=lambda: [wire.send(file, {"kind": "k"}, p) for p in payloads])
    thread.start()
    got = [wire.receive_within(reader, 5)[1] for _ in payloads]
    thread.join()
    assert got == payloads


def test_both_ends_speak_alike() -> None:
    file = io.BytesIO()
    wire.send(file, {"a": 1})
    wire.send(file, {"b": 2}, b"xyz")
    file.seek(0)
    assert wire.receive(file) == ({"a": 1}, b"")
    assert wire.receive(file) == ({"b": 2}, b"xyz")
    assert wire.receive(file) is None


def test_silence_is_noticed_in_time(pipe: tuple[int, io.FileIO]) -> None:
    start = time.monotonic()
    with pytest.raises(wire.Silence):
        wire.receive_within(pipe[0], 0.2)
    assert 0.15 < time.monotonic() - start < 2


def test_silence_in_the_middle_of_a_message_is_noticed(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(wire.HEADER.pack(100, 0) + b"{")
    with pytest.raises(wire.Silence):
        wire.receive_within(reader, 0.2)


def test_a_slow_message_is_no_silence(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    text = json.dumps({"kind": "end"}).encode()

    def drip() -> None:
        for byte in wire.HEADER.pack(len(text), 0) + text:
            time.sleep(0.02)
            file.write(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert wire.receive_within(reader, 0.3)[0] == {"kind": "end"}
    thread.join()


def test_a_hang_up_is_noticed(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(wire.HEADER.pack(100, 0))
    file.close()
    with pytest.raises(wire.Garbled, match="hung up"):
        wire.receive_within(reader, 1)


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (b"not json", 0),
        (b"[1]", 0),
        (b'{"kind": 3}', 0),
        (b"{}", 0),
        (b"\xff\xfe", 0),
        (b'{"kind": "k"}', wire.MAX_PAYLOAD + 1),
    ],
)
def test_nonsense_is_refused(pipe: tuple[int, io.FileIO], text: bytes, payload: int) -> None:
    reader, file = pipe
    file.write(wire.HEADER.pack(len(text), payload) + text)
    with pytest.raises(wire.Garbled):
        wire.receive_within(reader, 1)


def test_a_text_too_long_is_refused_unread(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(wire.HEADER.pack(wire.MAX_TEXT + 1, 0))
    with pytest.raises(wire.Garbled, match="bytes"):
        wire.receive_within(reader, 1)
