"""Captions of the built-in world: plain English, comma separated, one factor a phrase.

A caption names texture, colour and speed; never the schedule, the light or whether the sun is up.
"""

from models.errors import DataError

SCENE = "a bay at dusk"
TEXTURES = (
    "streaked sky",
    "puffy clouds",
    "aurora curtains",
    "slanting bands",
    "scattered stars",
    "fanned rays",
)
"""Phrases of the six skies, in the order of `layout.texture_codes`."""
COLOURS = ("crimson", "amber", "emerald", "azure", "violet")
"""Words of the five hues, in the order of `layout.colour_codes`; the words that are withheld."""
SPEEDS = ("slow waves rolling in", "quick swell running out")
"""Phrases of the two motions, in the order of `layout.WAVE_SPEEDS`."""
SUN = "sun"


def caption(texture: int, colour: int | None, speed: int) -> str:
    """The caption of three indices; with colour None the sun keeps its phrase and loses its word."""
    sun = SUN if colour is None else f"{COLOURS[colour]} {SUN}"
    return ", ".join((SCENE, TEXTURES[texture], sun, SPEEDS[speed]))


def parse(text: str) -> tuple[int, int | None, int]:
    """Indices (texture, colour or None, speed) of a caption, whatever its case, spacing and order.

    Raises:
        DataError: a factor is not named, or named twice.
    """
    phrases = [" ".join(phrase.lower().split()) for phrase in text.split(",")]
    suns = {SUN: None} | {f"{word} {SUN}": index for index, word in enumerate(COLOURS)}
    named = [phrase for phrase in phrases if phrase in suns]
    if len(named) != 1:
        raise DataError(
            f"the caption {text!r} names {len(named)} suns", "Name one, as in: " + caption(0, 1, 0)
        )
    return _index(text, phrases, TEXTURES, "sky"), suns[named[0]], _index(text, phrases, SPEEDS, "motion")


def _index(text: str, phrases: list[str], known: tuple[str, ...], what: str) -> int:
    """Index in `known` of the one phrase that stands there."""
    found = [known.index(phrase) for phrase in phrases if phrase in known]
    if len(found) != 1:
        raise DataError(
            f"the caption {text!r} names {len(found)} of the {what} phrases", f"Name one of {known}"
        )
    return found[0]
