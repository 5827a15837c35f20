"""Windowed attention against torch's own attention, forward and with its gradients, in one run.

    python benchmarks/bench_window_attention.py [--device cpu|cuda] [--repeats 7] [--json FILE] [--plot FILE]

On a CPU: one thread, float32, milliseconds of CPU time, best of the repeats, against torch's
scaled_dot_product_attention with the window as a boolean mask (the same sum) and without one (another sum),
and the memory of a long clip. On a GPU: bfloat16, medians of Triton's do_bench with a cold cache, useful
TFLOP/s, its share of a plain matrix product's rate in the same run, against each backend of dense attention,
compiled FlexAttention with the same mask, and dense attention over overlapping strided views. Only ratios of
one run mean something.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention_peers import Attention, Case, backend, flex, strided_views
from timing import hardware, milliseconds, peak_bytes, resident_growth_bytes, write
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kernels.attention.cpu import plan  # noqa: E402
from kernels.ops import window_attention  # noqa: E402

PRESETS = [
    Case(32, 4, 32, 1, 24, 8),
    Case(160, 4, 8, 1, 24, 8),
    Case(8, 4, 240, 1, 24, 8),
    Case(160, 4, 8, 1, 24, 2),
]
"""What the presets of the built-in world train on, and short windowed clips."""
ON_CPU = [
    *PRESETS,
    *(Case(1, 4, frames, 16, 64, 4) for frames in (16, 64, 128, 256)),
    Case(1, 4, 128, 64, 64, 4),
]
ON_GPU = [Case(1, 12, 240, 1560, 128, 10), Case(1, 12, 240, 1560, 128, 4), Case(1, 12, 21, 1560, 128, 4)]
"""480 x 832 video in Wan 2.1's 1.3B shape: a minute and five seconds."""
MEMORY = Case(1, 4, 256, 64, 64, 4)
DENSE = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION")
"""Backends of dense attention."""


def inputs_of(case: Case, device: str, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the gradient of the output, laid out by tokens as a model has them."""
    generator = torch.Generator(device).manual_seed(0)
    size = (case.batch, case.frames * case.per_frame, case.heads, case.dim)
    return [
        torch.randn(size, generator=generator, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)
    ]


def frame_mask(case: Case) -> Tensor:
    """[tokens, tokens]: which pairs are seen."""
    frame = torch.arange(case.frames)
    near = (frame[:, None] - frame).abs() <= case.window
    return near.repeat_interleave(case.per_frame, 0).repeat_interleave(case.per_frame, 1)


def passes(attention: Attention, inputs: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The forward pass, and both passes."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    return {
        "forward": lambda: attention(*inputs[:3]),
        "forward+backward": lambda: torch.autograd.grad(attention(*leaves), leaves, inputs[3]),
    }


def compare(
    case: Case, ours: Attention, peers: dict[str, Attention], device: str, dtype: torch.dtype, repeats: int
) -> Iterator[dict[str, Any]]:
    """A row a pass and peer: times of both and their ratio, above 1 where the windowed one is faster."""
    inputs = inputs_of(case, device, dtype)
    own = {name: milliseconds(run, device, repeats) for name, run in passes(ours, inputs).items()}
    own_bytes = {}
    if device != "cpu":
        own_bytes = {name: peak_bytes(run) for name, run in passes(ours, inputs).items()}
    for baseline, peer in peers.items():
        for name, run in passes(peer, inputs).items():
            try:
                theirs = milliseconds(run, device, repeats)
            except (RuntimeError, NotImplementedError) as error:
                print(f"{case.name} {name}: {baseline} does not run ({' '.join(str(error).split())[:80]})")
                continue
            row = {
                "case": f"{case.name} {name}",
                "baseline": baseline,
                "ratio": theirs / own[name],
                "milliseconds": own[name],
                "baseline_milliseconds": theirs,
                "ideal": 1 / case.share,
            }
            if device != "cpu":
                flops = case.flops * (1 if name == "forward" else 3.5)
                row |= {"tflop_per_s": flops / own[name] / 1e9, "peak_bytes": own_bytes[name]}
                row["baseline_peak_bytes"] = peak_bytes(run)
                if name != "forward":
                    alone = own[name] - own["forward"]
                    row["backward_tflop_per_s"] = 2.5 * case.flops / alone / 1e9
            yield row


def ours_of(case: Case) -> Attention:
    """The operation."""
    return partial(window_attention, tokens_per_frame=case.per_frame, window=case.window)


def cpu_rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Every CPU case against both dense forms, then how time and memory grow."""
    rows: list[dict[str, Any]] = []
    for case in ON_CPU:
        masked = partial(F.scaled_dot_product_attention, attn_mask=frame_mask(case))
        peers = {"masked dense": masked, "dense, unmasked": F.scaled_dot_product_attention}
        for row in compare(case, ours_of(case), peers, "cpu", torch.float32, repeats):
            rows.append(row | {"form": plan(case.frames, case.per_frame, case.window, torch.float32).form})
            yield rows[-1]
    yield growth(rows)
    yield memory_row()


def growth(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many times longer 256 frames take than 64: 4 is linear."""
    found = {row["case"]: row["milliseconds"] for row in rows}
    long, short = (f"{Case(1, 4, frames, 16, 64, 4).name} forward+backward" for frames in (256, 64))
    return {"case": "time of T=256 over T=64", "baseline": "T=64", "ratio": found[long] / found[short]}


def memory_row() -> dict[str, Any]:
    """Memory that both passes of the long clip take, each form in a process of its own."""
    taken = {}
    for name in ("window", "masked dense"):
        command = [sys.executable, __file__, "--memory", name]
        taken[name] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "case": f"{MEMORY.name} memory",
        "baseline": "masked dense",
        "ratio": taken["masked dense"] / taken["window"],
        "peak_bytes": taken["window"],
        "baseline_peak_bytes": taken["masked dense"],
    }


def memory_of(name: str) -> int:
    """Peak memory of both passes beyond the inputs, in bytes, of this process."""
    inputs = inputs_of(MEMORY, "cpu", torch.float32)
    attention = ours_of(MEMORY)
    if name == "masked dense":
        attention = partial(F.scaled_dot_product_attention, attn_mask=frame_mask(MEMORY))
    small = MEMORY._replace(frames=2 * MEMORY.window + 2)
    passes(ours_of(small), inputs_of(small, "cpu", torch.float32))["forward+backward"]()
    return resident_growth_bytes(passes(attention, inputs)["forward+backward"])


def gpu_rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Every GPU case against all peers, with shares of the matrix product's rate; dense once a length."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * side**3 / milliseconds(lambda: a @ b, "cuda", repeats) / 1e9
    print(f"matrix product {side}^3: {rate:.0f} TFLOP/s")
    dense: dict[tuple[int, str, str], float] = {}
    for case in ON_GPU:
        torch.compiler.reset()
        peers = {"flex": flex(case, "cuda"), "strided views": strided_views(case)}
        known = {(name, which): ms for (frames, name, which), ms in dense.items() if frames == case.frames}
        if not known:
            peers |= {f"dense {name.lower()}": backend(name) for name in DENSE}
        for row in compare(case, ours_of(case), peers, "cuda", torch.bfloat16, repeats):
            which = row["case"].rpartition(" ")[2]
            if row["baseline"].startswith("dense"):
                dense[case.frames, row["baseline"], which] = row["baseline_milliseconds"]
            yield row | {"gemm_share": row["tflop_per_s"] / rate}
            yield from (
                {**row, "baseline": name, "baseline_milliseconds": ms, "ratio": ms / row["milliseconds"]}
                for (name, dense_pass), ms in known.items()
                if row["baseline"] == "flex" and dense_pass == which
            )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Cost against the clip's length on the CPU, both axes logarithmic."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for baseline, style in (("masked dense", "s--"), ("dense, unmasked", "^:")):
        chosen = [
            (int(row["case"].split()[0][2:]), row)
            for row in rows
            if "S=16" in row["case"] and row["case"].endswith("+backward") and row["baseline"] == baseline
        ]
        axes.loglog(
            *zip(*((t, r["baseline_milliseconds"]) for t, r in chosen), strict=True), style, label=baseline
        )
    axes.loglog(*zip(*((t, r["milliseconds"]) for t, r in chosen), strict=True), "o-", label="window 4")
    lengths = [t for t, _ in chosen]
    axes.set_xticks(lengths, [str(t) for t in lengths])
    axes.minorticks_off()
    axes.set(
        xlabel="frames of 16 tokens",
        ylabel="ms, forward + backward",
        title="4 heads of 64, float32, one thread",
    )
    axes.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def line(row: dict[str, Any]) -> str:
    """A row as it is printed."""
    head = f"{row['case']:>54} {row['baseline']:>18}"
    if "milliseconds" not in row:
        sizes = [row[name] / 2**20 for name in ("peak_bytes", "baseline_peak_bytes") if name in row]
        return f"{head} {row['ratio']:.2f}  " + " against ".join(f"{size:.0f} MiB" for size in sizes)
    times = f"{row['milliseconds']:9.2f} {row['baseline_milliseconds']:9.2f} {row['ratio']:7.2f}"
    more = f"   {row['tflop_per_s']:.0f} TFLOP/s, {row['gemm_share']:.2f}" if "gemm_share" in row else ""
    return f"{head} {times}{more}"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--plot", type=Path, help="draw the CPU's cost against length here")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(memory_of(given.memory))
        return
    print(f"{hardware(given.device)}, torch {torch.__version__}")
    print(f"{'case':>54} {'baseline':>18} {'ms':>9} {'theirs':>9} {'faster':>7}")
    rows: list[dict[str, Any]] = []
    for row in cpu_rows(given.repeats) if given.device == "cpu" else gpu_rows(given.repeats):
        rows.append(row)
        print(line(row), flush=True)
        if given.json:
            write(given.json, given.device, rows)
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
