"""A dataset of random latents, without any video."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig
from pipelines.data.ingest.finalize import finalize
from pipelines.data.ingest.worker import Task
from pipelines.data.source.manifest import Source
from pipelines.data.store.info import DatasetInfo
from pipelines.data.store.ledger import Moments, Status, Window, write_ledger
from pipelines.data.store.shards import ShardWriter
from pipelines.storage import Storage
from tests.pipelines.data.videos import low_rank

SHAPE = {"short": (4, 3, 1, 1), "long": (8, 3, 1, 1)}
ROW_BYTES = {corpus: int(np.prod(shape)) * 4 for corpus, shape in SHAPE.items()}
COUNT = {"short": 90, "long": 30}


def make(root: Path, holdout: float = 0.0) -> DatasetInfo:
    """A dataset of random latents in several files and row groups, without any video."""
    return end(root, write_shards(root), holdout)


def write_shards(root: Path) -> list[Status]:
    """Its autoencoder, shards and ledgers; how each video ended."""
    storage = Storage(root)
    PcaAutoencoder.fit(low_rank(20, 3, 8, 0), AutoencoderConfig(components=3), 8, 8).save(
        root / "autoencoder"
    )
    rng = np.random.default_rng(0)
    statuses: list[Status] = []
    for corpus in ("short", "long"):
        for part in range(3):
            count = COUNT[corpus] // 3
            own = replace(_status(corpus, f"{part}"), num_windows=count)
            writer = ShardWriter(storage, corpus, f"shard{part}", {"version": "v"})
            windows = [writer.add(_window(corpus, part, i, rng), _latents(corpus, rng)) for i in range(count)]
            moments = Moments(count, [0.0] * 3, [1.0 * count] * 3)
            write_ledger(storage, f"{corpus}/shard{part}", [own], writer.commit(), moments, windows)
            statuses.append(own)
    return statuses


def end(root: Path, statuses: list[Status], holdout: float = 0.0, parts: int = 3) -> DatasetInfo:
    """The tables of a dataset whose videos ended so, of which the first `parts` of each corpus are listed."""
    data = DataConfig(height=8, width=8, short_frames=4, long_frames=8, holdout=holdout)
    task = Task(out=str(root), folders={}, version="v", data=data)
    videos = {corpus: [_source(f"{part}") for part in range(parts)] for corpus in ("short", "long")}
    listed = [status for status in statuses if int(status.source_id) < parts]
    return finalize(Storage(root), task, 0, "made", videos, listed, dict.fromkeys(videos, ""))


def _source(name: str) -> Source:
    return Source(id=name, path=f"{name}.mp4", caption=f"video {name}", num_bytes=1)


def _latents(corpus: str, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=SHAPE[corpus]).astype(np.float32)


def _status(corpus: str, name: str) -> Status:
    return Status(
        corpus=corpus,
        source_id=name,
        source=f"{name}.mp4",
        caption=f"video {name}",
        num_bytes=1,
        status="written",
        source_fps=8.0,
        num_frames=100,
        seconds=12.5,
    )


def _window(corpus: str, part: int, start: int, rng: np.random.Generator) -> Window:
    return Window(
        window_id=f"{corpus}-{rng.integers(1 << 40):012x}-{start:08d}",
        source_id=f"{part}",
        start_frame=start,
        num_frames=SHAPE[corpus][0],
        reader="decord",
    )
