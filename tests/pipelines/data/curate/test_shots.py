"""Shots begin at hard cuts, to the frame, not at pans, fades or flashes; nothing depends on the chunks."""

import builtins
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ConfigError
from pipelines.data.config import CurationConfig
from pipelines.data.curate.quality import thumbnails
from pipelines.data.curate.shots import LOOK_AHEAD, ShotDetector
from tests.pipelines.data.pictures import Frames, chunked, flat, shot, texture

THRESHOLD = CurationConfig().cut_threshold


def starts_of(frames: Frames, threshold: float = THRESHOLD, repeats: int = 0) -> list[int]:
    detector = ShotDetector(threshold, repeats)
    detector.add(thumbnails(frames))
    detector.finalize()
    assert detector.decided == len(frames)
    return detector.starts


@pytest.mark.parametrize("speed", [0, 1])
@pytest.mark.parametrize("lengths", [[12, 20], [5, 9, 30, 7], [3, 3, 3], [24, 1], [24, 2], [1, 24]])
def test_hard_cuts_are_exact_to_the_frame(lengths: list[int], speed: int) -> None:
    video = np.concatenate([shot(seed, length, speed=speed) for seed, length in enumerate(lengths)])
    assert starts_of(video) == np.cumsum(lengths[:-1]).tolist()


def test_a_still_has_no_cut() -> None:
    assert starts_of(shot(0, 30, speed=0)) == []


@pytest.mark.parametrize("speed", [1, 4, 10])
def test_a_pan_at_any_speed_is_no_cut(speed: int) -> None:
    assert starts_of(shot(0, 40, speed=speed)) == []


@pytest.mark.parametrize("frames", [8, 24])
def test_a_fade_to_black_and_back_is_no_cut(frames: int) -> None:
    gain = np.concatenate([np.ones(10), np.linspace(1, 0, frames), np.linspace(0, 1, frames), np.ones(10)])
    video = np.round(texture(0) * gain[:, None, None, None]).astype(np.uint8)
    assert starts_of(video) == []


def test_a_dissolve_is_no_cut() -> None:
    share = np.concatenate([np.zeros(10), np.linspace(0, 1, 12), np.ones(10)])[:, None, None, None]
    assert starts_of(np.round(texture(0) * (1 - share) + texture(1) * share).astype(np.uint8)) == []


def flashed(length: int) -> Frames:
    video = shot(0, 40)
    video[20 : 20 + length] = 255
    return video


@pytest.mark.parametrize("length", [1, 2])
def test_a_flash_of_up_to_two_frames_is_no_cut(length: int) -> None:
    assert starts_of(flashed(length)) == []


def test_a_longer_flash_is_a_shot_of_its_own() -> None:
    assert starts_of(flashed(3)) == [20, 23]


def test_at_the_librarys_own_threshold_a_flash_would_be_two_cuts() -> None:
    assert starts_of(flashed(1), threshold=3.0) == [20, 21]


def test_repeats_of_a_slow_video_are_passed_over() -> None:
    """A fast pan at a sixth of the rate: each change stands between five repeats."""
    fast = shot(0, 16, speed=24)
    assert starts_of(fast) == []
    slow = np.repeat(fast, 6, axis=0)
    assert len(starts_of(slow)) > 5
    assert starts_of(slow, repeats=5) == []


def test_cuts_between_repeated_frames_are_found() -> None:
    video = np.repeat(np.concatenate([shot(0, 7), shot(1, 9)]), 4, axis=0)
    assert starts_of(video, repeats=3) == [28]


def test_a_long_still_is_decided_before_the_video_ends() -> None:
    detector = ShotDetector(THRESHOLD, repeats=3)
    detector.add(thumbnails(flat(90, 200)))
    assert 200 - LOOK_AHEAD * 4 <= detector.decided < 200


@given(st.lists(st.integers(1, 17), min_size=1), st.integers(0, 4))
def test_shots_do_not_depend_on_the_chunks(sizes: list[int], repeats: int) -> None:
    pictures = thumbnails(
        np.concatenate([shot(0, 9), np.repeat(shot(1, 5), 3, axis=0), shot(2, 4), shot(3, 11)])
    )
    whole = ShotDetector(THRESHOLD, repeats)
    whole.add(pictures)
    parts = ShotDetector(THRESHOLD, repeats)
    known: list[int] = []
    for chunk in chunked(pictures, sizes):
        parts.add(chunk)
        assert [cut for cut in parts.starts if cut < parts.decided] == parts.starts
        assert parts.starts[: len(known)] == known
        known = parts.starts.copy()
    assert (parts.starts, parts.decided) == (whole.starts, whole.decided)
    assert whole.starts == [9, 24, 28]


def test_a_video_without_frames_has_no_shots() -> None:
    detector = ShotDetector(THRESHOLD)
    detector.finalize()
    assert (detector.starts, detector.decided) == ([], 0)


def test_opencv_runs_in_one_thread() -> None:
    import cv2

    ShotDetector(THRESHOLD)
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("missing", ["cv2", "scenedetect"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[curate\]'"):
        ShotDetector(THRESHOLD)


def test_the_library_is_imported_only_when_shots_are_sought() -> None:
    code = (
        "import sys; from pipelines.data.config import CurationConfig\n"
        "from pipelines.data.curate.quality import Curator\n"
        "Curator(CurationConfig(cuts=False), 8.0)\n"
        "print(sorted({'cv2', 'scenedetect', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[4]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_file_is_opened_by_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    starts_of(shot(0, 3))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was opened")

    monkeypatch.setattr(builtins, "open", refuse)
    assert starts_of(np.concatenate([shot(0, 8), shot(1, 8)])) == [8]
