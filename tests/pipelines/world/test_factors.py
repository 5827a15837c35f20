"""The draws keep the world's promises: codes, shares, grades, schedule, legal motion, one draw per seed."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ConfigError
from pipelines.world.captions import COLOURS, SPEEDS, TEXTURES, parse
from pipelines.world.config import WorldConfig
from pipelines.world.factors import (
    CLIP,
    COLOUR,
    HARMONIC,
    HUES,
    LEVEL,
    MINUTE,
    NUM_FACTORS,
    PRESENCE,
    SKIES,
    TEXTURE,
    VERSION,
    WAVE,
    WAVE_SPEEDS,
    Clips,
    Textures,
    all_labels,
    colour_codes,
    describe,
    draw_absence,
    draw_long,
    draw_short,
    rule_spans,
    schedule,
    texture_codes,
)
from pipelines.world.measures import rise, rule

CONFIG = WorldConfig()


def same(one: Clips, other: Clips) -> bool:
    """Whether two draws are equal."""
    equal = np.array_equal(one.factors, other.factors) and np.array_equal(one.labels, other.labels)
    return equal and one.captions == other.captions


def test_a_seed_gives_the_same_clips_and_another_seed_others() -> None:
    assert same(draw_short(CONFIG, 40, 5), draw_short(CONFIG, 40, 5))
    assert same(draw_long(CONFIG, 40, 5), draw_long(CONFIG, 40, 5))
    assert not same(draw_short(CONFIG, 40, 5), draw_short(CONFIG, 40, 6))
    assert not same(draw_long(CONFIG, 40, 5), draw_long(CONFIG, 40, 6))


def test_the_global_generator_is_neither_used_nor_moved() -> None:
    before = str(np.random.get_state())  # noqa: NPY002
    draw_long(CONFIG, 5, 0)
    draw_short(CONFIG, 5, 0)
    assert str(np.random.get_state()) == before  # noqa: NPY002


def test_short_has_the_mix_of_suns_with_one_frame_of_change() -> None:
    presence = draw_short(CONFIG, 6000, 1).factors[..., PRESENCE]
    first, last = presence[:, 0], presence[:, -1]
    shares = {(1, 1): 0.42, (-1, -1): 0.20, (-1, 1): 0.19, (1, -1): 0.19}
    for (start, end), share in shares.items():
        assert abs(np.mean((first == start) & (last == end)) - share) < 0.02
    changing = first != last
    assert np.all((presence == 0).sum(axis=1) == changing)
    assert set(np.unique(presence)) == {-1.0, 0.0, 1.0}
    steps = np.diff(presence, axis=1)
    assert np.all((steps >= 0).all(axis=1) | (steps <= 0).all(axis=1))


def test_factors_of_short_have_about_unit_variance() -> None:
    factors = draw_short(CONFIG, 3000, 2).factors.reshape(-1, 13)
    deviation = factors.std(axis=0)
    assert deviation.min() > 0.6
    assert deviation.max() < 1.1


@pytest.mark.parametrize("textures", ["seen", "unseen"])
def test_captions_cover_their_skies_evenly(textures: Textures) -> None:
    clips = draw_long(CONFIG, 60, 3, textures=textures)
    rows, counts = np.unique(clips.labels, axis=0, return_counts=True)
    assert {tuple(row) for row in rows} == set(product(SKIES[textures], range(5), range(2)))
    assert set(counts) == {2}
    assert len(all_labels("all")) == 60
    assert not set(SKIES["seen"]) & set(SKIES["unseen"])


def test_captions_say_what_the_factors_show() -> None:
    for clips in (draw_short(CONFIG, 80, 4), draw_long(CONFIG, 80, 4, "clean")):
        assert [parse(text) for text in clips.captions] == [tuple(row) for row in clips.labels]
        factors, lit = clips.factors, (1 + clips.factors[..., PRESENCE]) / 2
        assert np.allclose(factors[..., TEXTURE], texture_codes()[clips.labels[:, 0]][:, None], atol=1e-6)
        assert np.allclose(
            factors[..., COLOUR], colour_codes()[clips.labels[:, 1]][:, None] * lit[..., None], atol=1e-6
        )
        phase = np.unwrap(np.arctan2(factors[..., WAVE][..., 1], factors[..., WAVE][..., 0]), axis=1)
        assert np.allclose(
            np.diff(phase, axis=1), np.array(WAVE_SPEEDS)[clips.labels[:, 2]][:, None], atol=1e-5
        )
        double = np.sqrt(2) * np.stack([np.cos(2 * phase), np.sin(2 * phase)], axis=-1)
        assert np.allclose(factors[..., HARMONIC], double, atol=1e-5)


def test_given_labels_are_kept_in_order_and_checked() -> None:
    labels = np.repeat(all_labels("unseen"), 2, axis=0)
    assert np.array_equal(draw_long(CONFIG, 60, 0, labels=labels).labels, labels)
    assert np.array_equal(draw_short(CONFIG, 60, 0, labels=labels).labels, labels)
    with pytest.raises(ConfigError, match="one row per clip"):
        draw_long(CONFIG, 59, 0, labels=labels)


def test_low_grade_is_the_clean_clip_weakened_and_noisy() -> None:
    low, clean = draw_long(CONFIG, 100, 7), draw_long(CONFIG, 100, 7, "clean")
    assert low.captions == clean.captions
    expected = clean.factors.copy()
    expected[..., TEXTURE] *= 0.7
    expected[..., HARMONIC] *= 0.45
    noise = low.factors - expected
    assert abs(noise.std() - 0.12) < 0.002
    assert abs(noise.mean()) < 0.002
    assert np.abs(np.corrcoef(noise.reshape(-1, 13).T) - np.eye(13)).max() < 0.06


def test_light_rises_by_the_figure_of_the_recipe_and_stays_where_short_has_it() -> None:
    long, short = draw_long(CONFIG, 2000, 1, "clean").factors, draw_short(CONFIG, 3000, 1).factors
    assert abs(rise(long).mean() - 2.19) < 0.02
    assert np.all(np.diff(long[..., LEVEL], axis=1) > 0)
    assert np.abs(long[..., LEVEL]).max() < np.abs(short[..., LEVEL]).max()
    slope = np.diff(short[..., LEVEL], axis=1)
    assert np.diff(long[..., LEVEL], axis=1).max() < np.quantile(slope, 0.95)


@settings(max_examples=40, deadline=None)
@given(st.integers(12, 500), st.integers(0, 2**32 - 1))
def test_clean_long_clips_of_any_length_keep_the_rule(num_frames: int, seed: int) -> None:
    config = WorldConfig(long_frames=num_frames)
    factors = draw_long(config, 20, seed, "clean").factors
    assert rule(factors).all()
    assert rule(factors, schedule(num_frames).smooth).all()


def test_the_sun_of_32_frames_leaves_and_returns_as_the_recipe_says() -> None:
    presence = draw_long(CONFIG, 1500, 2, "clean").factors[..., PRESENCE]
    changes = [np.flatnonzero(row == 0) for row in presence]
    assert {tuple(change.tolist()) for change in changes} == set(product((8, 9, 10), (21, 22, 23)))
    assert rule_spans(32) == (slice(0, 7), slice(12, 20), slice(25, 32))


@pytest.mark.parametrize("num_frames", [240, 480])
def test_the_gap_of_a_minute_keeps_its_proportions(num_frames: int) -> None:
    leave, back = draw_absence(num_frames, 3000, np.random.Generator(np.random.PCG64(0)))
    assert (leave.min(), leave.max()) == (0.25 * num_frames, 0.30 * num_frames)
    gap = (back - leave) / num_frames
    assert gap.min() >= 0.31 - 0.5 / num_frames
    assert gap.max() <= 0.36 + 0.5 / num_frames


def test_clips_too_short_for_the_story_are_refused() -> None:
    with pytest.raises(ConfigError, match="12 or more"):
        draw_long(WorldConfig(long_frames=11), 2, 0)
    with pytest.raises(ConfigError, match="4 or more"):
        draw_short(WorldConfig(short_frames=3), 2, 0)


def test_the_factors_are_a_partition_of_the_thirteen_numbers() -> None:
    places = np.r_[TEXTURE, LEVEL, PRESENCE, COLOUR, WAVE, HARMONIC]
    assert places.tolist() == list(range(NUM_FACTORS))


def test_every_word_has_a_value_and_every_value_a_word() -> None:
    assert texture_codes().shape == (len(TEXTURES), TEXTURE.stop - TEXTURE.start)
    assert colour_codes().shape == (len(COLOURS), 2)
    assert len(COLOURS) == len(HUES)
    assert len(SPEEDS) == len(WAVE_SPEEDS)
    assert sorted(SKIES["seen"] + SKIES["unseen"]) == list(range(len(TEXTURES)))


def test_hues_are_far_enough_apart_for_the_noise_of_long() -> None:
    noise = WorldConfig().long_noise
    for one, other in combinations(colour_codes(), 2):
        assert np.linalg.norm(one - other) / 2 > 4 * noise


def test_motions_differ_more_than_their_noise_and_less_than_half_a_turn() -> None:
    slow, quick = WAVE_SPEEDS
    assert abs(slow - quick) > 1.0
    assert max(abs(slow), abs(quick)) * 2 < np.pi


def test_a_description_is_a_function_of_the_settings() -> None:
    one, same, other = describe(WorldConfig()), describe(WorldConfig()), describe(WorldConfig(seed=1))
    assert one == same != other
    assert one["version"] == VERSION


def test_a_description_tells_what_the_clips_are_drawn_from() -> None:
    description = describe(WorldConfig(long_frames=240, fps=4.0))
    assert description["config"]["fps"] == 4.0
    assert description["constants"]["long_schedule"]["smooth"] == 5
    assert sum(description["constants"]["sun_mix"].values()) == pytest.approx(1.0)
    assert description["words"]["colours"] == list(COLOURS)


LENGTHS = st.integers(12, 2000)


def absences(num_frames: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Frames of leaving and returning."""
    return draw_absence(num_frames, count, np.random.Generator(np.random.PCG64(1)))


@given(LENGTHS)
def test_spans_follow_each_other_inside_the_clip(num_frames: int) -> None:
    first, away, last = rule_spans(num_frames)
    assert 0 == first.start < first.stop <= away.start < away.stop <= last.start < last.stop == num_frames


@given(LENGTHS)
def test_every_draw_leaves_the_spans_of_the_rule_alone(num_frames: int) -> None:
    first, away, last = rule_spans(num_frames)
    leave, back = absences(num_frames, 100)
    assert (leave >= first.stop).all()
    assert (leave <= away.start).all()
    assert (back >= away.stop - 1).all()
    assert (back < last.start).all()


@pytest.mark.parametrize("num_frames", [32, 240, 480])
def test_the_gap_is_longer_than_a_window_of_eight(num_frames: int) -> None:
    leave, back = absences(num_frames)
    assert (back - leave - 1).min() >= 10
    assert leave.min() > 7


def test_leaving_and_returning_are_uniform_and_independent_at_32_frames() -> None:
    leave, back = absences(32, 9000)
    pairs, counts = np.unique(np.stack([leave, back]), axis=1, return_counts=True)
    assert pairs.shape == (2, 9)
    assert np.abs(counts / 9000 - 1 / 9).max() < 0.015


def test_longer_clips_have_the_proportions_of_the_minute() -> None:
    assert schedule(12) is schedule(32) is CLIP
    assert schedule(33) is schedule(240) is MINUTE
    assert (CLIP.smooth, MINUTE.smooth) == (1, 5)
    first, away, last = rule_spans(240)
    assert (first.stop, away.start, away.stop, last.start) == (52, 84, 125, 168)


def test_the_same_share_of_a_longer_clip_is_away() -> None:
    shares = []
    for num_frames in (240, 480, 960):
        leave, back = absences(num_frames, 4000)
        shares.append(((back - leave) / num_frames).mean())
    assert np.ptp(shares) < 0.003
    assert shares[0] == pytest.approx(0.335, abs=0.003)


@pytest.mark.parametrize("num_frames", [0, 1, 8, 11])
def test_too_short_is_an_error_that_names_the_setting(num_frames: int) -> None:
    with pytest.raises(ConfigError, match=r"world\.long_frames"):
        rule_spans(num_frames)
