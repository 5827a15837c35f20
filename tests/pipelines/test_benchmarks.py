"""A clip that is measured has all of its parts, and its rate is that of their sum."""

import sys

import pytest
import torch

from jobs.config import load as configs
from pipelines.context import FrameGroup
from tests.command import REPOSITORY


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])
    import bench_sampling

    return bench_sampling


def test_all_parts_of_a_clip_are_counted(bench):
    config = configs.load("ci")
    warm, counted = bench.clips(config, FrameGroup(0, 1), torch.device("cpu"), 2)
    assert list(warm) == list(counted) == ["text", "sampler", "decode"]
    assert min(counted.values()) > 0
    told = bench.row("ci", config, 2, {"text": 0.5, "sampler": 1.0, "decode": 0.5}, 3.0)
    assert told["fps"] == config.data.long_frames / 2
    assert told["ratio"] == 1.5
