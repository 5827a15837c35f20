"""Videos written are videos read, whole, in order and in place; pictures are made of the frames asked for."""

import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.errors import ConfigError, DataError
from pipelines.media.video import (
    decode,
    encode,
    read_mp4,
    through_mp4,
    write_gif,
    write_mp4,
)


def moving(count: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A soft blob that wanders over a slope of colours, [count, height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for index in range(count):
        blob = 90 * np.exp(-(((x - 8 - 3 * index) / 9.0) ** 2 + ((y - height / 2) / 9.0) ** 2))
        frames.append(np.stack([60 + blob + x * 0.8, 80 + y * 1.2 + 0 * x, 150 - blob + 0 * x], axis=-1))
    return np.asarray(np.clip(np.stack(frames), 0, 255), dtype=np.uint8)


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio, dB."""
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_mp4_round_trip_keeps_count_order_and_picture(tmp_path: Path) -> None:
    frames = moving(11)
    write_mp4(tmp_path / "a.mp4", iter(frames), 8.0)
    found = read_mp4(tmp_path / "a.mp4")
    assert found.shape == frames.shape
    assert psnr(found, frames) > 36
    closest = [
        int(np.argmin(np.abs(frames.astype(float) - picture).mean(axis=(1, 2, 3)))) for picture in found
    ]
    assert closest == list(range(11))


def test_colours_enter_the_file_without_bias() -> None:
    memory = io.BytesIO()
    grey = np.full((2, 32, 32, 3), (120, 90, 160), dtype=np.uint8)
    encode(memory, grey, 8.0, crf=1, faststart=False)
    memory.seek(0)
    with av.open(memory) as container:
        luma = next(container.decode(video=0)).to_ndarray(format="yuv420p")[:32]
    expected = 16 + (65.481 * 120 + 128.553 * 90 + 24.966 * 160) / 255
    assert abs(float(luma.mean()) - expected) < 0.6


def test_files_are_what_browsers_play(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving(4), 12.5)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data[4:8] == b"ftyp"
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert float(stream.average_rate) == 12.5


DIGESTS = """
import hashlib, io
from pipelines.media.video import encode
from tests.pipelines.media.test_video import moving
for height, width in ((96, 96), (48, 64), (136, 200), (128, 128)):
    memory = io.BytesIO()
    encode(memory, moving(12, height, width), 8.0, crf=14, faststart=False)
    print(hashlib.sha256(memory.getvalue()).hexdigest())
"""


def test_the_same_frames_give_the_same_bytes_whatever_memory_held_before() -> None:
    outputs = set()
    for filler in ("1", "85", "200"):
        environment = os.environ | {"MALLOC_PERTURB_": filler, "PYTHONPATH": str(Path(__file__).parents[3])}
        run = subprocess.run(
            [sys.executable, "-c", DIGESTS], env=environment, capture_output=True, check=True
        )
        outputs.add(run.stdout)
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 4


def test_through_mp4_is_what_a_file_gives(tmp_path: Path) -> None:
    frames = moving(6)
    write_mp4(tmp_path / "a.mp4", frames, 8.0, crf=14)
    assert np.array_equal(through_mp4(frames, 8.0, 14), read_mp4(tmp_path / "a.mp4"))


def test_larger_crf_is_smaller_and_worse() -> None:
    frames = moving(6)
    assert psnr(through_mp4(frames, 8.0, 10), frames) > psnr(through_mp4(frames, 8.0, 40), frames) + 3


def test_a_failed_write_leaves_the_old_file_and_nothing_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_mp4(path, moving(3), 8.0)
    before = path.read_bytes()
    broken = [*moving(2), np.zeros((10, 10, 3), dtype=np.uint8)]
    with pytest.raises(DataError, match="one shape"):
        write_mp4(path, broken, 8.0)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_no_frames_and_odd_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no frames"):
        write_mp4(tmp_path / "a.mp4", [], 8.0)
    with pytest.raises(ConfigError, match="even sides"):
        write_mp4(tmp_path / "a.mp4", moving(2, height=33), 8.0)
    with pytest.raises(DataError, match="no frames"):
        write_gif(tmp_path / "a.gif", [], 8.0)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"not a video at all" * 40)
    with pytest.raises(DataError, match=r"bad\.mp4"):
        list(decode(str(tmp_path / "bad.mp4")))


def test_gif_loops_lasts_as_long_and_looks_alike(tmp_path: Path) -> None:
    frames = moving(8)
    write_gif(tmp_path / "a.gif", frames, 8.0)
    with Image.open(tmp_path / "a.gif") as picture:
        assert (getattr(picture, "n_frames", 1), picture.size, picture.info["loop"]) == (8, (64, 48), 0)
        total, shown = 0, []
        for index in range(8):
            picture.seek(index)
            total += picture.info["duration"]
            shown.append(np.asarray(picture.convert("RGB")))
    assert total == 1000
    assert psnr(np.stack(shown), frames) > 27
