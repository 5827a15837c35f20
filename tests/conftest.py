"""What tests of several packages share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.command import succeed

settings.register_profile("house", deadline=None, derandomize=True)
settings.load_profile("house")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One small Ray for the whole session: 4 logical CPUs, no dashboard."""
    import ray

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=256 << 20,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def finished_quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `quickstart --config ci` has run once, with what it said in output.txt.

    Tests that would change its runs/ take a copy (tests/command.py: copy_runs).
    """
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "output.txt").write_text(succeed(folder, "quickstart", "--config", "ci", timeout_s=800))
    return folder


@pytest.fixture(scope="session")
def wan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the real Wan autoencoder class with tiny random weights."""
    import torch

    diffusers = pytest.importorskip("diffusers")
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = diffusers.AutoencoderKLWan(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[1.5, 2.0, 0.5, 1.0],
        )
    folder = tmp_path_factory.mktemp("wan")
    model.save_pretrained(folder)
    return folder
