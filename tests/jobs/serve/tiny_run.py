"""A run that can be served, made in a second: networks of random weights and a code of 32 x 32 frames."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.serve.app import create_app
from jobs.serve.desk import Desk, Page
from jobs.serve.history import History
from jobs.serve.queue import Make
from jobs.serve.remake import keep_config
from jobs.serve.studio import Outcome, Studio
from models.autoencoders.pca import PcaAutoencoder
from models.config import ModelConfig, SamplingConfig, TextConfig
from pipelines.checkpoints import NetworkSpec, save_network
from pipelines.data.store.info import AUTOENCODER_FOLDER, CorpusInfo, DatasetInfo, read_info, write_sealed
from pipelines.storage import Storage
from tests.models.builders import randomize

SIDE, CHANNELS, SHORT, LONG, FPS = 32, 3, 4, 8, 8.0
MODEL = ModelConfig(
    num_layers=2, head_layers=1, num_heads=2, head_dim=12, ffn_dim=32, attention_pattern="WG", init="wan"
)


def corpus(frames: int) -> CorpusInfo:
    return CorpusInfo(
        videos=1, rejects=0, windows=1, holdout_windows=0, frames=frames, hours=0.1, fps=FPS,
        captions=1, window_frames=frames, window_stride=frames, latent_shape=(frames, CHANNELS, 1, 1),
        files=(), dropped_windows=0, latent_mean=(0.0,) * CHANNELS, latent_std=(1.0,) * CHANNELS,
    )  # fmt: skip


def make_run(root: Path, *more: str) -> RunConfig:
    """A dataset of no windows, and a student, a long-SFT student and a teacher that have "finished"."""
    sets = ["data.height=32", "data.width=32", "world.size=32", "autoencoder.components=3", *more]
    config = configs.load("ci", [f"storage.root={root}", *sets])
    paths = RunPaths.of(config)
    frames = np.random.default_rng(0).integers(0, 256, (20, SIDE, SIDE, 3), np.uint8)
    folder = Path(paths.dataset) / AUTOENCODER_FOLDER
    code = PcaAutoencoder.fit(frames, config.autoencoder, SIDE, SIDE)
    code.save(folder)
    info = DatasetInfo(
        version="tiny", data_hash="", made_from="", index_sha256="", height=SIDE, width=SIDE, holdout=0.0,
        seed=0, short=corpus(SHORT), long=corpus(LONG),
        autoencoder={"kind": "pca", "channels": CHANNELS, "temporal_factor": 1, "crop_safe": True},
    )  # fmt: skip
    write_sealed(Storage(paths.dataset), info.to_json())
    for stage, role, length in (
        ("distill", "student", LONG),
        ("sft", "student", LONG),
        ("teacher", "teacher", SHORT),
    ):
        spec = NetworkSpec(
            role, MODEL, TextConfig(dim=16), CHANNELS, (length, CHANNELS, 1, 1),
            distilled=stage == "distill", sampling=SamplingConfig(steps=(1.0, 0.5)),
        )  # fmt: skip
        model = spec.build()
        randomize(model, len(stage))
        made = Path(paths.seed(0)) / stage / "step-000001"
        made.mkdir(parents=True)
        save_network(model, spec, made)
        outcome = {"checkpoint": str(made), "summary": {"steps": 1, "cpu_seconds": 1.0}, "recipe": ""}
        (made.parent / "outcome.json").write_text(json.dumps(outcome))
    return config


def make_page(config: RunConfig) -> Page:
    """What the page is told of such a run."""
    paths = RunPaths.of(config)
    Path(paths.serve).mkdir(parents=True, exist_ok=True)
    file = keep_config(config, Path(paths.serve))
    return Page(config, file, read_info(paths.dataset), ("a sun", "a moon"))


@contextmanager
def serving(config: RunConfig, make: Make | None = None, **access: Any) -> Iterator[TestClient]:
    """A client of the application over such a run, whose clips this process makes unless `make` does."""
    history = History(Path(RunPaths.of(config).serve))
    try:
        desk = Desk(make_page(config), history, make or made_here(config))
        app = create_app(desk, **({"hosts": ("testserver",)} | access))
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        history.close()


def made_here(config: RunConfig) -> Make:
    """A replica without Ray."""
    studio = Studio(configs.to_json(config))

    async def make(job: str, wanted: str) -> Outcome:
        return await asyncio.to_thread(studio.make, job, wanted)

    return make


def ended(client: TestClient, job: str, seconds: float = 60) -> dict[str, Any]:
    """A request when it has ended."""
    deadline = time.monotonic() + seconds
    while True:
        told: dict[str, Any] = client.get(f"/api/jobs/{job}").json()
        if told["state"] not in ("queued", "running"):
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.02)


def wanted(caption: str = "a sun", **more: Any) -> dict[str, Any]:
    """A request of one clip of a second by MMM."""
    usual = {"timeline": [{"second": 0, "caption": caption}], "seconds": 1.0, "systems": ["mmm"]}
    return usual | more
