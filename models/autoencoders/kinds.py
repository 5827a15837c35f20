"""The autoencoders there are, and what their settings alone decide; nothing here imports torch by itself.

A new one is a class with `encode` and `decode` in a file of its own, its kind here, and a line in KINDS.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from models.config import AutoencoderConfig
from models.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor


class Autoencoder(Protocol):
    """Maps video pixels to normalised latents and back, on the device of its input.

    F pixel frames make T = (F - 1) / temporal_factor + 1 latent frames.
    """

    channels: int
    """C, latent channels."""
    temporal_factor: int
    """Pixel frames per latent frame after the first."""
    crop_safe: bool
    """Whether the latents of a window are the window of the latents."""
    reconstruction_error: float
    """Root mean square of decode(encode(x)) - x, pixels in [0, 1], on the fitting sample; nan if unknown."""

    def encode(self, frames: "Tensor") -> "Tensor":
        """Uint8 [B, F, H, W, 3] to float32 [B, T, C, h, w]."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """Float [B, T, C, h, w] to uint8 [B, F, H, W, 3]."""
        ...


class AutoencoderKind:
    """What is known of an autoencoder before its weights are there.

    A kind that is `fitted` on the corpus at ingest has `fit`; one with pretrained weights, to which the
    dataset refers, has `reference`.
    """

    temporal_factor: ClassVar[int]
    crop_safe: ClassVar[bool]
    fitted: ClassVar[bool]
    neural: ClassVar[bool]
    """Worth a GPU, and an actor that keeps it loaded."""
    channels: int | None
    """Latent channels; None where the fit decides."""
    patch: int
    """Pixels on a side of the square that a latent position covers; 0 is the whole frame."""

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a clip of `frames` frames, its last frame repeated where that is needed."""
        return -(-(frames - 1) // self.temporal_factor) + 1

    def check_settings(self) -> None:
        """Raises ConfigError if a setting is missing."""

    def check_sizes(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Check picture sizes, [height, width] each.

        Raises:
            ConfigError: one does not divide into patches.
        """
        patch = self.patch
        if patch == 0 and len(sizes) == 1:
            return
        if patch < 1 or any(side % patch for size in sizes for side in size):
            shown = ", ".join(f"{height}x{width}" for height, width in sizes)
            raise ConfigError(
                f"a patch of {patch} pixels does not tile frames of {shown}",
                f"Make all heights and widths in data multiples of {max(patch, 1)}; "
                "with autoencoder.kind=pca or conv, or change autoencoder.patch_size",
            )

    def fit(
        self, frames: "NDArray[np.uint8]", height: int, width: int, folder: Path
    ) -> Iterator[tuple[int, int]]:
        """Fit it on frames [N, H, W, 3] and write it into a local folder; gives steps done, of how many."""
        raise NotImplementedError

    def reference(self, windows: Iterable[tuple[int, int, int]]) -> dict[str, Any]:
        """What the dataset's config.json says of the pretrained weights.

        Args:
            windows: frames, height and width of every shape of window that it will encode.

        Raises:
            ConfigError: it cannot encode one of them.
            CheckpointError: the weights are missing or damaged.
        """
        raise NotImplementedError

    @staticmethod
    def load(folder: Path, device: "torch.device | str") -> Autoencoder:
        """Load what `fit` wrote, or what the `reference` in a folder refers to."""
        raise NotImplementedError


class PcaKind(AutoencoderKind):
    """A linear code (models/autoencoders/pca.py)."""

    temporal_factor, crop_safe, fitted, neural = 1, True, True, False

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.channels, self.patch = config.components, config.patch_size

    def fit(
        self, frames: "NDArray[np.uint8]", height: int, width: int, folder: Path
    ) -> Iterator[tuple[int, int]]:
        from models.autoencoders.pca import PcaAutoencoder

        PcaAutoencoder.fit(frames, self.config, height, width).save(folder)
        return iter(())

    @staticmethod
    def load(folder: Path, _device: "torch.device | str") -> Autoencoder:
        from models.autoencoders.pca import PcaAutoencoder

        return PcaAutoencoder.load(folder)


class ConvKind(AutoencoderKind):
    """A small convolutional network, learned on the corpus (models/autoencoders/conv.py)."""

    temporal_factor, crop_safe, fitted, neural = 1, True, True, False
    patches = (2, 4, 8, 16, 32)

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.channels, self.patch = config.components, config.patch_size

    def check_settings(self) -> None:
        if self.patch not in self.patches:
            raise ConfigError(
                f"autoencoder.patch_size is {self.patch}, but autoencoder.kind=conv halves the picture",
                f"Set autoencoder.patch_size to 8, or another of {', '.join(map(str, self.patches))}",
            )
        if self.channels is None or self.channels < 1:
            raise ConfigError(
                f"autoencoder.components is {self.channels}, but autoencoder.kind=conv has to be told",
                "Set autoencoder.components=8",
            )

    def fit(
        self, frames: "NDArray[np.uint8]", height: int, width: int, folder: Path
    ) -> Iterator[tuple[int, int]]:
        from models.autoencoders.conv import ConvAutoencoder

        model = ConvAutoencoder.untrained(frames, self.config, height, width)
        for done in model.learn(frames, self.config.fit_steps):
            yield done, self.config.fit_steps
        model.save(folder)

    @staticmethod
    def load(folder: Path, _device: "torch.device | str") -> Autoencoder:
        from models.autoencoders.conv import ConvAutoencoder

        return ConvAutoencoder.load(folder)


class WanKind(AutoencoderKind):
    """The causal video autoencoder of Wan 2.1 (models/autoencoders/wan.py)."""

    temporal_factor, crop_safe, fitted, neural = 4, False, False, True
    channels, patch = 16, 8

    def check_settings(self) -> None:
        if self.config.pretrained is None:
            raise ConfigError(
                "autoencoder.kind=wan has no autoencoder.pretrained",
                "Name the folder of the Wan 2.1 autoencoder",
            )

    def reference(self, windows: Iterable[tuple[int, int, int]]) -> dict[str, Any]:
        from models.autoencoders.wan import WanAutoencoder

        self.check_settings()
        folder, uneven_frames = str(self.config.pretrained), self.config.uneven_frames
        model = WanAutoencoder.load(folder, uneven_frames=uneven_frames)
        for window in windows:
            model.check(*window)
        return {"kind": "wan", "pretrained": os.path.abspath(folder), "uneven_frames": uneven_frames}

    @staticmethod
    def load(folder: Path, device: "torch.device | str") -> Autoencoder:
        from models.autoencoders.wan import WanAutoencoder
        from models.weights import read_config

        fields = read_config(folder, "autoencoder", "Ingest again")
        return WanAutoencoder.load(fields["pretrained"], device, fields["uneven_frames"])


KINDS: Mapping[str, type[AutoencoderKind]] = {"pca": PcaKind, "conv": ConvKind, "wan": WanKind}


def autoencoder_kind(config: AutoencoderConfig) -> AutoencoderKind:
    return KINDS[config.kind](config)


def load_autoencoder(folder: str | Path, device: "torch.device | str" = "cpu") -> Autoencoder:
    """Load a dataset's autoencoder from a local folder; those fitted at ingest are quick and stay on the CPU.

    Raises:
        CheckpointError: the folder holds no autoencoder, or a damaged one.
    """
    from models.weights import read_config

    kind = KINDS.get(read_config(Path(folder), "autoencoder", "Ingest again").get("kind", ""))
    if kind is None:
        raise CheckpointError(f"{folder} holds no autoencoder of a known kind", "Ingest again")
    return kind.load(Path(folder), device)
