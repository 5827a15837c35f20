"""The benches measure what they say: peers compute the same sum; rows have a case, a baseline and a ratio."""

import json
import sys

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


def test_rows_have_a_case_a_baseline_and_a_ratio(bench, tmp_path):
    case = bench.Case(1, 2, 8, 4, 16, 1)
    peers = {"dense": F.scaled_dot_product_attention}
    rows = list(bench.compare(case, bench.ours_of(case), peers, "cpu", torch.float32, 1))
    assert [row["case"].split()[-1] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        assert row["baseline"] == "dense"
        assert row["ratio"] == pytest.approx(row["baseline_milliseconds"] / row["milliseconds"])
    bench.write(tmp_path / "rows.json", "cpu", rows)
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == rows
    assert {"date", "hardware", "torch", "threads"} <= set(written)


def test_a_peer_that_does_not_run_costs_its_rows_only(bench, capsys):
    def broken(*_given):
        raise RuntimeError("no kernel found")

    case = bench.Case(1, 1, 4, 2, 16, 1)
    peers = {"broken": broken, "dense": F.scaled_dot_product_attention}
    rows = list(bench.compare(case, bench.ours_of(case), peers, "cpu", torch.float32, 1))
    assert {row["baseline"] for row in rows} == {"dense"}
    assert "broken does not run (no kernel found)" in capsys.readouterr().out
