"""A video is passed on as soon as it is decided, and each window is judged by what it shows."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from pipelines.data.config import CurationConfig, DataConfig
from pipelines.data.curate.dedup import near_duplicates
from pipelines.data.curate.quality import (
    ASPECTS,
    NEED_SCORES,
    UNSCORED,
    Curator,
    Verdict,
    aspect_of,
    check_curation,
    video_refusal,
)
from pipelines.data.decode.decoder import Decoder
from tests.pipelines.data.pictures import Frames, bar, blurred, chunked, flat, shot, texture
from tests.pipelines.data.videos import write_video

CLIPS = os.environ.get("SOSTENUTO_TEST_CLIPS", "")
OFF = CurationConfig(cuts=False)


def watched(frames: Frames, config: CurationConfig = OFF, fps: float = 8.0) -> Curator:
    curator = Curator(config, fps)
    assert sum(len(part) for part in curator.watch([frames])) == len(frames)
    return curator


def judged(frames: Frames, config: CurationConfig) -> Verdict:
    return watched(frames, config).judge(0, len(frames))


THREE_SHOTS = np.concatenate([shot(0, 9), shot(1, 14), shot(2, 7)])


@given(st.lists(st.integers(1, 11), min_size=1), st.booleans())
def test_watching_changes_no_frame_and_knows_every_cut_of_what_it_gave(sizes: list[int], cuts: bool) -> None:
    curator = Curator(CurationConfig(cuts=cuts), 8.0)
    given_out = []
    passed = 0
    for part in curator.watch(chunked(THREE_SHOTS, sizes)):
        given_out.append(part)
        passed += len(part)
        assert len(part)
        assert list(curator.shot_starts) == [cut for cut in (9, 23) if cuts and cut < passed]
        assert curator.judge(0, passed).shot == 0
    np.testing.assert_array_equal(np.concatenate(given_out), THREE_SHOTS)


@given(st.lists(st.integers(1, 11), min_size=1), st.integers(0, 20), st.integers(1, 10))
def test_verdicts_do_not_depend_on_the_chunks(sizes: list[int], start: int, length: int) -> None:
    config = CurationConfig(min_motion=0.3)
    parts = Curator(config, 8.0)
    for _ in parts.watch(chunked(THREE_SHOTS, sizes)):
        pass
    assert parts.judge(start, length) == watched(THREE_SHOTS, config).judge(start, length)


def test_a_window_knows_the_shot_in_which_it_begins() -> None:
    curator = watched(THREE_SHOTS, CurationConfig())
    assert [curator.judge(start, 7).shot for start in (0, 2, 9, 16, 23)] == [0, 0, 1, 1, 2]


def test_without_cuts_all_is_one_shot() -> None:
    curator = watched(THREE_SHOTS)
    assert list(curator.shot_starts) == []
    assert curator.judge(0, 30)[::2] == (0, "")


def test_only_decided_frames_are_judged() -> None:
    curator = Curator(CurationConfig(), 8.0)
    frames = curator.watch([shot(0, 10)])
    assert len(next(frames)) == 8
    assert curator.judge(0, 8).reason == ""
    for start, length in [(0, 9), (-1, 3), (2, 0)]:
        with pytest.raises(ValueError, match="decided"):
            curator.judge(start, length)
    assert len(next(frames)) == 2
    assert curator.judge(0, 10).reason == ""


def test_a_video_without_frames_passes_nothing_on() -> None:
    assert list(Curator(CurationConfig(), 8.0).watch([])) == []


def test_frames_of_a_slow_video_come_repeated_and_are_no_cuts() -> None:
    slow = np.repeat(shot(0, 10, speed=24), 6, axis=0)
    first = next(Curator(CurationConfig(), 6.0, source_fps=1.0).watch([slow]))
    assert len(first) == 48, "the last two pictures are open"
    curator = Curator(CurationConfig(), 6.0, source_fps=1.0)
    assert len(np.concatenate(list(curator.watch(chunked(slow, [7]))))) == 60
    assert list(curator.shot_starts) == []
    assert len(watched(slow, CurationConfig(), 6.0).shot_starts) > 3


MOVING = bar(8, 64, 16, 4)
FILTERS = [
    ("min_brightness", 0.1, flat(10, 8), flat(40, 8)),
    ("min_motion", 0.01, shot(0, 8, speed=0), MOVING),
    ("max_motion", 0.5, MOVING, shot(0, 8, speed=0)),
    ("max_flash", 0.3, np.concatenate([flat(0, 4), flat(255, 4)]), np.concatenate([flat(0, 4), flat(70, 4)])),
    ("min_sharpness", 0.3, blurred(MOVING, 8), MOVING),
]


@pytest.mark.parametrize(("name", "bound", "bad", "good"), FILTERS, ids=[row[0] for row in FILTERS])
def test_each_filter_refuses_its_fault_by_name(name: str, bound: float, bad: Frames, good: Frames) -> None:
    config = CurationConfig(cuts=False, **{name: bound})
    assert judged(bad, config).reason == name
    assert judged(good, config).reason == ""
    assert judged(bad, OFF).reason == ""


@pytest.mark.parametrize("frames", [flat(0, 4), flat(255, 4), np.concatenate([flat(0, 1), flat(255, 1)] * 3)])
def test_by_default_nothing_but_a_cut_is_refused(frames: Frames) -> None:
    assert judged(frames, CurationConfig(cuts=False)).reason == ""


def test_the_first_refusal_is_named() -> None:
    config = CurationConfig(cuts=False, min_brightness=0.5, min_motion=0.5, min_sharpness=0.5)
    assert judged(flat(0, 4), config).reason == "min_brightness"


@pytest.mark.parametrize(
    ("width", "height", "name"),
    [
        (1920, 1080, "16:9"),
        (2560, 1080, "16:9"),
        (832, 480, "16:9"),
        (640, 480, "4:3"),
        (256, 256, "1:1"),
        (480, 640, "3:4"),
        (1080, 1920, "9:16"),
        (1539, 1000, "4:3"),
        (1540, 1000, "16:9"),
    ],
)
def test_a_video_belongs_to_the_nearest_aspect(width: int, height: int, name: str) -> None:
    """16:9 and 4:3 meet at the square root of their product, 1.5396."""
    assert aspect_of(width, height) == name
    assert video_refusal(CurationConfig(aspects=(name,)), width, height, 1.0) == ""
    others = tuple(other for other in ASPECTS if other != name)
    assert name in video_refusal(CurationConfig(aspects=others), width, height, 1.0)


def test_a_short_video_is_refused() -> None:
    config = CurationConfig(min_seconds=5)
    assert "data.curation.min_seconds is 5" in video_refusal(config, 64, 64, 4.99)
    assert video_refusal(config, 64, 64, 5.0) == video_refusal(CurationConfig(), 64, 64, 0.0) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_motion", 0.0), ("cut_threshold", 1.0), ("cut_threshold", float("nan")),
        ("aspects", ("16:9", "2:1")), ("duplicate_distance", -1), ("duplicate_distance", 40),
        ("duplicates_across", True),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"data.curation.{name} ="):
        check_curation(CurationConfig(**{name: value}))


def refusal(config: CurationConfig) -> str | None:
    try:
        check_curation(config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    "value",
    [
        CurationConfig(),
        CurationConfig(min_motion=0.1, max_motion=2.0, aspects=("1:1",), duplicate_distance=6),
        CurationConfig(duplicate_distance=0, duplicates_across=True, max_flash=0.0),
    ],
)
def test_what_can_be_is_not_refused(value: CurationConfig) -> None:
    assert refusal(value) is None


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(DataConfig().limits) as decoder:
        yield decoder


def test_copies_of_a_video_are_near_duplicates_and_its_mirror_image_is_not(
    decoder: Decoder, tmp_path: Path
) -> None:
    """Encoded again, made brighter or smaller it is the same; mirrored, or another, it is not."""
    original = np.round(np.stack([np.roll(texture(0, 96, 96), 2 * i, axis=1) for i in range(12)]))
    other = np.round(np.stack([np.roll(texture(1, 96, 96), 2 * i, axis=1) for i in range(12)]))
    halved = original.reshape(12, 48, 2, 48, 2, 3).mean(axis=(2, 4))
    made = {
        "original": (original, "18"),
        "coarser": (original, "36"),
        "brighter": (np.clip(original + 15, 0, 255), "23"),
        "smaller": (halved, "20"),
        "mirrored": (original[:, :, ::-1], "18"),
        "other": (other, "18"),
    }
    names, fingerprints = sorted(made, key=lambda name: name != "original"), []
    for name in names:
        frames, crf = made[name]
        path = write_video(tmp_path / f"{name}.mp4", np.ascontiguousarray(frames, np.uint8), crf=crf)
        curator = Curator(CurationConfig(), 8.0)
        for _ in curator.watch(decoder.open(path, [(64, 64)]).frames):
            pass
        fingerprints.append(curator.judge(0, 12).scores.fingerprint)
    hashes = np.frombuffer(b"".join(fingerprints), "<u8").reshape(-1, 3)
    ids = [f"{number}" for number in range(len(names))]
    dropped = near_duplicates(ids, ["short"] * len(ids), names, hashes, 8)
    assert {names[row]: names[like] for row, like in dropped.items()} == dict.fromkeys(
        ("coarser", "brighter", "smaller"), "original"
    )


@pytest.mark.skipif(not CLIPS, reason="not run: SOSTENUTO_TEST_CLIPS does not name a folder of real clips")
@pytest.mark.parametrize(("fps", "joins"), [(None, [1035, 2175]), (8.0, [332, 696])])
def test_the_two_joins_of_a_real_clip_are_its_only_cuts(
    fps: float | None, joins: list[int], decoder: Decoder
) -> None:
    clip = decoder.open(f"{CLIPS}/long/talk_125s_256.mp4", [(64, 64)], fps)
    curator = Curator(CurationConfig(), fps or clip.probe.fps, clip.probe.fps)
    for _ in curator.watch(clip.frames):
        pass
    assert list(curator.shot_starts) == joins


def test_without_scores_cuts_are_found_and_nothing_is_measured() -> None:
    frames = np.concatenate([np.full((12, 64, 64, 3), 30, np.uint8), np.full((12, 64, 64, 3), 220, np.uint8)])
    scored, plain = (watched(frames, CurationConfig(scores=scores)) for scores in (True, False))
    assert plain.shot_starts == scored.shot_starts == [12]
    assert plain.judge(12, 8) == Verdict(1, UNSCORED, "")
    assert scored.judge(12, 8).scores.brightness > 0.8


@pytest.mark.parametrize("name", NEED_SCORES)
def test_a_filter_needs_scores(name: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        check_curation(CurationConfig(scores=False, **{name: 0.5}))
    assert "data.curation.scores" in caught.value.remedy
