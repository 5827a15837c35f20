"""Windowed attention on the CPU, forward and backward, in time linear in the number of frames.

Three ways to do the same sum; `plan` picks by shape, by what was measured (one thread, forward + backward,
benchmarks/bench_window_attention.py prints it again):

blocked  few tokens a frame: chunks of frames against the frames they can see, unfolded and multiplied as one
         batch. [8, 4, 240, 24], window 8: a third of the time of dense attention.
chunked  many tokens a frame: torch's fused CPU attention on one chunk after another, gradients added in
         place, so memory grows with the clip and not with the window.
packed   clips under 16 tokens: all pairs, masked, as one batch; several clips share a matrix, because torch's
         softmax leaves its vector path below 16 columns ([160, 4, 8, 24]: half the time).

Half precision always takes torch's fused operator, which computes in float32 inside.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels.attention.cpu_batched import (
    NEVER,
    VECTOR_COLUMNS,
    Blocks,
    Given,
    Layout,
    Packs,
    band_bias,
    batched_gradients,
    block_bias,
    hide,
    pack_size,
    softmax_weights,
)
from kernels.reference import WindowOptions, frame_mask

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
    if num_frames * tokens_per_frame < VECTOR_COLUMNS:
        return Plan("packed")
    return Plan("chunked", max(1, 128 // tokens_per_frame))


def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """`reference.forward`, fast.

    A NaN reaches every row that sees it, and may reach rows up to a chunk (or a packed clip) further.
    """
    if options.valid_frames is None:
        return _forward(q, k, v, options)
    out = torch.zeros(q.shape, dtype=q.dtype)
    lse = torch.full(q.shape[:3], NEVER, dtype=torch.promote_types(q.dtype, torch.float32))
    for samples, tokens in _by_count(options):
        own_q, own_k, own_v = (x[samples, :, :tokens] for x in (q, k, v))
        out[samples, :, :tokens], lse[samples, :, :tokens] = _forward(own_q, own_k, own_v, options)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.backward`, fast."""
    if options.valid_frames is None:
        return _backward(grad, q, k, v, out, lse, options)
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for samples, tokens in _by_count(options):
        own = [x[samples, :, :tokens] for x in (grad, q, k, v, out, lse)]
        parts = _backward(own[0], own[1], own[2], own[3], own[4], own[5], options)
        for total, part in zip((grad_q, grad_k, grad_v), parts, strict=True):
            total[samples, :, :tokens] = part
    return grad_q, grad_k, grad_v


def _by_count(options: WindowOptions) -> Iterator[tuple[Tensor, int]]:
    """Samples with the same number of valid frames, and their tokens; those without any are left out."""
    assert options.valid_frames is not None
    for count in options.valid_frames.unique().tolist():
        if count > 0:
            yield (options.valid_frames == count).nonzero()[:, 0], count * options.tokens_per_frame


def _forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Output and lse of clips whose frames are all valid."""
    batched = _batched(q, options)
    if batched is not None:
        layout, bias = batched
        queries, keys, values = layout.queries(q) * options.scale, layout.keys(k), layout.keys(v)
        scores, weights = softmax_weights(queries, keys, bias)
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
    batched = _batched(q, options)
    if batched is not None:
        layout, bias = batched
        queries, keys, values = layout.queries(q) * options.scale, layout.keys(k), layout.keys(v)
        _, weights = softmax_weights(queries, keys, bias)
        given = Given(queries, keys, values, weights)
        parts = batched_gradients(grad, given, layout, options.scale, (q.shape, k.shape))
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


def _batched(q: Tensor, options: WindowOptions) -> tuple[Layout, Tensor] | None:
    """How the clips become a batch of matrices, with 0 where they see and -inf elsewhere ([1 or count, rows,
    columns]); None: chunk after chunk.
    """
    if options.global_frames or options.wrap:
        return None
    per_frame, window = options.tokens_per_frame, options.window
    num_frames = q.shape[2] // per_frame
    form, chunk = plan(num_frames, per_frame, window, q.dtype)
    if form == "blocked":
        blocks = Blocks(num_frames, per_frame, window, chunk)
        return blocks, block_bias(blocks, q.dtype)
    if form == "packed":
        packs = Packs(pack_size(q.shape[0] * q.shape[1], q.shape[2]))
        return packs, band_bias(packs.size, num_frames, per_frame, window, q.dtype)
    return None


def _by_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension."""
    return x if x.stride(-1) == 1 else x.contiguous()


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
    for first in (*range(0, common, chunk), *range(common, num_frames, chunk)):
        last = min(common if first < common else num_frames, first + chunk)
        rows = frame_mask(
            num_frames, options.window, global_frames=common, wrap=options.wrap, rows=range(first, last)
        )[0]
        columns = rows.any(0).nonzero()[:, 0]
        near = rows[:, columns]
        mask = None
        if not near.all():
            mask = hide(near.repeat_interleave(per_frame, 0).repeat_interleave(per_frame, 1), dtype)
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


@lru_cache(maxsize=128)
def _chunk_bias(
    frames: int, key_frames: int, offset: int, per_frame: int, window: int, dtype: torch.dtype
) -> Tensor:
    """[rows, columns] of a chunk whose first frame is `offset` frames after its first key frame."""
    frame = torch.arange(frames * per_frame, device="cpu") // per_frame + offset
    key_frame = torch.arange(key_frames * per_frame, device="cpu") // per_frame
    return hide((frame[:, None] - key_frame).abs() <= window, dtype)
