"""Wan 2.1's causal video autoencoder by diffusers' class, streaming: any length in the memory of 4 frames.

B batch, F pixel frames, T latent frames, C latent channels, H, W pixels, h, w latent rows and columns.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.autoencoders.kinds import WanKind
from models.config import UnevenFrames
from models.device import compute_device
from models.errors import CheckpointError, ConfigError
from models.weights import CONFIG_FILE, TensorFiles, read_config, weight_files

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKLWan"
_REMEDY = "Give the folder of Wan 2.1's AutoencoderKLWan in the diffusers layout (its vae/)"


class WanAutoencoder:
    """4k+1 frames to k+1 latents of 16 channels, 1/8 in size, normalised by the model's own config.

    The first frame is a latent of its own; every later latent stands for 4 frames and sees those before.
    Clips go through in such pieces, with the convolutions' memory of the piece before, so that only input
    and output grow with the length. bfloat16 on a GPU, float32 on the CPU; results are where the input was.

    Args:
        model: diffusers' AutoencoderKLWan with its weights; it is moved and changed.
    """

    crop_safe = WanKind.crop_safe
    reconstruction_error = float("nan")

    def __init__(
        self, model: Any, device: torch.device | str = "cpu", uneven_frames: UnevenFrames = "refuse"
    ) -> None:
        config = model.config
        self._device = torch.device(device)
        self._dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        # diffusers' own `to` warns about modules that keep float32, of which this class has none
        self._model: Any = nn.Module.to(model.requires_grad_(False).eval(), self._device, self._dtype)
        self._uneven_frames = uneven_frames
        self.channels = int(config.z_dim)
        self.temporal_factor = int(config.scale_factor_temporal)
        self.spatial_factor = int(config.scale_factor_spatial)
        self._mean, self._std = (
            torch.tensor(values, device=self._device).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )

    @classmethod
    def load(
        cls, folder: str | Path, device: torch.device | str = "cpu", uneven_frames: UnevenFrames = "refuse"
    ) -> "WanAutoencoder":
        """Load from a local folder in the diffusers layout; nothing is downloaded, no code of it is run.

        Raises:
            ConfigError: diffusers or the GPU is missing.
            CheckpointError: the folder holds no AutoencoderKLWan in safetensors, or a damaged one.
        """
        compute_device(torch.device(device).type == "cuda")
        folder = Path(folder)
        config = read_config(folder, CLASS, _REMEDY)
        if config.get("_class_name") != CLASS:
            raise CheckpointError(f"{folder} holds a {config.get('_class_name')}, no {CLASS}", _REMEDY)
        if config.get("patch_size") is not None or config.get("is_residual"):
            raise CheckpointError(f"{folder} holds the autoencoder of Wan 2.2, not of Wan 2.1", _REMEDY)
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise ConfigError(
                "autoencoder.kind = wan needs diffusers", "Install the project with its extra `wan`"
            ) from error
        try:
            with torch.device("meta"):
                model: nn.Module = AutoencoderKLWan.from_config(config)
        except (TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{folder}/{CONFIG_FILE} describes no {CLASS}: {error}", _REMEDY) from error
        model.to_empty(device="cpu")
        with TensorFiles(weight_files(folder, WEIGHTS_FILE)) as files:
            files.copy_into(model)
        return cls(model, device, uneven_frames)

    def check(self, num_frames: int, height: int, width: int) -> int:
        """Check the shape of a clip.

        Returns:
            How many times its last frame is repeated to make 4k+1.

        Raises:
            ConfigError: the number of frames is not 4k+1 and is not padded, or 8 does not divide the height
                and the width.
        """
        factor, size = self.temporal_factor, self.spatial_factor
        missing = -(num_frames - 1) % factor
        if missing and self._uneven_frames == "refuse":
            raise ConfigError(
                f"a window of {num_frames} frames: this autoencoder takes {factor}k+1",
                f"Use {num_frames + missing - factor} or {num_frames + missing} frames, "
                "or set autoencoder.uneven_frames=pad",
            )
        if height % size or width % size:
            raise ConfigError(
                f"frames of {height} x {width} pixels: this autoencoder takes multiples of {size}",
                f"Set data.height and data.width to multiples of {size}",
            )
        return missing

    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 [B, F, H, W, 3] to float32 [B, T, 16, H/8, W/8], T = ceil((F - 1) / 4) + 1.

        Raises:
            ConfigError: as `check`.
        """
        self.check(*frames.shape[1:4])
        memory, factor = _memory(self._model.encoder), self.temporal_factor
        latents = []
        with torch.inference_mode():
            for start in range(1 - factor, frames.shape[1], factor):
                pixels = frames[:, max(0, start) : start + factor]
                missing = (1 if start < 0 else factor) - pixels.shape[1]
                if missing:
                    pixels = torch.cat([pixels, pixels[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
                signal = pixels.to(self._device).movedim(-1, 1).to(self._dtype).div_(127.5).sub_(1)
                hidden = self._model.encoder(signal, feat_cache=memory, feat_idx=[0])
                mode = self._model.quant_conv(hidden)[:, : self.channels].float()
                latents.append(((mode - self._mean) / self._std).movedim(2, 1).to(frames.device))
        return torch.cat(latents, dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """Float [B, T, 16, h, w] to uint8 [B, 4T-3, 8h, 8w, 3]."""
        batch, count, _, rows, columns = latents.shape
        frames, size = (count - 1) * self.temporal_factor + 1, self.spatial_factor
        video = torch.empty(
            (batch, frames, rows * size, columns * size, 3), dtype=torch.uint8, device=latents.device
        )
        memory, done = _memory(self._model.decoder), 0
        with torch.inference_mode():
            for latent in latents.split(1, dim=1):
                codes = latent.to(self._device).float().movedim(1, 2) * self._std + self._mean
                hidden = self._model.post_quant_conv(codes.to(self._dtype))
                signal = self._model.decoder(hidden, feat_cache=memory, feat_idx=[0], first_chunk=not done)
                pixels = signal.float().clamp_(-1, 1).add_(1).mul_(127.5).round_()
                piece = pixels.to(torch.uint8).movedim(1, -1)
                video[:, done : done + piece.shape[1]] = piece
                done += piece.shape[1]
        return video


def _memory(part: nn.Module) -> list[Any]:
    """A slot per causal convolution for the last frames that it saw."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    return [None] * sum(isinstance(module, WanCausalConv3d) for module in part.modules())
