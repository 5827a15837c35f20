"""The benches measure what they say: peers compute the same sum; rows have a case, a baseline and a ratio."""

import json
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from kernels import reference
from tests.command import REPOSITORY
from tests.kernels.helpers import qkv


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import bench_window_attention

    return bench_window_attention


def test_the_strided_views_are_the_windowed_sum(bench):
    case = bench.Case(2, 2, 9, 3, 16, 2)
    q, k, v = qkv((2, 2, 27, 16), transposed=True)
    expected = reference.window_attention(q, k, v, tokens_per_frame=3, window=2)
    assert torch.allclose(bench.strided_views(case)(q, k, v), expected)


@pytest.mark.parametrize(("frames", "window"), [(9, 2), (5, 0), (4, 3), (4, 100)])
def test_the_share_of_pairs_is_that_of_the_mask(bench, frames, window):
    case = bench.Case(1, 1, frames, 3, 16, window)
    mask = bench.frame_mask(case)
    assert case.share == pytest.approx(float(mask.double().mean()))
    expected = reference.frame_mask(frames, window)[0].repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert torch.equal(mask, expected)
    assert case.flops == pytest.approx(4 * 16 * float(mask.sum()))


def compared(bench, case, peers):
    inputs = bench.inputs_of(case, "cpu", torch.float32)
    return list(bench.compare(case, inputs, bench.measure(case, inputs, "cpu", 1), peers, "cpu", 1))


def test_rows_have_a_case_a_baseline_and_a_ratio(bench, tmp_path):
    case = bench.Case(1, 2, 8, 4, 16, 1)
    rows = compared(bench, case, {"dense": F.scaled_dot_product_attention})
    assert [row["case"].split()[-1] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        assert row["baseline"] == "dense"
        assert row["ratio"] == pytest.approx(row["baseline_milliseconds"] / row["milliseconds"])
    bench.write(tmp_path / "rows.json", "cpu", rows)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == rows
    assert {"date", "hardware", "torch", "threads"} <= set(written)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def broken(*_given):
    raise RuntimeError("no kernel\nfound")


def test_a_peer_that_does_not_run_costs_its_rows_only(bench):
    case = bench.Case(1, 1, 4, 2, 16, 1)
    rows = compared(bench, case, {"broken": broken, "dense": F.scaled_dot_product_attention})
    assert [row["error"] for row in rows if row["baseline"] == "broken"] == ["no kernel found"] * 2
    assert sum("ratio" in row for row in rows if row["baseline"] == "dense") == 2
    assert "broken does not run: no kernel found" in bench.line(rows[0])


@pytest.fixture
def no_gpu(bench, monkeypatch):
    """The GPU's rows, taken on a CPU: every call takes 2 ms, of a dense backend 30."""
    calls = []

    def milliseconds(run, _device, _repeats):
        calls.append(run())
        return 30.0 if isinstance(run, partial) else 2.0 + len(calls) / 1000

    monkeypatch.setattr(bench, "milliseconds", milliseconds)
    monkeypatch.setattr(bench, "product_rate", lambda *_: 1e-3)
    monkeypatch.setattr(bench, "flex", lambda case, _device: bench.ours_of(case))
    monkeypatch.setattr(bench, "backend", lambda _name: F.scaled_dot_product_attention)
    monkeypatch.setattr(bench, "peak_bytes", lambda run: 1 + bool(run))
    return bench


VIDEO, LONGER, SMALL = (1, 2, 9, 4, 16, 1), (1, 2, 20, 4, 16, 2), (2, 2, 9, 1, 24, 2)


def test_on_a_gpu_ours_comes_first_and_long_dense_ones_last(no_gpu):
    cases = [no_gpu.Case(*shape) for shape in (VIDEO, SMALL, LONGER)]
    rows = list(no_gpu.gpu_rows(cases, "cpu", 1))
    order = list(dict.fromkeys(row["baseline"].split()[0] for row in rows))
    assert order == ["matrix", "flex", "strided", "dense"]
    dense = [row["case"] for row in rows if row["baseline"].startswith("dense")]
    assert dense == [f"{case.name} forward" for case in (cases[0], cases[2]) for _ in no_gpu.DENSE]
    for row in rows:
        barred = "D=24" not in row["case"] and not (
            row["baseline"] == "matrix product" and row["case"].endswith("+backward")
        )
        assert ("bar" in row) == barred, row
        assert row.get("met") == (row["ratio"] >= row["bar"] if barred else None)
        assert row["baseline"].split()[0] in no_gpu.line(row)
    assert {row["met"] for row in rows if "met" in row} == {True, False}


def test_a_case_of_ours_that_fails_costs_its_own_rows_and_the_exit_status(no_gpu, monkeypatch):
    def ours_of(case):
        return broken if case.dim == 24 else partial(no_gpu.window_attention, tokens_per_frame=4, window=1)

    monkeypatch.setattr(no_gpu, "ours_of", ours_of)
    monkeypatch.setattr(no_gpu, "ON_GPU", [no_gpu.Case(*shape) for shape in (SMALL, VIDEO)])
    monkeypatch.setattr(no_gpu, "hardware", lambda _device: "a GPU")
    monkeypatch.setattr(sys, "argv", ["bench", "--device", "cuda"])
    monkeypatch.setattr(no_gpu, "inputs_of", partial(real_inputs, no_gpu.inputs_of))
    rows = list(no_gpu.gpu_rows(no_gpu.ON_GPU, "cpu", 1))
    assert [row["case"] for row in rows if "error" in row] == [no_gpu.ON_GPU[0].name]
    assert {row["baseline"] for row in rows} >= {"matrix product", "flex", "strided views"}
    assert no_gpu.main() == 1


def real_inputs(inputs_of, case, _device, dtype):
    return inputs_of(case, "cpu", dtype)
