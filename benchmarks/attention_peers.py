"""What windowed attention is measured against on a GPU: what one would use without it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    """A shape: q, k, v are [batch, heads, frames * per_frame, dim]."""

    batch: int
    heads: int
    frames: int
    per_frame: int
    dim: int
    window: int

    @property
    def name(self) -> str:
        """As printed."""
        shape = f"B={self.batch} H={self.heads} D={self.dim}"
        return f"T={self.frames} S={self.per_frame} w={self.window} {shape}"

    @property
    def share(self) -> float:
        """Pairs seen of all pairs."""
        t, w = self.frames, min(self.window, self.frames - 1)
        return ((2 * w + 1) * t - w * (w + 1)) / t**2

    @property
    def flops(self) -> float:
        """Of the forward pass: two products of the pairs seen. The backward pass has 2.5 times these."""
        return 4 * self.batch * self.heads * self.dim * (self.frames * self.per_frame) ** 2 * self.share


def strided_views(case: Case) -> Attention:
    """Dense attention of each frame over the frames around it, keys as overlapping views; edges singly."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.contiguous() for x in (q, k, v))
        w, s, t = case.window, case.per_frame, case.frames
        inner = t - 2 * w

        def rows(x: Tensor, first: int, last: int) -> Tensor:
            return x[:, :, first * s : last * s]

        def views(x: Tensor) -> Tensor:
            windows = x.unflatten(2, (t, s)).unfold(2, 2 * w + 1, 1)
            return windows.permute(0, 2, 1, 5, 3, 4).flatten(3, 4).flatten(0, 1)

        middle = rows(q, w, t - w).unflatten(2, (inner, s)).transpose(1, 2).flatten(0, 1)
        middle = F.scaled_dot_product_attention(middle, views(k), views(v))
        middle = middle.unflatten(0, (-1, inner)).transpose(1, 2).flatten(2, 3)
        edges = [
            F.scaled_dot_product_attention(
                rows(q, f, f + 1), *(rows(x, max(0, f - w), min(t, f + w + 1)) for x in (k, v))
            )
            for f in (*range(w), *range(t - w, t))
        ]
        return torch.cat([*edges[:w], middle, *edges[w:]], 2)

    return attend


def flex(case: Case, device: str) -> Attention:
    """Compiled FlexAttention whose block mask is worked out block by block, not from all pairs."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    size, tokens = 128, case.frames * case.per_frame
    blocks = -(-tokens // size)
    first = torch.arange(blocks, device=device) * size
    low, high = first // case.per_frame, (first + size - 1).clamp_max(tokens - 1) // case.per_frame
    seen = (low[:, None] - high[None] <= case.window) & (low[None] - high[:, None] <= case.window)
    far = torch.maximum(high[:, None] - low[None], high[None] - low[:, None])
    full = seen & (far <= case.window)

    def ordered(mask: Tensor) -> tuple[Tensor, Tensor]:
        counts = mask.sum(1, dtype=torch.int32)
        order = torch.argsort(mask.int(), dim=1, descending=True, stable=True).int()
        return counts[None, None], order[None, None]

    def rule(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q // case.per_frame - k // case.per_frame).abs() <= case.window

    mask = BlockMask.from_kv_blocks(
        *ordered(seen & ~full), *ordered(full), BLOCK_SIZE=size, mask_mod=rule, seq_lengths=(tokens, tokens)
    )
    return partial(torch.compile(flex_attention, dynamic=False), block_mask=mask)


def backend(name: str) -> Attention:
    """Dense attention by one backend."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(getattr(SDPBackend, name)):
            return F.scaled_dot_product_attention(q, k, v)

    return attend
