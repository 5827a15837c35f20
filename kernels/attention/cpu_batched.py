"""Attention over few tokens on the CPU, as batches of small matrices: how clips become matrices, softmax and
gradients."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

VECTOR_COLUMNS = 16
"""Columns from which torch's CPU softmax is vectorised."""
_softmax_backward = torch.ops.aten._softmax_backward_data  # noqa: SLF001


class Layout(Protocol):
    """[B, heads, tokens, D] as a batch of small matrices, and back."""

    def queries(self, x: Tensor) -> Tensor:
        """[B, heads, tokens, D] to [n, rows, D]."""

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values [B, heads, tokens, D] to [n, columns, D]."""

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        """[n, rows, D] back to `shape`."""

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        """The adjoint of `keys`: [n, columns, D] back to `shape`, all copies of a token added up."""


@dataclass(frozen=True)
class PackedClips:
    """`clips` of them one after the other in one matrix: [B * heads / clips, clips * tokens, D]."""

    clips: int

    def queries(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.clips * x.shape[2], x.shape[3])

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.view(shape)

    keys, fold_keys = queries, fold_queries


@dataclass(frozen=True)
class FrameBlocks:
    """Chunks of `chunk_frames` against the chunk_frames + 2 window frames around them, as one batch:
    [B * heads * count, rows, D] queries and [B * heads * count, columns, D] keys."""

    num_frames: int
    tokens_per_frame: int
    window: int
    chunk_frames: int

    @property
    def count(self) -> int:
        """Chunks of a clip."""
        return -(-self.num_frames // self.chunk_frames)

    @property
    def rows(self) -> int:
        """Query tokens of a chunk."""
        return self.chunk_frames * self.tokens_per_frame

    @property
    def columns(self) -> int:
        """Key tokens of a chunk."""
        return (self.chunk_frames + 2 * self.window) * self.tokens_per_frame

    def queries(self, x: Tensor) -> Tensor:
        """The last chunk is padded with zeros."""
        flat = x.reshape(-1, x.shape[2], x.shape[3])
        missing = self.count * self.rows - x.shape[2]
        if missing:
            flat = F.pad(flat, (0, 0, 0, missing))
        return flat.view(-1, self.rows, x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """Zeros beyond both ends."""
        side = self.window * self.tokens_per_frame
        missing = self.count * self.rows - x.shape[2]
        padded = F.pad(x.reshape(-1, x.shape[2], x.shape[3]), (0, 0, side, side + missing))
        size = (padded.shape[0], self.count, self.columns, x.shape[3])
        stride = (padded.stride(0), self.rows * x.shape[3], x.shape[3], 1)
        return padded.as_strided(size, stride).reshape(-1, self.columns, x.shape[3])

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Drops the padding of the last chunk."""
        return x.view(shape[0], shape[1], -1, shape[3])[:, :, : shape[2]]

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        parts = x.view(-1, self.count, self.columns, shape[3])
        overlaps = -(-self.columns // self.rows)
        total = parts.new_zeros(parts.shape[0], self.count + overlaps - 1, self.rows, shape[3])
        for i in range(overlaps):
            part = parts[:, :, i * self.rows : (i + 1) * self.rows]
            total[:, i : i + self.count, : part.shape[2]] += part
        side = self.window * self.tokens_per_frame
        return total.view(shape[0], shape[1], -1, shape[3])[:, :, side : side + shape[2]]


class Matrices(NamedTuple):
    """An attention in a layout's matrices, as the gradients need it."""

    queries: Tensor
    """[n, rows, D], scaled."""
    keys: Tensor
    values: Tensor
    weights: Tensor
    """[n, rows, columns], softmax of the scores."""


def batched_softmax(
    layout: Layout, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
) -> tuple[Matrices, Tensor]:
    """The matrices, and the scores scale q k^T + mask [n, rows, columns]."""
    queries, keys, values = layout.queries(q) * scale, layout.keys(k), layout.keys(v)
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if mask is not None:
        scores.view(-1, mask.shape[0], *scores.shape[1:]).add_(mask)
    return Matrices(queries, keys, values, torch.softmax(scores, -1)), scores


def batched_gradients(
    layout: Layout, grad: Tensor, matrices: Matrices, scale: float, q_shape: torch.Size, k_shape: torch.Size
) -> tuple[Tensor, Tensor, Tensor]:
    """With p the weights and g the gradient of the output: dv = p^T g, ds = p (dp - sum(dp p)) with
    dp = g v^T, dq = scale ds k, dk = scale ds^T q.
    """
    queries, keys, values, weights = matrices
    grad = layout.queries(grad)
    grad_v = torch.bmm(weights.transpose(1, 2), grad)
    grad_weights = torch.bmm(grad, values.transpose(1, 2))
    grad_scores = _softmax_backward(grad_weights, weights, -1, weights.dtype)
    grad_q = torch.bmm(grad_scores, keys).mul_(scale)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), queries)
    return (
        layout.fold_queries(grad_q, q_shape),
        layout.fold_keys(grad_k, k_shape),
        layout.fold_keys(grad_v, k_shape),
    )


def clips_per_matrix(clips: int, tokens: int) -> int:
    """So many that a matrix has 16 to 64 columns; 1 where the number of clips allows none."""
    for size in range(-(-VECTOR_COLUMNS // tokens), 64 // tokens + 1):
        if clips % size == 0:
            return size
    return 1


def additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, else -inf. Serves training even when first built in inference mode."""
    with torch.inference_mode(False):
        mask = torch.zeros(visible.shape, dtype=dtype, device="cpu")
        return mask.masked_fill_(~visible.clone(), float("-inf"))


@lru_cache(maxsize=32)
def packed_mask(clips: int, num_frames: int, per_frame: int, window: int, dtype: torch.dtype) -> Tensor:
    """[1, n, n] for a matrix of several clips: a token sees its own clip's frames within the window."""
    token = torch.arange(clips * num_frames * per_frame, device="cpu")
    clip, frame = token // (num_frames * per_frame), token // per_frame
    visible = (clip[:, None] == clip) & ((frame[:, None] - frame).abs() <= window)
    return additive_mask(visible[None], dtype)


@lru_cache(maxsize=32)
def block_mask(blocks: FrameBlocks, dtype: torch.dtype) -> Tensor:
    """[count, rows, columns]; rows in the padding see whatever is near, so that they stay finite."""
    frame = torch.arange(blocks.rows, device="cpu") // blocks.tokens_per_frame
    key_frame = torch.arange(blocks.columns, device="cpu") // blocks.tokens_per_frame - blocks.window
    near = (frame[:, None] - key_frame).abs() <= blocks.window
    first_frame = torch.arange(blocks.count, device="cpu")[:, None] * blocks.chunk_frames
    key_exists = (first_frame + key_frame >= 0) & (first_frame + key_frame < blocks.num_frames)
    padding = first_frame + frame >= blocks.num_frames
    return additive_mask(near & (key_exists[:, None] | padding[:, :, None]), dtype)
