"""What every operation means, in plain torch with explicit masks: slow, and the truth of the tests.

The fast paths (attention/, score/, ops.py) are compared with this file and with nothing else.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Normalizer = Literal["window", "sample", "block"]


class WindowOptions(NamedTuple):
    """What a frame of windowed attention sees; `frame_mask` is the definition."""

    tokens_per_frame: int
    window: int
    """Frames to each side; cut at the ends."""
    scale: float
    """Factor of the logits."""
    valid_frames: Tensor | None = None
    """Integers [B]: frames from there on see nothing and are seen by none."""
    wrap: bool = False
    """Frames form a ring."""
    query_frame: int = 0
    """Where the queries' frames begin among the keys'."""


class ScoreInputs(NamedTuple):
    """Folded windows and the velocities at them; `ops.reverse_kl_score` has the shapes."""

    x0: Tensor
    x_t: Tensor
    t: Tensor
    v_cond: Tensor
    v_uncond: Tensor | None
    v_fake: Tensor


class ScoreOptions(NamedTuple):
    """Conventions of the reverse-KL score; `ops.reverse_kl_score` explains them."""

    guidance_scale: float
    normalizer: Normalizer
    windows_per_sample: int = 1
    block_frames: int = 1
    floor: float = 1e-4

    @property
    def rows(self) -> int:
        """Consecutive rows that share a normaliser."""
        return self.windows_per_sample if self.normalizer == "sample" else 1

    def segment_frames(self, frames: int) -> int:
        """Frames of a window of `frames` that share a normaliser: a block's, or all."""
        return min(self.block_frames, frames) if self.normalizer == "block" else frames


class ReverseKLScore(NamedTuple):
    """The reverse-KL gradient of folded windows and its diagnostics; nothing here carries a gradient."""

    score: Tensor
    """[N, L, C, h, w], x0's dtype: (x0_fake - x0_real) / norm, non-finite entries zero."""
    distance_real: Tensor
    """[N]: mean |x0 - x0_real| of each window: how far the student is from its teacher."""
    distance_fake: Tensor
    """[N]: mean |x0_fake - x0_real| of each window: how far the critic is from the teacher."""
    norm: Tensor
    """[N], or [N, blocks] with normalizer `block`: what the difference was divided by."""
    non_finite: Tensor
    """0-dimensional int64: entries that were not finite and were set to zero."""
    loss: Tensor
    """0-dimensional, float32 or float64: 0.5 mean score^2, which is DMD's loss of these windows."""


def frame_mask(
    num_frames: int,
    window: int,
    *,
    queries: range | None = None,
    valid_frames: Tensor | None = None,
    wrap: bool = False,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Which frame sees which: bool [B or 1, queries, T], where the queries are all T frames or some of them.

    Frame i sees frame j iff |i - j| <= window; with `wrap` the distance is taken around a ring of the
    sample's valid frames. Frames at or beyond `valid_frames` [B] see nothing and are seen by none.
    """
    key = torch.arange(num_frames, device=device)
    frame = key if queries is None else key[queries.start : queries.stop]
    count = torch.full((1,), num_frames) if valid_frames is None else valid_frames
    count = count.to(device=device, dtype=torch.int64).view(-1, 1, 1)
    distance = (frame[:, None] - key).abs()[None]
    if wrap:
        distance = torch.minimum(distance, count - distance)
    return (distance <= window) & (frame[:, None] < count) & (key < count)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, *, return_lse: bool = False, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale q k^T) v over the frames that `frame_mask` allows; `ops.window_attention` has the shapes
    and the options, which are those of WindowOptions.

    The log-sum-exp has no gradient. Half precision is computed in float32.
    """
    out, lse = _windowed(q, k, v, WindowOptions(**{"scale": q.shape[-1] ** -0.5} | options))
    return (out, lse) if return_lse else out


def forward(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    """Output and lse of `window_attention`, contiguous and without a graph."""
    with torch.no_grad():
        out, lse = _windowed(q, k, v, options)
    return out.contiguous(), lse.contiguous()


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _out: Tensor, _lse: Tensor, options: WindowOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, by differentiating the definition."""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    with torch.enable_grad():
        out, _ = _windowed(q, k, v, options)
    grad_q, grad_k, grad_v = torch.autograd.grad(out, (q, k, v), grad)
    return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous()


def _windowed(q: Tensor, k: Tensor, v: Tensor, options: WindowOptions) -> tuple[Tensor, Tensor]:
    per_frame, first = options.tokens_per_frame, options.query_frame
    mask = frame_mask(
        k.shape[2] // per_frame,
        options.window,
        queries=range(first, first + q.shape[2] // per_frame),
        valid_frames=options.valid_frames,
        wrap=options.wrap,
        device=q.device,
    )
    mask = mask.repeat_interleave(per_frame, 1).repeat_interleave(per_frame, 2)
    return _masked_softmax(q, k, v, options.scale, mask[:, None])


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """softmax(scale q k^T) v over the keys that `key_mask` [B, M] allows; `ops.dense_attention` has the
    shapes."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = torch.ones(1, k.shape[2], dtype=torch.bool, device=q.device) if key_mask is None else key_mask
    return _masked_softmax(q, k, v, scale, mask[:, None, None, :])[0]


def _masked_softmax(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Output, with its graph, and lse; a row whose mask is empty gives 0 and -inf."""
    compute = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(compute) @ k.to(compute).transpose(-1, -2) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores.detach(), dim=-1)
    sees_nothing = ~mask.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(sees_nothing, 0.0), dim=-1).masked_fill(~mask, 0.0)
    return (weights @ v.to(compute)).to(q.dtype), lse


def reverse_kl_score(inputs: ScoreInputs, options: ScoreOptions) -> ReverseKLScore:
    """(x0_fake - x0_real) / max(mean |x0 - x0_real|, floor), the gradient of DMD2's reverse KL (arXiv
    2405.14867).

    x0_real = x_t - t v_real with v_real = u + guidance_scale (c - u); x0_fake = x_t - t v_fake. An entry
    counts as non-finite when its quotient or x0 - x0_real is: it becomes 0 and is counted.
    """
    x0, x_t, t, v_cond, v_uncond, v_fake = inputs
    compute = torch.promote_types(x0.dtype, torch.float32)
    x0_, x_t, v_cond, v_fake = (x.detach().to(compute) for x in (x0, x_t, v_cond, v_fake))
    time = t.detach().to(compute).view(-1, *[1] * (x0.dim() - 1))
    v_real = v_cond
    if v_uncond is not None and options.guidance_scale != 1.0:
        base = v_uncond.detach().to(compute)
        v_real = base + options.guidance_scale * (v_cond - base)
    x0_real = x_t - time * v_real
    x0_fake = x_t - time * v_fake
    gap = x0_ - x0_real
    difference = x0_fake - x0_real
    norm, divisor = _normaliser(gap.abs(), options)
    score = difference / divisor
    bad = ~(torch.isfinite(score) & torch.isfinite(gap))
    score = score.masked_fill(bad, 0.0)
    return ReverseKLScore(
        score=score.to(x0.dtype),
        distance_real=gap.abs().flatten(1).mean(1),
        distance_fake=difference.abs().flatten(1).mean(1),
        norm=norm,
        non_finite=bad.sum(),
        loss=0.5 * score.square().mean(dtype=torch.float64).to(compute),
    )


def _normaliser(gap: Tensor, options: ScoreOptions) -> tuple[Tensor, Tensor]:
    """The normaliser as reported ([N] or [N, blocks]) and shaped so that it divides `gap` [N, L, ...]."""
    unit = [1] * (gap.dim() - 2)
    if options.normalizer == "block":
        means = [block.flatten(1).mean(1) for block in gap.split(options.block_frames, dim=1)]
        norm = torch.stack(means, dim=1).clamp_min(options.floor)
        divisor = norm.repeat_interleave(options.block_frames, dim=1)[:, : gap.shape[1]]
        return norm, divisor.view(*divisor.shape, *unit)
    norm = gap.reshape(gap.shape[0] // options.rows, -1).mean(1).clamp_min(options.floor)
    norm = norm.repeat_interleave(options.rows)
    return norm, norm.view(-1, 1, *unit)


def window_gather(video: Tensor, starts: list[int], length: int) -> Tensor:
    """video [B, T, ...] -> [B * M, length, ...]: windows at M starts on a ring of T frames, one video's
    together."""
    places = [[(start + i) % video.shape[1] for i in range(length)] for start in starts]
    return torch.stack([video[:, frames] for frames in places], dim=1).flatten(0, 1)


def window_scatter(windows: Tensor, starts: list[int], num_frames: int) -> Tensor:
    """windows [B * M, L, ...] -> [B, T, ...]: the mean of those on a ring of T frames that cover a frame, 0
    where none do."""
    length = windows.shape[1]
    frames = []
    folded = windows.unflatten(0, (-1, len(starts)))
    for frame in range(num_frames):
        places = [(frame - start) % num_frames for start in starts]
        covering = [folded[:, m, place] for m, place in enumerate(places) if place < length]
        frames.append(torch.stack(covering).mean(0) if covering else torch.zeros_like(folded[:, 0, 0]))
    return torch.stack(frames, dim=1)
