"""Each figure of a window has its known value, and none depends on how the frames arrived."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.curate.quality import (
    THUMBNAIL,
    FrameScores,
    Scores,
    perceptual_hashes,
    sharpness,
    thumbnails,
)
from pipelines.media.color import luma
from tests.pipelines.data.pictures import Frames, bar, blurred, chunked, flat, shot, texture


def scores_of(frames: Frames, fps: float = 8.0) -> Scores:
    scores = FrameScores(fps)
    scores.add(frames, thumbnails(frames))
    return scores.window(0, len(frames))


def hashes_of(frames: Frames) -> np.ndarray:
    return perceptual_hashes(luma(thumbnails(frames)))


def bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.bitwise_count(a ^ b)


def test_black_has_nothing() -> None:
    assert scores_of(flat(0, 6)) == (0.0, 0.0, 0.0, 0.0, bytes(24))


@pytest.mark.parametrize("level", [1, 51, 128, 255])
def test_one_colour_has_only_brightness(level: int) -> None:
    scores = scores_of(flat(level, 6))
    assert scores.brightness == pytest.approx(level / 255)
    assert scores[1:4] == (0.0, 0.0, 0.0)


def test_brightness_weighs_the_colours_as_the_eye_does() -> None:
    primaries = np.zeros((3, 40, 60, 3), np.uint8)
    for channel in range(3):
        primaries[channel, ..., channel] = 255
    found = [scores_of(frame[None]).brightness for frame in primaries]
    np.testing.assert_allclose(found, [0.299, 0.587, 0.114], atol=0.005)


def test_a_still_does_not_move() -> None:
    scores = scores_of(shot(0, 10, speed=0))
    assert (scores.motion, scores.flash) == (0.0, 0.0)
    assert scores.brightness > 0.2


def test_a_strobe_flashes_fully_and_does_not_move() -> None:
    scores = scores_of(np.concatenate([flat(0, 1), flat(255, 1)] * 4))
    assert (scores.brightness, scores.motion, scores.flash) == (0.5, 0.0, 1.0)


def test_a_flash_is_the_largest_step() -> None:
    frames = np.concatenate([flat(level, 2) for level in (100, 110, 161, 140)])
    assert scores_of(frames).flash == pytest.approx(51 / 255)


@pytest.mark.parametrize("fps", [1.0, 8.0, 30.0])
@pytest.mark.parametrize(("size", "width", "speed"), [(64, 16, 2), (64, 16, 4), (128, 32, 3), (256, 40, 8)])
def test_a_moving_bar_changes_what_it_leaves_and_what_it_covers(
    size: int, width: int, speed: int, fps: float
) -> None:
    found = scores_of(bar(8, size, width, speed), fps).motion
    assert found == pytest.approx(fps * 2 * speed / size, rel=0.02)


def test_motion_in_a_second_is_that_of_every_frame_shown_twice() -> None:
    frames = shot(0, 12, speed=2)
    twice = scores_of(np.repeat(frames, 2, axis=0)[:-1], 16.0).motion
    assert twice == pytest.approx(scores_of(frames, 8.0).motion)


def test_a_window_leaves_out_the_change_into_it() -> None:
    frames = np.concatenate([shot(0, 5, speed=0), shot(1, 5, speed=0)])
    scores = FrameScores(8.0)
    scores.add(frames, thumbnails(frames))
    assert scores.window(5, 5).motion == scores.window(0, 5).motion == 0.0
    assert scores.window(4, 2).motion > 0.5
    assert scores.window(5, 1).motion == scores.window(5, 1).flash == 0.0


def test_a_step_is_sharp_and_a_long_slope_is_not() -> None:
    step, slope, grey = flat(0, 1), flat(0, 1), flat(128, 1)
    step[:, :, 32:] = 255
    slope[:] = (np.arange(64) * 4)[:, None]
    assert sharpness(step)[0] == pytest.approx((9 * 253 - 255) / (9 * 253))
    assert sharpness(slope)[0] == 0.0
    assert sharpness(grey)[0] == 0.0


@pytest.mark.parametrize("turn", [0, 1])
def test_stripes_of_any_direction_are_sharp(turn: int) -> None:
    stripes = flat(0, 1)
    stripes[:, :, ::2] = 255
    assert sharpness(np.rot90(stripes, turn, axes=(1, 2)))[0] > 0.85


@pytest.mark.parametrize("size", [(64, 64), (100, 140), (480, 832)])
def test_blur_lowers_sharpness_step_by_step(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, size[0] // 4, size[1] // 4, 3), np.uint8)
    crisp = noise.repeat(4, axis=1).repeat(4, axis=2)
    found = [float(sharpness(blurred(crisp, radius))[0]) for radius in (0, 1, 2, 4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.6
    assert found[0] > 2 * found[3]


def test_contrast_is_not_sharpness() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    crisp = noise.repeat(4, axis=1).repeat(4, axis=2)
    faint = (96 + crisp * 0.25).astype(np.uint8)
    assert sharpness(faint)[0] == pytest.approx(sharpness(crisp)[0], abs=0.05)


def test_frames_too_small_for_the_blur_have_no_sharpness() -> None:
    assert sharpness(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)).tolist() == [0, 0]


def test_a_hash_stands_brightness_contrast_and_size() -> None:
    originals = np.stack([texture(seed, 96, 128) for seed in range(20)])
    plain = hashes_of(np.round(originals).astype(np.uint8))
    brighter = hashes_of(np.clip(originals + 12, 0, 255).astype(np.uint8))
    paler = hashes_of((60 + originals * 0.6).astype(np.uint8))
    halved = hashes_of(originals.reshape(20, 48, 2, 64, 2, 3).mean(axis=(2, 4)).astype(np.uint8))
    for other in (brighter, paler, halved):
        assert bits(plain, other).max() <= 6


def test_hashes_of_other_and_of_mirrored_pictures_differ() -> None:
    frames = np.round(np.stack([texture(seed) for seed in range(30)])).astype(np.uint8)
    plain, mirrored = hashes_of(frames), hashes_of(np.ascontiguousarray(frames[:, :, ::-1]))
    assert bits(plain, mirrored).min() >= 16
    apart = bits(plain[:, None], plain[None])[np.triu_indices(30, 1)]
    assert apart.min() >= 13


def test_one_colour_has_one_hash_whatever_its_noise() -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (20, 64, 64, 3))
    assert set(hashes_of((120 + noise).astype(np.uint8)).tolist()) == set(hashes_of(flat(30, 1)).tolist())


def test_a_wave_sets_its_own_bit() -> None:
    """cos(pi k (2 y + 1) / 64) cos(pi l (2 x + 1) / 64) is bit 8 k + l, counted from the first of a byte."""
    waves = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(THUMBNAIL) + 1) / (2 * THUMBNAIL))
    for k, m in itertools.product(range(1, 8), repeat=2):
        picture = np.round(128 + 60 * np.outer(waves[k], waves[m])).astype(np.int16)
        expected = np.packbits([j in (0, 8 * k + m) for j in range(64)]).view("<u8")
        assert perceptual_hashes(picture[None]).tolist() == expected.tolist()


def test_a_fingerprint_is_of_the_first_the_middle_and_the_last_frame() -> None:
    frames = np.concatenate([shot(seed, 1) for seed in range(9)])
    scores = FrameScores(8.0)
    scores.add(frames, thumbnails(frames))
    hashes = hashes_of(frames)
    for start, length in [(0, 9), (2, 4), (3, 1), (7, 2)]:
        found = np.frombuffer(scores.window(start, length).fingerprint, "<u8")
        picks = [start, start + length // 2, start + length - 1]
        assert found.tolist() == hashes[picks].tolist()


@given(st.lists(st.integers(1, 9), min_size=1), st.integers(0, 20), st.integers(1, 10))
def test_scores_do_not_depend_on_the_chunks(sizes: list[int], start: int, length: int) -> None:
    frames = np.random.default_rng(3).integers(0, 256, (30, 37, 51, 3), np.uint8)
    whole, parts = FrameScores(6.0), FrameScores(6.0)
    whole.add(frames, thumbnails(frames))
    for chunk in chunked(frames, sizes):
        parts.add(chunk, thumbnails(chunk))
    assert parts.window(start, length) == whole.window(start, length)
    assert len(parts) == len(whole) == 30


def test_half_a_million_frames_take_ten_megabytes() -> None:
    scores = FrameScores(8.0)
    frames = flat(9, 500, 16)
    scores.add(frames, thumbnails(frames))
    columns = (scores._brightness, scores._motion, scores._sharpness, scores._hashes)
    assert sum(column.itemsize for column in columns) * 500_000 == 10_000_000
    assert [len(column) for column in columns] == [500] * 4
