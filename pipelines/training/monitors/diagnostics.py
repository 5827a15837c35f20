"""Diagnostics of what a distillation generates."""

import torch
from torch import Tensor

from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.media.color import BT601

DIAGNOSED_VIDEOS = 8
EDGE = 8
"""The first and the last 1/8 of a video's latents are looked at."""
LUMA = torch.tensor(BT601)


class Diagnostics:
    """How a distillation goes wrong: diversity falls, sharpness overshoots, light drifts too far.

    Args:
        dataset: folder of an ingested dataset; its autoencoder decodes the frames that are looked at, and
            its main bucket of LONG is what they are compared with.
        device: where a neural autoencoder works.
    """

    def __init__(self, dataset: str, device: torch.device) -> None:
        self.autoencoder = dataset_autoencoder(dataset, device)
        rows = ShardDataset(dataset, "long")
        chosen = rows.main[: 4 * DIAGNOSED_VIDEOS]
        self.reference = self._measure(rows.read(chosen).latents) if chosen else {}

    def of(self, latents: Tensor) -> dict[str, float]:
        """Measures latents [B, T, C, h, w]; every value is divided by LONG's own where that is not 0.

        `diversity`: rms distance of the videos' mean latents. `sharpness`: mean absolute difference of
        neighbouring pixels. `light_drift`: mean luma of the last eighth of the frames minus the first's.
        """
        own = self._measure(latents.detach().float().cpu())
        return {
            name: value / self.reference[name] if abs(self.reference.get(name, 0)) > 1e-6 else value
            for name, value in own.items()
        }

    def _measure(self, latents: Tensor) -> dict[str, float]:
        ends = map(self._ends, latents[:DIAGNOSED_VIDEOS])
        first, last = (torch.stack(end) for end in zip(*ends, strict=True))
        luma = torch.cat([first, last], dim=1)
        means = latents.mean(dim=1).flatten(1)
        return {
            "diversity": float((means - means.mean(dim=0)).square().mean().sqrt()),
            "sharpness": float(luma.diff(dim=-1).abs().mean() + luma.diff(dim=-2).abs().mean()),
            "light_drift": float(last.mean() - first.mean()),
        }

    def _ends(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Luma [F, H, W] of the first and the last eighth of one video's latents [T, C, h, w].

        A causal autoencoder needs a latent before those it decodes: that one's frame is left out.
        """
        edge = max(1, len(latents) // EDGE)
        before = 0 if self.autoencoder.crop_safe else min(1, len(latents) - edge)
        ends = latents[:edge], latents[len(latents) - edge - before :]
        first, last = (self.autoencoder.decode(end[None])[0].float() / 255 @ LUMA for end in ends)
        return first, last[before:]
