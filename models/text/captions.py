"""Captions as conditioning: what a network is told, and the encoder that needs no weights."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from models.config import TextConfig
from models.errors import ConfigError
from models.rng import Key, uniform


@dataclass(frozen=True)
class Conditioning:
    """What a velocity model is told about the clip.

    Args:
        text: [B, L, D] text tokens.
        mask: bool [B, L], True at tokens that are there; None when all are.
        negative: [N, D] tokens of the caption that guidance leads away from; None is zero features.
    """

    text: Tensor
    mask: Tensor | None = None
    negative: Tensor | None = None

    def __len__(self) -> int:
        return self.text.shape[0]

    def null(self) -> "Conditioning":
        """The unconditional branch of guidance, for every row: the negative caption, or zero features."""
        if self.negative is None:
            return Conditioning(torch.zeros_like(self.text), self.mask)
        return Conditioning(self.negative.expand(len(self), -1, -1), None, self.negative)

    def repeat(self, times: int) -> "Conditioning":
        """Each row `times` times in a row, for videos folded into windows."""
        return self.select(torch.arange(len(self)).repeat_interleave(times))

    def select(self, index: Tensor) -> "Conditioning":
        """The rows `index`."""
        index = index.to(self.text.device)
        return Conditioning(self.text[index], None if self.mask is None else self.mask[index], self.negative)

    def to(self, device: torch.device | str) -> "Conditioning":
        """The same on another device."""
        parts = (self.text, self.mask, self.negative)
        text, mask, negative = (None if part is None else part.to(device) for part in parts)
        assert text is not None
        return Conditioning(text, mask, negative)


class TextEncoder(Protocol):
    """Captions in, conditioning out; the empty caption is what dropped captions become."""

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning [len(captions), L, dim] on the CPU.

        L is the longest caption's number of tokens, at most `text.max_tokens`; with `text.padding` zeros it
        is that.
        """
        ...


def batched(rows: Sequence[Tensor], config: TextConfig, negative: Tensor | None = None) -> Conditioning:
    """Conditioning of captions of different lengths.

    Args:
        rows: tokens [L_i, D] of each caption, at least one of each.
        config: how the shorter ones are filled up.
        negative: tokens [N, D] of the negative caption.
    """
    zeros = config.padding == "zeros"
    least = config.max_tokens if zeros else 1
    text = _filled(rows, least)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(text.shape[1]) < lengths[:, None]
    away = None if negative is None else _filled([negative], least)[0]
    return Conditioning(text, None if zeros or bool(mask.all()) else mask, away)


def _filled(rows: Sequence[Tensor], least: int) -> Tensor:
    """[B, L, D] with zeros after each row, L at least `least`."""
    text = pad_sequence([row.float() for row in rows], batch_first=True)
    missing = max(0, least - text.shape[1])
    return torch.nn.functional.pad(text, (0, 0, 0, missing))


def _hashed_ngrams(phrase: str, dim: int) -> Tensor:
    """Counts of the 2- to 4-grams of characters in `dim` signed bins, scaled to rms 1."""
    bins = torch.zeros(dim)
    padded = f" {phrase.strip().lower()} "
    for size in (2, 3, 4):
        for start in range(len(padded) - size + 1):
            digest = hashlib.blake2b(padded[start : start + size].encode(), digest_size=8).digest()
            number = int.from_bytes(digest, "little")
            bins[number % dim] += 1.0 if number >> 63 else -1.0
    return bins / bins.square().mean().sqrt().clamp_min(1e-6)


class NgramEncoder:
    """The weightless encoder: one token a comma-separated phrase, hashed character n-grams.

    Args:
        config: `kind` must be `ngram`.
    """

    def __init__(self, config: TextConfig) -> None:
        if config.kind != "ngram":
            raise ConfigError(
                f"text.kind is {config.kind!r}, which this run cannot compute on the fly",
                "use text.kind: ngram, or give embeddings computed ahead",
            )
        self.config = config
        self._known: dict[str, Tensor] = {}

    def _token(self, phrase: str) -> Tensor:
        if phrase not in self._known:
            self._known[phrase] = _hashed_ngrams(phrase, self.config.dim)
        return self._known[phrase]

    def _tokens(self, caption: str) -> Tensor:
        """[L, dim]; of an empty caption one token of zeros."""
        phrases = [phrase for phrase in caption.split(",") if phrase.strip()][: self.config.max_tokens]
        return torch.stack([self._token(phrase) for phrase in phrases] or [torch.zeros(self.config.dim)])

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning [len(captions), L, dim]; L is the longest caption's, at most `text.max_tokens`."""
        negative = self.config.negative_caption
        rows = [self._tokens(caption) for caption in captions]
        return batched(rows, self.config, self._tokens(negative) if negative else None)


def drop_some(captions: Sequence[str], probability: float, key: Key, samples: Sequence[int]) -> list[str]:
    """Captions, of which some become the empty one with `probability`; each by its own draw samples[i]."""
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
    """Captions, of which `text.withhold_probability` lose their `text.withheld_words`; keyed a sample."""
    if not config.withheld_words or config.withhold_probability == 0:
        return list(captions)
    draws = uniform(key.at(purpose="withhold"), samples) < config.withhold_probability
    return [
        withhold(c, config.withheld_words) if drawn else c for c, drawn in zip(captions, draws, strict=True)
    ]
