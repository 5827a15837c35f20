"""Factors read back from pixels, or straight from latents of a linear code, by least squares."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.errors import ConfigError
from pipelines.world.layout import NUM_FACTORS
from pipelines.world.scene import basis_images, mean_image

CHUNK_FRAMES = 128


class LinearAutoencoder(Protocol):
    """Pixels / 255 = mean + (latent * scale) @ basis, the whole frame in (row, column, rgb) order.

    The three may be NumPy arrays or CPU tensors.
    """

    mean: Any
    """[P]."""
    basis: Any
    """[K, P]."""
    scale: Any
    """[K]."""


@dataclass(frozen=True, eq=False)
class LatentReader:
    """factors = latents @ matrix + offset."""

    matrix: NDArray[np.float64]
    """[C, 13]."""
    offset: NDArray[np.float64]
    """[13]."""

    def __call__(self, latents: Any) -> NDArray[np.float32]:
        """Factors [..., 13] of latents [..., C, 1, 1], an array or a CPU tensor.

        Raises:
            ConfigError: not one code of C numbers a frame.
        """
        values = np.asarray(latents)
        if values.shape[-3:] != (len(self.matrix), 1, 1):
            raise ConfigError(
                f"latents of shape {values.shape} are not {len(self.matrix)} numbers a frame",
                "Give the latents of the autoencoder this reader was made from",
            )
        return np.asarray((values[..., 0, 0] @ self.matrix + self.offset).astype(np.float32))


class FactorReader:
    """Least squares on the basis images of a frame size."""

    def __init__(self, size: int) -> None:
        """Prepare the reader of frames of size x size pixels."""
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

        Equal to `factors` on frames that are neither rounded nor held in [0, 255].

        Raises:
            ConfigError: the code is of patches or of another frame size.
        """
        mean, basis, scale = (np.asarray(part, dtype=np.float64) for part in _parts(autoencoder))
        if mean.size != self._mean.size:
            raise ConfigError(
                f"a code of {mean.size} values does not describe whole frames of {self.size} pixels",
                "Set autoencoder.patch_size to 0 and data.height and data.width to world.size",
            )
        inverse = self._inverse.astype(np.float64)
        return LatentReader(
            scale[:, None] * (basis.reshape(len(scale), -1) @ inverse), (mean - self._mean) @ inverse
        )


def _parts(autoencoder: LinearAutoencoder) -> tuple[Any, Any, Any]:
    """Mean, basis and scale."""
    return autoencoder.mean, autoencoder.basis, autoencoder.scale


@lru_cache(maxsize=4)
def _inverse(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pseudo-inverse of the basis [P, 13], and the mean [P]."""
    basis = basis_images(size).reshape(NUM_FACTORS, -1).astype(np.float64)
    inverse = np.linalg.solve(basis @ basis.T, basis).T
    return inverse.astype(np.float32), mean_image(size).reshape(-1)
