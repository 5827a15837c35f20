"""Clips that people ask for: of any length, going on from theirs, closing a loop, changing their captions.

One mechanism carries all but loops: frames that are known stay at time 0 while those after them are made. A
long clip is made piece by piece, each knowing the last third of the one before, so memory does not grow with
its length. Pieces are as long as the clips that the network was trained on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.autoencoders.kinds import Autoencoder
from models.config import SamplingConfig
from models.errors import ConfigError, DataError
from models.rng import Key
from models.text.conditioning import Conditioning, TextEncoder
from pipelines.checkpoints import Network
from pipelines.data.config import LimitsConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.types import Rejected
from pipelines.generation import Method, check, check_direction, generate_latents
from pipelines.media.color import Frames

Videos = NDArray[np.uint8]
"""RGB [B, F, H, W, 3]."""


@dataclass(frozen=True)
class Cue:
    """A caption that holds from a time on."""

    second: float
    caption: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """What clips should be, whatever their first captions."""

    frames: int
    """Of a clip, with those it begins with."""
    begins: Frames | None = None
    """The frames [F, H, W, 3] that every clip begins with; what is made goes on from them."""
    loops: bool = False
    """The last frame is followed by the first."""
    cues: tuple[Cue, ...] = ()
    """Captions after the first, in order of time."""


@dataclass(frozen=True)
class Maker:
    """What makes clips.

    Args:
        network, method: what is sampled, and how.
        autoencoder, encoder: of the dataset it was trained on.
        sampling: times and guidance.
        fps: frames per second.
    """

    network: Network
    method: Method
    autoencoder: Autoencoder
    encoder: TextEncoder
    sampling: SamplingConfig
    fps: float

    @property
    def trained_frames(self) -> int:
        """Frames of the clips that the network was trained on: those of a piece."""
        return self.pixels(self.network.spec.shape[0])

    def pixels(self, latents: int) -> int:
        """Frames of a clip of so many latent ones."""
        return (latents - 1) * self.autoencoder.temporal_factor + 1

    def latents(self, pixels: int) -> int:
        """Latent frames of a clip of so many, the last of which may be repeated."""
        return -(-(pixels - 1) // self.autoencoder.temporal_factor) + 1

    def at_once(self, request: Request) -> int:
        """Latent frames that the network sees at once: of a ring, a piece or a window."""
        return self.latents(request.frames) if request.loops else self.network.spec.shape[0]

    def check(self, request: Request) -> None:
        """Refuses what cannot be made.

        Raises:
            ConfigError: why, and what to ask for instead.
        """
        check(self.network.spec, self.method)
        longest = self.trained_frames / self.fps
        given = 0 if request.begins is None else len(request.begins)
        if given or request.loops or request.cues:
            check_direction(self.method)
        if given >= request.frames:
            raise ConfigError(
                f"the clip should be {request.frames / self.fps:g} s long, and the one that it goes on from "
                f"is {given / self.fps:g} s",
                "Ask for more seconds: they count from the clip's own beginning",
            )
        if request.loops and given:
            raise ConfigError(
                "a clip cannot both go on from yours and close a loop: its last frame would have to lead to "
                "a frame that was there before",
                "Extend it first, or let it loop by itself",
            )
        if request.loops and request.frames > self.trained_frames:
            raise ConfigError(
                f"a loop is made in one piece, of {longest:g} s at most with this network",
                f"Ask for {longest:g} s or less, and let the player repeat it",
            )
        if request.loops and not self.autoencoder.crop_safe:
            raise ConfigError(
                "this network's autoencoder encodes the first frame of a clip alone, so no latent frame can "
                "follow the last and be the first",
                "Loops need autoencoder.kind pca or conv",
            )
        last = request.frames / self.fps
        for before, cue in zip((0.0, *(one.second for one in request.cues)), request.cues, strict=False):
            if not before < cue.second < last:
                raise ConfigError(
                    f"the caption at {cue.second:g} s of a clip of {last:g} s",
                    "Times rise from 0, where the first caption is, and end before the clip does",
                )
        start = given / self.fps
        if given and request.cues and request.cues[0].second < start:
            raise ConfigError(
                f"the caption at {request.cues[0].second:g} s lies in the {start:g} s that are given",
                "Times count from the beginning of your clip: put it later",
            )

    def create(
        self, request: Request, captions: Sequence[str], key: Key, samples: Sequence[int]
    ) -> Iterator[Videos]:
        """The clips, [B, n, H, W, 3] a piece, in order; a piece is made when it is asked for.

        Args:
            request: of all the clips.
            captions: the first of each, B.
            key, samples: name the noise: a clip depends on its own, and on what is asked of it, alone.

        Raises:
            ConfigError: as `check`.
        """
        self.check(request)
        known, done = None, 0
        if request.begins is not None:
            begins = np.broadcast_to(request.begins, (len(captions), *request.begins.shape))
            yield begins
            known, done = self._known(begins, self.network.spec.shape[0] // 2), len(request.begins)
        number = 0
        while done < request.frames:
            at = key.at(purpose=f"piece-{number}") if number else key
            known, new = self._piece(request, captions, done, known, at, samples)
            new = new[:, : request.frames - done]
            yield new
            done, number = done + new.shape[1], number + 1

    def _piece(
        self,
        request: Request,
        captions: Sequence[str],
        done: int,
        known: Tensor | None,
        key: Key,
        samples: Sequence[int],
    ) -> tuple[Tensor, Videos]:
        """The frames after the first `done`, and what the next piece has to know of them."""
        spec = self.network.spec
        whole = request.loops or self.method.sampler == "windows"
        latents = self.latents(request.frames) if whole else spec.shape[0]
        shown = 0 if known is None else self.pixels(known.shape[1])
        first, later = self._captions(request, captions, done, done - shown, self.pixels(latents))
        made = generate_latents(
            self.network,
            self.method,
            (latents, *spec.shape[1:]),
            first,
            key,
            samples,
            sampling=self.sampling,
            flow=spec.flow,
            known=known,
            ring=request.loops,
            later=later,
        ).cpu()
        pixels = np.concatenate([self.autoencoder.decode(video[None]).cpu().numpy() for video in made])
        overlap = max(1, spec.shape[0] // 3)
        following = made[:, -overlap:] if self.autoencoder.crop_safe else self._known(pixels, overlap)
        return following, pixels[:, shown:]

    def _known(self, videos: Videos, most: int) -> Tensor:
        """Latents of the last frames of videos, `most` at most."""
        count = min(most, (videos.shape[1] - 1) // self.autoencoder.temporal_factor + 1)
        last = torch.from_numpy(np.array(videos[:, -self.pixels(count) :]))
        return torch.cat([self.autoencoder.encode(video[None]).cpu() for video in last])

    def _captions(
        self, request: Request, captions: Sequence[str], done: int, origin: int, length: int
    ) -> tuple[Conditioning, list[tuple[int, Conditioning]]]:
        """Captions of a piece of `length` frames from frame `origin` on, of which those before frame `done`
        are known: that of its first new frame, and those that begin later, each with its latent frame."""
        cues = [(math.ceil(cue.second * self.fps - 1e-6), cue.caption) for cue in request.cues]
        held = [caption for frame, caption in cues if frame <= done]
        first = [held[-1]] * len(captions) if held else captions
        later = [
            (self.latents(frame - origin + 1) - 1, self.encoder.encode([caption] * len(captions)))
            for frame, caption in cues
            if done < frame < origin + length
        ]
        return self.encoder.encode(first), later


def is_picture(path: str | Path) -> bool:
    return Path(path).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")


def read_start(path: str | Path, limits: LimitsConfig, size: tuple[int, int], fps: float) -> Frames:
    """Somebody's clip or picture, as `stream_start` gives it, whole.

    Raises:
        DataError: it cannot be read.
    """
    return np.concatenate(list(stream_start(path, limits, size, fps)))


def stream_start(
    path: str | Path, limits: LimitsConfig, size: tuple[int, int], fps: float
) -> Iterator[Frames]:
    """Somebody's clip or picture as a dataset would have it, [n, H, W, 3] at a time: decoded behind a fence,
    resampled by its times, resized and centre-cropped to [height, width].

    Raises:
        DataError: it cannot be read; perhaps after some frames.
    """
    still = is_picture(path)
    try:
        with Decoder(limits) as decoder:
            yield from decoder.open(path, [size], None if still else fps, still=still).frames
    except Rejected as rejected:
        raise DataError(
            f"{path} cannot be gone on from: {rejected.reject.reason}",
            "Give an MP4 or another video file, or a PNG, JPEG or WebP picture",
        ) from rejected
