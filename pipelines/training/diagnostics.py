"""What to watch while a student distils: diversity falls, sharpness overshoots, light drifts too far."""

import torch
from torch import Tensor

from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.media.color import BT601

VIDEOS = 8
EDGE = 8
LUMA = torch.tensor(BT601)


class Diagnostics:
    """Numbers of generated videos, each beside the LONG corpus's own.

    Args:
        dataset: folder of an ingested dataset; its autoencoder decodes the frames that are looked at, and
            its main bucket is what they are compared with.
        device: where a neural autoencoder works.
    """

    def __init__(self, dataset: str, device: torch.device) -> None:
        self.autoencoder = dataset_autoencoder(dataset, device)
        rows = ShardDataset(dataset, "long")
        chosen = rows.main[: 4 * VIDEOS]
        self.reference = self._measure(rows.read(chosen).latents) if chosen else {}

    def of(self, latents: Tensor) -> dict[str, float]:
        """Diversity, sharpness and light drift of latents [B, T, C, h, w], relative to LONG where it says so.

        `diversity`: rms distance of the videos' mean latents, 1 is LONG's. `sharpness`: mean absolute
        difference of neighbouring pixels, 1 is LONG's. `light_drift`: mean luma of the last eighth of the
        frames minus the first's, in units of LONG's own.
        """
        own = self._measure(latents.detach().float().cpu())
        return {
            name: value / self.reference[name] if abs(self.reference.get(name, 0)) > 1e-6 else value
            for name, value in own.items()
        }

    def _measure(self, latents: Tensor) -> dict[str, float]:
        first, last = (torch.stack(end) for end in zip(*map(self._ends, latents[:VIDEOS]), strict=True))
        luma = torch.cat([first, last], dim=1)
        steps = luma.diff(dim=-1).abs().mean() + luma.diff(dim=-2).abs().mean()
        means = latents.mean(dim=1).flatten(1)
        spread = (means - means.mean(dim=0)).square().mean().sqrt()
        return {
            "diversity": float(spread),
            "sharpness": float(steps),
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
