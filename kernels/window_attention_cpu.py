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

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kernels.reference import WindowOptions, frame_mask

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


def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """`reference.forward`, fast.

    A NaN reaches every row that sees it, and may reach rows up to a chunk (or a packed clip) further.
    """
    if options.valid_frames is None:
        return _forward(q, k, v, options)
    out = torch.zeros(q.shape, dtype=q.dtype)
    lse = torch.full(q.shape[:3], _NEVER, dtype=torch.promote_types(q.dtype, torch.float32))
    for samples, tokens in _by_count(options):
        parts = (x[samples, :, :tokens] for x in (q, k, v))
        out[samples, :, :tokens], lse[samples, :, :tokens] = _forward(*parts, options)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.backward`, fast."""
    if options.valid_frames is None:
        return _backward(grad, q, k, v, out, lse, options)
    totals = tuple(torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for samples, tokens in _by_count(options):
        given = (x[samples, :, :tokens] for x in (grad, q, k, v, out, lse))
        for total, part in zip(totals, _backward(*given, options), strict=True):
            total[samples, :, :tokens] = part
    return totals


def _by_count(options: WindowOptions) -> Iterator[tuple[Tensor, int]]:
    """Samples with the same number of valid frames, and their tokens; those without any are left out."""
    assert options.valid_frames is not None
    for count in options.valid_frames.unique().tolist():
        if count > 0:
            yield (options.valid_frames == count).nonzero()[:, 0], count * options.tokens_per_frame


def _forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Output and lse of clips whose frames are all valid."""
    layout = _layout(q, options)
    if layout is not None:
        queries, keys, values = layout.queries(q) * options.scale, layout.keys(k), layout.keys(v)
        scores, weights = _weights(queries, keys, _window_bias(layout, q, options))
        lse = scores.amax(-1) - weights.amax(-1).log()
        out = layout.fold_queries(torch.bmm(weights, values), q.shape)
        lse = layout.fold_queries(lse[..., None], torch.Size((*q.shape[:3], 1)))[..., 0]
        return out.contiguous(), lse.contiguous()
    q, k, v = (_by_rows(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for step in _steps(q, options):
        rows = step.rows
        out[:, :, rows], lse[:, :, rows] = _fused(
            q[:, :, rows], step.keys(k), step.keys(v), attn_mask=step.mask, scale=options.scale
        )
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of clips whose frames are all valid."""
    layout = _layout(q, options)
    if layout is not None:
        queries, keys, values = layout.queries(q) * options.scale, layout.keys(k), layout.keys(v)
        _, weights = _weights(queries, keys, _window_bias(layout, q, options))
        given = _Given(queries, keys, values, weights)
        parts = _batched_gradients(grad, given, layout, options.scale, (q.shape, k.shape))
        grad_q, grad_k, grad_v = (x.contiguous() for x in parts)
        return grad_q, grad_k, grad_v
    grad, q, k, v = (_by_rows(x) for x in (grad, q, k, v))
    grad_q = torch.empty(q.shape, dtype=q.dtype)
    grad_k, grad_v = torch.zeros(k.shape, dtype=k.dtype), torch.zeros(v.shape, dtype=v.dtype)
    for step in _steps(q, options):
        rows = step.rows
        grad_q[:, :, rows], part_k, part_v = _fused_backward(
            grad[:, :, rows],
            q[:, :, rows],
            step.keys(k),
            step.keys(v),
            out[:, :, rows],
            lse[:, :, rows],
            0.0,
            False,
            attn_mask=step.mask,
            scale=options.scale,
        )
        step.add(grad_k, part_k)
        step.add(grad_v, part_v)
    return grad_q, grad_k, grad_v


def _layout(q: Tensor, options: WindowOptions) -> "_Layout | None":
    """How the clips become a batch of matrices, or None: chunk after chunk."""
    if options.global_frames or options.wrap:
        return None
    num_frames = q.shape[2] // options.tokens_per_frame
    form, chunk = plan(num_frames, options.tokens_per_frame, options.window, q.dtype)
    if form == "blocked":
        return _Blocks(num_frames, options.tokens_per_frame, options.window, chunk)
    return _Packs(_pack_size(q.shape[0] * q.shape[1], q.shape[2])) if form == "packed" else None


def _window_bias(layout: "_Layout", q: Tensor, options: WindowOptions) -> Tensor:
    """[1 or count, rows, columns] of a layout's matrices: 0 where seen, else -inf."""
    if isinstance(layout, _Blocks):
        return _block_bias(layout, q.dtype)
    assert isinstance(layout, _Packs)
    per_frame = options.tokens_per_frame
    return _band_bias(layout.size, q.shape[2] // per_frame, per_frame, options.window, q.dtype)


def _by_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


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
        out = _Dense.apply(q, k, v, bias, scale, packs)
    else:
        pad = max(0, VECTOR_COLUMNS - columns)
        bias = _key_bias(q, columns, key_mask, pad)
        out = _Dense.apply(q, F.pad(k, (0, 0, 0, pad)), F.pad(v, (0, 0, 0, pad)), bias, scale, _Packs(1))
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


class _Given(NamedTuple):
    """What gradients are made from, in a layout's matrices; the queries are scaled."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores q k^T + bias of scaled queries, and their softmax."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if bias is not None:
        scores.view(-1, bias.shape[0], *scores.shape[1:]).add_(bias)
    return scores, torch.softmax(scores, -1)


def _batched_gradients(
    grad: Tensor, given: _Given, layout: _Layout, scale: float, shapes: tuple[torch.Size, torch.Size]
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


class _Dense(torch.autograd.Function):
    """softmax(scale q k^T + bias) v over a layout's matrices; keeps the weights."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, layout: _Layout
    ) -> Tensor:
        queries, keys, values = layout.queries(q) * scale, layout.keys(k), layout.keys(v)
        _, weights = _weights(queries, keys, bias)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.layout, ctx.scale, ctx.shapes = layout, scale, (q.shape, k.shape)
        return layout.fold_queries(torch.bmm(weights, values), q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = _Given(*ctx.saved_tensors)
        return (*_batched_gradients(grad, given, ctx.layout, ctx.scale, ctx.shapes), None, None, None)


class _Step(NamedTuple):
    """One chunk of queries, the runs of keys it can see (all in tokens) and the mask within, if needed."""

    rows: slice
    columns: list[slice]
    mask: Tensor | None

    def keys(self, x: Tensor) -> Tensor:
        """The runs of x [B, heads, tokens, D] one after the other."""
        runs = [x[:, :, run] for run in self.columns]
        return runs[0] if len(runs) == 1 else torch.cat(runs, 2)

    def add(self, total: Tensor, part: Tensor) -> None:
        """The adjoint of `keys`: adds each run of `part` to its place in `total`."""
        begin = 0
        for run in self.columns:
            size = run.stop - run.start
            total[:, :, run] += part[:, :, begin : begin + size]
            begin += size


def _steps(q: Tensor, options: WindowOptions) -> Iterator[_Step]:
    """The chunks of clips [B, heads, tokens, D] in order."""
    per_frame, window = options.tokens_per_frame, options.window
    num_frames = q.shape[2] // per_frame
    form, chunk = plan(num_frames, per_frame, window, q.dtype)
    if options.global_frames or options.wrap:
        yield from _special_steps(num_frames, options, max(1, 64 // per_frame), q.dtype)
        return
    chunk = num_frames if form == "dense" else chunk
    for first in range(0, num_frames, chunk):
        last = min(num_frames, first + chunk)
        low, high = max(0, first - window), min(num_frames, last + window)
        mask = None
        if last - 1 - low > window or high - 1 - first > window:
            mask = _chunk_bias(last - first, high - low, first - low, per_frame, window, q.dtype)
        yield _Step(_tokens(first, last, per_frame), [_tokens(low, high, per_frame)], mask)


def _special_steps(
    num_frames: int, options: WindowOptions, chunk: int, dtype: torch.dtype
) -> Iterator[_Step]:
    """Chunks with global frames or a ring; global frames have chunks of their own, which see everything."""
    per_frame, common = options.tokens_per_frame, min(options.global_frames, num_frames)
    seen = frame_mask(num_frames, options.window, global_frames=common, wrap=options.wrap)[0]
    for first in (*range(0, common, chunk), *range(common, num_frames, chunk)):
        last = min(common if first < common else num_frames, first + chunk)
        rows = seen[first:last]
        columns = rows.any(0).nonzero()[:, 0]
        near = rows[:, columns]
        mask = None
        if not near.all():
            mask = _bias(near.repeat_interleave(per_frame, 0).repeat_interleave(per_frame, 1), dtype)
        runs = [_tokens(start, stop, per_frame) for start, stop in _runs(columns.tolist())]
        yield _Step(_tokens(first, last, per_frame), runs, mask)


def _runs(frames: list[int]) -> Iterator[tuple[int, int]]:
    """Rising frames as ranges [start, stop)."""
    start = previous = frames[0]
    for frame in frames[1:]:
        if frame != previous + 1:
            yield start, previous + 1
            start = frame
        previous = frame
    yield start, previous + 1


def _tokens(first: int, last: int, per_frame: int) -> slice:
    return slice(first * per_frame, last * per_frame)


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
