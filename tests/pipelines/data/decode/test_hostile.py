"""Hostile corpora through the whole of ingest: each bad file ends as one reject, and costs no other a row."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.config import AutoencoderConfig
from pipelines.data.config import DataConfig, LimitsConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.info import DatasetInfo
from pipelines.data.types import Rejected
from tests.command import REPOSITORY, environment
from tests.pipelines.data.corpora import DATA, RANK, SIZE, rows_of, write_corpora
from tests.pipelines.data.videos import low_rank, numbers, stamped, write_video

GOOD, FLIPPED = 50, 200
CODE = AutoencoderConfig(components=RANK, fit_frames=64)
WAN = {"short_frames": 9, "short_stride": 8, "long_frames": 25, "long_stride": 24}
"""Windows that the Wan autoencoder takes."""


def run(short: Path, long: Path, out: Path, code: AutoencoderConfig = CODE, **changes: Any) -> DatasetInfo:
    data = DataConfig(**{**vars(DATA), "max_reject_share": 0.99, **changes})
    return ingest(str(short), str(long), str(out), data, code, 0)


def ends(out: Path) -> dict[str, dict[str, Any]]:
    """SHORT's path -> its row of the manifest; a path that has two rows fails."""
    table = pq.read_table(out / "manifest.parquet", page_checksum_verification=True)
    rows = [row for row in table.to_pylist() if row["corpus"] == "short"]
    assert len({row["source"] for row in rows}) == len(rows)
    return {row["source"]: row for row in rows}


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """One to forty bits anywhere turned over."""
    damaged = np.frombuffer(data, np.uint8).copy()
    for place in rng.integers(0, len(damaged), rng.integers(1, 41)):
        damaged[place] ^= np.uint8(1 << int(rng.integers(8)))
    return damaged.tobytes()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Fifty good SHORT clips in good/, and LONG."""
    root = tmp_path_factory.mktemp("good")
    for number in range(2):
        write_video(root / "long" / f"{number}.mp4", low_rank(50, RANK, SIZE, seed=7, phase=100.0 + number))
    for number in range(GOOD):
        video = low_rank(16 + number % 9, RANK, SIZE, seed=7, phase=1.0 + number)
        kind = ("mp4", "mkv", "avi")[number % 3]
        codec = "mpeg4" if kind == "avi" else "libx264"
        write_video(root / "short" / "good" / f"{number:02d}.{kind}", video, codec=codec)
    return root / "short", root / "long"


@pytest.mark.long
def test_flipped_bits_cost_no_good_video_a_row(
    ray_local: None, good: tuple[Path, Path], wan_folder: Path, tmp_path: Path
) -> None:
    """200 copies with up to forty flipped bits among 50 good videos, against a run over the good alone.

    The autoencoder is a given one: one that is fitted would be fitted on another sample.
    """
    short, long = good
    code = AutoencoderConfig(kind="wan", pretrained=str(wan_folder))
    run(short, long, tmp_path / "clean", code, **WAN)
    mixed = tmp_path / "short"
    shutil.copytree(short, mixed)
    rng = np.random.default_rng(0)
    originals = sorted((short / "good").iterdir())
    for number in range(FLIPPED):
        original = originals[number % GOOD]
        damaged = mixed / "flipped" / f"{number:03d}{original.suffix}"
        damaged.parent.mkdir(exist_ok=True)
        damaged.write_bytes(flip_bits(original.read_bytes(), rng))
    limits = LimitsConfig(timeout_s=10, memory_bytes=1 << 30)
    info = run(mixed, long, tmp_path / "mixed", code, **WAN, limits=limits)
    found = ends(tmp_path / "mixed")
    assert len(found) == info.short.videos + info.short.rejects == GOOD + FLIPPED
    assert all(row["status"] == "written" for path, row in found.items() if path.startswith("good/"))
    lost = [row for row in found.values() if row["status"] == "rejected"]
    assert all(row["stage"] and row["reason"] and "\n" not in row["reason"] for row in lost)
    assert 0 < len(lost) < FLIPPED
    assert Counter(row["stage"] for row in lost).keys().isdisjoint({"worker", "timeout"})
    clean, dirty = rows_of(tmp_path / "clean"), rows_of(tmp_path / "mixed")
    assert len(clean) > GOOD
    assert {window: dirty.get(window) for window in clean} == clean
    assert len(dirty) == info.short.windows + info.long.windows


DOUBLE = '''
"""The decoding process, but files of certain names do to it what hostile ones could."""
import ctypes, dataclasses, itertools, os, sys
from pathlib import Path

if "pipelines.data.decode.worker" in " ".join(sys.orig_argv):
    sys.path.insert(0, {root!r})
    import numpy as np
    from pipelines.data.decode import worker

    real = worker.open_video

    def spin():
        while True:
            pass

    def spinning(frames):
        yield from itertools.islice(frames, 3)
        spin()

    def dying(frames):
        yield from itertools.islice(frames, 3)
        os.abort()

    DEEDS = {{
        "abort": os.abort,
        "segfault": lambda: ctypes.string_at(0),
        "exit": lambda: os._exit(3),
        "loop": spin,
        "memory": lambda: np.ones(100 << 30, np.uint8),
        "noise": lambda: os.write(1, b"x" * (64 << 20)) and os.abort(),
    }}
    FRAMES = {{
        "endless": lambda frames: itertools.cycle([next(frames)]),
        "latespin": spinning,
        "latedeath": dying,
        "wrongshape": lambda frames: ((t, f[:, :, :2]) for t, f in frames),
    }}

    def open_video(path, limits):
        name = Path(path).stem
        DEEDS.get(name, lambda: None)()
        opened = real(path, limits)
        return dataclasses.replace(opened, frames=FRAMES.get(name, lambda f: f)(opened.frames))

    worker.open_video = open_video
'''
"""Python reads a file sitecustomize.py of its path first: here the double takes the reader's place."""

POISON = {
    "abort": ("crash", "SIGABRT"),
    "segfault": ("crash", "SIGSEGV"),
    "exit": ("crash", "code 3"),
    "loop": ("timeout", "data.limits.timeout_s = 3 s"),
    "memory": ("memory", "data.limits.memory_bytes"),
    "noise": ("crash", ""),
    "endless": ("limits", "data.limits.max_frames = 2000"),
    "latespin": ("timeout", "data.limits.timeout_s = 3 s"),
    "latedeath": ("crash", "SIGABRT"),
    "wrongshape": ("crash", ""),
}
LIMITS = LimitsConfig(timeout_s=3, memory_bytes=1 << 30, max_frames=2000)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("double")
    (folder / "sitecustomize.py").write_text(DOUBLE.format(root=str(REPOSITORY)))
    return folder


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """short/ with one clip of each poison and twelve good ones, long/ with two."""
    root = tmp_path_factory.mktemp("poisoned")
    for number, name in enumerate([*POISON, *(f"good{i:02d}" for i in range(12))]):
        write_video(root / "short" / f"{name}.mp4", low_rank(20, RANK, 64, seed=7, phase=1.0 + number))
    for number in range(2):
        write_video(root / "long" / f"{number}.mp4", low_rank(70, RANK, 64, seed=7, phase=90.0 + number))
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "good.mp4", stamped(40))


@pytest.mark.parametrize("name", sorted(POISON))
def test_whatever_happens_to_the_decoder_costs_one_video(
    name: str, double: Path, poisoned: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(double))
    stage, words = POISON[name]
    with Decoder(LIMITS) as decoder:
        assert len(read(decoder, clip)) == 40
        began = time.monotonic()
        with pytest.raises(Rejected) as caught:
            read(decoder, poisoned / "short" / f"{name}.mp4")
        assert time.monotonic() - began < 5 * LIMITS.timeout_s
        assert caught.value.reject.stage == stage
        assert words in caught.value.reject.reason
        assert numbers(read(decoder, clip)) == list(range(40))


def read(decoder: Decoder, path: Path) -> np.ndarray:
    return np.concatenate(list(decoder.open(path, [(64, 96)]).frames))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_poison_costs_an_ingest_one_reject_each(double: Path, poisoned: Path, tmp_path: Path) -> None:
    """The command as a user gives it, all of whose decoding processes are the double."""
    settings = {"autoencoder.components": RANK, "data.max_reject_share": 0.9, "data.block_bytes": 30_000}
    settings |= {f"data.limits.{n}": getattr(LIMITS, n) for n in ("timeout_s", "memory_bytes", "max_frames")}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    folders = ["--short", str(poisoned / "short"), "--long", str(poisoned / "long")]
    done = subprocess.run(
        [sys.executable, "-m", "jobs", "ingest", "--config", "ci", *folders, *words],
        cwd=tmp_path,
        env=environment(tmp_path / "home") | {"PYTHONPATH": f"{double}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (dataset,) = (tmp_path / "runs" / "ci" / "dataset").iterdir()
    found = ends(dataset)
    lost = {path.removesuffix(".mp4"): row for path, row in found.items() if row["status"] == "rejected"}
    assert {name: row["stage"] for name, row in lost.items()} == {
        n: stage for n, (stage, _) in POISON.items()
    }
    for name, (_, reason) in POISON.items():
        assert reason in lost[name]["reason"]
    assert len(found) == len(POISON) + 12
    assert len(rows_of(dataset)) == 12 * 2 + 2 * 2


def texts(victim: Path) -> dict[str, str]:
    """Files by which a decoder that guesses would be led to `victim`."""
    header = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    representation = f"<Representation id='1' bandwidth='1'><BaseURL>{victim}</BaseURL></Representation>"
    adaptation = f"<AdaptationSet mimeType='video/mp4'>{representation}</AdaptationSet>"
    return {
        "hls.ts": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{victim}\n#EXT-X-ENDLIST\n",
        "hls.mp4": f"#EXTM3U\n#EXTINF:9,\nconcat:{victim}|/etc/hostname\n",
        "concat.mkv": f"ffconcat version 1.0\nfile '{victim}'\n",
        "session.mp4": f"{header}a=rtpmap:96 H264/90000\n",
        "dash.mp4": f"<?xml version='1.0'?><MPD type='static'><Period>{adaptation}</Period></MPD>",
        "subtitles.avi": f"[Script Info]\n; {victim}\n",
    }


def test_no_file_leads_a_decoder_to_another(ray_local: None, tmp_path: Path) -> None:
    """Playlists, scripts, paths out of the corpus and links: each refused, and what they name is not read."""
    short, long = write_corpora(tmp_path, short=6, long=2)
    victim = write_video(tmp_path / "secret" / "victim.mp4", low_rank(20, RANK, SIZE, 7, phase=50.0))
    listed = texts(victim)
    for name, text in listed.items():
        (short / name).write_text(text)
    (short / "link.mp4").symlink_to(victim)
    (short / "chain.mp4").symlink_to(short / "link.mp4")
    (short / "folder").symlink_to(victim.parent)
    named = ["../secret/victim.mp4", "part0/../../secret/victim.mp4", str(victim)]
    rows = [{"file_name": name, "caption": "out"} for name in named]
    with (short / "metadata.jsonl").open("a") as file:
        file.write("\n" + "\n".join(json.dumps(row) for row in rows))
    info = run(short, long, tmp_path / "out")
    found = ends(tmp_path / "out")
    lost = {path: row["stage"] for path, row in found.items() if row["status"] == "rejected"}
    assert {path for path, stage in lost.items() if stage == "bytes"} == set(listed)
    assert {path for path, stage in lost.items() if stage == "manifest"} == {
        "link.mp4",
        "chain.mp4",
        "folder",
        *named,
    }
    assert info.short.videos == 6
    assert len(rows_of(tmp_path / "out")) == info.short.windows + info.long.windows
