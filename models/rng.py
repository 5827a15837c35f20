"""Random draws that depend on what they are for, never on the order in which they are drawn.

A draw is named by (seed, step, sample, purpose). `sample` is the index in the global batch, so the number
of workers changes nothing; a draw that the whole batch shares has no sample.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """The name of a random draw.

    Args:
        seed: the run's seed.
        step: the optimiser step, or 0.
        sample: index in the global batch; None for a draw that the batch shares.
        purpose: what is drawn, such as "noise".
    """

    seed: int
    step: int = 0
    sample: int | None = None
    purpose: str = ""

    def at(self, *, step: int | None = None, sample: int | None = None, purpose: str | None = None) -> "Key":
        """The same key with some parts replaced; a purpose is appended to the present one."""
        step = self.step if step is None else step
        sample = self.sample if sample is None else sample
        purpose = self.purpose if purpose is None else f"{self.purpose}/{purpose}"
        return Key(self.seed, step, sample, purpose)

    def seed64(self) -> int:
        """A 63-bit seed that differs for every key."""
        text = f"{self.seed}|{self.step}|{self.sample}|{self.purpose}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator of torch's; on the CPU it tells keys apart by 32 bits only, so `normal` has another."""
        return torch.Generator(device).manual_seed(self.seed64())

    def numpy(self) -> np.random.Generator:
        return np.random.default_rng(self.seed64())

    def integer(self, high: int) -> int:
        """An integer in [0, high)."""
        return int(self.numpy().integers(high))


def normal(
    shape: Sequence[int], key: Key, samples: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal draws [len(samples), *shape] of torch's default type; row i depends on the key and
    samples[i] alone."""
    rows = []
    for own in (key.at(sample=i) for i in samples):
        if torch.device(device).type == "cpu":
            drawn = own.numpy().standard_normal(tuple(shape), np.float32)
            rows.append(torch.tensor(drawn, dtype=torch.get_default_dtype()))
        else:
            rows.append(torch.randn(tuple(shape), generator=own.torch(device), device=device))
    return torch.stack(rows)


def uniform(key: Key, samples: Sequence[int]) -> Tensor:
    """Uniform draws in [0, 1), [len(samples)] on the CPU; one per sample."""
    drawn = [float(key.at(sample=i).numpy().random(dtype=np.float32)) for i in samples]
    return torch.tensor(drawn, dtype=torch.get_default_dtype())
