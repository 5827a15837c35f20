"""Windowed attention on the CPU, forward and backward, in time linear in the number of frames.

Three ways to compute the same sum; `plan` picks one by shape, as measured (one thread, forward + backward;
benchmarks/bench_window_attention.py repeats the measurement):

blocked  few tokens per frame: chunks of frames against the frames they can see, unfolded and multiplied as
         one batch. [8, 4, 240, 24], window 8: a third of the time of dense attention.
chunked  many tokens per frame: torch's fused CPU attention on one chunk after another, gradients added in
         place, so that memory grows with the clip and not with the window.
packed   clips of less than 16 tokens: all pairs, masked, as one batch; several clips share a matrix, because
         torch's softmax leaves its vectorised path below 16 columns ([160, 4, 8, 24]: half the time).

Half precision always takes torch's fused operator, which computes in float32 inside.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kernels.attention.cpu_batched import (
    VECTOR_COLUMNS,
    FrameBlocks,
    Layout,
    PackedClips,
    additive_mask,
    batched_gradients,
    batched_softmax,
    block_mask,
    clips_per_matrix,
    packed_mask,
)
from kernels.reference import WindowOptions

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001


class Plan(NamedTuple):
    """How a windowed attention is computed."""

    form: Literal["dense", "packed", "blocked", "chunked"]
    chunk_frames: int = 0
    """Query frames per chunk; meaningless for `dense` and `packed`."""


def plan(num_frames: int, tokens_per_frame: int, window: int, dtype: torch.dtype) -> Plan:
    """The form for one shape.

    A chunk holds as many tokens as one side of the window, between 16 and 32. `blocked` must save two fifths
    of the pairs before its copies pay.
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
    lse = torch.full(q.shape[:3], float("-inf"), dtype=torch.promote_types(q.dtype, torch.float32))
    for samples, rows, keys in _by_length(q, options):
        some_k, some_v = k[samples, :, :keys], v[samples, :, :keys]
        out[samples, :, :rows], lse[samples, :, :rows] = _forward(
            q[samples, :, :rows], some_k, some_v, options
        )
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.backward`, fast."""
    if options.valid_frames is None:
        return _backward(grad, q, k, v, out, lse, options)
    grad_q, grad_k, grad_v = (torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v))
    for samples, rows, keys in _by_length(q, options):
        some_grad, some_q, some_out, some_lse = (x[samples, :, :rows] for x in (grad, q, out, lse))
        some_k, some_v = k[samples, :, :keys], v[samples, :, :keys]
        grad_q[samples, :, :rows], grad_k[samples, :, :keys], grad_v[samples, :, :keys] = _backward(
            some_grad, some_q, some_k, some_v, some_out, some_lse, options
        )
    return grad_q, grad_k, grad_v


def _by_length(q: Tensor, options: WindowOptions) -> Iterator[tuple[Tensor, int, int]]:
    """Samples with the same number of valid frames, and their tokens among queries and keys; those without
    any valid query are left out."""
    valid_frames, per_frame = options.valid_frames, options.tokens_per_frame
    assert valid_frames is not None
    for count in valid_frames.unique().tolist():
        rows = min(q.shape[2], (count - options.query_frame) * per_frame)
        if rows > 0:
            yield (valid_frames == count).nonzero()[:, 0], rows, count * per_frame


def _forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Output and lse of clips whose frames are all valid."""
    if batched := _batched(q, k, options):
        layout, mask = batched
        matrices, scores = batched_softmax(layout, q, k, v, mask, options.scale)
        lse = scores.amax(-1) - matrices.weights.amax(-1).log()
        out = layout.fold_queries(torch.bmm(matrices.weights, matrices.values), q.shape)
        lse = layout.fold_queries(lse[..., None], torch.Size((*q.shape[:3], 1)))[..., 0]
        return out.contiguous(), lse.contiguous()
    q, k, v = (_contiguous_rows(x) for x in (q, k, v))
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for chunk in _chunks(q, k, options):
        rows = chunk.rows
        out[:, :, rows], lse[:, :, rows] = _fused(
            q[:, :, rows], chunk.keys(k), chunk.keys(v), attn_mask=chunk.mask, scale=options.scale
        )
    return out, lse


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of clips whose frames are all valid."""
    if batched := _batched(q, k, options):
        layout, mask = batched
        matrices, _ = batched_softmax(layout, q, k, v, mask, options.scale)
        parts = batched_gradients(layout, grad, matrices, options.scale, q.shape, k.shape)
        grad_q, grad_k, grad_v = (x.contiguous() for x in parts)
        return grad_q, grad_k, grad_v
    grad, q, k, v = (_contiguous_rows(x) for x in (grad, q, k, v))
    grad_q = torch.empty(q.shape, dtype=q.dtype)
    grad_k, grad_v = torch.zeros(k.shape, dtype=k.dtype), torch.zeros(v.shape, dtype=v.dtype)
    for chunk in _chunks(q, k, options):
        rows = chunk.rows
        grad_q[:, :, rows], part_k, part_v = _fused_backward(
            grad[:, :, rows],
            q[:, :, rows],
            chunk.keys(k),
            chunk.keys(v),
            out[:, :, rows],
            lse[:, :, rows],
            0.0,
            False,
            attn_mask=chunk.mask,
            scale=options.scale,
        )
        chunk.add_keys(grad_k, part_k)
        chunk.add_keys(grad_v, part_v)
    return grad_q, grad_k, grad_v


def _batched(q: Tensor, k: Tensor, options: WindowOptions) -> tuple[Layout, Tensor] | None:
    """The clips as one batch of matrices and their additive mask [1 or count, rows, columns]; None where they
    go chunk by chunk."""
    if options.wrap or q.shape[2] != k.shape[2]:
        return None
    per_frame, window = options.tokens_per_frame, options.window
    num_frames = q.shape[2] // per_frame
    form, chunk_frames = plan(num_frames, per_frame, window, q.dtype)
    if form == "blocked":
        blocks = FrameBlocks(num_frames, per_frame, window, chunk_frames)
        return blocks, block_mask(blocks, q.dtype)
    if form == "packed":
        clips = clips_per_matrix(q.shape[0] * q.shape[1], q.shape[2])
        return PackedClips(clips), packed_mask(clips, num_frames, per_frame, window, q.dtype)
    return None


def _contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


class _Chunk(NamedTuple):
    """Query tokens, the runs of key tokens they can see, and the additive mask where not all pairs count."""

    rows: slice
    key_runs: list[slice]
    mask: Tensor | None

    def keys(self, x: Tensor) -> Tensor:
        """The key runs of x [B, heads, tokens, D], joined."""
        runs = [x[:, :, run] for run in self.key_runs]
        return runs[0] if len(runs) == 1 else torch.cat(runs, 2)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """The adjoint of `keys`: adds each run of `part` to its place in `total`."""
        begin = 0
        for run in self.key_runs:
            size = run.stop - run.start
            total[:, :, run] += part[:, :, begin : begin + size]
            begin += size


def _chunks(q: Tensor, k: Tensor, options: WindowOptions) -> Iterator[_Chunk]:
    """The chunks of clips [B, heads, tokens, D] in order."""
    per_frame, window = options.tokens_per_frame, options.window
    num_frames, num_queries = k.shape[2] // per_frame, q.shape[2] // per_frame
    form, chunk_frames = plan(num_frames, per_frame, window, q.dtype)
    if options.wrap:
        chunk_frames = max(1, 64 // per_frame)
    elif form in ("dense", "packed"):
        chunk_frames = num_frames
    for begin in range(0, num_queries, chunk_frames):
        end = min(num_queries, begin + chunk_frames)
        first, last = options.query_frame + begin, options.query_frame + end
        low, high = first - window, last + window
        if not options.wrap:
            runs = [(max(0, low), min(num_frames, high))]
        elif high - low >= num_frames:
            runs = [(0, num_frames)]
        elif low < 0:
            runs = [(0, high), (low + num_frames, num_frames)]
        elif high > num_frames:
            runs = [(0, high - num_frames), (low, num_frames)]
        else:
            runs = [(low, high)]
        origin = runs[0][0]
        mask = _chunk_mask(
            (first - origin, last - origin),
            tuple((start - origin, stop - origin) for start, stop in runs),
            num_frames if options.wrap else None,
            per_frame,
            window,
            q.dtype,
        )
        slices = [slice(start * per_frame, stop * per_frame) for start, stop in runs]
        yield _Chunk(slice(begin * per_frame, end * per_frame), slices, mask)


@lru_cache(maxsize=128)
def _chunk_mask(
    frames: tuple[int, int],
    key_runs: tuple[tuple[int, int], ...],
    ring: int | None,
    per_frame: int,
    window: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """[rows, columns] of a chunk, frames counted from its first key frame; None where all pairs count."""
    frame = torch.arange(*frames, device="cpu")
    key_frame = torch.cat([torch.arange(*run, device="cpu") for run in key_runs])
    distance = (frame[:, None] - key_frame).abs()
    if ring is not None:
        distance = torch.minimum(distance, ring - distance)
    visible = distance <= window
    if visible.all():
        return None
    return additive_mask(visible.repeat_interleave(per_frame, 0).repeat_interleave(per_frame, 1), dtype)
