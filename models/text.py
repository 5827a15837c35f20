"""Captions as conditioning."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import TextConfig
from models.errors import ConfigError
from models.rng import Key, uniform


@dataclass(frozen=True)
class Conditioning:
    """What a velocity model is told about the clip.

    Args:
        text: [B, L, D] text tokens.
        mask: bool [B, L], True at tokens that are there; None when all are.
    """

    text: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.text.shape[0]

    def null(self) -> "Conditioning":
        """The empty caption for every row: zero features, for dropout and guidance."""
        return Conditioning(torch.zeros_like(self.text), self.mask)

    def repeat(self, times: int) -> "Conditioning":
        """Each row `times` times in a row, for videos folded into windows."""
        return self.select(torch.arange(len(self)).repeat_interleave(times))

    def select(self, index: Tensor) -> "Conditioning":
        """The rows `index`."""
        index = index.to(self.text.device)
        return Conditioning(self.text[index], None if self.mask is None else self.mask[index])

    def to(self, device: torch.device | str) -> "Conditioning":
        """The same on another device."""
        return Conditioning(self.text.to(device), None if self.mask is None else self.mask.to(device))

    def dropout(self, probability: float, key: Key, samples: Sequence[int]) -> "Conditioning":
        """Rows become the null caption with `probability`; row i by its own draw samples[i]."""
        keep = uniform(key.at(purpose="dropout"), samples) >= probability
        return Conditioning(self.text * keep.to(self.text)[:, None, None], self.mask)


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


class TextEncoder:
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
        self._tokens: dict[str, Tensor] = {}

    def _token(self, phrase: str) -> Tensor:
        if phrase not in self._tokens:
            self._tokens[phrase] = _hashed_ngrams(phrase, self.config.dim)
        return self._tokens[phrase]

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning [len(captions), L, dim]; L is the longest caption's, at most `text.max_tokens`."""
        rows = [[p for p in c.split(",") if p.strip()][: self.config.max_tokens] for c in captions]
        length = max(1, *(len(row) for row in rows)) if rows else 1
        text = torch.zeros(len(rows), length, self.config.dim)
        mask = torch.zeros(len(rows), length, dtype=torch.bool)
        for i, row in enumerate(rows):
            for j, phrase in enumerate(row):
                text[i, j] = self._token(phrase)
            mask[i, : max(1, len(row))] = True
        return Conditioning(text, None if bool(mask.all()) else mask)


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
