"""What a stage's videos look like beside the corpus."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.types import CorpusName
from pipelines.media.color import luma

REFERENCES, DECODED = 32, 8
"""Videos of the corpus that samples are compared with, and how many of them are decoded."""
EDGE = 8
"""The first and the last 1/8 of a video's latents are looked at, two at least."""


class Diagnostics:
    """How training goes wrong on screen: colours burn, edges ring, motion dies, videos are alike.

    Args:
        dataset: folder of an ingested dataset; its autoencoder decodes the frames that are looked at.
        corpus: what videos are compared with, in its main bucket.
        device: where a neural autoencoder works.
    """

    def __init__(self, dataset: str, corpus: CorpusName, device: torch.device) -> None:
        self.autoencoder = dataset_autoencoder(dataset, device)
        self.reference = self._corpus(dataset, corpus, REFERENCES)
        self.short = self._beside(self._corpus(dataset, "short", DECODED)) if corpus == "long" else {}
        """SHORT's measures divided by LONG's: as sharp as SHORT is what a student of LONG shall become."""

    def of(self, latents: Tensor) -> dict[str, float]:
        """Measures of latents [B, T, C, h, w], each divided by the corpus's own; those that are 0 there are
        left out.

        `sharpness`: mean absolute difference of neighbouring pixels. `saturation`: mean difference of the
        largest and the smallest channel. `contrast`: mean deviation of luma in a frame. `motion`: mean
        absolute change of luma from frame to frame. `light_drift`: rms change of mean luma from the first to
        the last eighth. `diversity`: rms distance of the videos' mean latents, of two videos or more.
        """
        return self._beside(self._measure(latents.detach().float().cpu()))

    def _corpus(self, dataset: str, corpus: CorpusName, count: int) -> dict[str, float]:
        rows = ShardDataset(dataset, corpus)
        chosen = rows.main[:count]
        return self._measure(rows.read(chosen).latents) if chosen else {}

    def _beside(self, own: Mapping[str, float]) -> dict[str, float]:
        known = {name for name, value in self.reference.items() if value > 1e-6}
        return {name: value / self.reference[name] for name, value in own.items() if name in known}

    def _measure(self, latents: Tensor) -> dict[str, float]:
        looks = [self._look(video) for video in latents[:DECODED]]
        measures = {name: torch.stack([look[name] for look in looks]).mean() for name in looks[0]}
        measures["light_drift"] = torch.stack([look["light_drift"] for look in looks]).square().mean().sqrt()
        if len(latents) > 1:
            measures["diversity"] = latents.mean(dim=1).flatten(1).var(dim=0).mean().sqrt()
        return {name: float(value) for name, value in measures.items()}

    def _look(self, latents: Tensor) -> dict[str, Tensor]:
        """Measures of one video [T, C, h, w]."""
        ends = self._ends(latents)
        light = luma(ends)
        start, end = light.mean(dim=(1, 2, 3))
        return {
            "sharpness": light.diff(dim=-1).abs().mean() + light.diff(dim=-2).abs().mean(),
            "saturation": (ends.amax(dim=-1) - ends.amin(dim=-1)).mean(),
            "contrast": light.flatten(2).std(dim=-1).mean(),
            "motion": light.diff(dim=1).abs().mean(),
            "light_drift": end - start,
        }

    def _ends(self, latents: Tensor) -> Tensor:
        """Pixels [2, F, H, W, 3], 0 ... 1, of the first and the last eighth of one video.

        A causal autoencoder needs a latent before those it decodes: that one's frame is left out.
        """
        edge = min(len(latents), max(2, len(latents) // EDGE))
        before = 0 if self.autoencoder.crop_safe else min(1, len(latents) - edge)
        ends = latents[:edge], latents[len(latents) - edge - before :]
        first, last = (self.autoencoder.decode(end[None])[0].float() / 255 for end in ends)
        return torch.stack([first, last[-len(first) :]])
