"""`sostenuto sample` by workers that share the frames of each video, and by groups that make several."""

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from jobs.commands import sample as sampling
from jobs.config.load import load
from models.errors import ConfigError
from pipelines.context import FrameGroup
from pipelines.media.video import read_mp4
from pipelines.storage import Storage
from pipelines.tracking import no_progress
from tests.jobs.serve.tiny_run import LONG, make_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TWO = ["--set", "cluster.num_workers=2", "--set", "cluster.context_parallel=2"]
TWO_GROUPS = ["--set", "cluster.num_workers=2"]
GROUPS_OF_TWO = ["--set", "cluster.num_workers=4", "--set", "cluster.context_parallel=2"]
SIZES = "data.height=32 data.width=32 world.size=32 autoencoder.components=3".split()


@pytest.fixture
def sample(root, sostenuto):
    """Runs the command on a run of random weights, whose clips have eight frames."""
    make_run(root)
    settings = [word for pair in (f"storage.root={root}", *SIZES) for word in ("--set", pair)]

    def run(*words):
        return sostenuto("sample", "--config", "ci", *settings, *words, timeout=400)

    return run


def test_two_workers_make_the_videos_of_one(sample, tmp_path):
    options = ["--count", "2", "--seconds", "2", "--timeline", "0s: a sun; 0.5s: a moon"]
    made = {}
    for name, more in {"alone": [], "together": TWO}.items():
        done = sample(*options, "--json", "--out", str(tmp_path / name), *more)
        assert done.returncode == 0, done.stderr
        made[name] = json.loads(done.stdout)
    assert made["together"]["videos"] == made["alone"]["videos"]
    files = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "together").iterdir()} == files
    for one in made["alone"]["videos"]:
        alone, together = (read_mp4(tmp_path / name / one["file_name"]).astype(int) for name in made)
        assert alone.shape == together.shape == (2 * LONG, 32, 32, 3)
        assert np.abs(alone - together).max() <= 2, "pixels are rounded"


def files(folder: Path):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("one", "two"), [([], TWO_GROUPS), pytest.param(TWO, GROUPS_OF_TWO, marks=pytest.mark.long)]
)
def test_two_groups_make_the_files_of_one(sample, tmp_path, one, two):
    options = ["--count", "3", "--seconds", "1", "--caption", "a sun", "--caption", "a moon", "--json"]
    options += ["--set", "evaluation.batch_size=1"]
    said = []
    for name, more in {"one": one, "two": two}.items():
        done = sample(*options, "--out", str(tmp_path / name), *more)
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert len([*(tmp_path / "two").glob("*.mp4")]) == 3
    assert "group 2: sample" in said[1]
    assert "group 1: sample" in said[1]
    assert "group 1" not in said[0]


def videos(root, count, **cluster):
    """What is made where each video is a batch."""
    config = load("ci", [f"storage.root={root}", "evaluation.batch_size=1"])
    config = dataclasses.replace(config, cluster=dataclasses.replace(config.cluster, **cluster))
    return sampling.Videos(config, None, ["a sun"] * count, 8.0, None, None, False, (), Storage(root))


@pytest.mark.parametrize(
    ("count", "workers", "alike", "groups"),
    [(3, 2, 1, 2), (3, 8, 2, 3), (1, 8, 1, 1), (1, 4, 4, 1), (5, (2, 4), 1, 2)],
)
def test_batches_are_those_of_one_group_and_none_is_without_any(root, count, workers, alike, groups):
    wanted = videos(root, count, num_workers=workers, context_parallel=alike)
    assert wanted.groups == groups
    assert wanted.workers == groups * alike
    dealt = [batch for number in range(groups) for batch in wanted.batches[number::groups]]
    assert sorted(sample for batch in dealt for sample in batch) == [*range(count)]


@pytest.mark.parametrize(
    ("alike", "gpus", "started"), [(1, 8, 3), (1, 2, 2), (1, 0, 1), (2, 7, 6), (2, 5, 4), (2, 1, 2)]
)
def test_no_more_groups_are_started_than_the_cluster_has_gpus_for(
    root, monkeypatch, capsys, alike, gpus, started
):
    wanted = videos(root, 3, num_workers=8, context_parallel=alike, use_gpu=True)
    monkeypatch.setattr(sampling, "ray_session", lambda cluster: nullcontext())
    monkeypatch.setattr(sampling, "progress_board", nullcontext)
    monkeypatch.setattr(sampling.ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": float(gpus)})
    monkeypatch.setattr(sampling, "ray_group", lambda work, size, *, use_gpu: [size])
    assert sampling._make_on_ray(wanted, no_progress) == [started]
    fewer = f"{started // alike} of 3 groups make the videos: the cluster has {gpus} GPUs"
    assert (fewer in capsys.readouterr().err) == (started < wanted.workers)


def test_more_workers_than_frames_are_refused_and_nothing_is_written(root, tmp_path):
    make_run(root)
    config = load("ci", [f"storage.root={root}", *SIZES])
    sampler, out = sampling._sampler(config, None, "dm", None, None, None, as_json=False), tmp_path / "out"
    wanted = sampling.Videos(config, sampler, ("a sun",), 8.0, 0.125, None, True, (), Storage(out))
    with pytest.raises(ConfigError, match="a clip of 1 latent frames cannot be shared by 2 workers"):
        sampling._make(wanted, no_progress, wanted.batches, FrameGroup(0, 2))
    assert not out.exists()
