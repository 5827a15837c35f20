"""Windowed attention on the CPU against torch's scaled_dot_product_attention, masked and not, in one run.

    python benchmarks/bench_window_attention.py [--repeats 7]

Prints milliseconds of CPU time (one thread, best of the repeats) and how many times faster than the masked
attention; writes benchmarks/results/window_attention_cpu.json. Only ratios of one run mean something.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels.ops import window_attention  # noqa: E402
from kernels.window_attention_cpu import plan  # noqa: E402

SHAPES = [
    (32, 4, 32, 1, 24, 8),
    (160, 4, 8, 1, 24, 8),
    (8, 4, 240, 1, 24, 8),
    (2, 4, 240, 4, 32, 8),
    (4, 4, 32, 16, 24, 8),
    (1, 4, 64, 16, 64, 4),
    (1, 4, 128, 16, 64, 4),
    (1, 4, 32, 64, 64, 4),
]
"""B, heads, frames, tokens a frame, head_dim, window; the first three are what the presets train on."""
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Best CPU time of one call; a repeat calls until 20 ms have passed."""
    run()
    best = float("inf")
    for _ in range(repeats):
        start, calls = time.thread_time(), 0
        while calls == 0 or time.thread_time() - start < 0.02:
            run()
            calls += 1
        best = min(best, (time.thread_time() - start) / calls)
    return 1e3 * best


def measure(attention: Attention, shape: tuple[int, ...], repeats: int) -> tuple[float, float]:
    """Milliseconds of forward, and of forward + backward, of [B, heads, tokens, D] laid out by tokens."""
    batch, heads, tokens, dim = shape
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (
        torch.randn(batch, tokens, heads, dim, generator=generator).transpose(1, 2) for _ in range(4)
    )
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    forward = milliseconds(lambda: attention(q, k, v), repeats)
    both = milliseconds(lambda: torch.autograd.grad(attention(*leaves), leaves, weight), repeats)
    return forward, both


def bench(case: tuple[int, ...], repeats: int) -> dict[str, object]:
    """One shape: the path that the rule takes, dense attention with the window as mask, and without."""
    batch, heads, frames, per_frame, dim, window = case
    frame = torch.arange(frames * per_frame) // per_frame
    mask = (frame[:, None] - frame).abs() <= window
    paths: dict[str, Attention] = {
        "window": lambda q, k, v: window_attention(q, k, v, tokens_per_frame=per_frame, window=window),
        "masked": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "dense": F.scaled_dot_product_attention,
    }
    shape = (batch, heads, frames * per_frame, dim)
    times = {name: measure(path, shape, repeats) for name, path in paths.items()}
    return {
        "shape": shape,
        "tokens_per_frame": per_frame,
        "window": window,
        "form": plan(frames, per_frame, window, torch.float32).form,
        "milliseconds": {name: {"forward": f, "forward_backward": b} for name, (f, b) in times.items()},
        "times_faster_than_masked": {
            "forward": times["masked"][0] / times["window"][0],
            "forward_backward": times["masked"][1] / times["window"][1],
        },
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    columns = "   window f / f+b   masked f / f+b    dense f / f+b   faster"
    print(f"{'shape':>20} {'S':>3} {'w':>2} {'form':>8}{columns}")
    rows = []
    for case in SHAPES:
        row = bench(case, repeats)
        rows.append(row)
        times, faster = row["milliseconds"], row["times_faster_than_masked"]
        cells = "".join(f"{t['forward']:8.2f} {t['forward_backward']:8.2f}" for t in times.values())
        head = f"{row['shape']!s:>20} {case[3]:>3} {case[5]:>2} {row['form']:>8}"
        print(f"{head}{cells}   {faster['forward']:.1f} {faster['forward_backward']:.1f}")
    out = ROOT / "benchmarks" / "results" / "window_attention_cpu.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"torch": torch.__version__, "threads": 1, "rows": rows}, indent=1) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
