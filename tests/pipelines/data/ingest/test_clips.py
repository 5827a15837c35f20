"""Real files of many makers: each good one gives all its frames, each bad one windows or one true reason.

Reads the folder that SOSTENUTO_TEST_CLIPS names: short/, long/, bad/ and a README.md with the frames of each.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.decode.decoder import Clip, Decoder
from pipelines.data.decode.readers import open_video
from pipelines.data.decode.transforms import resize
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.types import Rejected

CLIPS = os.environ.get("SOSTENUTO_TEST_CLIPS", "")
pytestmark = pytest.mark.skipif(
    not CLIPS, reason="not run: SOSTENUTO_TEST_CLIPS does not name a folder of real clips"
)
ROW = re.compile(r"^\| (?P<file>(?:short|long)/\S+) \|(?:[^|]*\|){6} (?P<decord>\d+) \| (?P<pyav>\d+) \|")

REJECTED = {
    "audio_only.mp4": ("open", "no video stream"),
    "corrupted_decord.mp4": ("decode", "damaged among its 50 frames"),
    "invalid_vp9_bitstream.webm": ("decode", "damaged among its 51 frames"),
    "text_renamed.mp4": ("bytes", "no known video container"),
    "truncated_moov_first.mp4": ("open", "truncated: 71 of 280 frames"),
    "truncated_no_moov.mp4": ("open", "Invalid data"),
    "zero_byte.mp4": ("bytes", "the file is empty"),
}
READ = {
    "alpha_vp9.webm": (150, "decord"),
    "av1_5s.mkv": (125, "pyav"),
    "bitrot.mp4": (280, "decord"),
    "bogus_duration_fragmented.mp4": (30, "decord"),
    "dropped_frames_64s.ogv": (1340, "decord"),
    "mdat_too_long.mp4": (30, "decord"),
    "no_duration.webm": (74, "pyav"),
    "odd_161x121.webm": (30, "decord"),
    "only_3_frames.mp4": (3, "decord"),
    "rotated_180_3frames.mov": (3, "pyav"),
    "rotated_90_3frames.mov": (3, "pyav"),
    "rotated_90_3s.mp4": (89, "pyav"),
    "tenbit_h264.mp4": (30, "decord"),
    "tenbit_h265.mp4": (30, "decord"),
    "unordered_4frames.mov": (4, "decord"),
    "vfr_bbb_10s.mp4": (240, "decord"),
    "vfr_h263.3gp": (71, "decord"),
    "yuv444_cockatoo.mp4": (280, "pyav"),
}
UPRIGHT = {
    "rotated_90_3s.mp4": (480, 640),
    "rotated_90_3frames.mov": (320, 568),
    "rotated_180_3frames.mov": (568, 320),
}


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(DataConfig().limits) as decoder:
        yield decoder


def open_clip(decoder: Decoder, file: str, height: int = 64, width: int = 64) -> Clip:
    return decoder.open(f"{CLIPS}/{file}", [(height, width)])


def count(clip: Clip) -> int:
    return sum(len(chunk) for chunk in clip.frames)


def count_seen(clip: Clip) -> int:
    """Frames that show something: a reader that jumps into mouse_78s.mp4 sees flat grey."""
    return sum(int((np.ptp(chunk, axis=(1, 2, 3)) > 20).sum()) for chunk in clip.frames)


def good() -> list[tuple[str, int, int]]:
    """(file, frames by decord, frames by PyAV) of every good clip."""
    if not CLIPS:
        return []
    lines = (Path(CLIPS) / "README.md").read_text(encoding="utf-8").splitlines()
    found = [row for line in lines if (row := ROW.match(line))]
    return [(row["file"], int(row["decord"]), int(row["pyav"])) for row in found]


def test_the_good_clips_are_listed() -> None:
    assert len(good()) == 45


def reference(path: str) -> Iterator[np.ndarray]:
    """The upright frames of a file's largest stream, at 64 x 64, in order, by PyAV and nothing else."""
    with av.open(path, metadata_errors="ignore") as file:
        stream = max(file.streams.video, key=lambda s: s.width * s.height)
        aspect = float(stream.sample_aspect_ratio or 1)
        for frame in file.decode(stream):
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            yield resize(np.ascontiguousarray(upright), 64, 64, aspect)


MANY = 1000
"""Frames of a clip that is compared in the long tests only."""


@pytest.mark.parametrize(("file", "by_decord", "by_pyav"), [row for row in good() if row[1] > MANY])
def test_a_good_clip_gives_the_frames_that_were_counted(
    file: str, by_decord: int, by_pyav: int, decoder: Decoder
) -> None:
    clip = open_clip(decoder, file)
    found = count_seen(clip) if "mouse" in file else count(clip)
    assert found == {"decord": by_decord, "pyav": by_pyav}[clip.probe.reader]


@pytest.mark.parametrize(
    ("file", "by_decord", "by_pyav"),
    [pytest.param(*row, marks=[pytest.mark.long] if row[1] > MANY else []) for row in good()],
)
def test_every_frame_is_that_of_reading_in_order(
    file: str, by_decord: int, by_pyav: int, decoder: Decoder
) -> None:
    """To the bit and to the last, whichever reader it was: the two agree on every good clip."""
    worker = decoder.pid
    clip = open_clip(decoder, file)
    frames = (frame for chunk in clip.frames for frame in chunk)
    number = -1
    for number, (ours, theirs) in enumerate(zip(frames, reference(f"{CLIPS}/{file}"), strict=True)):
        expected = resize(np.ascontiguousarray(theirs), 64, 64)
        assert np.array_equal(ours, expected), f"frame {number}"
    assert "mouse" in file or number + 1 == {"decord": by_decord, "pyav": by_pyav}[clip.probe.reader]
    assert decoder.pid == worker or worker is None


@pytest.mark.parametrize("name", sorted(UPRIGHT))
def test_a_turned_video_stands_upright(name: str, decoder: Decoder) -> None:
    frames = (frame for chunk in open_clip(decoder, f"bad/{name}").frames for frame in chunk)
    for ours, theirs in zip(frames, reference(f"{CLIPS}/bad/{name}"), strict=True):
        assert np.array_equal(ours, theirs)


def test_no_bad_clip_ends_the_decoder(decoder: Decoder) -> None:
    count(open_clip(decoder, "short/robot.mp4"))
    worker, deadly = decoder.pid, []
    for name in sorted({*READ, *REJECTED}):
        try:
            count(open_clip(decoder, f"bad/{name}"))
        except Rejected as rejected:
            deadly += [name] if rejected.reject.stage in ("crash", "timeout", "memory") else []
        assert decoder.pid == worker, name
    assert deadly == []


@pytest.mark.parametrize("file", ["short/highway_30s.avi", "short/ucf_makeup.avi"])
def test_files_with_invented_times_go_to_the_second_reader(file: str, decoder: Decoder) -> None:
    clip = open_clip(decoder, file)
    assert clip.probe.reader == "pyav"
    assert "times are off" in clip.probe.reader_reason
    assert 5 < clip.probe.seconds < 31
    times = [time for time, _ in open_video(f"{CLIPS}/{file}", DataConfig().limits).frames]
    assert times == sorted(times)
    assert 5 < times[-1] < 31
    assert len(times) == count(clip)


def test_the_larger_of_two_streams_is_read(decoder: Decoder) -> None:
    clip = open_clip(decoder, "short/nasa_13013.mp4", 270, 480)
    assert (clip.probe.width, clip.probe.height) == (480, 270)
    assert count(clip) == 390


@pytest.mark.parametrize("name", sorted(READ))
def test_an_odd_clip_is_read_whole(name: str, decoder: Decoder) -> None:
    frames, reader = READ[name]
    clip = open_clip(decoder, f"bad/{name}")
    assert clip.probe.reader == reader
    assert bool(clip.probe.reader_reason) == (reader == "pyav")
    if name in UPRIGHT:
        assert (clip.probe.width, clip.probe.height) == UPRIGHT[name]
    assert count(clip) == frames


@pytest.mark.parametrize("name", sorted(REJECTED))
def test_a_bad_clip_ends_as_one_reject_with_its_reason(name: str, decoder: Decoder) -> None:
    stage, words = REJECTED[name]
    with pytest.raises(Rejected) as caught:
        count(open_clip(decoder, f"bad/{name}"))
    assert caught.value.reject.stage == stage
    assert words in caught.value.reject.reason


def test_every_bad_clip_is_expected_to_end_somewhere() -> None:
    assert {*READ, *REJECTED} == {path.name for path in (Path(CLIPS) / "bad").iterdir()}


def test_times_of_dropped_frames_are_the_files_own(decoder: Decoder) -> None:
    """1340 frames over 64.5 s: at 24 a second by index they would end 8 s early."""
    clip = decoder.open(f"{CLIPS}/bad/dropped_frames_64s.ogv", [(32, 32)], fps=4.0)
    assert count(clip) == pytest.approx(64.5 * 4, abs=2)


def test_bad_clips_among_good_ones_are_ingested_without_a_death(ray_local: None, tmp_path: Path) -> None:
    long = tmp_path / "long"
    long.mkdir()
    for path in (Path(CLIPS) / "long").glob("camtrap*"):
        shutil.copy(path, long)
    data = DataConfig(height=32, width=32, fps=8.0, long_frames=16, long_stride=16)
    code = AutoencoderConfig(patch_size=16, components=8, fit_frames=300)
    info = ingest(f"{CLIPS}/bad", str(long), str(tmp_path / "out"), data, code, 0)
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert len(rows) == len(READ) + len(REJECTED) + 3
    rejects = {row["source"]: row["stage"] for row in rows if row["status"] == "rejected"}
    expected = {name: stage for name, (stage, _) in REJECTED.items()}
    brief = {name for name in READ if READ[name][0] < 8}
    assert rejects == expected | dict.fromkeys(brief, "window")
    assert info.short.videos == len(READ) - len(brief)
    assert info.long.videos == 3
    assert info.long.latent_shape == (16, 8, 2, 2)
    assert np.isfinite(info.autoencoder["reconstruction_error"])
