"""All that a GPU has to show, within minutes: tests of kernels and steps, then the benches.

    python benchmarks/gpu.py [--out DIR] [--minutes 8]

It needs torch, triton, einops, safetensors, numpy and pytest, and no network. Tests run in many processes, so
that their kernels compile side by side. Each part has a limit, and what it has measured is in DIR when it
ends or is ended: `{part}.json` for benches, a log for each process of tests. A part that fails does not stop
the others. At the end every ratio that has a bar is told, those that fall short once more, and `gpu.json`
says how each part ended. The exit status is 1 if a part failed or a GPU is missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TESTS = (
    "tests/kernels/attention/test_gpu.py",
    "tests/kernels/score/test_gpu.py",
    "tests/pipelines/training/test_half_precision.py",
)
"""All that are marked `gpu`."""
PYTEST = (
    *("-q", "-m", "gpu", "--noconftest", "-p", "no:cacheprovider"),
    *("-o", "addopts=", "-o", "filterwarnings=default"),
)
"""Without what the project's own settings need: plugins, and the libraries of its conftest files."""
SUMMARY = "gpu.json"


@dataclass(frozen=True)
class Part:
    """Commands that run side by side."""

    name: str
    commands: Sequence[Sequence[str]]
    seconds: float
    """The most that they may take."""


@dataclass(frozen=True)
class Ended:
    """What became of a part."""

    name: str
    status: str
    """`passed`, `failed` or `too long`."""
    seconds: float


def parts(out: Path, processes: int) -> list[Part]:
    """Ours before its peers, and what takes longest last."""

    def bench(script: str, name: str, seconds: float) -> Part:
        command = (
            sys.executable,
            str(HERE / script),
            "--device",
            "cuda",
            "--json",
            str(out / f"{name}.json"),
        )
        return Part(name, [command], seconds)

    shares = [
        (sys.executable, str(HERE / "gpu.py"), "--share", f"{number}/{processes}")
        for number in range(processes)
    ]
    return [
        Part("tests", shares, 110),
        bench("bench_reverse_kl.py", "reverse_kl_gpu", 75),
        bench("bench_wide_step.py", "wide_step_gpu", 95),
        bench("bench_window_attention.py", "window_attention_gpu", 200),
    ]


def run(todo: Sequence[Part], out: Path, seconds: float) -> list[Ended]:
    """Run parts one after another, each within its limit and within what is left of all seconds.

    `gpu.json` is written after each.
    """
    out.mkdir(parents=True, exist_ok=True)
    deadline, ended = time.monotonic() + seconds, list[Ended]()
    for part in todo:
        left = min(part.seconds, deadline - time.monotonic())
        print(f"\n{part.name}: at most {max(0, left):.0f} s", flush=True)
        ended.append(_run(part, out, left))
        print(f"{part.name}: {ended[-1].status} after {ended[-1].seconds:.0f} s", flush=True)
        summary = {
            "parts": [asdict(one) for one in ended],
            "short": [row for row in barred(out) if not row["met"]],
        }
        aside = out / f".{SUMMARY}"
        aside.write_text(json.dumps(summary, indent=1))
        os.replace(aside, out / SUMMARY)
    return ended


def _run(part: Part, out: Path, seconds: float) -> Ended:
    """One process is heard as it speaks; of several each has a log, and those that fail are heard."""
    began = time.monotonic()
    for stale in (f"{part.name}.json", *(path.name for path in out.glob(f"{part.name}-*.log"))):
        (out / stale).unlink(missing_ok=True)
    logs = [out / f"{part.name}-{number}.log" for number in range(len(part.commands))]
    started: list[subprocess.Popen[bytes]] = []
    status = "passed"
    try:
        for command, log in zip(part.commands, logs, strict=True):
            heard = None if len(logs) == 1 else log.open("wb")
            started.append(
                subprocess.Popen(
                    command, stdout=heard, stderr=subprocess.STDOUT if heard else None, start_new_session=True
                )
            )
            if heard is not None:
                heard.close()
        for process in started:
            process.wait(max(0.0, began + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        status = "too long"
    finally:
        for process in started:
            with suppress(ProcessLookupError):  # the children of one that has ended, too
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    failed = [log for process, log in zip(started, logs, strict=True) if process.returncode]
    if len(logs) > 1:
        for log in failed:
            print(f"{log}:\n{log.read_text(errors='replace')[-2000:]}", flush=True)
    if failed and status == "passed":
        status = "failed"
    return Ended(part.name, status, time.monotonic() - began)


def barred(out: Path) -> Iterator[dict[str, Any]]:
    """Every row of the benches that has a bar."""
    for file in sorted(out.glob("*_gpu.json")):
        yield from (row for row in json.loads(file.read_text())["rows"] if "bar" in row)


def tell(ended: Sequence[Ended], out: Path) -> None:
    """Print every bar, what falls short of one, and how the parts ended."""
    rows = list(barred(out))
    print("\nbars:" if rows else "\nnothing that has a bar was measured")
    for row in rows:
        print(f"  {_said(row)}")
    short = [row for row in rows if not row["met"]]
    print(f"{len(short)} of {len(rows)} fall short" + ("".join(f"\n  {_said(row)}" for row in short)))
    for one in ended:
        print(f"{one.name:>22}: {one.status}, {one.seconds:.0f} s")


def _said(row: dict[str, Any]) -> str:
    return f"{row['case']:>54} {row['baseline']:>26} {row['ratio']:7.2f}, wanted {row['bar']:.2f}"


def share_of_tests(number: int, of: int) -> int:
    """Every `of`-th test from `number` on, in this process; pytest's exit status."""
    import pytest

    class Share:
        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            items[:] = items[number::of]

    return int(pytest.main([*PYTEST, *TESTS], plugins=[Share()]))


def main() -> int:
    """Run all parts; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--share", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    if given.share:
        return share_of_tests(*map(int, given.share.split("/")))
    import torch

    if not torch.cuda.is_available():
        print("torch sees no GPU: run this where there is one, with a torch built for it", file=sys.stderr)
        return 1
    out = given.out.resolve()
    ended = run(parts(out, max(1, (os.cpu_count() or 1) - 1)), out, 60 * given.minutes)
    tell(ended, out)
    return int(any(one.status != "passed" for one in ended))


if __name__ == "__main__":
    sys.exit(main())
