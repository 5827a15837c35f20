"""Factors to pixels, and the whole world to two folders of MP4 files."""

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.errors import ClusterError, ConfigError, DataError
from pipelines.media.video import encode
from pipelines.tracking import Progress, no_progress
from pipelines.world.config import WorldConfig
from pipelines.world.factors import NUM_FACTORS, Clips, describe, draw_long, draw_short
from pipelines.world.scene import paint

DESCRIPTION = "world.json"
METADATA = "metadata.jsonl"
CHUNK_FRAMES = 64
TASK_FRAMES = 512


@lru_cache(maxsize=4)
def _code_values(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean [P] and basis [13, P] in 0 .. 255, the mean raised by one half for rounding."""
    scene = paint(size)
    mean = scene.mean.reshape(-1) * np.float32(255) + np.float32(0.5)
    return mean, scene.basis.reshape(NUM_FACTORS, -1) * np.float32(255)


def render(factors: NDArray[np.float32] | NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Pixels [F, size, size, 3] of factors [F, 13]: mean + factors @ basis, clamped to [0, 255]."""
    mean, basis = _code_values(size)
    frames = np.empty((len(factors), mean.size), dtype=np.uint8)
    for start in range(0, len(factors), CHUNK_FRAMES):
        values = factors[start : start + CHUNK_FRAMES].astype(np.float32) @ basis
        values += mean
        np.clip(values, 0.0, 255.0, out=values)
        frames[start : start + CHUNK_FRAMES] = values
    return frames.reshape(len(factors), size, size, 3)


def corpora(config: WorldConfig) -> dict[str, Clips]:
    """The factors of both corpora, by the names of their folders."""
    return {
        "short": draw_short(config, config.short_clips, config.seed),
        "long": draw_long(config, config.long_clips, config.seed),
    }


def clip_name(index: int) -> str:
    """File name of a clip."""
    return f"{index:05d}.mp4"


def write_world(
    config: WorldConfig, folder: str | Path, progress: Progress = no_progress, workers: int = 1
) -> None:
    """Render short/ and long/ under a local folder: MP4 files, metadata.jsonl and world.json.

    Files that are there are whole (written aside and renamed) and are kept; the same config gives the
    same bytes, however often it is interrupted and with any number of workers.

    Args:
        progress: shows the clips that are done.
        workers: processes; 1 renders in this one.

    Raises:
        ConfigError: sizes that cannot be rendered.
        DataError: the folder holds a world of other settings.
        ClusterError: the folder cannot be written, or a process was killed.
    """
    if config.size < 16 or config.size % 2:
        raise ConfigError(
            f"the world cannot be painted at {config.size} pixels", "Set world.size to an even number >= 16"
        )
    folder, clips = Path(folder), corpora(config)
    text = json.dumps(describe(config), indent=2) + "\n"
    try:
        if (folder / DESCRIPTION).exists() and (folder / DESCRIPTION).read_text() != text:
            raise DataError(
                f"{folder} holds a world of other settings", "Delete it, or give the run another name"
            )
        for name in clips:
            (folder / name).mkdir(parents=True, exist_ok=True)
        _write_text(folder / DESCRIPTION, text)
        tasks = [task for name in clips for task in _tasks(config, folder / name, clips[name])]
        total = config.short_clips + config.long_clips
        done = total - sum(len(task.paths) for task in tasks)
        progress("world", done, total)
        for finished in _run(tasks, workers):
            done += finished
            progress("world", done, total)
        for name, corpus in clips.items():
            rows = [
                {"file_name": clip_name(i), "caption": caption} for i, caption in enumerate(corpus.captions)
            ]
            _write_text(folder / name / METADATA, "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        remedy = "Free space, or choose a storage.root that can be written"
        raise ClusterError(f"the world cannot be written to {folder}: {error}", remedy) from error


@dataclass(frozen=True)
class _Task:
    """Clips of one corpus that one process renders."""

    config: WorldConfig
    paths: list[str]
    factors: NDArray[np.float32]


def _tasks(config: WorldConfig, folder: Path, clips: Clips) -> list[_Task]:
    """Groups of about TASK_FRAMES frames of the clips that are not there yet."""
    present = set(os.listdir(folder))
    missing = [index for index in range(len(clips.captions)) if clip_name(index) not in present]
    size = max(1, TASK_FRAMES // clips.factors.shape[1])
    groups = [missing[start : start + size] for start in range(0, len(missing), size)]
    return [
        _Task(config, [str(folder / clip_name(i)) for i in group], clips.factors[group]) for group in groups
    ]


def _run(tasks: list[_Task], workers: int) -> Iterator[int]:
    """Renders the tasks, here or in other processes; gives the number of clips as each ends."""
    if workers <= 1 or len(tasks) <= 1:
        yield from map(_render_task, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context) as pool:
        futures = [pool.submit(_render_task, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            remedy = "Run the same command again: it continues where it stopped"
            raise ClusterError("a process that renders the world was killed", remedy) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _render_task(task: _Task) -> int:
    config = task.config
    for path, factors in zip(task.paths, task.factors, strict=True):
        aside = f"{os.path.dirname(path)}/.{os.path.basename(path)}.part"
        encode(aside, render(factors, config.size), config.fps, crf=config.crf)
        os.replace(aside, path)
    return len(task.paths)


def _write_text(path: Path, text: str) -> None:
    """Writes aside and renames, unless that text is there already."""
    if path.exists() and path.read_text() == text:
        return
    aside = path.with_name(f".{path.name}.part")
    aside.write_text(text)
    os.replace(aside, path)
