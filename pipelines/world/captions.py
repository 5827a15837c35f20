"""Captions of the built-in world: plain English, comma separated, one phrase per factor.

A caption names texture, colour and speed, never the schedule, the light or whether the sun is up.
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
"""The six skies, in the order of `factors.texture_codes`."""
COLOURS = ("crimson", "amber", "emerald", "azure", "violet")
"""The five hues, in the order of `factors.colour_codes`; these words can be withheld."""
SPEEDS = ("slow waves rolling in", "quick swell running out")
"""The two motions, in the order of `factors.WAVE_SPEEDS`."""
SUN = "sun"


def caption(texture: int, colour: int | None, speed: int) -> str:
    """The caption of three indices; with colour None the sun has no colour word."""
    sun = SUN if colour is None else f"{COLOURS[colour]} {SUN}"
    return ", ".join((SCENE, TEXTURES[texture], sun, SPEEDS[speed]))


def parse(text: str) -> tuple[int, int | None, int]:
    """Indices (texture, colour or None, speed) of a caption, in any case, spacing and order.

    Raises:
        DataError: a factor is not named, or named twice.
    """
    phrases = [" ".join(phrase.lower().split()) for phrase in text.split(",")]
    suns = (*(f"{word} {SUN}" for word in COLOURS), SUN)
    indices = []
    for factor, known in (("sky", TEXTURES), ("sun", suns), ("motion", SPEEDS)):
        found = [known.index(phrase) for phrase in phrases if phrase in known]
        if len(found) != 1:
            raise DataError(
                f"the caption {text!r} names {len(found)} of the {factor} phrases", f"Name one of {known}"
            )
        indices.append(found[0])
    texture, colour, speed = indices
    return texture, None if colour == len(COLOURS) else colour, speed
