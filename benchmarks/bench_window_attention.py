"""Windowed attention against torch's own attention, forward and with its gradients, in one run.

    python benchmarks/bench_window_attention.py [--device cpu|cuda] [--repeats 7] [--json FILE] [--plot FILE]

On a CPU: one thread, float32, milliseconds of CPU time, best of the repeats, against torch's
scaled_dot_product_attention with the window as a boolean mask (the same sum) and without one (another sum),
and the memory of a long clip. On a GPU: bfloat16, medians of Triton's do_bench with a cold cache, useful
TFLOP/s against a plain matrix product's in the same run; then against compiled FlexAttention with the same
mask, dense attention over overlapping strided views, and last each backend of dense attention. Only ratios of
one run mean something.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from attention_peers import Attention, Case, backend, flex, strided_views
from timing import did_not_run, hardware, milliseconds, peak_bytes, resident_growth_bytes, with_bar, write
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
ON_GPU = [
    Case(1, 12, 21, 1560, 128, 4),
    PRESETS[0],
    Case(1, 12, 240, 1560, 128, 10),
    Case(1, 12, 240, 1560, 128, 4),
]
"""480 x 832 video in Wan 2.1's 1.3B shape, five seconds and a minute; a small preset's heads of 24."""
BARS = {
    ("matrix product", "forward"): 0.40,
    ("matrix product", "backward"): 0.25,
    ("flex", "forward"): 1.0,
    ("flex", "forward+backward"): 1.0,
    ("strided views", "forward"): 0.5,
    ("strided views", "forward+backward"): 0.5,
}
"""Least ratios for video of Wan's shape; of dense attention half of the ideal, that of the pairs seen."""
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


class Own(NamedTuple):
    """What the windowed attention takes, by pass."""

    milliseconds: dict[str, float]
    peak_bytes: dict[str, int]
    """On a GPU."""


def measure(case: Case, inputs: list[Tensor], device: str, repeats: int) -> Own:
    """Times and memory of the windowed attention."""
    runs = passes(ours_of(case), inputs)
    times = {name: milliseconds(run, device, repeats) for name, run in runs.items()}
    return Own(times, {} if device == "cpu" else {name: peak_bytes(run) for name, run in runs.items()})


def compare(
    case: Case,
    inputs: list[Tensor],
    own: Own,
    peers: dict[str, Attention],
    device: str,
    repeats: int,
) -> Iterator[dict[str, Any]]:
    """A row a pass and peer: times of both and their ratio, above 1 where the windowed one is faster."""
    for baseline, peer in peers.items():
        for name, run in passes(peer, inputs).items():
            try:
                theirs = milliseconds(run, device, repeats)
                more = {} if device == "cpu" else {"baseline_peak_bytes": peak_bytes(run)}
            except (RuntimeError, NotImplementedError) as error:
                yield did_not_run(f"{case.name} {name}", baseline, error)
            else:
                yield row_of(case, name, baseline, own, theirs) | more


def row_of(case: Case, name: str, baseline: str, own: Own, theirs: float) -> dict[str, Any]:
    """A row from both times."""
    row = {
        "case": f"{case.name} {name}",
        "baseline": baseline,
        "ratio": theirs / own.milliseconds[name],
        "milliseconds": own.milliseconds[name],
        "baseline_milliseconds": theirs,
        "ideal": 1 / case.share,
    }
    return row | ({"peak_bytes": own.peak_bytes[name]} if own.peak_bytes else {})


def ours_of(case: Case) -> Attention:
    """The operation."""
    return partial(window_attention, tokens_per_frame=case.per_frame, window=case.window)


def cpu_rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Every CPU case against both dense forms, then how time and memory grow."""
    rows: list[dict[str, Any]] = []
    for case in ON_CPU:
        masked = partial(F.scaled_dot_product_attention, attn_mask=frame_mask(case))
        peers = {"masked dense": masked, "dense, unmasked": F.scaled_dot_product_attention}
        inputs = inputs_of(case, "cpu", torch.float32)
        for row in compare(case, inputs, measure(case, inputs, "cpu", repeats), peers, "cpu", repeats):
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


def gpu_rows(cases: Sequence[Case], device: str, repeats: int) -> Iterator[dict[str, Any]]:
    """Ours in every case against a plain matrix product, then against its peers, dense ones last."""
    product = product_rate(device, repeats)
    print(f"matrix product: {product:.0f} TFLOP/s")
    own: dict[Case, Own] = {}
    for case in cases:
        try:
            own[case] = measure(case, inputs_of(case, device, torch.bfloat16), device, repeats)
        except (RuntimeError, ValueError) as error:
            yield did_not_run(case.name, "matrix product", error)
            continue
        yield from product_rows(case, own[case], product)
    for case in own:
        torch.compiler.reset()
        inputs = inputs_of(case, device, torch.bfloat16)
        peers = {"flex": flex(case, device), "strided views": strided_views(case)}
        yield from (judged(case, row) for row in compare(case, inputs, own[case], peers, device, repeats))
    for frames in sorted({case.frames for case in own if is_video(case)}):
        alike = [case for case in own if is_video(case) and case.frames == frames]
        yield from dense_rows(alike, own, device, repeats)


def product_rate(device: str, repeats: int, side: int = 8192) -> float:
    """TFLOP/s of a bfloat16 product of two square matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / milliseconds(lambda: a @ b, device, repeats) / 1e9


def product_rows(case: Case, own: Own, product: float) -> Iterator[dict[str, Any]]:
    """Useful TFLOP/s of each pass; the ratio is that to the matrix product's."""
    times = dict(own.milliseconds)
    times["backward"] = times["forward+backward"] - times["forward"]
    for name, factor in (("forward", 1.0), ("backward", 2.5), ("forward+backward", 3.5)):
        rate = factor * case.flops / times[name] / 1e9
        row = {
            "case": f"{case.name} {name}",
            "baseline": "matrix product",
            "ratio": rate / product,
            "milliseconds": times[name],
            "tflop_per_s": rate,
            "baseline_tflop_per_s": product,
        }
        yield judged(case, row | ({"peak_bytes": own.peak_bytes[name]} if name in own.peak_bytes else {}))


def dense_rows(
    cases: Sequence[Case], own: dict[Case, Own], device: str, repeats: int
) -> Iterator[dict[str, Any]]:
    """The forward pass of each dense backend, which all windows of one length have in common."""
    inputs = inputs_of(cases[0], device, torch.bfloat16)
    for name in DENSE:
        baseline, run = f"dense {name.lower()}", partial(backend(name), *inputs[:3])
        try:
            theirs = milliseconds(run, device, repeats)
        except (RuntimeError, NotImplementedError) as error:
            yield did_not_run(f"{cases[0].name} forward", baseline, error)
        else:
            for case in cases:
                yield judged(case, row_of(case, "forward", baseline, own[case], theirs))


def is_video(case: Case) -> bool:
    """Of Wan's shape, for which there are bars."""
    return case.per_frame > 1


def judged(case: Case, row: dict[str, Any]) -> dict[str, Any]:
    """A row with its bar."""
    if "ratio" not in row or not is_video(case):
        return row
    if row["baseline"].startswith("dense"):
        return with_bar(row, 0.5 * row["ideal"])
    return with_bar(row, BARS.get((row["baseline"], row["case"].rpartition(" ")[2])))


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
    if "error" in row:
        return f"{head} does not run: {row['error']}"
    if "milliseconds" not in row:
        sizes = [row[name] / 2**20 for name in ("peak_bytes", "baseline_peak_bytes") if name in row]
        return f"{head} {row['ratio']:.2f}  " + " against ".join(f"{size:.0f} MiB" for size in sizes)
    theirs = f"{row['baseline_milliseconds']:9.2f}" if "baseline_milliseconds" in row else " " * 9
    rate = f"   {row['tflop_per_s']:.0f} TFLOP/s" if "tflop_per_s" in row else ""
    bar = "" if row.get("met", True) else f"   below {row['bar']:.2f}"
    return f"{head} {row['milliseconds']:9.2f} {theirs} {row['ratio']:7.2f}{rate}{bar}"


def main() -> int:
    """Measure, print and write; 1 if ours failed in a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--plot", type=Path, help="draw the CPU's cost against length here (CPU only)")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.memory:
        print(memory_of(given.memory))
        return 0
    print(f"{hardware(given.device)}, torch {torch.__version__}")
    print(f"{'case':>54} {'baseline':>18} {'ms':>9} {'theirs':>9} {'faster':>7}")
    rows: list[dict[str, Any]] = []
    on_cpu = given.device == "cpu"
    for row in cpu_rows(given.repeats) if on_cpu else gpu_rows(ON_GPU, given.device, given.repeats):
        rows.append(row)
        print(line(row), flush=True)
        if given.json:
            write(given.json, given.device, rows)
    if given.plot:
        plot(rows, given.plot)
    return int(any("error" in row and row["baseline"] == "matrix product" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
