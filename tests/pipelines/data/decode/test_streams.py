"""Of several streams the one is read that a player shows: the film, not a still, a thumbnail or an extra."""

from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.readers import Opened, open_video
from tests.pipelines.data.videos import numbers, stamped


class Track(NamedTuple):
    height: int
    width: int
    start: int
    """Number of its first frame."""
    frames: int = 12
    default: bool = True
    codec: str = "libx264"


def write(path: Path, *tracks: Track) -> Path:
    with av.open(str(path), "w") as file:
        streams = []
        for track in tracks:
            stream = file.add_stream(track.codec, rate=8)
            stream.height, stream.width, stream.pix_fmt = track.height, track.width, "yuv420p"
            if track.codec == "mjpeg":
                stream.pix_fmt = "yuvj420p"
            stream.disposition = av.stream.Disposition(int(track.default))
            streams.append((stream, stamped(track.frames, track.height, track.width, track.start)))
        for index in range(max(track.frames for track in tracks)):
            for stream, frames in streams:
                if index < len(frames):
                    frame = av.VideoFrame.from_ndarray(frames[index], format="rgb24")
                    file.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        for stream, _ in streams:
            file.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[Opened, list[int]]:
    opened = open_video(str(path), LimitsConfig())
    return opened, numbers(np.stack([frame for _, frame in opened.frames]))


FILM = Track(64, 96, 100)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("film_first", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        Track(128, 192, 7, frames=1, default=False, codec="mjpeg"),
        Track(128, 192, 7, frames=1, default=True, codec="mjpeg"),
        Track(128, 192, 7, frames=3, default=True),
        Track(128, 192, 7, default=False),
        Track(48, 64, 7, default=True),
        Track(48, 64, 7, default=False),
    ],
    ids=["still", "default still", "thumbnails", "extra angle", "small copy", "small extra"],
)
def test_the_film_is_read(name: str, film_first: bool, other: Track, tmp_path: Path) -> None:
    tracks = (FILM, other) if film_first else (other, FILM)
    opened, found = read(write(tmp_path / name, *tracks))
    assert (opened.probe.height, opened.probe.width) == (64, 96)
    assert found == list(range(100, 112))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("film_first", [True, False])
def test_the_default_of_two_films_that_look_alike_is_read(
    name: str, film_first: bool, tmp_path: Path
) -> None:
    """decord would read one of them, and nothing that it tells shows which."""
    other = Track(64, 96, 500, default=False)
    opened, found = read(write(tmp_path / name, *((FILM, other) if film_first else (other, FILM))))
    assert found == list(range(100, 112))
    assert opened.probe.reader_reason == "decord cannot be told which of two streams of this size to read"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_film_need_not_be_the_first_stream(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000, layout="mono")
        film = file.add_stream("libx264", rate=8)
        film.height, film.width, film.pix_fmt = 64, 96, "yuv420p"
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        file.mux(sound.encode(silence) + sound.encode(None))
        for pixels in stamped(8):
            file.mux(film.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(film.encode(None))
    opened, found = read(path)
    assert (opened.header.stream, found) == (1, list(range(8)))


def test_the_default_flag_counts_before_the_number_of_frames(tmp_path: Path) -> None:
    opened, found = read(write(tmp_path / "a.mkv", FILM, Track(64, 96, 500, frames=20, default=False)))
    assert found == list(range(100, 112))
    assert opened.header.stream == 0
