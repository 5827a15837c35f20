"""Curation through the whole of ingest: shots, stills and doubles end where they should, and say so."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.config import AutoencoderConfig
from models.errors import ConfigError, DataError
from pipelines.data.config import CurationConfig, DataConfig
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import DatasetInfo
from tests.pipelines.data.videos import Frames, write_video

FIT = AutoencoderConfig(patch_size=8, components=6, fit_frames=120)
DATA = DataConfig(
    height=32, width=32, short_frames=8, short_stride=8, long_frames=16, long_stride=8, max_reject_share=0.9
)
SIZE = 64


class Corpora(NamedTuple):
    """Two folders."""

    short: Path
    long: Path


def scene(number: int, count: int, still: bool = False) -> Frames:
    """Smooth colours that drift; another number is quite another picture."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    shape, speed = rng.uniform(1, 3, (3, 2)), rng.uniform(0.04, 0.08, 3)
    times = np.zeros(count) if still else np.arange(count)
    waves = [
        np.sin(6 * (a * x + b * y) + v * times[:, None, None] + number)
        for (a, b), v in zip(shape, speed, strict=True)
    ]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def write_corpora(root: Path) -> Corpora:
    """SHORT: two plain clips, a still, one clip encoded twice. LONG: two shots of 30 and 20, and one that
    nearly is a SHORT clip."""
    short, long = root / "short", root / "long"
    for name, frames, crf in (
        ("one", scene(1, 24), "18"),
        ("two", scene(2, 24), "18"),
        ("still", scene(3, 24, still=True), "18"),
        ("two_again", scene(2, 24), "25"),
    ):
        write_video(short / f"{name}.mp4", frames, crf=crf)
    write_video(long / "shots.mp4", np.concatenate([scene(10, 30), scene(11, 20)]), crf="18")
    write_video(long / "one.mp4", scene(1, 24), crf="22")
    return Corpora(short, long)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Corpora:
    return write_corpora(tmp_path_factory.mktemp("curated"))


def run(corpora: Corpora, out: Path, **curation: Any) -> DatasetInfo:
    data = replace(DATA, curation=CurationConfig(**curation))
    return ingest(str(corpora.short), str(corpora.long), str(out), data, FIT, 0)


def index(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "index.parquet").to_pylist()


def starts(out: Path, source: str) -> list[tuple[int, int]]:
    return [(r["start_frame"], r["shot"]) for r in index(out) if r["source"] == source and r["kept"]]


def test_no_window_straddles_a_cut_unless_asked(ray_local: None, curated: Corpora, tmp_path: Path) -> None:
    run(curated, tmp_path / "cut")
    assert starts(tmp_path / "cut", "shots.mp4") == [(0, 0), (8, 0), (30, 1)]
    (row,) = (
        r for r in pq.read_table(tmp_path / "cut/manifest.parquet").to_pylist() if r["source"] == "shots.mp4"
    )
    assert (row["num_frames"], row["num_windows"], row["tail_frames"]) == (50, 3, 10)
    run(curated, tmp_path / "whole", cuts=False)
    assert starts(tmp_path / "whole", "shots.mp4") == [(s, 0) for s in (0, 8, 16, 24, 32)]


def test_a_still_is_dropped_with_its_reason_and_its_scores(
    ray_local: None, curated: Corpora, tmp_path: Path
) -> None:
    info = run(curated, tmp_path, min_motion=0.01)
    rows = [r for r in index(tmp_path) if r["source"] == "still.mp4"]
    assert [(r["start_frame"], r["reason"], r["kept"], r["file"]) for r in rows] == [
        (s, "min_motion", False, "") for s in (0, 8, 16)
    ]
    assert all(r["motion"] < 0.01 < 0.3 < r["brightness"] < 0.7 for r in rows)
    (reject,) = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    assert (reject["path"], reject["stage"]) == ("still.mp4", "curation")
    assert reject["reason"] == "each of 3 windows: min_motion"
    assert info.short.dropped_windows == 3
    assert not [i for i in ShardDataset(str(tmp_path), "short").ids if rows[0]["source_id"][:32] in i]


def test_one_of_two_encodings_is_kept(ray_local: None, curated: Corpora, tmp_path: Path) -> None:
    run(curated, tmp_path / "off")
    assert all(r["kept"] for r in index(tmp_path / "off"))
    info = run(curated, tmp_path / "on", duplicate_distance=8)
    rows = index(tmp_path / "on")
    dropped = {r["window_id"]: r for r in rows if not r["kept"]}
    assert {r["source"] for r in dropped.values()} in ({"two.mp4"}, {"two_again.mp4"})
    assert len(dropped) == info.short.dropped_windows == 3
    ids = {r["window_id"] for r in rows if r["kept"]}
    assert all(r["reason"].removeprefix("near duplicate of ") in ids for r in dropped.values())
    assert set(ShardDataset(str(tmp_path / "on"), "short").ids) == {i for i in ids if i.startswith("short")}


def test_across_the_corpora_the_long_window_is_kept(
    ray_local: None, curated: Corpora, tmp_path: Path
) -> None:
    """Windows of SHORT and LONG have other lengths: their first, middle and last frames differ in time."""
    data = replace(DATA, long_frames=8, curation=CurationConfig(duplicate_distance=8, duplicates_across=True))
    info = ingest(str(curated.short), str(curated.long), str(tmp_path), data, FIT, 0)
    assert not starts(tmp_path, "one.mp4") or {
        r["corpus"] for r in index(tmp_path) if r["source"] == "one.mp4" and r["kept"]
    } == {"long"}
    assert info.long.dropped_windows == 0


def test_a_whole_corpus_of_stills_names_what_to_loosen(
    ray_local: None, curated: Corpora, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="SHORT: 4 of 4 videos were rejected") as caught:
        run(curated, tmp_path, min_brightness=0.9)
    assert "data.curation" in caught.value.remedy


def test_impossible_curation_is_refused_before_any_work(curated: Corpora, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.curation\.duplicates_across = True"):
        run(curated, tmp_path, duplicates_across=True)
    assert not any(tmp_path.iterdir())
