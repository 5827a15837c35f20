"""Corpora for the tests: 32 x 32 pixels, 6 directions of pixel space, captions in metadata.jsonl."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from pipelines.data.config import DataConfig
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.types import CORPORA
from tests.pipelines.data.videos import low_rank, write_video

SPLITS: tuple[Literal["train", "holdout"], ...] = ("train", "holdout")
SIZE = 32
RANK = 6
DATA = DataConfig(
    height=SIZE,
    width=SIZE,
    short_frames=8,
    short_stride=8,
    long_frames=24,
    long_stride=12,
    holdout=0.25,
    block_bytes=20_000,
)


def write_corpora(root: Path, short: int = 14, long: int = 4) -> tuple[Path, Path]:
    """SHORT clips of 8 to 20 frames and LONG clips of 50; (short folder, long folder)."""
    for corpus, count, frames in (("short", short, 8), ("long", long, 50)):
        rows = []
        for index in range(count):
            name = f"part{index % 2}/clip{index}.mp4"
            length = frames + 4 * (index % 4) if corpus == "short" else frames
            video = low_rank(length, RANK, SIZE, seed=7, phase=1.0 + index + 100 * (corpus == "long"))
            write_video(root / corpus / name, video, crf="4")
            rows.append({"file_name": name, "caption": f"{corpus} clip, number {index % 5}"})
        (root / corpus / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root / "short", root / "long"


def rows_of(dataset: Path | str) -> dict[str, str]:
    """Window id -> sha256 of its latents, of every row of both corpora, held out or not."""
    found: dict[str, str] = {}
    for corpus in CORPORA:
        for split in SPLITS:
            held = ShardDataset(str(dataset), corpus, split)
            latents = held.read(range(len(held))).latents.numpy()
            sums = [hashlib.sha256(row.tobytes()).hexdigest() for row in latents]
            found.update(zip(held.ids, sums, strict=True))
    return found


def stamps_of(folder: Path) -> dict[str, int]:
    """Path -> when it was last changed, of a folder and all below it."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
