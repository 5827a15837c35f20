"""The world on disk: true to its factors, whole, resumable, and the same bytes every time."""

import errno
import hashlib
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from models.errors import ClusterError, ConfigError, DataError
from pipelines.media.video import encode, read_mp4, through_mp4
from pipelines.world import render as module
from pipelines.world.captions import TEXTURES, parse
from pipelines.world.config import WorldConfig
from pipelines.world.measures import texture_error
from pipelines.world.render import clip_name, corpora, render, write_world
from pipelines.world.scene import paint

CONFIG = WorldConfig(size=48, short_clips=7, long_clips=3, long_frames=16, seed=11)


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file under a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world, rendered once."""
    folder = tmp_path_factory.mktemp("world")
    write_world(CONFIG, folder)
    return folder


@pytest.mark.parametrize("size", [48, 64])
def test_render_is_the_rounded_linear_picture(size: int) -> None:
    factors = np.random.Generator(np.random.PCG64(0)).normal(size=(70, 13)).astype(np.float32) * 0.5
    exact = paint(size).mean + np.tensordot(factors.astype(np.float64), paint(size).basis, axes=1)
    frames = render(factors, size)
    assert frames.dtype == np.uint8
    assert np.abs(frames - 255 * np.clip(exact, 0, 1)).max() < 0.501


def test_render_holds_values_in_range() -> None:
    bright, dark = np.zeros((1, 13)), np.zeros((1, 13))
    bright[0, 5], dark[0, 5] = 40.0, -40.0
    assert render(bright, 48).max() == 255
    assert render(dark, 48).min() == 0


def test_files_hold_the_clips_of_their_captions(world: Path) -> None:
    for name, clips in corpora(CONFIG).items():
        rows = [json.loads(line) for line in (world / name / "metadata.jsonl").read_text().splitlines()]
        assert [row["file_name"] for row in rows] == [
            clip_name(index) for index in range(len(clips.captions))
        ]
        assert [row["caption"] for row in rows] == clips.captions
        assert [parse(row["caption"]) for row in rows] == [tuple(label) for label in clips.labels]
        for row, factors in zip(rows, clips.factors, strict=True):
            expected = through_mp4(render(factors, CONFIG.size), CONFIG.fps, CONFIG.crf)
            assert np.array_equal(read_mp4(world / name / row["file_name"]), expected)


def test_nothing_else_is_there(world: Path) -> None:
    expected = {"world.json"} | {f"{name}/metadata.jsonl" for name in ("short", "long")}
    expected |= {f"short/{clip_name(index)}" for index in range(7)} | {
        f"long/{clip_name(index)}" for index in range(3)
    }
    assert set(digests(world)) == expected


def test_world_json_says_what_the_world_is(world: Path) -> None:
    description = json.loads((world / "world.json").read_text())
    assert description["config"] == asdict(CONFIG)
    assert description["words"]["textures"] == list(TEXTURES)
    assert description["version"] >= 1
    assert description["constants"]["wave_speeds_rad_a_frame"] == [0.5, -0.8]


def test_the_same_config_gives_the_same_bytes_with_any_number_of_workers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TASK_FRAMES", 24)
    seen: list[tuple[int, int]] = []
    write_world(CONFIG, tmp_path, lambda task, done, total: seen.append((done, total)), workers=2)
    assert digests(tmp_path) == digests(world)
    assert seen[0] == (0, 10)
    assert seen[-1] == (10, 10)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_another_seed_gives_other_clips(world: Path, tmp_path: Path) -> None:
    write_world(WorldConfig(**asdict(CONFIG) | {"seed": 12}), tmp_path)
    assert digests(tmp_path)["short/00000.mp4"] != digests(world)["short/00000.mp4"]


def test_resume_keeps_what_is_whole_and_makes_what_is_missing(world: Path, tmp_path: Path) -> None:
    write_world(CONFIG, tmp_path)
    (tmp_path / "short" / clip_name(2)).unlink()
    (tmp_path / "long" / clip_name(0)).unlink()
    (tmp_path / "long" / f".{clip_name(0)}.part").write_bytes(b"half a clip")
    (tmp_path / "long" / "metadata.jsonl").unlink()
    kept = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.mp4") if not path.name.startswith(".")
    }
    seen: list[tuple[int, int]] = []
    write_world(CONFIG, tmp_path, lambda task, done, total: seen.append((done, total)))
    assert digests(tmp_path) == digests(world)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert seen[0] == (8, 10)
    assert seen[-1] == (10, 10)


def test_an_interrupted_run_is_finished_by_the_same_call(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TASK_FRAMES", 8)

    def stop(task: str, done: int, total: int, note: str = "", /) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(CONFIG, tmp_path, stop)
    assert 0 < len(list(tmp_path.rglob("*.mp4"))) < 10
    assert not list(tmp_path.rglob("metadata.jsonl"))
    write_world(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(world)


def test_a_finished_world_is_not_touched(world: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    seen: list[tuple[int, int]] = []
    write_world(CONFIG, world, lambda task, done, total: seen.append((done, total)), workers=2)
    assert seen == [(10, 10)]
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


def test_a_folder_with_another_world_is_refused(world: Path) -> None:
    before = digests(world)
    with pytest.raises(DataError, match="other settings"):
        write_world(WorldConfig(**asdict(CONFIG) | {"crf": 20}), world)
    assert digests(world) == before


@pytest.mark.parametrize("size", [8, 51])
def test_sizes_that_cannot_be_painted_are_refused(size: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"world\.size"):
        write_world(WorldConfig(size=size), tmp_path)


def test_a_folder_that_cannot_be_written_is_one_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ClusterError, match=r"storage\.root"):
        write_world(CONFIG, tmp_path / "file")


def test_a_full_disk_is_one_error_and_what_was_written_is_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def until_full(target: str, *arguments: object, **options: object) -> None:
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(target)
        encode(target, *arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", until_full)
        with pytest.raises(ClusterError, match="No space left"):
            write_world(CONFIG, tmp_path)
    assert len([name for name in digests(tmp_path) if name.endswith(".mp4")]) == 4
    write_world(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(world)


def kill_self(task: object) -> int:
    """Stands for a process that the kernel kills for its memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def test_a_killed_worker_is_one_error_that_says_to_run_again(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TASK_FRAMES", 24)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_render_task", kill_self)
        with pytest.raises(ClusterError, match="same command again"):
            write_world(CONFIG, tmp_path, workers=2)
    write_world(CONFIG, tmp_path)
    assert digests(tmp_path) == digests(world)


def test_long_is_drawn_low_grade_and_short_sharp() -> None:
    clips = corpora(CONFIG)
    assert clips["short"].factors.shape == (7, 8, 13)
    assert clips["long"].factors.shape == (3, 16, 13)
    assert texture_error(clips["short"].factors).max() < 1e-5
    assert texture_error(clips["long"].factors).min() > 0.5
