"""Windowed and dense attention on the CPU, forward and backward, in time linear in the number of frames.

Three ways to do the same sum; `plan` picks by shape, by what was measured (one thread, forward + backward,
benchmarks/bench_window_attention.py prints it again):

blocked  few tokens a frame: chunks of frames against the frames they can see, unfolded and multiplied as one
         batch. [8, 4, 240, 24], window 8: a quarter of the time of dense attention.
chunked  many tokens a frame: torch's fused CPU attention on one chunk after another, gradients added in
         place, so memory grows with the clip and not with the window.
packed   short clips: all pairs, masked, as one batch; several clips share a matrix, because torch's softmax
         leaves its vector path below 16 columns ([160, 4, 8, 24]: a third of the time).

Half precision always takes torch's fused operator, which computes in float32 inside.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels import reference

VECTOR_COLUMNS = 16
"""Columns from which torch's CPU softmax is vectorised."""
PLAIN_PAIRS = 96 * 96
"""Query-key pairs a matrix up to which a batched product beats torch's fused operator."""
_NEVER = float("-inf")
_softmax_backward = torch.ops.aten._softmax_backward_data  # noqa: SLF001
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


class Plan(NamedTuple):
    """How a windowed attention is computed.

    `chunk` is the number of query frames a step; it says nothing for `dense` and `packed`.
    """

    form: Literal["dense", "packed", "blocked", "chunked"]
    chunk: int = 0


def plan(num_frames: int, tokens_per_frame: int, window: int, dtype: torch.dtype) -> Plan:
    """The form for one shape; rules and figures in the module's docstring.

    A chunk holds as many tokens as a window's side, between 16 and 32. `blocked` needs to save two fifths of
    the pairs before its copies pay.
    """
    if window >= num_frames - 1:
        return Plan("dense")
    chunk = max(1, min(32, max(16, window * tokens_per_frame)) // tokens_per_frame)
    if tokens_per_frame >= 8 or dtype not in (torch.float32, torch.float64):
        return Plan("chunked", chunk)
    padded = -(-num_frames // chunk) * chunk
    if 5 * padded * (chunk + 2 * window) <= 3 * num_frames**2:
        return Plan("blocked", chunk)
    if (num_frames * tokens_per_frame) ** 2 <= PLAIN_PAIRS:
        return Plan("packed")
    return Plan("chunked", max(1, 128 // tokens_per_frame))


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    tokens_per_frame: int,
    window: int,
    scale: float | None = None,
    valid_frames: Tensor | None = None,
    global_frames: int = 0,
    wrap: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`reference.window_attention`, fast. Shapes and meaning are described there.

    `valid_frames`, `global_frames` and `wrap` take the reference itself: memory grows with tokens^2.
    A NaN reaches every row that sees it, and may reach rows up to a chunk (or a packed clip) further.
    """
    if valid_frames is not None or global_frames or wrap:
        return reference.window_attention(
            q,
            k,
            v,
            tokens_per_frame=tokens_per_frame,
            window=window,
            scale=scale,
            valid_frames=valid_frames,
            global_frames=global_frames,
            wrap=wrap,
            return_lse=return_lse,
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    num_frames = q.shape[2] // tokens_per_frame
    form, chunk = plan(num_frames, tokens_per_frame, window, q.dtype)
    if form == "dense" and not return_lse:
        return dense_attention(q, k, v, scale)
    if form in ("dense", "chunked"):
        out, lse = _Chunked.apply(q, k, v, scale, tokens_per_frame, window, chunk or num_frames)
    elif form == "blocked":
        blocks = _Blocks(num_frames, tokens_per_frame, window, chunk)
        out, lse = _Batched.apply(q, k, v, _block_bias(blocks, q.dtype), scale, blocks, return_lse)
    else:
        packs = _Packs(_pack_size(q.shape[0] * q.shape[1], q.shape[2]))
        bias = _band_bias(packs.size, num_frames, tokens_per_frame, window, q.dtype)
        out, lse = _Batched.apply(q, k, v, bias, scale, packs, return_lse)
    return (out, lse) if return_lse else out


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v over all keys that `key_mask` allows.

    Args:
        q: [B, heads, N, D]; k, v: [B, heads, M, D].
        scale: D ** -0.5 by default.
        key_mask: bool [B, M], True where a key may be seen; a sample without any gives 0.

    Returns:
        [B, heads, N, D].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rows, columns = q.shape[2], k.shape[2]
    small = columns <= VECTOR_COLUMNS or rows * columns <= PLAIN_PAIRS
    if not small or q.dtype not in (torch.float32, torch.float64):
        mask = None if key_mask is None else key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    elif key_mask is None and rows == columns:
        packs = _Packs(_pack_size(q.shape[0] * q.shape[1], rows))
        bias = _band_bias(packs.size, rows, 1, rows, q.dtype) if packs.size > 1 else None
        out, _ = _Batched.apply(q, k, v, bias, scale, packs, False)
    else:
        pad = max(0, VECTOR_COLUMNS - columns)
        bias = _key_bias(q, columns, key_mask, pad)
        out, _ = _Batched.apply(
            q, F.pad(k, (0, 0, 0, pad)), F.pad(v, (0, 0, 0, pad)), bias, scale, _Packs(1), False
        )
    if key_mask is None:
        return out
    sees_nothing = ~key_mask.any(1)
    return out.masked_fill(sees_nothing[:, None, None, None], 0.0) if sees_nothing.any() else out


def _key_bias(q: Tensor, columns: int, key_mask: Tensor | None, pad: int) -> Tensor | None:
    """0 where a key may be seen, else -inf: [B * heads, 1, columns + pad], or [1, 1, ...] without a mask.

    A sample that may see nothing gets 0 everywhere: its rows stay finite until they are replaced.
    """
    if key_mask is None:
        if not pad:
            return None
        key_mask = torch.ones(1, columns, dtype=torch.bool)
    hidden = F.pad(~key_mask, (0, pad), value=True)
    hidden = hidden & key_mask.any(1, keepdim=True)
    bias = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, _NEVER)
    heads = q.shape[1] if bias.shape[0] > 1 else 1
    return bias.repeat_interleave(heads, 0)[:, None]


class _Layout(Protocol):
    """[B, heads, tokens, D] as a batch of small matrices and back; `fold_keys` is the adjoint of `keys`."""

    def queries(self, x: Tensor) -> Tensor: ...

    def keys(self, x: Tensor) -> Tensor: ...

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor: ...

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor: ...


@dataclass(frozen=True)
class _Packs:
    """`size` clips one after the other in one matrix: [B * heads / size, size * tokens, D]."""

    size: int

    def queries(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.size * x.shape[2], x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        return self.queries(x)

    def fold_queries(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.view(shape)

    def fold_keys(self, x: Tensor, shape: torch.Size) -> Tensor:
        return x.view(shape)


@dataclass(frozen=True)
class _Blocks:
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


class _Batched(torch.autograd.Function):
    """softmax(scale q k^T + bias) v over a layout's matrices; saves the probabilities.

    With p the probabilities and g the gradient of the output: dv = p^T g, ds = p (dp - sum(dp p)) with dp = g
    v^T, dq = scale ds k, dk = scale ds^T q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        scale: float,
        layout: _Layout,
        want_lse: bool,
    ) -> tuple[Tensor, Tensor | None]:
        queries, keys, values = layout.queries(q) * scale, layout.keys(k), layout.keys(v)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if bias is not None:
            scores.view(-1, bias.shape[0], *scores.shape[1:]).add_(bias)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.layout, ctx.scale, ctx.shapes = layout, scale, (q.shape, k.shape)
        out = layout.fold_queries(torch.bmm(weights, values), q.shape)
        lse = None
        if want_lse:
            lse = layout.fold_queries(
                torch.logsumexp(scores, -1, keepdim=True), torch.Size((*q.shape[:3], 1))
            )
            lse = lse.squeeze(-1)
            ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        query_shape, key_shape = ctx.shapes
        grad = ctx.layout.queries(grad)
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        grad_weights = torch.bmm(grad, values.transpose(1, 2))
        grad_scores = _softmax_backward(grad_weights, weights, -1, weights.dtype)
        grad_q = torch.bmm(grad_scores, keys).mul_(ctx.scale)
        grad_k = torch.bmm(grad_scores.transpose(1, 2), queries)
        layout = ctx.layout
        return (
            layout.fold_queries(grad_q, query_shape),
            layout.fold_keys(grad_k, key_shape),
            layout.fold_keys(grad_v, key_shape),
            *[None] * 4,
        )


class _Step(NamedTuple):
    """One chunk of queries, the keys it can see (both in tokens) and the mask within, if one is needed."""

    rows: slice
    columns: slice
    mask: Tensor | None


def _steps(tokens: int, per_frame: int, window: int, chunk: int, dtype: torch.dtype) -> list[_Step]:
    """The chunks of a clip in order."""
    num_frames = tokens // per_frame
    steps = []
    for first in range(0, num_frames, chunk):
        last = min(num_frames, first + chunk)
        low, high = max(0, first - window), min(num_frames, last + window)
        mask = None
        if last - 1 - low > window or high - 1 - first > window:
            mask = _chunk_bias(last - first, high - low, first - low, per_frame, window, dtype)
        rows = slice(first * per_frame, last * per_frame)
        steps.append(_Step(rows, slice(low * per_frame, high * per_frame), mask))
    return steps


class _Chunked(torch.autograd.Function):
    """torch's fused CPU attention, chunk after chunk; gradients are added into preallocated tensors."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, per_frame: int, window: int, chunk: int
    ) -> tuple[Tensor, Tensor]:
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        steps = _steps(q.shape[2], per_frame, window, chunk, q.dtype)
        out = torch.empty(q.shape, dtype=q.dtype)
        lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for rows, columns, mask in steps:
            out[:, :, rows], lse[:, :, rows] = _fused(
                q[:, :, rows], k[:, :, columns], v[:, :, columns], attn_mask=mask, scale=scale
            )
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.steps, ctx.scale = steps, scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, columns, mask in ctx.steps:
            grad_q[:, :, rows], part_k, part_v = _fused_backward(
                grad[:, :, rows],
                q[:, :, rows],
                k[:, :, columns],
                v[:, :, columns],
                out[:, :, rows],
                lse[:, :, rows],
                0.0,
                False,
                attn_mask=mask,
                scale=ctx.scale,
            )
            grad_k[:, :, columns] += part_k
            grad_v[:, :, columns] += part_v
        return grad_q, grad_k, grad_v, None, None, None, None


def _pack_size(matrices: int, tokens: int) -> int:
    """Clips a matrix, so that it has 16 to 64 columns; 1 where the number of clips allows none."""
    for size in range(-(-VECTOR_COLUMNS // tokens), 64 // tokens + 1):
        if matrices % size == 0:
            return size
    return 1


def _bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, else -inf. Usable in training even when it is first needed in inference mode."""
    with torch.inference_mode(False):
        return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen.clone(), _NEVER)


@lru_cache(maxsize=32)
def _band_bias(clips: int, num_frames: int, per_frame: int, window: int, dtype: torch.dtype) -> Tensor:
    """[1, n, n] of a matrix of several clips: a token sees its own clip's frames within the window."""
    index = torch.arange(clips * num_frames * per_frame)
    clip, frame = index // (num_frames * per_frame), index // per_frame
    seen = (clip[:, None] == clip) & ((frame[:, None] - frame).abs() <= window)
    return _bias(seen[None], dtype)


@lru_cache(maxsize=32)
def _block_bias(blocks: _Blocks, dtype: torch.dtype) -> Tensor:
    """[count, rows, columns]; rows beyond the clip's end see whatever is near, so that they stay finite."""
    frame = torch.arange(blocks.rows) // blocks.tokens_per_frame
    key_frame = torch.arange(blocks.columns) // blocks.tokens_per_frame - blocks.window
    near = (frame[:, None] - key_frame).abs() <= blocks.window
    absolute = torch.arange(blocks.count)[:, None] * blocks.chunk + key_frame
    exists = (absolute >= 0) & (absolute < blocks.num_frames)
    beyond = torch.arange(blocks.count)[:, None] * blocks.chunk + frame >= blocks.num_frames
    return _bias(near & (exists[:, None] | beyond[:, :, None]), dtype)


@lru_cache(maxsize=128)
def _chunk_bias(
    frames: int, key_frames: int, offset: int, per_frame: int, window: int, dtype: torch.dtype
) -> Tensor:
    """[rows, columns] of a chunk whose first frame is `offset` frames after its first key frame."""
    frame = torch.arange(frames * per_frame) // per_frame + offset
    key_frame = torch.arange(key_frames * per_frame) // per_frame
    return _bias((frame[:, None] - key_frame).abs() <= window, dtype)
