"""The first latent of a window that does not begin its video, as a causal autoencoder would encode it."""

import torch
from torch import Tensor

from models.autoencoders.kinds import Autoencoder


@torch.no_grad()
def image_latents(autoencoder: Autoencoder, videos: Tensor) -> Tensor:
    """For each latent frame of videos, what its last picture alone encodes to; both [B, T, C, h, w].

    A causal autoencoder encodes the first picture of a clip on its own: a window that begins at frame k with
    the k-th of these is a clip like those that the teacher knows. Pictures are rounded to bytes on the way, a
    video at a time is decoded and a picture at a time encoded.
    """
    found = []
    with torch.autocast(videos.device.type, enabled=False):
        for video in videos.float().split(1):
            pictures = autoencoder.decode(video)[0, :: autoencoder.temporal_factor]
            found.append(torch.cat([autoencoder.encode(one[None])[:, 0] for one in pictures.split(1)]))
    return torch.stack(found).to(videos)
