"""A small convolutional autoencoder, learned on the corpus at ingest.

Each frame is coded by itself, as its difference from the background, the median picture of the fitting
sample. Every layer sees beyond its own square, so squares have no seams, and convolutions take pictures of
any size. The decoder learns from codes with noise of `NOISE` of their spread: a generator's small errors then
leave no trace, and near codes are near pictures.
"""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from models.autoencoders.kinds import ConvKind
from models.config import AutoencoderConfig
from models.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from models.rng import Key
from models.weights import WEIGHTS_FILE, copy_into, load_tensors, read_config, save_folder

WIDTHS = (12, 24, 32, 48, 64, 96)
"""Channels of the layers at full size, at half, at a quarter, ..."""
NOISE = 0.2
"""Standard deviation of the noise on codes, which have variance 1, while the decoder learns."""
BATCH = 16
CROP = 64
"""Pixels on a side of what is learned from, at most."""
LEARNING_RATE = 3e-3
WARMUP = 20
_BLOCK = 32
"""Frames that go through the network at once."""


class ConvAutoencoder(nn.Module):
    """Latents are (encoder((pixels / 255 - background) / spread) - mean) / scale.

    One scale serves all channels, so that an error of a given size means as much to the decoder in any of
    them.

    Attributes:
        background: float32 [3, H, W] in [0, 1]; for frames of another size it is resized.
        spread: root mean square of the pixels' difference from the background.
        mean: float32 [C], of the encoder's outputs on the fitting sample.
        scale: their standard deviation, over all channels.
    """

    temporal_factor = ConvKind.temporal_factor
    crop_safe = ConvKind.crop_safe
    background: Tensor
    spread: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, channels: int, patch: int, height: int, width: int) -> None:
        super().__init__()
        self.channels, self.patch = channels, patch
        self.reconstruction_error = math.nan
        widths = WIDTHS[: patch.bit_length()]
        shrink = [
            nn.Sequential(nn.SiLU(), nn.Conv2d(wide, narrow, 4, stride=2, padding=1))
            for wide, narrow in itertools.pairwise(widths)
        ]
        grow = [
            nn.Sequential(nn.SiLU(), nn.Conv2d(narrow, 4 * wide, 3, padding=1), nn.PixelShuffle(2))
            for narrow, wide in itertools.pairwise(widths[::-1])
        ]
        self.encoder = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1),
            *shrink,
            nn.SiLU(),
            nn.Conv2d(widths[-1], channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, widths[-1], 3, padding=1),
            *grow,
            nn.SiLU(),
            nn.Conv2d(widths[0], 3, 3, padding=1),
        )
        self.register_buffer("background", torch.zeros(3, height, width))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 [B, F, H, W, 3] to float32 [B, F, C, h, w], of any size that the squares tile.

        Raises:
            ConfigError: they do not tile it.
        """
        height, width = frames.shape[2:4]
        if height % self.patch or width % self.patch:
            raise ConfigError(
                f"frames of {height} x {width} pixels: this autoencoder takes multiples of {self.patch}",
                "Set data.height, data.width and data.shapes to multiples of autoencoder.patch_size",
            )
        codes = torch.cat([self.encoder(self._inputs(block)) for block in frames.flatten(0, 1).split(_BLOCK)])
        codes = (codes - self.mean[:, None, None]) / self.scale
        return codes.reshape(*frames.shape[:2], *codes.shape[1:])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Float [B, F, C, h, w] to uint8 [B, F, H, W, 3]."""
        blocks = latents.float().flatten(0, 1).split(_BLOCK)
        frames = torch.cat([self._pixels(block) for block in blocks])
        return frames.reshape(*latents.shape[:2], *frames.shape[1:])

    def _inputs(self, frames: Tensor) -> Tensor:
        """What the encoder sees of frames uint8 [N, H, W, 3], and the decoder is to make."""
        return (frames.movedim(-1, 1) / 255.0 - self._background(*frames.shape[1:3])) / self.spread

    def _pixels(self, latents: Tensor) -> Tensor:
        out: Tensor = self.decoder(latents * self.scale + self.mean[:, None, None]) * self.spread
        pixels = (out + self._background(*out.shape[2:])) * 255.0
        return pixels.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1)

    def _background(self, height: int, width: int) -> Tensor:
        if self.background.shape[1:] == (height, width):
            return self.background
        return F.interpolate(self.background[None], (height, width), mode="bilinear", antialias=True)[0]

    @classmethod
    def untrained(
        cls, frames: NDArray[np.uint8], config: AutoencoderConfig, height: int, width: int
    ) -> "ConvAutoencoder":
        """An autoencoder that knows the background of frames [N, H, W, 3], and nothing else yet.

        Raises:
            ConfigError: settings that no code has, or squares that do not tile the frame.
            DataError: fewer than two frames, or all equal.
        """
        kind = ConvKind(config)
        kind.check_settings()
        kind.check_sizes([(height, width)])
        if len(frames) < 2:
            raise DataError(
                f"{len(frames)} frames are too few to fit the autoencoder", "Give videos that can be decoded"
            )
        assert kind.channels is not None
        model = cls(kind.channels, kind.patch, height, width)
        model._initialize(frames)
        return model

    def learn(self, frames: NDArray[np.uint8], steps: int) -> Iterator[int]:
        """Fit the code on decoded frames [N, H, W, 3]; counts its steps, and is done after the last.

        The same frames give the same code, on one machine and number of threads.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, (0.9, 0.99), weight_decay=0.0)
        for step in range(steps):
            key = Key(0, step, purpose="autoencoder/batch")
            loss = self._loss(self._crops(frames, key), key)
            if not loss.isfinite():
                raise TrainingDiverged(
                    f"The autoencoder's loss is {loss.item()} in step {step + 1}",
                    "Give videos with less noise, or set autoencoder.kind=pca",
                )
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            rate = min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * rate
            optimizer.step()
            optimizer.zero_grad()
            yield step + 1
        self._standardize(torch.from_numpy(frames))

    @torch.no_grad()
    def _initialize(self, frames: NDArray[np.uint8]) -> None:
        rows = [np.median(frames[:, row], axis=0) for row in range(frames.shape[1])]
        self.background.copy_(torch.from_numpy(np.stack(rows)).movedim(-1, 0) / 255.0)
        inputs = (
            self._inputs(torch.from_numpy(frames[i : i + _BLOCK])) for i in range(0, len(frames), _BLOCK)
        )
        square = sum(float(part.square().mean(dtype=torch.float64)) * len(part) for part in inputs) / len(
            frames
        )
        if square == 0:
            raise DataError("All frames of the fitting sample are equal", "Give videos with some content")
        self.spread.fill_(math.sqrt(square))
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.zero_()
                continue
            draw = torch.randn(parameter.shape, generator=Key(0, purpose=f"autoencoder/{name}").torch())
            parameter.copy_(draw * math.sqrt(2 / parameter[0].numel()))
        last = self.decoder[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.zero_()

    def _crops(self, frames: NDArray[np.uint8], key: Key) -> Tensor:
        """What the encoder sees of BATCH random crops [N, 3, height, width]."""
        draw, size = key.numpy(), np.array(frames.shape[1:3])
        crop = np.minimum(size, max(self.patch, CROP // self.patch * self.patch))
        top, left = draw.integers((size - crop) // self.patch + 1) * self.patch
        area = (slice(top, top + crop[0]), slice(left, left + crop[1]))
        chosen = frames[draw.integers(len(frames), size=BATCH), *area]
        pixels = torch.from_numpy(np.ascontiguousarray(chosen)).movedim(-1, 1) / 255.0
        return (pixels - self.background[:, *area]) / self.spread

    def _loss(self, target: Tensor, key: Key) -> Tensor:
        """Absolute error of pixels and of their differences to the next, which keeps edges, plus the squared
        error, which keeps what is small and stands out."""
        codes = self.encoder(target)
        variance, _ = torch.var_mean(codes, dim=(0, 2, 3))
        noise = torch.from_numpy(key.at(purpose="noise").numpy().standard_normal(codes.shape, np.float32))
        error: Tensor = self.decoder(codes + NOISE * variance.mean().sqrt() * noise) - target
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + error.square().mean() + edges

    @torch.no_grad()
    def _standardize(self, frames: Tensor) -> None:
        """Measure the codes of frames uint8 [N, H, W, 3], and what is lost of them."""
        blocks = frames.split(_BLOCK)
        codes = torch.cat([self.encoder(self._inputs(block)) for block in blocks])
        variance, mean = torch.var_mean(codes, dim=(0, 2, 3), correction=0)
        self.mean.copy_(mean)
        self.scale.copy_(variance.mean().sqrt())
        lost = 0.0
        for block in blocks:
            error = self.decode(self.encode(block[None]))[0].float() - block.float()
            lost += float(error.square().sum(dtype=torch.float64))
        self.reconstruction_error = math.sqrt(lost / frames.numel()) / 255.0

    def save(self, folder: str | Path) -> None:
        """Write config.json and weights.safetensors into a local folder, creating it."""
        config = {
            "kind": "conv",
            "channels": self.channels,
            "patch": self.patch,
            "height": self.background.shape[1],
            "width": self.background.shape[2],
            "reconstruction_error": self.reconstruction_error,
        }
        save_folder(config, self.state_dict(), folder)

    @classmethod
    def load(cls, folder: str | Path) -> "ConvAutoencoder":
        """Read what `save` wrote.

        Raises:
            CheckpointError: a file is missing, damaged, or disagrees with the other.
        """
        config = read_config(Path(folder), "autoencoder", "Ingest again")
        tensors = load_tensors(Path(folder) / WEIGHTS_FILE)
        try:
            model = cls(*(int(config[name]) for name in ("channels", "patch", "height", "width")))
            model.reconstruction_error = float(config["reconstruction_error"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as damage:
            raise CheckpointError(f"The autoencoder in {folder} is damaged", "Ingest again") from damage
        copy_into(model, tensors, f"the autoencoder in {folder}")
        return model
