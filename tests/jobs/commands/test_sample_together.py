"""`sostenuto sample` by two workers that share the frames of each video."""

import json

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


def test_more_workers_than_frames_are_refused_and_nothing_is_written(root, tmp_path):
    make_run(root)
    config = load("ci", [f"storage.root={root}", *SIZES])
    sampler, out = sampling._sampler(config, None, "dm", None, None, None, as_json=False), tmp_path / "out"
    wanted = sampling.Videos(config, sampler, ("a sun",), 8.0, 0.125, None, True, (), Storage(out))
    with pytest.raises(ConfigError, match="a clip of 1 latent frames cannot be shared by 2 workers"):
        sampling._make(wanted, no_progress, FrameGroup(0, 2))
    assert not out.exists()
