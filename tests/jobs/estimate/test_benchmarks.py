"""The cluster that is simulated: what it computes says so, and one process is what it was calibrated by."""

import json
import sys

import pytest

from jobs.config import load as configs
from jobs.estimate.gpus import gpu
from jobs.estimate.pace import step_seconds
from tests.command import REPOSITORY


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import simulate_cluster

    return simulate_cluster


LEAST = {
    "other": 0.01,
    "fm": 1.6,
    "rollout": 1.0,
    "score": 0.6,
    "backward": 1.1,
    "critic": 0.5,
    "optimiser": 0.02,
}


def test_one_process_takes_what_the_model_is_calibrated_by(bench):
    on, rest = bench.calibrated(LEAST, [[2e-4, 3e-3], [3e-4, 2e-3]])
    spent = bench.stepped(bench.checked(1, 1), on)
    assert step_seconds(spent) + rest == pytest.approx(sum(LEAST.values()))
    assert on.inside.latency + 4 * bench.LARGE / on.inside.bandwidth == pytest.approx(2e-3)
    assert on.inside.latency + 4 * bench.SMALL / on.inside.bandwidth == pytest.approx(2e-4)


@pytest.mark.parametrize("mesh", [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)], ids=str)
def test_what_is_checked_may_run_and_stops_always_at_one_exit(bench, mesh):
    config = bench.checked(*mesh)
    assert config.distill.shares(len(config.sampling.steps), without_first=False) == [0, 1]
    assert (mesh in bench.MESHES) == (mesh != (1, 1))


def test_every_figure_is_labelled_and_batches_grow_with_the_gpus(bench, monkeypatch, tmp_path, capsys):
    file = tmp_path / "rows.json"
    words = ["bench", "--gpus", "8", "64", "--set", "distill.micro_batch=1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    bench.main()
    told = json.loads(file.read_text())
    first, last = told["rows"]
    assert [row["rollout_batch"] for row in told["rows"]] == [8, 64]
    assert first["computed_efficiency"] == 1
    assert 0.85 <= last["computed_efficiency_harsh"] <= last["computed_efficiency"] <= 1
    assert told["inputs"]["flops_per_s"] == pytest.approx(0.3 * 989e12)
    for row in told["rows"]:
        assert sum(row["computed_shares"].values()) == pytest.approx(1, abs=0.01)
        figures = {name for name, value in row.items() if isinstance(value, float | dict)}
        assert all(name.startswith("computed_") for name in figures)
    assert "computed" in capsys.readouterr().out


def test_a_number_of_gpus_that_nothing_fits_has_a_row_too(bench):
    config = configs.load("wan-1.3b")
    (row,) = bench.simulated(config, gpu("rtx4090"), [1], same_batch=True)
    assert "no mesh fits" in row["error"]
