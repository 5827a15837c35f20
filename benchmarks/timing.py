"""Times of a call, its memory, and the machine: for every script in this folder."""

import datetime as dt
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def milliseconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """On a GPU the median with a cold cache, or one call where it takes more than 0.2 s; on a CPU the best
    thread time, each repeat calling until 20 ms have passed."""
    run()
    if device != "cpu":
        from triton.testing import do_bench

        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if (elapsed := time.perf_counter() - begin) > 0.2:
            return 1e3 * elapsed
        return float(do_bench(run, warmup=50, rep=100 * repeats, return_mode="median"))
    best = float("inf")
    for _ in range(repeats):
        start, calls = time.thread_time(), 0
        while calls == 0 or time.thread_time() - start < 0.02:
            run()
            calls += 1
        best = min(best, (time.thread_time() - start) / calls)
    return 1e3 * best


def peak_bytes(run: Callable[[], object]) -> int:
    """GPU memory that one call takes beyond what was taken before, its results included."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def resident_growth_bytes(run: Callable[[], object]) -> int:
    """Memory of this process that one call takes at its peak beyond what was held before (Linux)."""
    before = _resident_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(kind: str) -> int:
    """`VmRSS` is held now, `VmHWM` is the peak since the mark was cleared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


def processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def hardware(device: str) -> str:
    return processor() if device == "cpu" else torch.cuda.get_device_name(device)


def with_bar(row: dict[str, Any], bar: float | None) -> dict[str, Any]:
    """A row with the least ratio that it should have, and whether it has it; None is no bar."""
    return row if bar is None else row | {"bar": bar, "met": row["ratio"] >= bar}


def did_not_run(case: str, baseline: str, error: Exception) -> dict[str, Any]:
    """The row of a measurement that failed."""
    return {"case": case, "baseline": baseline, "error": " ".join(str(error).split())[:200]}


def write(path: Path, device: str, rows: Sequence[dict[str, Any]], **more: object) -> None:
    """Rows, one a line, and the machine they are of, as JSON; a reader finds the old file or the new one."""
    about = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(about, indent=1)[:-2] + f',\n "rows": [\n  {lines}\n ]\n}}\n')
    os.replace(aside, path)
