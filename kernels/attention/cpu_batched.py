"""Small attentions on the CPU as batches of small matrices: how clips become matrices, and their sums."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

VECTOR_COLUMNS = 16
"""Columns from which torch's CPU softmax is vectorised."""
NEVER = float("-inf")
_softmax_backward = torch.ops.aten._softmax_backward_data  # noqa: SLF001


class Layout(Protocol):
    """[B, heads, tokens, D] as a batch of small matrices and back; `fold_keys` is the adjoint of `keys`."""

    def queries(self, x: Tensor) -> Tensor:
        """The matrices of queries [n, rows, D]."""

    def keys(self, x: Tensor) -> Tensor:
        """The matrices of keys or values [n, columns, D]."""

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        """[n, rows, .] back to `shape`."""

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        """[n, columns, .] back to `shape`, what stands for one token added up."""


@dataclass(frozen=True)
class Packs:
    """`size` clips one after the other in one matrix: [B * heads / size, size * tokens, D]."""

    size: int

    def queries(self, x: Tensor) -> Tensor:
        """[B * heads / size, size * tokens, D]."""
        return x.reshape(-1, self.size * x.shape[2], x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """As the queries."""
        return self.queries(x)

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The same numbers in `shape`."""
        return x.view(shape)

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The same numbers in `shape`."""
        return x.view(shape)


@dataclass(frozen=True)
class Blocks:
    """Chunks of `chunk` frames against the chunk + 2 window frames around them, as one batch."""

    num_frames: int
    tokens_per_frame: int
    window: int
    chunk: int

    @property
    def count(self) -> int:
        """Chunks of a clip."""
        return -(-self.num_frames // self.chunk)

    @property
    def rows(self) -> int:
        """Query tokens of a chunk."""
        return self.chunk * self.tokens_per_frame

    @property
    def columns(self) -> int:
        """Key tokens of a chunk."""
        return (self.chunk + 2 * self.window) * self.tokens_per_frame

    def queries(self, x: Tensor) -> Tensor:
        """[B * heads * count, rows, D]; the last chunk is filled with zeros."""
        flat = x.reshape(-1, x.shape[2], x.shape[3])
        missing = self.count * self.rows - x.shape[2]
        if missing:
            flat = F.pad(flat, (0, 0, 0, missing))
        return flat.view(-1, self.rows, x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """[B * heads * count, columns, D]; zeros beyond the ends."""
        side = self.window * self.tokens_per_frame
        missing = self.count * self.rows - x.shape[2]
        padded = F.pad(x.reshape(-1, x.shape[2], x.shape[3]), (0, 0, side, side + missing))
        size = (padded.shape[0], self.count, self.columns, x.shape[3])
        stride = (padded.stride(0), self.rows * x.shape[3], x.shape[3], 1)
        return padded.as_strided(size, stride).reshape(-1, self.columns, x.shape[3])

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Without the rows that fill the last chunk."""
        return x.view(shape[0], shape[1], -1, shape[3])[:, :, : shape[2]]

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Each token's parts in all the chunks that saw it, added up."""
        parts = x.view(-1, self.count, self.columns, shape[3])
        overlaps = -(-self.columns // self.rows)
        total = parts.new_zeros(parts.shape[0], self.count + overlaps - 1, self.rows, shape[3])
        for i in range(overlaps):
            part = parts[:, :, i * self.rows : (i + 1) * self.rows]
            total[:, i : i + self.count, : part.shape[2]] += part
        side = self.window * self.tokens_per_frame
        return total.view(shape[0], shape[1], -1, shape[3])[:, :, side : side + shape[2]]


class Given(NamedTuple):
    """What gradients are made from, in a layout's matrices; the queries are scaled."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def softmax_weights(queries: Tensor, keys: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores q k^T + bias of scaled queries, and their softmax."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if bias is not None:
        scores.view(-1, bias.shape[0], *scores.shape[1:]).add_(bias)
    return scores, torch.softmax(scores, -1)


def batched_gradients(
    grad: Tensor, given: Given, layout: Layout, scale: float, shapes: tuple[torch.Size, torch.Size]
) -> tuple[Tensor, Tensor, Tensor]:
    """With p the weights and g the gradient of the output: dv = p^T g, ds = p (dp - sum(dp p)) with
    dp = g v^T, dq = scale ds k, dk = scale ds^T q.
    """
    grad = layout.queries(grad)
    grad_v = torch.bmm(given.weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, given.values.transpose(1, 2))
    grad_scores = _softmax_backward(grad_weights, given.weights, -1, given.weights.dtype)
    grad_q = torch.bmm(grad_scores, given.keys).mul_(scale)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), given.queries)
    query_shape, key_shape = shapes
    return (
        layout.fold_queries(grad_q, query_shape),
        layout.fold_keys(grad_k, key_shape),
        layout.fold_keys(grad_v, key_shape),
    )


def pack_size(matrices: int, tokens: int) -> int:
    """Clips a matrix, so that it has 16 to 64 columns; 1 where the number of clips allows none."""
    for size in range(-(-VECTOR_COLUMNS // tokens), 64 // tokens + 1):
        if matrices % size == 0:
            return size
    return 1


def hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, else -inf. Usable in training even when it is first needed in inference mode."""
    with torch.inference_mode(False):
        return torch.zeros(seen.shape, dtype=dtype, device="cpu").masked_fill_(~seen.clone(), NEVER)


@lru_cache(maxsize=32)
def band_bias(clips: int, num_frames: int, per_frame: int, window: int, dtype: torch.dtype) -> Tensor:
    """[1, n, n] of a matrix of several clips: a token sees its own clip's frames within the window."""
    index = torch.arange(clips * num_frames * per_frame, device="cpu")
    clip, frame = index // (num_frames * per_frame), index // per_frame
    seen = (clip[:, None] == clip) & ((frame[:, None] - frame).abs() <= window)
    return hide(seen[None], dtype)


@lru_cache(maxsize=32)
def block_bias(blocks: Blocks, dtype: torch.dtype) -> Tensor:
    """[count, rows, columns]; rows beyond the clip's end see whatever is near, so that they stay finite."""
    frame = torch.arange(blocks.rows, device="cpu") // blocks.tokens_per_frame
    key_frame = torch.arange(blocks.columns, device="cpu") // blocks.tokens_per_frame - blocks.window
    near = (frame[:, None] - key_frame).abs() <= blocks.window
    absolute = torch.arange(blocks.count, device="cpu")[:, None] * blocks.chunk + key_frame
    exists = (absolute >= 0) & (absolute < blocks.num_frames)
    beyond = torch.arange(blocks.count, device="cpu")[:, None] * blocks.chunk + frame >= blocks.num_frames
    return hide(near & (exists[:, None] | beyond[:, :, None]), dtype)
