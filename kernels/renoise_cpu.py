"""x_t = (1 - t) x0 + t eps in plain torch: the CPU's path, the definition, and it runs on every device.

The noise is a function of (seed, sample, element): words of Philox4x32-10 (Salmon et al., Parallel random
numbers: as easy as 1, 2, 3, SC 2011) with counter (element // 4, sample), key seed, each of 64 bits, low word
first; words 0 and 1 make the normals of elements 0 and 1 modulo 4, words 2 and 3 the other two (Box-Muller).
"""

import math

import torch
from torch import Tensor

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What the key grows by in a round."""
WORD = 0xFFFFFFFF
RUN = 32_768
"""Counters at a time: their words stay in the cache."""


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x32-10: four int64 tensors of 32-bit words to four such words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # Products wrap at 64 bits, and the upper halves of c1 and c3 are left until the end.
        low, high = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (high >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(WORD)
        c2 = (low >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(WORD)
        c1, c3 = high, low
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return [c0, c1.bitwise_and_(WORD), c2, c3.bitwise_and_(WORD)]


def normals(seed: int, samples: Tensor, first: int, counters: int) -> Tensor:
    """Standard normals, float32 [N, 4 counters], of the samples [N]: elements 4 first, 4 first + 1, ..."""
    number = torch.arange(first, first + counters, device=samples.device).expand(len(samples), -1)
    sample = samples[:, None].expand(-1, counters)
    counter = (number & WORD, number >> 32 & WORD, sample & WORD, sample >> 32 & WORD)
    words = philox(counter, (seed & WORD, seed >> 32 & WORD))
    pairs = [_box_muller(words[i], words[i + 1]) for i in (0, 2)]
    return torch.stack([z for pair in pairs for z in pair], dim=2).flatten(1)


def _box_muller(length: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two words: sqrt(-2 log u) times cos and sin of a turn, u in [2^-33, 1]."""
    u = length.to(torch.float32).mul_(2**-32).add_(2**-33)
    radius = u.log_().mul_(-2.0).sqrt_()
    turn = angle.sub(1 << 31).to(torch.float32).mul_(math.tau * 2**-32)
    return torch.cos(turn).mul_(radius).neg_(), torch.sin(turn).mul_(radius).neg_()


def renoise(x0: Tensor, t: Tensor, seed: int, samples: Tensor) -> tuple[Tensor, Tensor]:
    """`ops.renoise` of checked inputs: x_t and eps like x0, contiguous."""
    compute, rows = torch.promote_types(x0.dtype, torch.float32), x0.shape[0]
    clean = x0.contiguous().view(rows, -1)
    size = clean.shape[1]
    x_t, eps = torch.empty_like(clean), torch.empty_like(clean)
    counters = -(-size // 4)
    together = max(1, RUN // counters)
    for row in range(0, rows, together):
        some = slice(row, row + together)
        time = t[some].to(compute)[:, None]
        for first in range(0, counters, RUN):
            here = slice(4 * first, min(4 * (first + RUN), size))
            noise = normals(seed, samples[some], first, min(RUN, counters - first))
            eps[some, here] = noise[:, : here.stop - here.start]
            x_t[some, here] = (1 - time) * clean[some, here].to(compute) + time * eps[some, here].to(compute)
    return x_t.view(x0.shape), eps.view(x0.shape)
