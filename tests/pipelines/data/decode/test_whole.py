"""A video is whole when its pictures are, whatever else the file holds; it is read with all its seconds, or
refused as truncated."""

import re
import struct
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from pipelines.data.config import LimitsConfig
from pipelines.data.decode.readers import open_video
from pipelines.data.decode.transforms import resample
from pipelines.data.types import Rejected
from tests.pipelines.data.videos import numbers, stamped, write_video

LIMITS = LimitsConfig()
COUNT = 24


def seconds_and_frames(path: Path) -> tuple[float, list[int]]:
    """What the probe promises, and the numbers of the frames."""
    opened = open_video(str(path), LIMITS)
    return opened.probe.seconds, numbers(np.stack([frame for _, frame in opened.frames]))


def at_8_fps(path: Path) -> list[int]:
    """The numbers of the frames that a player shows, 8 times a second."""
    opened = open_video(str(path), LIMITS)
    header = opened.header
    return numbers(np.stack(list(resample(opened.frames, header.rate, 8.0, [], header.pause, header.last))))


def refusal(path: Path) -> str:
    with pytest.raises(Rejected) as caught:
        list(open_video(str(path), LIMITS).frames)
    assert caught.value.reject.stage == "open"
    return caught.value.reject.reason


def write_with_sound(path: Path, codec: str, sound: str, seconds: float) -> Path:
    """COUNT frames at 8 a second, and `seconds` of silence."""
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=8)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        audio = file.add_stream(sound, rate=48000, layout="mono")
        for pixels in stamped(COUNT):
            file.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(video.encode(None))
        kind = audio.codec_context.format.name
        silence = np.zeros((1, 48000), np.int16 if kind.startswith("s16") else np.float32)
        for second in range(int(seconds)):
            frame = av.AudioFrame.from_ndarray(silence, format=kind, layout="mono")
            frame.sample_rate, frame.pts = 48000, second * 48000
            for packet in audio.encode(frame):
                file.mux(packet)
        file.mux(audio.encode(None))
    return path


SOUND = [
    ("a.mkv", "libx264", "aac"),
    ("a.webm", "libvpx", "libopus"),
    ("a.mp4", "libx264", "aac"),
    ("a.mov", "mpeg4", "aac"),
    ("a.avi", "mpeg4", "mp2"),
    ("a.flv", "libx264", "aac"),
]


@pytest.mark.parametrize(("name", "codec", "sound"), SOUND)
def test_sound_may_outlast_the_pictures(name: str, codec: str, sound: str, tmp_path: Path) -> None:
    seconds, found = seconds_and_frames(write_with_sound(tmp_path / name, codec, sound, 9))
    assert found == list(range(COUNT))
    assert seconds == pytest.approx(COUNT / 8, abs=0.01)


def without_track_lengths(path: Path) -> Path:
    """As muxers other than FFmpeg write it: nothing but the length of the whole."""
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"UNRELATE"))
    return path


@pytest.mark.parametrize(("name", "codec", "sound"), SOUND[:2])
def test_sound_may_outlast_pictures_of_unknown_length(
    name: str, codec: str, sound: str, tmp_path: Path
) -> None:
    path = without_track_lengths(write_with_sound(tmp_path / name, codec, sound, 9))
    assert seconds_and_frames(path)[1] == list(range(COUNT))


def write_with_long_last_frame(path: Path, codec: str, seconds: float, count: int = COUNT) -> Path:
    """Frames at 8 a second, of which the last stays for `seconds`."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.options = {"bf": "0"} if codec == "libx264" else {}
        frames = (av.VideoFrame.from_ndarray(pixels, format="rgb24") for pixels in stamped(count))
        packets = [packet for frame in (*frames, None) for packet in stream.encode(frame)]
        packets[-1].duration = round(seconds / packets[-1].time_base)
        for packet in packets:
            file.mux(packet)
    return path


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mp4", "libx264"), ("a.mov", "mpeg4")]
)
@pytest.mark.parametrize(("count", "seconds"), [(COUNT, 6.0), (2, 1.0), (1, 9.0)])
def test_a_last_frame_stays_as_long_as_a_player_shows_it(
    name: str, codec: str, count: int, seconds: float, tmp_path: Path
) -> None:
    path = write_with_long_last_frame(tmp_path / name, codec, seconds, count)
    promised, found = seconds_and_frames(path)
    assert found == list(range(count))
    assert promised == pytest.approx((count - 1) / 8 + seconds, abs=0.01)
    assert at_8_fps(path) == [*range(count - 1), *[count - 1] * round(8 * seconds)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif"])
def test_slides_keep_their_seconds(name: str, tmp_path: Path) -> None:
    times = [0, 5000, 12_000, 14_000, 44_000]
    codec = "gif" if name == "a.gif" else "libx264"
    path = write_video(tmp_path / name, stamped(5), codec=codec, times=times)
    opened = open_video(str(path), LIMITS)
    assert [time for time, _ in opened.frames] == pytest.approx([time / 1000 for time in times])
    assert opened.probe.applied == ""
    assert opened.probe.seconds > 44
    assert len(at_8_fps(path)) == pytest.approx(8 * opened.probe.seconds, abs=1)


def test_a_time_lapse_keeps_its_seconds(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", stamped(6), times=[0, 90_000, 180_000, 270_000, 360_000, 450_000])
    opened = open_video(str(path), LIMITS)
    assert (opened.probe.applied, len(list(opened.frames))) == ("", 6)
    assert opened.probe.seconds > 450


def patched(path: Path, mark: bytes, offset: int, values: list[int]) -> Path:
    """Write 32-bit numbers behind the mark of an MP4 box."""
    data = bytearray(path.read_bytes())
    place = data.index(mark) + len(mark) + offset
    data[place : place + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
@pytest.mark.parametrize("bf", ["0", "2"])
def test_an_edit_list_may_end_before_the_pictures_do(name: str, bf: str, tmp_path: Path) -> None:
    """As a phone trims a clip: 1.5 of 3 seconds, in the movie's clock of 1000 a second."""
    path = write_video(tmp_path / name, stamped(COUNT), bf=bf)
    _, found = seconds_and_frames(patched(path, b"elst", 8, [1500]))
    assert found == list(range(12))


def test_empty_samples_show_the_picture_before_them(tmp_path: Path) -> None:
    """Two empty samples at the end: each is a frame's time more for the last picture."""
    path = write_video(tmp_path / "a.mp4", stamped(COUNT), bf="0")
    path = patched(path, b"stsz", 12 + 4 * (COUNT - 2), [0, 0])
    seconds, found = seconds_and_frames(path)
    assert found == list(range(COUNT - 2))
    assert seconds == pytest.approx(COUNT / 8, abs=0.01)
    assert at_8_fps(path) == [*range(COUNT - 2), COUNT - 3, COUNT - 3]


def test_an_empty_sample_among_others_is_no_loss(tmp_path: Path) -> None:
    """The sizes of the two samples before it are its neighbours' own: the chunk is the same bytes."""
    path = write_video(tmp_path / "a.mp4", stamped(COUNT), codec="mpeg4", g="1")
    data = path.read_bytes()
    table = data.index(b"stsz") + 16
    sizes = struct.unpack(f">{COUNT}I", data[table : table + 4 * COUNT])
    patched(path, b"stsz", 12 + 4 * 10, [0, *sizes[10:-1]])
    opened = open_video(str(path), LIMITS)
    times = [time for time, _ in opened.frames]
    assert len(times) == COUNT - 1
    assert times[9:11] == pytest.approx([9 / 8, 11 / 8])


CONTAINERS = [
    ("a.mp4", "libx264", "faststart"),
    ("a.mp4", "libx264", "frag_every_frame"),
    ("a.mkv", "libx264", ""),
    ("a.webm", "libvpx", ""),
    ("a.avi", "mpeg4", ""),
    ("a.flv", "flv", ""),
    ("a.flv", "libx264", ""),
    ("a.wmv", "wmv2", ""),
    ("a.mxf", "mpeg2video", ""),
    ("a.gif", "gif", ""),
    ("a.ogv", "libvpx", ""),
]


@pytest.mark.parametrize("share", [0.35, 0.7, 0.9, 0.99])
@pytest.mark.parametrize(("name", "codec", "movflags"), CONTAINERS)
def test_a_truncated_file_is_refused_or_has_lost_no_picture(
    name: str, codec: str, movflags: str, share: float, tmp_path: Path
) -> None:
    muxer = "ogg" if name == "a.ogv" else None
    path = write_video(tmp_path / name, stamped(100), 25, codec, muxer, movflags=movflags, g="8")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    if share > 0.8:
        with suppress(Rejected):
            assert seconds_and_frames(path)[1] == list(range(100))
    else:
        assert re.search("^truncated: |Invalid data", refusal(path))


@pytest.mark.parametrize("whole", [1, 10, COUNT - 1])
def test_the_reason_counts_the_frames_that_are_whole(whole: int, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", stamped(COUNT), bf="0", movflags="faststart")
    with av.open(str(path)) as file:
        entry = file.streams.video[0].index_entries[whole]  # lives as long as the file is open
        end = entry.pos + entry.size
    path.write_bytes(path.read_bytes()[: end - 1])
    assert refusal(path) == f"truncated: {whole} of {COUNT} frames are there"


@pytest.mark.parametrize(
    ("name", "codec", "mark"),
    [("a.mkv", "libx264", b"\x1c\x53\xbb\x6b"), ("a.avi", "mpeg4", b"idx1"), ("a.webm", "libvpx", None)],
)
def test_a_file_that_lost_only_its_index_is_read_whole(
    name: str, codec: str, mark: bytes | None, tmp_path: Path
) -> None:
    path = write_video(tmp_path / name, stamped(COUNT), codec=codec)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(mark) + 6] if mark else data[:-1])
    assert seconds_and_frames(path)[1] == list(range(COUNT))


def test_a_picture_missing_before_the_last_one_is_missed(tmp_path: Path) -> None:
    """Pictures lie in the order of decoding: the last that is stored is not the last that is shown."""
    path = write_video(tmp_path / "a.mkv", stamped(COUNT), bf="2")
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    assert packets[-1].pts < packets[-2].pts
    path.write_bytes(path.read_bytes()[: packets[-1].pos + 5])
    assert refusal(path) == "truncated: the file breaks off, and its pictures at 3.0 s"


def test_a_download_that_was_laid_out_in_full_but_not_filled_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", stamped(120), g="8")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert refusal(path).startswith("truncated: the file breaks off")


def take(path: Path, gap: float, after: int) -> Path:
    """COUNT frames at 8 a second, with `gap` seconds more after the first `after`."""
    times = [125 * index + (round(1000 * gap) if index >= after else 0) for index in range(COUNT)]
    return write_video(path, stamped(COUNT), times=times, bf="0", codec="libx264")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_pause_of_the_clock_is_left_out_and_told(name: str, tmp_path: Path) -> None:
    path = take(tmp_path / name, 600.0, 10)
    opened = open_video(str(path), LIMITS)
    takes: list[int] = []
    header = opened.header
    frames = list(resample(opened.frames, header.rate, 8.0, takes, header.pause, header.last))
    assert numbers(np.stack(frames)) == list(range(COUNT))
    assert takes == [10]
    assert opened.probe.applied == "pauses of 600 s in all left out"
    assert opened.probe.seconds == pytest.approx(COUNT / 8, abs=0.01)
    assert opened.probe.fps == pytest.approx(8, rel=0.01)


def test_a_last_frame_that_a_pause_prolongs_is_shown_once(tmp_path: Path) -> None:
    path = write_with_long_last_frame(tmp_path / "a.mp4", "libx264", 900.0)
    opened = open_video(str(path), LIMITS)
    assert opened.probe.seconds == pytest.approx(COUNT / 8, abs=0.01)
    assert opened.probe.applied == "pauses of 900 s in all left out"
    assert at_8_fps(path) == list(range(COUNT))


def test_a_limit_on_seconds_does_not_count_pauses(tmp_path: Path) -> None:
    path = take(tmp_path / "a.mp4", 600.0, 10)
    assert len(list(open_video(str(path), LimitsConfig(max_seconds=5.0)).frames)) == COUNT


@pytest.mark.parametrize("start", [0.0, 3600.0, 90_000.0])
def test_joined_recordings_are_read_in_stored_order(start: float, tmp_path: Path) -> None:
    """Two transport streams in one file: the clock of the first begins at `start`, the second's at 0."""
    parts = []
    for number, begin in enumerate((start, 0.0)):
        times = [round(1000 * begin) + 125 * index for index in range(COUNT)]
        frames = stamped(COUNT, start=number * COUNT)
        parts.append(write_video(tmp_path / f"{number}.ts", frames, times=times, bf="0", container="mpegts"))
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    opened = open_video(str(path), LIMITS)
    assert numbers(np.stack([frame for _, frame in opened.frames])) == list(range(2 * COUNT))
    assert opened.probe.seconds == pytest.approx(2 * COUNT / 8, abs=0.1)
    assert at_8_fps(path) == list(range(2 * COUNT))
