"""What comes from the decoding process is bounded in time and in size, and is never believed."""

import io
import json
import os
import threading
import time
from collections.abc import Iterator

import pytest

from pipelines.data.decode import protocol


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
    protocol.send(file, {"kind": "frames", "more": [0.0, 0.5]}, b"\x01\x02")
    assert protocol.receive_within(reader, 1) == ({"kind": "frames", "more": [0.0, 0.5]}, b"\x01\x02")


def test_messages_arrive_in_order_however_large(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    payloads = [bytes([i]) * (1 << 18) for i in range(6)]
    thread = threading.Thread(target=lambda: [protocol.send(file, {"kind": "k"}, p) for p in payloads])
    thread.start()
    got = [protocol.receive_within(reader, 5)[1] for _ in payloads]
    thread.join()
    assert got == payloads


def test_both_ends_speak_alike() -> None:
    file = io.BytesIO()
    protocol.send(file, {"a": 1})
    protocol.send(file, {"b": 2})
    file.seek(0)
    assert protocol.receive(file) == {"a": 1}
    assert protocol.receive(file) == {"b": 2}
    assert protocol.receive(file) is None


def test_silence_is_noticed_in_time(pipe: tuple[int, io.FileIO]) -> None:
    start = time.monotonic()
    with pytest.raises(protocol.Silence):
        protocol.receive_within(pipe[0], 0.2)
    assert 0.15 < time.monotonic() - start < 2


def test_silence_in_the_middle_of_a_message_is_noticed(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(protocol.HEADER.pack(100, 0) + b"{")
    with pytest.raises(protocol.Silence):
        protocol.receive_within(reader, 0.2)


def test_a_slow_message_is_no_silence(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    text = json.dumps({"kind": "end"}).encode()

    def drip() -> None:
        for byte in protocol.HEADER.pack(len(text), 0) + text:
            time.sleep(0.02)
            file.write(bytes([byte]))

    thread = threading.Thread(target=drip)
    thread.start()
    assert protocol.receive_within(reader, 0.3)[0] == {"kind": "end"}
    thread.join()


def test_a_hang_up_is_noticed(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(protocol.HEADER.pack(100, 0))
    file.close()
    with pytest.raises(protocol.Garbled, match="hung up"):
        protocol.receive_within(reader, 1)


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        (b"not json", 0),
        (b"[1]", 0),
        (b'{"kind": 3}', 0),
        (b"{}", 0),
        (b"\xff\xfe", 0),
        (b'{"kind": "k"}', protocol.MAX_PAYLOAD + 1),
    ],
)
def test_nonsense_is_refused(pipe: tuple[int, io.FileIO], text: bytes, payload: int) -> None:
    reader, file = pipe
    file.write(protocol.HEADER.pack(len(text), payload) + text)
    with pytest.raises(protocol.Garbled):
        protocol.receive_within(reader, 1)


def test_a_text_too_long_is_refused_unread(pipe: tuple[int, io.FileIO]) -> None:
    reader, file = pipe
    file.write(protocol.HEADER.pack(protocol.MAX_TEXT + 1, 0))
    with pytest.raises(protocol.Garbled, match="bytes"):
        protocol.receive_within(reader, 1)
