"""Thirteen numbers, each of one factor, with values that can be told apart."""

from dataclasses import FrozenInstanceError, asdict
from itertools import combinations

import numpy as np
import pytest

from pipelines.world.captions import COLOURS, SPEEDS, TEXTURES
from pipelines.world.config import WorldConfig
from pipelines.world.description import VERSION, describe
from pipelines.world.factors import SKIES
from pipelines.world.layout import (
    COLOUR,
    HARMONIC,
    HUES,
    LEVEL,
    NUM_FACTORS,
    PRESENCE,
    TEXTURE,
    WAVE,
    WAVE_SPEEDS,
    colour_codes,
    texture_codes,
)


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
    assert asdict(one) == asdict(same)
    assert asdict(one) != asdict(other)
    assert one.version == VERSION
    with pytest.raises(FrozenInstanceError):
        one.version = 2  # type: ignore[misc]


def test_a_description_tells_what_the_clips_are_drawn_from() -> None:
    description = describe(WorldConfig(long_frames=240, fps=4.0))
    assert description.config["fps"] == 4.0
    assert description.constants["long_schedule"]["smooth"] == 5
    assert sum(description.constants["sun_mix"].values()) == pytest.approx(1.0)
    assert description.words["colours"] == list(COLOURS)
