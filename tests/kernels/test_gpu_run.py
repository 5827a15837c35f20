"""`make gpu` where there is no GPU: which libraries it loads, what becomes of parts that fail, its limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.command import REPOSITORY

ALLOWED = """
torch triton einops safetensors numpy pytest
_pytest pluggy iniconfig packaging pygments py
filelock fsspec functorch jinja2 markupsafe mpmath networkx setuptools sympy torchgen typing_extensions
kernels models pipelines tests
attention_peers timing bench_reverse_kl bench_wide_step bench_window_attention
""".split()
"""What a GPU machine has; what pytest and torch bring along; our own."""
BLOCK = f"""
import runpy, sys
from importlib.machinery import PathFinder
class OfAGpuMachine:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        known = top in {ALLOWED!r} or top in sys.stdlib_module_names or top.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if known else None
sys.meta_path[:] = [OfAGpuMachine() if finder is PathFinder else finder for finder in sys.meta_path]
"""
RUN = "runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
SMALL_STEP = """
import dataclasses
sys.path.insert(0, "benchmarks")
import bench_wide_step as bench
model = dataclasses.replace(bench.WIDE, num_heads=2, head_dim=24, ffn_dim=32, freq_dim=16, window=3)
distill = dataclasses.replace(bench.DISTILL, window_frames=4, window_stride=2, windows_per_video=2)
size = bench.Size(model, (4, 4, 4), distill, dataclasses.replace(bench.Size().text, dim=16, max_tokens=8))
import json
print(json.dumps(list(bench.rows(size, [6, 12], "cpu"))))
"""


def alone(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python code where only what a GPU machine has can be imported."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *words],
        cwd=REPOSITORY,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import gpu

    return gpu


def test_tests_and_benches_load_nothing_that_a_gpu_machine_lacks():
    """All shares are collected; each test finds no GPU, and is one of every file."""
    done = alone(RUN, "--share", "0/1")
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    told = done.stdout.splitlines()[-1]
    assert " skipped" in told
    assert "error" not in told
    assert int(told.split()[0]) > 100
    for bench in ("bench_reverse_kl", "bench_window_attention"):
        done = alone(f"sys.path.insert(0, 'benchmarks'); import {bench}")
        assert done.returncode == 0, done.stderr[-3000:]


def test_what_a_gpu_machine_lacks_is_refused_in_these_tests():
    assert "No module named 'ray'" in alone("import ray").stderr


def test_a_step_of_distillation_runs_where_there_is_no_ray():
    done = alone(SMALL_STEP)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert [row["tokens"] for row in rows] == [24, 48]
    for row in rows:
        assert "error" not in row
        assert {"flow_matching", "critic_loss", "gradient_norm"} <= set(row["metrics"])
        assert {"fm", "rollout", "score", "backward", "critic"} <= set(row["phases"])


def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path):
    done = alone(RUN, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "torch sees no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


ROWS = (
    '{"rows": [{"case": "a", "baseline": "b", "ratio": 0.5, "bar": 1.0, "met": false},'
    ' {"case": "c", "baseline": "d", "ratio": 2.0, "bar": 1.0, "met": true}, {"case": "e", "baseline": "f"}]}'
)


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(gpu, tmp_path, capfd):
    wrote = f"open({str(tmp_path / 'bench_gpu.json')!r}, 'w').write({ROWS!r})"
    todo = [
        gpu.Part("fails", [python("raise SystemExit(3)")], 20),
        gpu.Part("crowd", [python("print('well')"), python("print('why'); raise SystemExit(1)")], 20),
        gpu.Part("hangs", [python(f"{wrote}; import time; time.sleep(60)")], 3),
        gpu.Part("bench_gpu", [python(f"{wrote}; print('heard')")], 20),
    ]
    ended = gpu.run(todo, tmp_path, 60)
    assert [(one.name, one.status) for one in ended] == [
        ("fails", "failed"),
        ("crowd", "failed"),
        ("hangs", "too long"),
        ("bench_gpu", "passed"),
    ]
    assert 3 <= ended[2].seconds < 15
    gpu.tell(ended, tmp_path)
    said = capfd.readouterr().out
    assert "heard" in said
    assert "crowd-1.log:\nwhy" in said
    assert "crowd-0.log" not in said
    assert "1 of 2 fall short" in said
    assert said.count("0.50, wanted 1.00") == 2
    assert "bench_gpu: passed" in said
    summary = json.loads((tmp_path / gpu.SUMMARY).read_text())
    assert [part["status"] for part in summary["parts"]] == [one.status for one in ended]
    assert [row["case"] for row in summary["short"]] == ["a"]


def test_what_was_measured_before_the_time_was_over_is_there(gpu, tmp_path):
    """The second part has what is left of all the time, and what an earlier run left is gone."""
    (tmp_path / "late_gpu.json").write_text(ROWS)
    wrote = f"open({str(tmp_path / 'early_gpu.json')!r}, 'w').write({ROWS!r})"
    todo = [
        gpu.Part("early_gpu", [python(f"{wrote}; import time; time.sleep(60)")], 50),
        gpu.Part("late_gpu", [python("print(1)")], 50),
    ]
    ended = gpu.run(todo, tmp_path, 3)
    assert [one.status for one in ended] == ["too long", "too long"]
    assert sum(one.seconds for one in ended) < 15
    assert len(list(gpu.barred(tmp_path))) == 2
    assert not (tmp_path / "late_gpu.json").exists()


def test_a_process_that_is_ended_takes_its_children_along(gpu, tmp_path):
    """Also of one that ends by itself."""
    child = "import subprocess as s; print(s.Popen(['sleep', '61']).pid, flush=True)"
    todo = [gpu.Part("family", [python(child), python(f"{child}; import time; time.sleep(60)")], 5)]
    gpu.run(todo, tmp_path, 60)
    for number in (0, 1):
        pid = int((tmp_path / f"family-{number}.log").read_text())
        _, left = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=20)
        assert not left


def test_the_plan_takes_eight_minutes_at_most_and_has_every_test(gpu, tmp_path):
    todo = gpu.parts(tmp_path, 15)
    assert sum(part.seconds for part in todo) <= 8 * 60
    assert todo[0].name == "tests"
    assert todo[-1].name == "window_attention_gpu", "dense attention of a minute comes last"
    assert len(todo[0].commands) == 15
    for command in (command for part in todo for command in part.commands):
        assert Path(command[1]).exists()
    marked = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8") and path.name != Path(__file__).name
    }
    assert set(gpu.TESTS) == marked
