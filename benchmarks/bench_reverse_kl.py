"""The reverse-KL score against eager torch and torch.compile, in one run.

    python benchmarks/bench_reverse_kl.py [--device cpu|cuda] [--frames 21 240] [--repeats 7] [--json FILE]

Latents are [1, frames, 16, 60, 104]: 21 frames are five seconds, 240 a minute. On a CPU: milliseconds of CPU
time (one thread, best of the repeats), float32. On a GPU: medians of Triton's do_bench with a cold cache,
bfloat16 and float32; the first ratio is that of its GB/s, of what has to be moved, to a copy's in the same
run. Only ratios of one run mean something.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timing import did_not_run, hardware, milliseconds, peak_bytes, with_bar, write
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels import reference  # noqa: E402
from kernels.ops import reverse_kl_score  # noqa: E402

INNER = (16, 60, 104)
"""Channels, height and width of a latent frame of 480 x 832 video."""
GUIDANCE = 5.0
OPTIONS: dict[str, Any] = {"guidance_scale": GUIDANCE, "normalizer": "window"}
MOVED = 9
"""Tensors that the kernels read and write: five read to sum, three read to divide, one written."""
BARS = {"eager": 4.0, "torch.compile": 1.0, "copy": 0.6}
"""Least ratios for a minute of bfloat16 on a GPU; a copy moves as many bytes."""
MINUTE = 240
"""Latent frames."""
Inputs = tuple[Tensor, ...]
Rows = Iterator[dict[str, Any]]


def inputs_of(frames: int, device: str, dtype: torch.dtype) -> Inputs:
    """x0, x_t, t, v_cond, v_uncond, v_fake."""
    generator = torch.Generator().manual_seed(0)
    x0, x_t, cond, uncond, fake = (
        torch.randn(1, frames, *INNER, generator=generator).to(device, dtype) for _ in range(5)
    )
    return x0, x_t, torch.full((1,), 0.6, device=device), cond, uncond, fake


def clean(x_t: Tensor, v: Tensor, t: Tensor, dtype: torch.dtype) -> Tensor:
    """x0 of a velocity, computed in dtype and returned in the velocity's type."""
    time = t.to(dtype).view(-1, 1, 1, 1, 1)
    return (x_t.to(dtype) - time * v.to(dtype)).to(v.dtype)


def gradient(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """The normalised difference as Self-Forcing writes it: guidance and normaliser on x0, in x0's type."""
    x0, x_t, t, *velocities = inputs
    cond, uncond, fake = (clean(x_t, v, t, dtype) for v in velocities)
    real = uncond + GUIDANCE * (cond - uncond)
    norm = (x0 - real).abs().mean(dim=[1, 2, 3, 4], keepdim=True)
    return torch.nan_to_num((fake - real) / norm)


def float64_step(dtype: torch.dtype, *inputs: Tensor) -> Tensor:
    """Self-Forcing's step from velocities to the gradient of x0: the loss in float64, x0 of a velocity in
    dtype (float64 there)."""
    x0 = inputs[0].detach().requires_grad_()
    with torch.no_grad():
        step = gradient(inputs, dtype)
    loss = 0.5 * F.mse_loss(x0.double(), (x0.double() - step.double()).detach())
    return torch.autograd.grad(loss, x0)[0]


@torch.no_grad()
def same_maths(
    x0: Tensor, x_t: Tensor, t: Tensor, cond: Tensor, uncond: Tensor, fake: Tensor
) -> tuple[Tensor, ...]:
    """Every field of ReverseKLScore in float32, as one would write it."""
    x0_, x_t, cond, uncond, fake = (x.float() for x in (x0, x_t, cond, uncond, fake))
    time = t.view(-1, 1, 1, 1, 1)
    real = x_t - time * (uncond + GUIDANCE * (cond - uncond))
    gap, difference = x0_ - real, (x_t - time * fake) - real
    distance_real, distance_fake = (x.abs().mean(dim=[1, 2, 3, 4]) for x in (gap, difference))
    norm = distance_real.clamp_min(1e-4)
    score = difference / norm.view(-1, 1, 1, 1, 1)
    bad = ~(torch.isfinite(score) & torch.isfinite(gap))
    score = score.masked_fill(bad, 0.0)
    loss = 0.5 * score.square().mean()
    return score.to(x0.dtype), distance_real, distance_fake, norm, bad.sum(), loss


def copy_rate(device: str) -> float:
    """GB/s that a copy of 1 GiB reads and writes."""
    source = torch.empty(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), device, 3) / 1e6


def compiled(function: Callable[..., object], device: str) -> Callable[..., object] | None:
    """torch.compile of a function, if this machine has a compiler for it."""
    if device == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return None
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def bench_score(frames: int, device: str, dtype: torch.dtype, repeats: int, copied: float | None) -> Rows:
    """The score of one length and type against a copy's GB/s, where that is known, and its baselines."""
    inputs = inputs_of(frames, device, dtype)
    found = reverse_kl_score(*inputs, **OPTIONS).score.double()
    exact = reference.ScoreInputs(*[x.double() for x in inputs])
    truth = reference.reverse_kl_score(exact, reference.ScoreOptions(**OPTIONS)).score
    error = ((found - truth).norm() / truth.norm()).item()
    del found, truth
    baselines: dict[str, Callable[..., object] | None] = {
        "Self-Forcing": partial(float64_step, torch.float64),
        "float64 loss alone": partial(float64_step, dtype),
        "eager": same_maths,
        "torch.compile": compiled(same_maths, device),
    }

    ours = partial(reverse_kl_score, *inputs, **OPTIONS)
    case = f"score T={frames} {str(dtype).removeprefix('torch.')}"
    if copied is not None:
        spent = milliseconds(ours, device, repeats)
        rate = MOVED * inputs[0].nbytes / spent / 1e6
        yield {
            "case": case,
            "baseline": "copy",
            "ratio": rate / copied,
            "milliseconds": spent,
            "gb_per_s": rate,
        }
    for name, baseline in baselines.items():
        if baseline is not None:
            try:
                row = compare(inputs[0].numel(), device, repeats, ours, partial(baseline, *inputs))
            except RuntimeError as failed:
                yield did_not_run(case, name, failed)
            else:
                yield {"case": case, "baseline": name, **row, "relative_error": error}


def compare(
    elements: int, device: str, repeats: int, ours: Callable[[], object], theirs: Callable[[], object]
) -> dict[str, Any]:
    """Times of both and their ratio, above 1 where ours is faster."""
    times = [milliseconds(run, device, repeats) for run in (ours, theirs)]
    row: dict[str, Any] = {
        "elements": elements,
        "ratio": times[1] / times[0],
        "milliseconds": times[0],
        "baseline_milliseconds": times[1],
    }
    if device != "cpu":
        row |= {"peak_bytes": peak_bytes(ours), "baseline_peak_bytes": peak_bytes(theirs)}
    return row


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, nargs="+", help="21 on a CPU, 21 and 240 on a GPU")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    device, on_cpu = given.device, given.device == "cpu"
    torch.set_num_threads(1)
    rate = None if on_cpu else copy_rate(device)
    print(
        f"{hardware(device)}, torch {torch.__version__}" + ("" if rate is None else f", copy {rate:.0f} GB/s")
    )
    print(f"{'case':>28} {'baseline':>26} {'ms':>9} {'theirs':>9} {'faster':>7}")
    rows = []
    for dtype in (torch.float32,) if on_cpu else (torch.bfloat16, torch.float32):
        for frames in given.frames or ((21,) if on_cpu else (21, MINUTE)):
            bars = BARS if (device, dtype, frames) == ("cuda", torch.bfloat16, MINUTE) else {}
            for row in bench_score(frames, device, dtype, given.repeats, rate):
                rows.append(with_bar(row, bars.get(row["baseline"])) if "ratio" in row else row)
                print(line(rows[-1]), flush=True)
                if given.json:
                    write(given.json, device, rows, copy_gb_per_s=rate)


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    head = f"{row['case']:>28} {row['baseline']:>26}"
    if "error" in row:
        return f"{head} does not run: {row['error']}"
    theirs = f"{row['baseline_milliseconds']:9.3f}" if "baseline_milliseconds" in row else " " * 9
    moved = f"   {row['gb_per_s']:.0f} GB/s" if "gb_per_s" in row else ""
    bar = "" if row.get("met", True) else f"   below {row['bar']:.2f}"
    return f"{head} {row['milliseconds']:9.3f} {theirs} {row['ratio']:7.2f}{moved}{bar}"


if __name__ == "__main__":
    main()
