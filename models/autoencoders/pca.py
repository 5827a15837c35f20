"""A linear autoencoder: principal components of whole frames or of patches, fitted on the corpus."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoders.kinds import PcaKind
from models.config import AutoencoderConfig
from models.errors import CheckpointError, ConfigError, DataError
from models.weights import WEIGHTS_FILE, load_tensors, read_config, save_folder

CLEAR_GAP = 20.0
"""Ratio of neighbouring eigenvalues at which the picture ends and the noise begins."""
GAP_EXPLAINS = 0.95
"""Share of the variance before such a gap; in footage, brightness alone makes an earlier one."""
EXPLAINED = 0.98
"""Share of the variance kept where there is no gap."""
_BLOCK = 4096


@dataclass(frozen=True)
class _Layout:
    """How frames are cut into patches of P = patch_height * patch_width * 3 numbers, (row, column, rgb)."""

    height: int
    width: int
    patch_height: int
    patch_width: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.height // self.patch_height, self.width // self.patch_width

    def of(self, height: int, width: int) -> "_Layout":
        """The same patches on frames of another size.

        Raises:
            ConfigError: they do not tile such frames.
        """
        if height % self.patch_height or width % self.patch_width:
            raise ConfigError(
                f"frames of {height} x {width} pixels: this autoencoder takes multiples of "
                f"{self.patch_height} x {self.patch_width}",
                "Set data.height, data.width and data.shapes to multiples of autoencoder.patch_size",
            )
        return replace(self, height=height, width=width)

    def cut(self, frames: Tensor) -> Tensor:
        """[N, H, W, 3] to [N, h, w, P]."""
        rows, columns = self.grid
        pieces = frames.reshape(-1, rows, self.patch_height, columns, self.patch_width, 3)
        return pieces.permute(0, 1, 3, 2, 4, 5).reshape(len(frames), rows, columns, -1)

    def join(self, patches: Tensor) -> Tensor:
        """[N, h, w, P] to [N, H, W, 3]."""
        rows, columns = self.grid
        pieces = patches.reshape(-1, rows, columns, self.patch_height, self.patch_width, 3)
        return pieces.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.height, self.width, 3)


class PcaAutoencoder:
    """A linear code, pixels / 255 = mean + (z * scale) @ basis, of whole frames or of each of their patches.

    Attributes:
        mean: float32 [P].
        basis: float32 [K, P], orthonormal rows, the strongest first.
        scale: float32 [K], standard deviations of the coefficients on the fitting sample, so that z has unit
            variance.
        grid: latent rows h and columns w of the frames it was fitted on; (1, 1) for whole frames.
        eigenvalues: the largest variances, among which K was chosen.
    """

    temporal_factor = PcaKind.temporal_factor
    crop_safe = PcaKind.crop_safe

    def __init__(
        self,
        layout: _Layout,
        mean: Tensor,
        basis: Tensor,
        scale: Tensor,
        reconstruction_error: float,
        eigenvalues: Sequence[float],
    ) -> None:
        self._layout = layout
        self.grid = layout.grid
        self.mean, self.basis, self.scale = mean, basis, scale
        self.channels = len(basis)
        self.reconstruction_error = reconstruction_error
        self.eigenvalues = tuple(eigenvalues)
        self._to_latents = (basis / (255.0 * scale[:, None])).T.contiguous()
        self._to_pixels = basis * (255.0 * scale[:, None])

    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 [B, F, H, W, 3] to float32 [B, F, K, h, w], of any size that the patches tile.

        Raises:
            ConfigError: they do not tile it.
        """
        batch, count, height, width = frames.shape[:4]
        layout = self._layout.of(height, width)
        patches = layout.cut(frames.flatten(0, 1)).float().sub_(self.mean * 255.0)
        return (patches @ self._to_latents).movedim(-1, 1).reshape(batch, count, self.channels, *layout.grid)

    def decode(self, latents: Tensor) -> Tensor:
        """Float [B, F, K, h, w] to uint8 [B, F, H, W, 3]."""
        batch, count, _, rows, columns = latents.shape
        layout = self._layout.of(rows * self._layout.patch_height, columns * self._layout.patch_width)
        codes = latents.float().flatten(0, 1).movedim(1, -1)
        patches = (codes @ self._to_pixels).add_(self.mean * 255.0)
        pixels = layout.join(patches).round_().clamp_(0, 255).to(torch.uint8)
        return pixels.reshape(batch, count, layout.height, layout.width, 3)

    @classmethod
    def fit(
        cls, frames: NDArray[np.uint8], config: AutoencoderConfig, height: int, width: int
    ) -> "PcaAutoencoder":
        """Fit the code on decoded frames [N, H, W, 3]; the same frames give the same code.

        Raises:
            ConfigError: the patch does not tile the frame, or the sample has fewer components than asked for.
            DataError: fewer than two frames, or all equal.
        """
        PcaKind(config).check_sizes([(height, width)])
        layout = _Layout(height, width, config.patch_size or height, config.patch_size or width)
        if len(frames) < 2:
            raise DataError(
                f"{len(frames)} frames are too few to fit the autoencoder", "Give videos that can be decoded"
            )
        samples = layout.cut(torch.from_numpy(np.ascontiguousarray(frames))).flatten(0, 2).numpy()
        mean = samples.mean(axis=0, dtype=np.float64)
        gram, by_frames = _products(samples, mean.astype(np.float32))
        values, vectors = np.linalg.eigh(gram)
        values, vectors = values[::-1] / len(samples), vectors[:, ::-1]
        if values[0] <= 0:
            raise DataError("All frames of the fitting sample are equal", "Give videos with some content")
        shown = values[: config.max_components + 1]
        count = _count(config, values)
        basis = _basis(samples, mean.astype(np.float32), vectors[:, :count], by_frames)
        lost = max(0.0, float(values.sum() - values[:count].sum())) / samples.shape[1]
        return cls(
            layout,
            torch.from_numpy((mean / 255.0).astype(np.float32)),
            torch.from_numpy(basis),
            torch.from_numpy((np.sqrt(values[:count]) / 255.0).astype(np.float32)),
            float(np.sqrt(lost)) / 255.0,
            [float(v) / 255.0**2 for v in shown],
        )

    def save(self, folder: str | Path) -> None:
        """Write config.json and weights.safetensors into a local folder, creating it."""
        config = {
            "kind": "pca",
            **asdict(self._layout),
            "components": self.channels,
            "reconstruction_error": self.reconstruction_error,
            "eigenvalues": self.eigenvalues,
        }
        save_folder(config, {"mean": self.mean, "basis": self.basis, "scale": self.scale}, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "PcaAutoencoder":
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file is missing, damaged, or disagrees with the other.
        """
        config = read_config(Path(folder), "autoencoder", "Ingest again")
        tensors = load_tensors(Path(folder) / WEIGHTS_FILE)
        try:
            layout = _Layout(**{field.name: int(config[field.name]) for field in fields(_Layout)})
            mean, basis, scale = (tensors[k].clone() for k in ("mean", "basis", "scale"))
            pixels = layout.patch_height * layout.patch_width * 3
            agrees = basis.shape == (len(scale), pixels) and mean.shape == (pixels,)
            error, eigenvalues = float(config["reconstruction_error"]), config["eigenvalues"]
        except (KeyError, TypeError, ValueError) as damage:
            raise CheckpointError(f"The autoencoder in {folder} is damaged", "Ingest again") from damage
        if not agrees:
            raise CheckpointError(f"The autoencoder in {folder} has weights of another shape", "Ingest again")
        return cls(layout, mean, basis, scale, error, eigenvalues)


def _blocks(length: int) -> list[slice]:
    return [slice(i, i + _BLOCK) for i in range(0, length, _BLOCK)]


def _products(samples: NDArray[np.uint8], mean: NDArray[np.float32]) -> tuple[NDArray[np.float64], bool]:
    """X X^T (Gram, True) or X^T X (covariance, False) of the centred samples [N, P], whichever is smaller.

    Products are taken in float32 over blocks and summed in float64.
    """
    count, pixels = samples.shape
    by_frames = count <= pixels
    total = np.zeros((min(count, pixels),) * 2)
    for part in _blocks(max(count, pixels)):
        block = samples[:, part].astype(np.float32) if by_frames else samples[part].astype(np.float32)
        block -= mean[part] if by_frames else mean
        total += block @ block.T if by_frames else block.T @ block
    return total, by_frames


def _basis(
    samples: NDArray[np.uint8], mean: NDArray[np.float32], vectors: NDArray[np.float64], by_frames: bool
) -> NDArray[np.float32]:
    """Orthonormal rows [K, P] in pixel space, the largest entry of each positive."""
    rows = vectors.T
    if by_frames:
        weights = rows.astype(np.float32)
        parts = [weights @ (samples[:, p].astype(np.float32) - mean[p]) for p in _blocks(samples.shape[1])]
        rows = np.concatenate(parts, axis=1).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    largest = np.abs(rows).argmax(axis=1)
    signs = np.sign(rows[np.arange(len(rows)), largest])
    return np.ascontiguousarray(rows * signs[:, None], dtype=np.float32)


def _count(config: AutoencoderConfig, values: NDArray[np.float64]) -> int:
    """How many components to keep: as configured, else up to the clearest gap of the spectrum, beyond which
    the codec's noise lies, else (footage has no gap) as many as explain EXPLAINED of the variance."""
    floor = max(values[0] * 1e-9, 1e-6)
    rank = int((values > floor).sum())
    if config.components is not None:
        if not 1 <= config.components <= rank:
            raise ConfigError(
                f"autoencoder.components = {config.components}, but the fitting sample has {rank} directions",
                "Set fewer components, more autoencoder.fit_frames, or give more videos",
            )
        return config.components
    looked = np.maximum(values[: config.max_components + 1], floor)
    shares = np.cumsum(looked) / np.maximum(values, 0).sum()
    gaps = np.where(shares[:-1] >= GAP_EXPLAINS, looked[:-1] / looked[1:], 0.0)
    if gaps.max(initial=0.0) >= CLEAR_GAP:
        return int(np.argmax(gaps)) + 1
    return min(int(np.searchsorted(shares, EXPLAINED)) + 1, config.max_components, rank)
