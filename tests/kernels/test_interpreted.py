"""Runs the kernels' cases in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "interpreted"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["attention_cases.py", "reverse_kl_cases.py"])
def test_kernels_in_the_interpreter(name):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("SOSTENUTO_KERNELS", None)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(CASES / name), "-p", "no:xdist"],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
