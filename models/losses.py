"""The losses of arXiv 2602.24289, eq. 5, 9 and 14-18, in our time convention (docs/method.md has both).

B videos, T latent frames, C latent channels, h and w latent rows and columns; M windows tile a video, m of
them are scored, L frames each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.ops import reverse_kl_score, window_gather, window_scatter
from models.config import LossConfig
from models.flow import VelocityModel, interpolate, over_frames
from models.text.conditioning import Conditioning
from models.windows import Span, counted, coverage

THIRDS = ("first", "middle", "last")
"""Of a video, by which losses are told."""


def thirds(errors: Tensor) -> dict[str, Tensor]:
    """Means over the thirds of videos [B, T, ...]; those that a short clip lacks are left out. Weighted by
    their frames, their mean is the mean."""
    split = zip(THIRDS, errors.tensor_split(3, dim=1), strict=True)
    return {name: part.mean() for name, part in split if part.shape[1]}


def flow_matching_loss(
    model: VelocityModel,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    frames: Tensor | None = None,
) -> Tensor:
    """Mean seeking, eq. 14: the mean of `flow_matching_errors`, whose arguments it takes."""
    return flow_matching_errors(model, x0, noise, t, conditioning, frames).mean()


def flow_matching_errors(
    model: VelocityModel,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    frames: Tensor | None = None,
) -> Tensor:
    """Mean of (v(x_t, t, c) - (noise - x0))^2 for each row, [B].

    Args:
        model: the FM head, the teacher or the critic.
        x0, noise: [B, T, C, h, w].
        t: [B] or [B, T].
        conditioning: B captions.
        frames: bool [B, T], those that count, at least one per row; None is all. Rows weigh the same.
    """
    squares = flow_matching_squares(model, x0, noise, t, conditioning)
    if frames is not None:
        weights = frames / frames.float().mean(dim=1, keepdim=True)
        squares = squares * weights[:, :, None, None, None]
    return squares.flatten(1).mean(dim=1)


def flow_matching_squares(
    model: VelocityModel, x0: Tensor, noise: Tensor, t: Tensor, conditioning: Conditioning
) -> Tensor:
    """(v(x_t, t, c) - (noise - x0))^2 [B, T, C, h, w], with the arguments of `flow_matching_errors`."""
    error = model(interpolate(x0, noise, t), t, conditioning) - (noise - x0)
    return error.square()


def anchor_loss(student_x0: Tensor, reference_x0: Tensor) -> Tensor:
    """Mean of (x0_DM - x0_SFT)^2 at t = 1, where the layout is decided: it keeps the layout that the frozen
    long-SFT network gives the same noise and caption (step-split objective, docs/method.md)."""
    return (student_x0 - reference_x0).square().mean()


def cut_windows(videos: Tensor, starts: Sequence[int], length: int, images: Tensor | None = None) -> Tensor:
    """Windows [B M, L, C, h, w] of videos [B, T, C, h, w] at M first frames, one video's together; with
    `images` [B, T, C, h, w] those from the middle of a video have their first latent from there."""
    windows = window_gather(videos, starts, length)
    if images is not None:
        inner = [k for k, start in enumerate(starts) if start]
        windows.unflatten(0, (-1, len(starts)))[:, inner, 0] = images[:, [starts[k] for k in inner]]
    return windows


def looking_at(model: VelocityModel, judged: Tensor) -> VelocityModel:
    """A model that answers everywhere with the x0 that `model` predicts at `judged` [B, T, C, h, w].

    A teacher that looks at noised LONG windows in place of the student's is data forcing (arXiv 2606.18478):
    its score of those minus its score of these is what leads out of modes that no data has.
    """

    def velocity(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return model(judged, t, conditioning) + (x_t - judged) / over_frames(t, x_t)

    return velocity


@torch.no_grad()
def chord(model: VelocityModel, x: Tensor, times: Sequence[float], conditioning: Conditioning) -> Tensor:
    """Mean velocity along the ODE path of `model` from x [B, T, C, h, w] at times[0] to times[-1], by Euler
    steps at `times`, which fall."""
    start, at = x, times[0]
    for following in times[1:]:
        x, at = x + (following - at) * model(x, x.new_full((len(x),), at), conditioning), following
    return (x - start) / (at - times[0])


def forward_kl_loss(student_x0: Tensor, x_t: Tensor, t: Tensor, path: Tensor) -> Tensor:
    """Mean of (v_DM - path)^2 at x_t, the student's one step against the `chord` of many: a forward KL, for
    the path leads to samples of what is followed, not of the student (arXiv 2603.08703, eq. 10)."""
    return ((x_t - student_x0) / over_frames(t, x_t) - path).square().mean()


@dataclass(frozen=True)
class ReverseKLLoss:
    """The reverse-KL loss and its diagnostics."""

    value: Tensor
    """Scalar with a graph."""
    metrics: dict[str, Tensor]
    """Detached scalars for the log."""
    non_finite: int
    """Entries that were not finite and were zeroed."""


def reverse_kl_loss(
    video: Tensor,
    tiling: Sequence[Span],
    chosen: Sequence[int],
    noise: Tensor,
    t: Tensor,
    conditioning: Conditioning,
    teacher: VelocityModel,
    critic: VelocityModel,
    config: LossConfig,
    crop_safe: bool = True,
    images: Tensor | None = None,
) -> ReverseKLLoss:
    """Pull every window of generated videos towards the teacher: mode seeking, eq. 5 and 9.

    For a window w re-noised to w_t, g = (x0_critic(w_t) - x0_teacher(w_t)) / mean|w - x0_teacher|. The
    gradient of a frame is the sum over its windows divided by its coverage, and the loss is the mean over all
    elements that the tiling covers, so its scale does not depend on the tiling. Scored windows stand in for
    those left out: the gradient is right on average.

    Args:
        video: x0 of the rollout [B, T, C, h, w], with a graph.
        tiling: M spans of a video, shared by the batch; what they do not cover gets no gradient.
        chosen: indices of the m spans that are scored.
        noise: [B m, L, C, h, w]; row b m + k is video b's k-th chosen window.
        t: [B m], one time per window.
        conditioning: B captions.
        teacher: frozen, trained on SHORT.
        critic: trained on the student's own windows; conditional, never guided.
        config: guidance and normaliser.
        crop_safe: whether the latents of a window are the window of the latents; where not, the first latent
            of a window that does not begin the video is masked: it gets no gradient and counts in no
            coverage.
        images: as in `cut_windows`: what networks see in the place of masked latents.
    """
    windows_of_one = [tiling[i] for i in chosen]
    starts, length = [w.start for w in windows_of_one], tiling[0].length
    with torch.no_grad():
        windows = cut_windows(video.detach(), starts, length, images)
        folded = conditioning.repeat(len(starts))
        x_t = interpolate(windows, noise, t)
        guided = config.guidance_scale != 1
        score = reverse_kl_score(
            windows,
            x_t,
            t,
            teacher(x_t, t, folded),
            teacher(x_t, t, folded.null()) if guided else None,
            critic(x_t, t, folded),
            guidance_scale=config.guidance_scale,
            normalizer=config.normalizer,
            windows_per_sample=len(starts),
            block_frames=config.normalizer_block,
            floor=config.normalizer_floor,
        )
        share = len(tiling) / len(starts)
        parts = [counted(window, crop_safe) for window in tiling]
        counts = torch.tensor(coverage(parts, video.shape[1]), device=video.device)
        of_covered = video.shape[1] / int(counts.count_nonzero())
        masked = [k for k, i in enumerate(chosen) if parts[i] != tiling[i]]
        score.score.unflatten(0, (-1, len(starts)))[:, masked, 0] = 0
        gradient = share * window_scatter(score.score, starts, video.shape[1], coverage=counts)
    value = of_covered * (video * gradient).mean()
    size = 0.5 * of_covered * gradient.square().mean()
    places = thirds(0.5 * of_covered * gradient.square())
    metrics = {
        **{f"reverse_kl_{name}": part for name, part in places.items()},
        "distance_to_teacher": score.distance_real.mean(),
        "distance_critic_teacher": score.distance_fake.mean(),
    }
    return ReverseKLLoss(value - value.detach() + size, metrics, int(score.non_finite))
