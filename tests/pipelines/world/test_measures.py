"""Factors painted are factors read, and the measures on factors made by hand give the known answers."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.media.video import through_mp4
from pipelines.world import measures
from pipelines.world.config import WorldConfig
from pipelines.world.factors import (
    COLOUR,
    HARMONIC,
    LEVEL,
    PRESENCE,
    TEXTURE,
    WAVE,
    WAVE_SPEEDS,
    Clips,
    all_labels,
    colour_codes,
    draw_long,
    texture_codes,
)
from pipelines.world.measures import FactorReader
from pipelines.world.render import render
from pipelines.world.scene import paint

RNG = np.random.Generator(np.random.PCG64(0))


def clean(count: int = 30, num_frames: int = 32) -> Clips:
    """Clean LONG clips, each caption as often."""
    return draw_long(WorldConfig(long_frames=num_frames), count, 4, "clean")


def one(presence: list[float], early: int = 1, late: int = 1) -> NDArray[np.float64]:
    """A video [1, T, 13] with this presence, one hue in its first half and one in its second."""
    factors = np.zeros((1, len(presence), 13))
    factors[0, :, PRESENCE] = presence
    lit = (1 + np.array(presence)) / 2
    hues = np.where(np.arange(len(presence)) < len(presence) // 2, early, late)
    factors[0, :, COLOUR] = colour_codes()[hues] * lit[:, None]
    return factors


def story(leave: int = 9, back: int = 22, num_frames: int = 32) -> list[float]:
    """Presence of a sun that leaves and returns."""
    return [1.0] * leave + [0.0] + [-1.0] * (back - leave - 1) + [0.0] + [1.0] * (num_frames - back - 1)


def test_clean_clips_score_what_clean_is() -> None:
    clips = clean(60)
    scores = measures.measure_all(clips.factors, clips.labels)
    assert scores["texture_error"] < 1e-5
    assert scores["motion_error"] < 1e-5
    for name in ("sharpness", "rule", "rule_strict", "same_colour", "ramp", "caption_accuracy"):
        assert scores[name] == pytest.approx(1.0, abs=1e-5), name
    assert scores["rise"] == pytest.approx(2.19, abs=0.05)
    assert scores["effective_textures"] == pytest.approx(3.0)
    assert scores["effective_colours"] == pytest.approx(5.0)
    assert scores["diversity"] == pytest.approx(15 * scores["spread"])


@pytest.mark.parametrize("num_frames", [32, 240])
def test_low_grade_long_keeps_its_story_and_shuffled_long_does_not(num_frames: int) -> None:
    clips = draw_long(WorldConfig(long_frames=num_frames), 200, 9)
    scores = measures.measure_all(clips.factors, clips.labels)
    assert scores["rule"] >= 0.99
    assert scores["caption_accuracy"] >= 0.99
    assert scores["texture_error"] == pytest.approx(0.71, abs=0.03)
    assert scores["sharpness"] == pytest.approx(0.44, abs=0.02)
    assert scores["motion_error"] == pytest.approx(0.095, abs=0.01)
    shuffled = np.stack([clip[RNG.permutation(num_frames)] for clip in clips.factors])
    assert measures.measure_all(shuffled, clips.labels)["rule"] <= 0.05


def test_texture_error_is_the_distance_to_the_nearest_word() -> None:
    factors = np.zeros((2, 16, 13))
    factors[0, :, TEXTURE] = texture_codes()[3] * 0.7
    factors[1, :8, TEXTURE] = texture_codes()[1]
    assert measures.texture_error(factors) == pytest.approx([0.3 * np.sqrt(5), 0.5 * np.sqrt(5)])
    assert measures.texture_error_by_eighth(factors)[1] == pytest.approx([0.0] * 4 + [np.sqrt(5)] * 4)


@given(st.integers(8, 200))
def test_eighths_cover_every_frame_once(num_frames: int) -> None:
    values = RNG.normal(size=(2, num_frames))
    eighths = measures.by_eighth(values)
    sizes = np.array([len(part) for part in np.array_split(np.arange(num_frames), 8)])
    assert eighths.shape == (2, 8)
    assert (eighths * sizes).sum(axis=1) == pytest.approx(values.sum(axis=1))


@settings(max_examples=50)
@given(st.sampled_from(WAVE_SPEEDS), st.floats(-0.2, 0.2), st.floats(0, 6.28), st.floats(0.2, 3.0))
def test_motion_error_is_how_far_the_speed_is_off(
    speed: float, off: float, start: float, size: float
) -> None:
    phase = start + (speed + off) * np.arange(40)
    factors = np.zeros((1, 40, 13))
    factors[0, :, WAVE] = size * np.stack([np.cos(phase), np.sin(phase)], axis=-1)
    assert measures.phase_steps(factors) == pytest.approx(np.full((1, 39), speed + off))
    assert measures.motion_error(factors)[0] == pytest.approx(abs(off), abs=1e-9)


@given(st.floats(-1.5, 1.5), st.floats(0, 6.28), st.floats(0, 6.28))
def test_sharpness_sees_only_locked_crests(amount: float, start: float, lag: float) -> None:
    phase = start + 0.5 * np.arange(32)
    factors = np.zeros((1, 32, 13))
    factors[0, :, WAVE] = np.stack([np.cos(phase), np.sin(phase)], axis=-1)
    angle = 2 * phase + lag
    factors[0, :, HARMONIC] = amount * np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    assert measures.sharpness(factors)[0] == pytest.approx(amount * np.cos(lag), abs=1e-9)


def test_rise_and_ramp() -> None:
    factors = np.zeros((3, 32, 13))
    factors[0, :, LEVEL] = np.linspace(-1.2125, 1.2125, 32)
    factors[1, :, LEVEL] = np.linspace(0.6, -0.6, 32)
    assert measures.rise(factors) == pytest.approx([2.425 * 28 / 31, -1.2 * 28 / 31, 0.0])
    assert measures.ramp(factors).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        (one(story()), True),
        (one(story(8, 21)), True),
        (one(story(10, 23)), True),
        (one(story(), 1, 2), False),
        (one([1.0] * 32), False),
        (one([-1.0] * 32), False),
        (one(story(6, 22)), False),
        (one(story(13, 22)), False),
        (one(story(9, 18)), False),
        (one(story(9, 25)), False),
        (one([*story()[:15], 1.0, *story()[16:]]), False),
        (one([*story()[:3], 0.4, *story()[4:]]), False),
        (one([*story()[:3], 0.6, *story()[4:]]), True),
        (one([*story()[:8], -1.0, 1.0, *story()[10:]]), False),
        (one([1.0] * 9 + [-1.0] * 23), False),
    ],
)
def test_rule_on_videos_made_by_hand(factors: NDArray[np.float64], expected: bool) -> None:
    assert bool(measures.rule(factors)[0]) is expected


def test_a_flicker_breaks_the_strict_rule_and_not_the_smoothed_one() -> None:
    presence = story(65, 145, 240)
    presence[30] = -1.0
    factors = one(presence)
    assert not measures.rule(factors)[0]
    assert measures.rule(factors, smooth=5)[0]
    presence[28:33] = [-1.0] * 5
    assert not measures.rule(one(presence), smooth=5)[0]


def test_rule_sees_each_video_alone() -> None:
    videos = np.concatenate([one(story()), one([1.0] * 32), one(story(), 3, 0), one(story(), 4, 4)])
    assert measures.rule(videos).tolist() == [True, False, False, True]
    assert measures.same_colour(videos).tolist() == [True, True, False, True]


def test_same_colour_needs_a_sun_at_both_ends() -> None:
    videos = np.concatenate([one([1.0] * 9 + [-1.0] * 23), one([-1.0] * 32), one(story(), 2, 2)])
    assert measures.same_colour(videos).tolist() == [False, False, True]


def test_captions_are_read_from_what_is_shown() -> None:
    clips = clean(60)
    assert np.array_equal(measures.read_labels(clips.factors), clips.labels)
    wrong = clips.labels.copy()
    wrong[:15, 0] = (wrong[:15, 0] + 1) % 3
    wrong[:6, 1] = (wrong[:6, 1] + 1) % 5
    wrong[:, 2] = 1 - wrong[:, 2]
    accuracy = measures.caption_accuracy(clips.factors, wrong)
    assert accuracy["texture_accuracy"] == pytest.approx(0.75)
    assert accuracy["colour_accuracy"] == pytest.approx(0.9)
    assert accuracy["speed_accuracy"] == 0.0
    assert accuracy["caption_accuracy"] == pytest.approx((0.75 + 0.9) / 3)


def test_colour_is_judged_on_videos_that_show_a_sun() -> None:
    videos = np.concatenate([one(story(), 2, 2), one([-1.0] * 32)])
    labels = np.array([[0, 2, 0], [0, 3, 0]])
    assert measures.read_labels(videos)[:, 1].tolist() == [2, -1]
    assert measures.caption_accuracy(videos, labels)["colour_accuracy"] == 1.0
    assert measures.caption_accuracy(videos[1:], labels[1:])["colour_accuracy"] == 0.0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_effective_number_is_between_one_and_the_number_of_words(counts: list[int]) -> None:
    indices = np.repeat(np.arange(len(counts)), counts)
    number = measures.effective_number(indices)
    assert 1.0 - 1e-9 <= number <= len(counts) + 1e-9
    if len(set(counts)) == 1:
        assert number == pytest.approx(len(counts))


def test_lost_words_and_repeated_videos_lower_diversity() -> None:
    clips = draw_long(WorldConfig(), 120, 3, "clean", labels=np.repeat(all_labels("seen"), 4, axis=0))
    full = measures.diversity(clips.factors, clips.labels)
    collapsed = clips.factors.copy()
    collapsed[..., TEXTURE] = texture_codes()[0]
    assert measures.diversity(collapsed, clips.labels)["effective_textures"] == pytest.approx(1.0)
    repeated = np.repeat(clips.factors[::4], 4, axis=0)
    assert measures.diversity(repeated, clips.labels)["spread"] == pytest.approx(0.0, abs=1e-6)
    assert measures.diversity(repeated, clips.labels)["effective_textures"] == pytest.approx(3.0)
    assert full["diversity"] > 5.0
    assert measures.effective_number(np.array([], dtype=np.int64)) == 0.0


def test_spread_is_the_deviation_among_videos_of_a_caption() -> None:
    labels = np.array([[0, 0, 0]] * 500 + [[1, 0, 0]] * 500 + [[2, 0, 0]])
    factors = RNG.normal(scale=0.3, size=(1001, 4, 13)) + 5.0 * labels[:, :1, None]
    assert measures.spread(factors, labels) == pytest.approx(0.3, rel=0.05)
    assert measures.spread(factors[[0, 500]], labels[[0, 500]]) > 3.0
    assert measures.spread(factors[:1], labels[:1]) == 0.0


@pytest.fixture(scope="module")
def decoded() -> dict[str, Clips]:
    """Both grades after rendering, H.264 and reading back, 64 x 64."""
    found = {}
    for grade in ("low", "clean"):
        clips = draw_long(WorldConfig(), 30, 6, grade)
        frames = np.stack([through_mp4(render(clip, 64), 8.0, 14) for clip in clips.factors])
        found[grade] = Clips(FactorReader(64).factors(frames), clips.captions, clips.labels)
    return found


def test_clean_files_read_nearly_clean(decoded: dict[str, Clips]) -> None:
    scores = measures.measure_all(decoded["clean"].factors, decoded["clean"].labels)
    assert scores["rule"] == scores["same_colour"] == scores["caption_accuracy"] == scores["ramp"] == 1.0
    assert scores["texture_error"] < 0.08
    assert scores["motion_error"] < 0.02
    assert 0.94 < scores["sharpness"] < 1.0
    assert scores["rise"] == pytest.approx(2.18, abs=0.06)


def test_low_grade_files_keep_the_story_and_lose_the_detail(decoded: dict[str, Clips]) -> None:
    scores = measures.measure_all(decoded["low"].factors, decoded["low"].labels)
    assert scores["rule"] == scores["same_colour"] == scores["caption_accuracy"] == 1.0
    assert scores["texture_error"] > 8 * measures.texture_error(decoded["clean"].factors).mean()
    assert scores["sharpness"] < 0.5


def test_measure_all_gives_plain_numbers_under_the_names_of_the_functions() -> None:
    clips = clean(30)
    scores = measures.measure_all(clips.factors, clips.labels)
    assert all(type(value) is float for value in scores.values())
    for name in ("texture_error", "motion_error", "sharpness", "same_colour", "ramp", "rise"):
        assert scores[name] == pytest.approx(float(getattr(measures, name)(clips.factors).mean()))
    assert {f"texture_error_eighth_{index}" for index in range(1, 9)} <= set(scores)
    assert {"rule", "rule_strict", "caption_accuracy", "diversity"} <= set(scores)


SIZE = 64


@dataclass
class Code:
    """A whole-frame linear code."""

    mean: NDArray[np.floating] | torch.Tensor
    basis: NDArray[np.floating] | torch.Tensor
    scale: NDArray[np.floating] | torch.Tensor


def rms(error: NDArray[np.floating], which: slice | int) -> float:
    """Root mean square of some factors."""
    return float(np.sqrt(np.mean(error[..., which] ** 2)))


def test_rounding_to_8_bits_costs_less_than_a_thousandth() -> None:
    factors = draw_long(WorldConfig(), 6, 0, "clean").factors
    found = FactorReader(SIZE).factors(np.stack([render(clip, SIZE) for clip in factors]))
    assert found.shape == factors.shape
    assert found.dtype == np.float32
    for which in (TEXTURE, LEVEL, PRESENCE, COLOUR, WAVE, HARMONIC):
        assert rms(found - factors, which) < 2e-3


def test_h264_costs_what_was_measured() -> None:
    factors = draw_long(WorldConfig(), 20, 1, "clean").factors
    frames = np.stack([through_mp4(render(clip, SIZE), 8.0, 14) for clip in factors])
    error = FactorReader(SIZE).factors(frames) - factors
    floors: list[tuple[slice | int, float]] = [
        (TEXTURE, 0.035),
        (LEVEL, 0.10),
        (PRESENCE, 0.08),
        (COLOUR, 0.04),
        (WAVE, 0.03),
        (HARMONIC, 0.06),
    ]
    for which, floor in floors:
        assert rms(error, which) < floor, which


def test_any_leading_shape_and_any_number_of_frames() -> None:
    frames = render(draw_long(WorldConfig(long_frames=150), 1, 0).factors[0], SIZE)
    reader = FactorReader(SIZE)
    whole = reader.factors(frames)
    assert np.allclose(
        reader.factors(frames.reshape(10, 15, SIZE, SIZE, 3)).reshape(150, 13), whole, atol=1e-5
    )
    assert np.allclose(reader.factors(frames[7]), whole[7], atol=1e-5)


def test_frames_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="64 pixels"):
        FactorReader(SIZE).factors(np.zeros((2, 32, 32, 3), dtype=np.uint8))


def test_latents_are_read_as_the_pixels_they_decode_to() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    mixing = np.linalg.qr(rng.normal(size=(13, 13)))[0]
    basis = mixing @ paint(SIZE).basis.reshape(13, -1) + 1e-4 * rng.normal(size=(13, SIZE * SIZE * 3))
    mean = paint(SIZE).mean.reshape(-1) + 0.01
    scale = rng.uniform(0.5, 2.0, 13)
    reader = FactorReader(SIZE)
    latents = rng.normal(size=(3, 5, 13, 1, 1)) * 0.15
    pixels = mean + (latents[..., 0, 0] * scale) @ basis
    frames = np.rint(pixels * 255).astype(np.uint8).reshape(3, 5, SIZE, SIZE, 3)
    found = reader.from_latents(Code(mean, basis, scale))(latents)
    assert np.abs(pixels - 0.5).max() < 0.5
    assert found.shape == (3, 5, 13)
    assert np.abs(found - reader.factors(frames)).max() < 0.01


def test_tensors_serve_as_arrays_do() -> None:
    parts = (
        paint(SIZE).mean.reshape(-1).copy(),
        paint(SIZE).basis.reshape(13, -1).copy(),
        np.ones(13, np.float32),
    )
    read = FactorReader(SIZE).from_latents(Code(*(torch.from_numpy(part) for part in parts)))
    factors = draw_long(WorldConfig(), 2, 0).factors
    found = read(torch.from_numpy(factors)[..., None, None])
    assert np.abs(found - factors).max() < 1e-4


def test_codes_and_latents_that_do_not_fit_are_refused() -> None:
    reader = FactorReader(SIZE)
    with pytest.raises(ConfigError, match="patch_size"):
        reader.from_latents(Code(np.zeros(300), np.zeros((5, 300)), np.ones(5)))
    code = Code(paint(SIZE).mean.reshape(-1), paint(SIZE).basis.reshape(13, -1), np.ones(13))
    with pytest.raises(ConfigError, match="13 numbers per frame"):
        reader.from_latents(code)(np.zeros((2, 13, 2, 2)))
