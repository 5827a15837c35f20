"""Corpora of several lengths and two aspect ratios, and a dataset of random latents in as many buckets."""

import json
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
from tests.pipelines.data.videos import Frames, low_rank, write_video

WIDE, TALL = (64, 96), (96, 64)
DATA = DataConfig(
    height=32,
    width=48,
    shapes=((48, 32),),
    short_frames=8,
    short_stride=8,
    long_frames=24,
    long_stride=24,
    long_lengths=(8, 16),
    holdout=0.0,
    max_reject_share=0.9,
)
SIZES = {WIDE: (32, 48), TALL: (48, 32)}
"""Of a video -> of its pictures in the dataset, both height and width."""
SHORT = {
    f"{name}{number}": (size, [16]) for name, size in (("wide", WIDE), ("tall", TALL)) for number in (1, 2)
}
LONG = {
    "a_wide": (WIDE, [60]),
    "b_wide": (WIDE, [20]),
    "c_wide": (WIDE, [9]),
    "d_tall": (TALL, [50]),
    "e_tall": (TALL, [23]),
    "f_tall": (TALL, [8]),
    "g_shots": (WIDE, [30, 18, 5]),
    "h_less": (WIDE, [7]),
}
"""Name -> size and the frames of each shot."""
WINDOWS = {
    "a_wide": [(0, 24), (24, 24)],
    "b_wide": [(0, 16)],
    "c_wide": [(0, 8)],
    "d_tall": [(0, 24), (24, 24)],
    "e_tall": [(0, 16)],
    "f_tall": [(0, 8)],
    "g_shots": [(0, 24), (30, 16)],
    "h_less": [],
}
"""Name -> start and length of the LONG windows that it is to be cut into."""


def scene(number: int, count: int, height: int, width: int) -> Frames:
    """Smooth colours that drift; another number is quite another picture."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    slopes, speeds = rng.uniform(1, 3, (3, 2)), rng.uniform(0.04, 0.08, 3)
    times = np.arange(count)[:, None, None]
    waves = [
        np.sin(6 * (a * x + b * y) + speed * times + number)
        for (a, b), speed in zip(slopes, speeds, strict=True)
    ]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_corpora(root: Path) -> tuple[Path, Path]:
    """Folders of SHORT and LONG as told above."""
    for corpus, videos in (("short", SHORT), ("long", LONG)):
        for place, (name, (size, shots)) in enumerate(videos.items()):
            first = 10 * place + 100 * (corpus == "long")
            frames = np.concatenate([scene(first + i, count, *size) for i, count in enumerate(shots)])
            write_video(root / corpus / f"{name}.mp4", frames, crf="18")
        rows = [json.dumps({"file_name": f"{name}.mp4", "caption": f"red {name}"}) for name in videos]
        (root / corpus / "metadata.jsonl").write_text("\n".join(rows))
    return root / "short", root / "long"


MADE = DataConfig(
    height=8, width=8, shapes=((8, 16),), short_frames=4, long_frames=12, long_lengths=(6,), holdout=0.0
)
MADE_ROWS = {
    "short": {(4, 8, 8): 24, (4, 8, 16): 7},
    "long": {(12, 8, 8): 18, (6, 8, 8): 9, (12, 8, 16): 10, (6, 8, 16): 3},
}
"""Frames, height and width -> windows, of each corpus."""
CHANNELS = 3


def latents_of(pixels: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Shape [T, C, h, w] of such windows, in squares of 4 x 4 pixels."""
    frames, height, width = pixels
    return frames, CHANNELS, height // 4, width // 4


def make(root: Path, holdout: float = 0.0) -> DatasetInfo:
    """A dataset of random latents in MADE_ROWS, without any video."""
    storage, rng = Storage(root), np.random.default_rng(0)
    code = AutoencoderConfig(components=CHANNELS, patch_size=4)
    PcaAutoencoder.fit(low_rank(20, 3, 8, 0), code, 8, 8).save(root / "autoencoder")
    for corpus, counts in MADE_ROWS.items():
        writer = ShardWriter(storage, corpus, "made", {"version": "v"})
        windows = [
            writer.add(_window(corpus, pixels, rng), _random(pixels, rng), pixels)
            for pixels, count in counts.items()
            for _ in range(count)
        ]
        moments = Moments(1, [0.0] * CHANNELS, [1.0] * CHANNELS)
        write_ledger(storage, f"{corpus}/made", [_status(corpus)], writer.commit(), moments, windows)
    source = Source(id="0", path="0.mp4", caption="red sun", num_bytes=1)
    task = Task(out=str(root), folders={}, version="v", data=replace(MADE, holdout=holdout))
    videos = {corpus: [source] for corpus in MADE_ROWS}
    return finalize(storage, task, 0, "made", videos, [*map(_status, videos)], dict.fromkeys(videos, ""))


def _random(pixels: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=latents_of(pixels)).astype(np.float32)


def _window(corpus: str, pixels: tuple[int, ...], rng: np.random.Generator) -> Window:
    name = f"{corpus}-{rng.integers(1 << 40):012x}-00000000"
    return Window(window_id=name, source_id="0", start_frame=0, num_frames=pixels[0], reader="decord")


def _status(corpus: str) -> Status:
    return Status(
        corpus=corpus,
        source_id="0",
        source="0.mp4",
        caption="red sun",
        num_bytes=1,
        status="written",
        source_fps=8.0,
        num_frames=100,
        seconds=12.5,
    )
