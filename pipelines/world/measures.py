"""Factors read back from pixels or latents, and exact measures of the built-in world's videos [N, T, 13].

Reading is least squares on the basis images. Clean clips score: texture error 0, motion error 0, sharpness 1,
rule 1, rise about 2.19, captions 1. Clips that went through H.264 read a little worse; compare figures with
those.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from models.errors import ConfigError
from pipelines.world.factors import (
    COLOUR,
    HARMONIC,
    LEVEL,
    NUM_FACTORS,
    PRESENCE,
    TEXTURE,
    WAVE,
    WAVE_SPEEDS,
    Floats,
    Labels,
    colour_codes,
    rule_spans,
    schedule,
    texture_codes,
)
from pipelines.world.scene import paint

Factors = NDArray[np.float32] | NDArray[np.float64]
Bools = NDArray[np.bool_]

CHUNK_FRAMES = 128
PRESENT = 0.5
"""Presence above which the sun is there (it is 1 or -1 when clean, 0 in a frame of change)."""
RAMP = 1.1
"""Least rise of the light that counts as the ramp of LONG, half of what it is when clean."""


class LinearAutoencoder(Protocol):
    """Pixels / 255 = mean + (latent * scale) @ basis, the whole frame in (row, column, rgb) order.

    mean [P], basis [K, P] and scale [K] may be NumPy arrays or CPU tensors.
    """

    mean: Any
    basis: Any
    scale: Any


@dataclass(frozen=True, eq=False)
class LatentReader:
    """factors = latents @ matrix + offset, matrix [C, 13] and offset [13]."""

    matrix: Floats
    offset: Floats

    def __call__(self, latents: Any) -> NDArray[np.float32]:
        """Factors [..., 13] of latents [..., C, 1, 1], an array or a CPU tensor.

        Raises:
            ConfigError: not one code of C numbers per frame.
        """
        values = np.asarray(latents)
        if values.shape[-3:] != (len(self.matrix), 1, 1):
            raise ConfigError(
                f"latents of shape {values.shape} are not {len(self.matrix)} numbers per frame",
                "Give the latents of the autoencoder this reader was made from",
            )
        return np.asarray((values[..., 0, 0] @ self.matrix + self.offset).astype(np.float32))


class FactorReader:
    """Least squares on the basis images of size x size pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._inverse, self._mean = _inverse(size)

    def factors(self, frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Factors [..., 13] of frames uint8 [..., size, size, 3].

        Raises:
            ConfigError: frames of another size.
        """
        if frames.shape[-3:] != (self.size, self.size, 3):
            raise ConfigError(
                f"frames of shape {frames.shape} given to a reader of {self.size} pixels",
                "Set world.size to match",
            )
        flat = frames.reshape(-1, self._mean.size)
        found = np.empty((len(flat), NUM_FACTORS), dtype=np.float32)
        for start in range(0, len(flat), CHUNK_FRAMES):
            values = flat[start : start + CHUNK_FRAMES].astype(np.float32) / np.float32(255) - self._mean
            found[start : start + CHUNK_FRAMES] = values @ self._inverse
        return found.reshape(*frames.shape[:-3], NUM_FACTORS)

    def from_latents(self, autoencoder: LinearAutoencoder) -> LatentReader:
        """The one matrix that reads the decoded frames of a whole-frame linear code without decoding them.

        Equal to `factors` on frames that are neither rounded nor clamped to [0, 255].

        Raises:
            ConfigError: the code is of patches or of another frame size.
        """
        mean, basis, scale = (
            np.asarray(part, dtype=np.float64)
            for part in (autoencoder.mean, autoencoder.basis, autoencoder.scale)
        )
        if mean.size != self._mean.size:
            raise ConfigError(
                f"a code of {mean.size} values does not describe whole frames of {self.size} pixels",
                "Set autoencoder.patch_size to 0 and data.height and data.width to world.size",
            )
        inverse = self._inverse.astype(np.float64)
        matrix = scale[:, None] * (basis.reshape(len(scale), -1) @ inverse)
        return LatentReader(matrix, (mean - self._mean) @ inverse)


@lru_cache(maxsize=4)
def _inverse(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pseudo-inverse of the basis [P, 13], and the mean [P]."""
    scene = paint(size)
    basis = scene.basis.reshape(NUM_FACTORS, -1).astype(np.float64)
    return np.linalg.solve(basis @ basis.T, basis).T.astype(np.float32), scene.mean.reshape(-1)


def frame_texture_error(factors: Factors) -> Floats:
    """Distance of each frame's texture code to the nearest of the six words (of norm sqrt 5), [N, T]."""
    distance = np.linalg.norm(factors[..., None, TEXTURE] - texture_codes(), axis=-1)
    return np.asarray(distance.min(axis=-1), dtype=np.float64)


def texture_error(factors: Factors) -> Floats:
    """Mean over the frames of `frame_texture_error`, [N]."""
    return np.asarray(frame_texture_error(factors).mean(axis=1))


def texture_error_by_eighth(factors: Factors) -> Floats:
    """`frame_texture_error` averaged over each eighth of the clip, [N, 8]; rising figures are drift."""
    return by_eighth(frame_texture_error(factors))


def by_eighth(values: Floats) -> Floats:
    """Mean of [N, T] over each eighth of the frames, [N, 8]; T must be 8 or more."""
    return np.stack([part.mean(axis=1) for part in np.array_split(values, 8, axis=1)], axis=1)


def phase_steps(factors: Factors) -> Floats:
    """Phase by which the waves move from each frame to the next, in (-pi, pi], [N, T - 1]."""
    phase = np.arctan2(factors[..., WAVE.start + 1], factors[..., WAVE.start])
    return np.asarray(np.angle(np.exp(1j * np.diff(phase.astype(np.float64), axis=1))))


def motion_error(factors: Factors) -> Floats:
    """Mean over the steps of |phase step - nearest legal speed|, radians per frame, [N]."""
    off = np.angle(np.exp(1j * (phase_steps(factors)[..., None] - np.array(WAVE_SPEEDS))))
    return np.asarray(np.abs(off).min(axis=-1).mean(axis=1))


def sharpness(factors: Factors) -> Floats:
    """Mean projection of the second harmonic on twice the waves' phase, over sqrt 2: 1 is clean, [N]."""
    phase = 2.0 * np.arctan2(factors[..., WAVE.start + 1], factors[..., WAVE.start])
    locked = factors[..., HARMONIC.start] * np.cos(phase) + factors[..., HARMONIC.start + 1] * np.sin(phase)
    return np.asarray(locked.mean(axis=1) / np.sqrt(2.0))


def rise(factors: Factors) -> Floats:
    """Mean light of the last eighth of the frames minus that of the first eighth, [N]."""
    edge = max(1, factors.shape[1] // 8)
    level = factors[..., LEVEL]
    return np.asarray(level[:, -edge:].mean(axis=1) - level[:, :edge].mean(axis=1), dtype=np.float64)


def ramp(factors: Factors) -> Bools:
    """Whether the light rises over the clip by more than `RAMP`, [N]."""
    return rise(factors) > RAMP


def present(factors: Factors, smooth: int = 1) -> Bools:
    """Whether the sun is there, after a running median of presence over `smooth` frames, [N, T]."""
    presence = factors[..., PRESENCE]
    return np.asarray(median_filter(presence, size=(1, smooth), mode="nearest") > PRESENT)


def visit_colours(factors: Factors) -> NDArray[np.int64]:
    """Nearest hue of the mean colour over the frames before the sun leaves, and after it is back, [N, 2]."""
    first, _, last = rule_spans(factors.shape[1])
    means = np.stack([factors[:, span, COLOUR].mean(axis=1) for span in (first, last)], axis=1)
    return np.asarray((means @ colour_codes().T).argmax(axis=-1))


def same_colour(factors: Factors) -> Bools:
    """Whether the sun is there early and late, and returns in the colour in which it left, [N].

    On captions without a colour word this is a test of memory: guessing gives 0.2.
    """
    first, _, last = rule_spans(factors.shape[1])
    there = present(factors)
    early, late = (there[:, span].mean(axis=1).round().astype(bool) for span in (first, last))
    colours = visit_colours(factors)
    return np.asarray(early & late & (colours[:, 0] == colours[:, 1]))


def rule(factors: Factors, smooth: int = 1) -> Bools:
    """Whether the sun stays, leaves, and returns in the same colour, as LONG has it, [N].

    It is there in every frame of the first span, in none of the second and in all of the third
    (`rule_spans`: frames 0-6, 12-19 and 25-31 of 32; before 0.22, 0.35-0.52 and after 0.70 of longer
    clips), it switches exactly twice, and its hue is the same in the first and third span. `smooth` is the
    median of `present`; 1 is strict.
    """
    first, away, last = rule_spans(factors.shape[1])
    there = present(factors, smooth)
    kept = there[:, first].all(axis=1) & ~there[:, away].any(axis=1) & there[:, last].all(axis=1)
    switches = np.abs(np.diff(there.astype(np.int8), axis=1)).sum(axis=1)
    colours = visit_colours(factors)
    return np.asarray(kept & (switches == 2) & (colours[:, 0] == colours[:, 1]))


def read_labels(factors: Factors) -> Labels:
    """What a caption of each video would say: sky, hue (-1 where no sun is seen) and speed, [N, 3].

    Each is the nearest: sky by the mean code, hue by the mean colour over frames with a sun, speed by the
    median phase step.
    """
    sky = (factors[..., TEXTURE].mean(axis=1) @ texture_codes().T).argmax(axis=-1)
    there = present(factors)
    colour = (factors[..., COLOUR] * there[..., None]).sum(axis=1) @ colour_codes().T
    hue = np.where(there.any(axis=1), colour.argmax(axis=-1), -1)
    step = np.median(phase_steps(factors), axis=1)
    speed = np.abs(step[:, None] - np.array(WAVE_SPEEDS)).argmin(axis=-1)
    return np.stack([sky, hue, speed], axis=-1).astype(np.int64)


def caption_accuracy(factors: Factors, labels: Labels) -> dict[str, float]:
    """Share of the videos whose sky, hue and speed are those of their captions.

    Returns `texture_accuracy`, `colour_accuracy` (of the videos that show a sun; 0 if none does),
    `speed_accuracy`, and `caption_accuracy`, their mean.
    """
    found = read_labels(factors)
    right = found == labels
    shown = found[:, 1] >= 0
    parts = {
        "texture_accuracy": float(right[:, 0].mean()),
        "colour_accuracy": float(right[shown, 1].mean()) if shown.any() else 0.0,
        "speed_accuracy": float(right[:, 2].mean()),
    }
    return parts | {"caption_accuracy": sum(parts.values()) / 3.0}


def effective_number(indices: NDArray[np.int64]) -> float:
    """exp of the entropy of how often each index occurs: n for n equally frequent ones, 0 for none."""
    if indices.size == 0:
        return 0.0
    share = np.unique(indices, return_counts=True)[1] / indices.size
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(factors: Factors, labels: Labels) -> float:
    """How much videos of one caption differ: root of the mean variance of a factor in a frame among them.

    Captions with one video are left out; if all are, the videos are taken together.
    """
    groups = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(groups)
    if sizes.max() < 2:
        groups, sizes = np.zeros_like(groups), np.array([len(groups)])
    if sizes.max() < 2:
        return 0.0
    kept = [group for group, size in enumerate(sizes) if size > 1]
    variances = [factors[groups == group].var(axis=0, ddof=1, dtype=np.float64).mean() for group in kept]
    return float(np.sqrt(np.average(variances, weights=sizes[kept])))


def diversity(factors: Factors, labels: Labels) -> dict[str, float]:
    """Whether skies or hues are lost, and whether videos of one caption are alike.

    Returns `effective_textures` and `effective_colours` (`effective_number` of what is read from the videos),
    `spread`, and `diversity`, the product of the three.
    """
    found = read_labels(factors)
    parts = {
        "effective_textures": effective_number(found[:, 0]),
        "effective_colours": effective_number(found[found[:, 1] >= 0, 1]),
        "spread": spread(factors, labels),
    }
    return parts | {"diversity": float(np.prod(list(parts.values())))}


def measure_all(factors: Factors, labels: Labels) -> dict[str, float]:
    """Every measure of LONG videos as one number, by name.

    Means over the videos; `rule` smooths presence where `schedule` says so (over 5 frames beyond 32), and
    `rule_strict` never; eighths are `texture_error_eighth_1` to `_8`.
    """
    eighths = texture_error_by_eighth(factors).mean(axis=0)
    measures = {
        "texture_error": texture_error(factors).mean(),
        "motion_error": motion_error(factors).mean(),
        "sharpness": sharpness(factors).mean(),
        "rule": rule(factors, schedule(factors.shape[1]).smooth).mean(),
        "rule_strict": rule(factors).mean(),
        "same_colour": same_colour(factors).mean(),
        "ramp": ramp(factors).mean(),
        "rise": rise(factors).mean(),
    }
    measures |= {f"texture_error_eighth_{index + 1}": value for index, value in enumerate(eighths)}
    measures |= caption_accuracy(factors, labels) | diversity(factors, labels)
    return {name: float(value) for name, value in measures.items()}
