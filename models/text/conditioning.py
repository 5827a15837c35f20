"""Captions as conditioning: what a network is given, how captions are dropped, and the weightless encoder.

B captions, L text tokens, D = `text.dim` numbers per token.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from models.config import TextConfig
from models.rng import Key, uniform


@dataclass(frozen=True)
class Conditioning:
    """The captions of a batch of clips, for a velocity model.

    Args:
        text: tokens [B, L, D].
        mask: bool [B, L], True at tokens that are there; None when all are.
        negative: tokens [N, D] of the caption that guidance leads away from; None is zero features.
    """

    text: Tensor
    mask: Tensor | None = None
    negative: Tensor | None = None

    def __len__(self) -> int:
        return self.text.shape[0]

    def null(self) -> "Conditioning":
        """The unconditional branch of guidance, in every row: the negative caption, or zero features."""
        if self.negative is None:
            return Conditioning(torch.zeros_like(self.text), self.mask)
        return Conditioning(self.negative.expand(len(self), -1, -1), None, self.negative)

    def repeat(self, times: int) -> "Conditioning":
        """Each row `times` times in succession, for videos folded into windows."""
        return self.select(torch.arange(len(self)).repeat_interleave(times))

    def select(self, index: Tensor) -> "Conditioning":
        """The rows `index`."""
        index = index.to(self.text.device)
        return Conditioning(self.text[index], None if self.mask is None else self.mask[index], self.negative)

    def to(self, device: torch.device | str) -> "Conditioning":
        mask, negative = (None if part is None else part.to(device) for part in (self.mask, self.negative))
        return Conditioning(self.text.to(device), mask, negative)


class TextEncoder(Protocol):
    """Turns captions into conditioning; the empty caption stands for a dropped one."""

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning [B, L, D] on the CPU.

        L is the longest caption's, at most `text.max_tokens`, and exactly that with `text.padding: zeros`.
        """
        ...


def batched(rows: Sequence[Tensor], config: TextConfig, negative: Tensor | None = None) -> Conditioning:
    """Pad captions to one length.

    Args:
        rows: tokens [L_i, D] of each caption, at least one each.
        config: how shorter ones are padded.
        negative: tokens [N, D] of the negative caption.
    """
    zeros = config.padding == "zeros"
    least = config.max_tokens if zeros else 1
    text = _padded(rows, least)
    mask = torch.arange(text.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    away = None if negative is None else _padded([negative], least)[0]
    return Conditioning(text, None if zeros or bool(mask.all()) else mask, away)


def _padded(rows: Sequence[Tensor], least: int) -> Tensor:
    """[B, L, D] with zeros after each row, L at least `least`."""
    text = pad_sequence([row.float() for row in rows], batch_first=True)
    return F.pad(text, (0, 0, 0, max(0, least - text.shape[1])))


class NgramEncoder:
    """One token per comma-separated phrase: its hashed character n-grams. It has no weights."""

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self._known: dict[str, Tensor] = {}

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """As TextEncoder; an empty caption is one token of zeros."""
        negative = self.config.negative_caption
        rows = [self._tokens(caption) for caption in captions]
        return batched(rows, self.config, self._tokens(negative) if negative else None)

    def _tokens(self, caption: str) -> Tensor:
        phrases = phrases_of(caption)[: self.config.max_tokens]
        for phrase in phrases:
            if phrase not in self._known:
                self._known[phrase] = _hashed_ngrams(phrase, self.config.dim)
        return torch.stack([self._known[phrase] for phrase in phrases] or [torch.zeros(self.config.dim)])


def phrases_of(caption: str) -> list[str]:
    """What commas separate in a caption, without what is empty."""
    return [phrase for phrase in caption.split(",") if phrase.strip()]


def _hashed_ngrams(phrase: str, dim: int) -> Tensor:
    """Counts [dim] of the 2- to 4-grams of characters, hashed into signed bins and scaled to rms 1."""
    bins = torch.zeros(dim)
    padded = f" {phrase.strip().lower()} "
    for size in (2, 3, 4):
        for start in range(len(padded) - size + 1):
            digest = hashlib.blake2b(padded[start : start + size].encode(), digest_size=8).digest()
            number = int.from_bytes(digest, "little")
            bins[number % dim] += 1.0 if number >> 63 else -1.0
    return bins / bins.square().mean().sqrt().clamp_min(1e-6)


def drop_some(captions: Sequence[str], probability: float, key: Key, samples: Sequence[int]) -> list[str]:
    """Empty each caption with `probability`, by the draw of its index in `samples`."""
    keep = uniform(key.at(purpose="dropout"), samples) >= probability
    return [caption if kept else "" for caption, kept in zip(captions, keep, strict=True)]


def withhold(caption: str, words: Iterable[str]) -> str:
    """The caption without `words`."""
    unwanted = {word.lower() for word in words}
    phrases = (
        " ".join(w for w in phrase.split() if w.lower() not in unwanted) for phrase in caption.split(",")
    )
    return ", ".join(phrase for phrase in phrases if phrase)


def withhold_some(captions: Sequence[str], config: TextConfig, key: Key, samples: Sequence[int]) -> list[str]:
    """Withhold `text.withheld_words` with `text.withhold_probability`, by each caption's own draw."""
    if not config.withheld_words or config.withhold_probability == 0:
        return list(captions)
    draws = uniform(key.at(purpose="withhold"), samples) < config.withhold_probability
    return [
        withhold(c, config.withheld_words) if drawn else c for c, drawn in zip(captions, draws, strict=True)
    ]
