"""The peers of ingest: a plain loop over the files, and Ray Data's reader of videos."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import decord
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from models.autoencoders.kinds import load_autoencoder
from pipelines.data.decode.transforms import resize

BLOCK = 16
"""Frames encoded together."""


class Cut(NamedTuple):
    """What a peer makes of a file: windows of `frames`, `stride` apart, of height x width pixels, encoded."""

    autoencoder: str
    """Folder."""
    height: int
    width: int
    frames: int
    stride: int


def _encode(cut: Cut, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Latents [n, C, h, w] of frames of any size."""
    small = np.stack([resize(frame, cut.height, cut.width) for frame in frames])
    latents: NDArray[np.float32] = _code(cut.autoencoder).encode(torch.from_numpy(small)[None])[0].numpy()
    return latents


_CODES: dict[str, Any] = {}


def _code(folder: str) -> Any:
    if folder not in _CODES:
        torch.set_num_threads(1)
        _CODES[folder] = load_autoencoder(folder)
    return _CODES[folder]


def _frames(path: str) -> Iterator[NDArray[np.uint8]]:
    reader = decord.VideoReader(path, num_threads=1)
    for _ in range(len(reader)):
        yield reader.next().asnumpy()


def _windows(latents: NDArray[np.float32], cut: Cut) -> NDArray[np.float32]:
    starts = range(0, len(latents) - cut.frames + 1, cut.stride)
    found = [latents[start : start + cut.frames] for start in starts]
    return np.stack(found) if found else np.empty((0, cut.frames, *latents.shape[1:]), np.float32)


def convert(path: str, out: str, cut: Cut) -> int:
    """One file to one parquet file, nothing checked; how many windows."""
    held: list[NDArray[np.uint8]] = []
    parts = []
    for frame in _frames(path):
        held.append(frame)
        if len(held) == BLOCK:
            parts.append(_encode(cut, held))
            held = []
    if held:
        parts.append(_encode(cut, held))
    windows = _windows(np.concatenate(parts), cut)
    if not len(windows):
        return 0
    ids = pa.array([f"{Path(path).stem}-{i:08d}" for i in range(len(windows))])
    table = pa.table([ids, pa.FixedShapeTensorArray.from_numpy_ndarray(windows)], ["window_id", "latents"])
    pq.write_table(table, out, compression="zstd")
    return len(windows)


class PlainLoop:
    """Warm processes that share a list of files, the largest first."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
        list(self._pool.map(_warm, range(4 * processes)))

    def run(self, jobs: Sequence[tuple[str, Cut]], out: Path) -> int:
        """Convert files; how many windows."""
        out.mkdir()
        ordered = sorted(jobs, key=lambda job: -Path(job[0]).stat().st_size)
        going = [
            self._pool.submit(convert, path, str(out / f"{number}.parquet"), cut)
            for number, (path, cut) in enumerate(ordered)
        ]
        return sum(done.result() for done in going)

    def pids(self) -> list[int]:
        """Of its processes."""
        return list(self._pool._processes)  # noqa: SLF001  there is no other name for them

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def _warm(_number: int) -> None:
    torch.zeros(1)


def read_videos(paths: Sequence[str], cut: Cut, out: Path) -> int:
    """Ray Data's own reader: one row per frame, encoded, then grouped by file; how many windows."""

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        latents = _encode(cut, list(batch["frame"]))
        return {"path": batch["path"], "frame_index": batch["frame_index"], "latents": latents}

    def windows(batch: dict[str, Any]) -> dict[str, Any]:
        order = np.argsort(batch["frame_index"])
        found = _windows(np.asarray(batch["latents"])[order], cut)
        return {
            "window_id": np.array([f"{batch['path'][0]}-{i}" for i in range(len(found))]),
            "latents": found,
        }

    frames = ray.data.read_videos(list(paths), include_paths=True)
    encoded = frames.map_batches(encode, batch_size=BLOCK)
    encoded.groupby("path").map_groups(windows, batch_format="numpy").write_parquet(str(out))
    return sum(pq.read_metadata(file).num_rows for file in out.glob("*.parquet"))
