"""Captions say three things and can be read back."""

import re
from difflib import SequenceMatcher
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import DataError
from pipelines.world.captions import COLOURS, SPEEDS, TEXTURES, caption, parse

INDICES = st.tuples(st.integers(0, 5), st.none() | st.integers(0, 4), st.integers(0, 1))


@given(INDICES)
def test_round_trip(indices: tuple[int, int | None, int]) -> None:
    assert parse(caption(*indices)) == indices


@given(INDICES, st.permutations(range(4)), st.booleans())
def test_order_case_and_spacing_do_not_matter(
    indices: tuple[int, int | None, int], order: list[int], upper: bool
) -> None:
    phrases = caption(*indices).split(", ")
    text = "  ,".join(phrases[place].replace(" ", "   ") for place in order)
    assert parse(text.upper() if upper else text) == indices


@given(st.integers(0, 5), st.integers(0, 4), st.integers(0, 1))
def test_without_its_colour_word_the_sun_remains(texture: int, colour: int, speed: int) -> None:
    withheld = re.sub(rf"\b{COLOURS[colour]}\b ?", "", caption(texture, colour, speed))
    assert withheld == caption(texture, None, speed)
    assert ", sun, " in withheld


def test_sixty_captions_differ_and_one_factor_is_one_phrase() -> None:
    texts = {caption(t, c, s) for t in range(6) for c in range(5) for s in range(2)}
    assert len(texts) == 60
    assert {len(text.split(", ")) for text in texts} == {4}
    assert all(text.isascii() and text.islower() for text in texts)


@pytest.mark.parametrize("words", [TEXTURES, SPEEDS, COLOURS])
def test_phrases_of_a_factor_are_clearly_different(words: tuple[str, ...]) -> None:
    for one, other in combinations(words, 2):
        assert SequenceMatcher(None, one, other).ratio() < 0.6


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a bay at dusk",
        caption(0, 0, 0).replace(TEXTURES[0], "green sky"),
        caption(0, 0, 0) + ", " + TEXTURES[1],
        caption(0, 0, 0) + ", amber sun",
        caption(0, 0, 0).replace("crimson", "pink"),
        caption(0, 0, 0).replace(SPEEDS[0], "still water"),
    ],
)
def test_what_is_not_a_caption_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="names"):
        parse(text)
