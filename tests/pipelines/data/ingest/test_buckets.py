"""Videos of several lengths and two aspect ratios in one dataset, each cut as its shots allow."""

import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.autoencoders.kinds import autoencoder_kind
from models.config import AutoencoderConfig
from models.errors import ConfigError, DataError
from pipelines.data.checks import check_data
from pipelines.data.config import DataConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.report.page import bucket_rows, inspect_dataset
from pipelines.data.report.summary import read_tables, summarise
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import FORMAT, DatasetInfo, dataset_autoencoder, dataset_version, read_info
from pipelines.storage import Storage, hash_of
from tests.pipelines.data import bucketed
from tests.pipelines.data.bucketed import DATA, LONG, MADE_ROWS, SHORT, SIZES, WINDOWS, latents_of

FIT = AutoencoderConfig(patch_size=8, components=6, fit_frames=120)


class Ingested(NamedTuple):
    """A dataset and the folder of its two corpora."""

    corpora: Path
    out: Path
    info: DatasetInfo


@pytest.fixture(scope="module")
def ingested(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    folder = tmp_path_factory.mktemp("buckets")
    short, long = bucketed.write_corpora(folder)
    return Ingested(folder, folder / "out", ingest(str(short), str(long), str(folder / "out"), DATA, FIT, 0))


def index(out: Path, corpus: str) -> list[dict[str, Any]]:
    rows = pq.read_table(out / "index.parquet").to_pylist()
    return [row for row in rows if row["corpus"] == corpus]


def test_each_shot_has_windows_of_the_longest_length_that_it_holds(ingested: Ingested) -> None:
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in LONG}
    for row in index(ingested.out, "long"):
        found[row["source"].removesuffix(".mp4")].append((row["start_frame"], row["num_frames"]))
    assert {name: sorted(windows) for name, windows in found.items()} == WINDOWS


def test_rows_are_the_encoded_frames_of_their_windows_at_the_nearest_size(ingested: Ingested) -> None:
    """Every window of both corpora: the video decoded once more at the size it is to have, cut by hand."""
    code, shapes = dataset_autoencoder(str(ingested.out)), set()
    with Decoder(DATA.limits) as decoder:
        for corpus, videos in (("short", SHORT), ("long", LONG)):
            dataset = ShardDataset(str(ingested.out), corpus)  # type: ignore[arg-type]
            places = {window_id: place for place, window_id in enumerate(dataset.ids)}
            for row in index(ingested.out, corpus):
                size, _ = videos[row["source"].removesuffix(".mp4")]
                clip = decoder.open(ingested.corpora / corpus / row["source"], [SIZES[size]])
                frames = np.concatenate(list(clip.frames))
                window = frames[row["start_frame"] : row["start_frame"] + row["num_frames"]]
                expected = code.encode(torch.from_numpy(window)[None])
                found = dataset.read([places[row["window_id"]]])
                assert found.latents.shape == expected.shape
                np.testing.assert_allclose(found.latents, expected, atol=1e-4)
                shapes.add(tuple(found.latents.shape[1:]))
    assert shapes == {(n, 6, *hw) for n in (8, 16, 24) for hw in ((4, 6), (6, 4))}


def test_the_description_counts_each_bucket_and_shards_have_one_shape(ingested: Ingested) -> None:
    info = read_info(str(ingested.out))
    assert info == ingested.info == DatasetInfo.from_json(info.to_json())
    assert info.long.latent_shape == info.long.buckets[0].latent_shape == (24, 6, 4, 6)
    assert {b.pixels: b.windows for b in info.long.buckets} == {
        (24, 32, 48): 3, (16, 32, 48): 2, (8, 32, 48): 1, (24, 48, 32): 2, (16, 48, 32): 1, (8, 48, 32): 1
    }  # fmt: skip
    assert [b.windows for b in info.short.buckets] == [4, 4]
    for file in info.long.files:
        own = [row for row in index(ingested.out, "long") if row["file"] == file.file]
        assert {row["num_frames"] for row in own} == {file.pixels[0]}
        assert len(own) == file.rows
        stored = pq.ParquetFile(ingested.out / file.file).schema_arrow.field("latents").type.shape
        assert tuple(stored) == info.long.shape_of(file)
    assert info.long.latent_bytes == sum(24 * b.pixels[0] * 6 * 4 * b.windows for b in info.long.buckets)


def test_what_no_length_fits_is_told(ingested: Ingested) -> None:
    (reject,) = pq.read_table(ingested.out / "rejects.parquet").to_pylist()
    assert (reject["path"], reject["stage"]) == ("h_less.mp4", "window")
    assert reject["reason"] == "7 frames, a window of LONG needs 8"
    tails = {
        row["source"]: row["tail_frames"]
        for row in pq.read_table(ingested.out / "manifest.parquet").to_pylist()
    }
    assert (tails["a_wide.mp4"], tails["g_shots.mp4"], tails["e_tall.mp4"]) == (12, 13, 7)


def test_the_buckets_are_reported(ingested: Ingested, tmp_path: Path) -> None:
    rows = bucket_rows(summarise(read_tables(str(ingested.out))))
    assert rows[2] == ("LONG", 24, "48x32", "[24, 6, 4, 6]", 3)
    assert len(rows) == 8
    inspect_dataset(str(ingested.out), str(tmp_path), "buckets")
    assert "<h2>Buckets</h2>" in (tmp_path / "report.html").read_text()


def test_ingest_again_finds_nothing_to_do(ingested: Ingested, tmp_path: Path) -> None:
    shutil.copytree(ingested.out, tmp_path / "out")
    short, long = str(ingested.corpora / "short"), str(ingested.corpora / "long")
    shards = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0*.parquet")}
    assert ingest(short, long, str(tmp_path / "out"), DATA, FIT, 0) == ingested.info
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*-0*.parquet")} == shards


def test_a_corpus_without_the_main_shape_is_refused(
    ray_local: None, ingested: Ingested, tmp_path: Path
) -> None:
    long = tmp_path / "long"
    long.mkdir()
    for name in ("b_wide", "d_tall"):
        shutil.copy(ingested.corpora / "long" / f"{name}.mp4", long)
    with pytest.raises(DataError, match="no window has 24 frames of 48x32 pixels, only") as caught:
        ingest(str(ingested.corpora / "short"), str(long), str(tmp_path / "out"), DATA, FIT, 0)
    assert "16 of 48x32, 24 of 32x48" in caught.value.problem
    assert "data.long_frames" in caught.value.remedy


def test_rows_of_one_bucket_are_read_together_and_no_others(tmp_path: Path) -> None:
    info = bucketed.make(tmp_path)
    for corpus, counts in MADE_ROWS.items():
        dataset = ShardDataset(str(tmp_path), corpus)  # type: ignore[arg-type]
        assert sorted(np.concatenate(dataset.buckets)) == list(range(len(dataset)))
        assert dataset.main == dataset.buckets[0].tolist()
        shapes = [bucket.latent_shape for bucket in info.corpus(corpus).buckets]
        assert Counter({shape: len(rows) for shape, rows in zip(shapes, dataset.buckets, strict=True)}) == {
            latents_of(pixels): count for pixels, count in counts.items()
        }
        for shape, rows in zip(shapes, dataset.buckets, strict=True):
            assert dataset.read(rows.tolist()).latents.shape == (len(rows), *shape)
        with pytest.raises(ValueError, match="read together"):
            dataset.read([int(dataset.buckets[0][0]), int(dataset.buckets[1][0])])


def test_lengths_that_the_autoencoder_pads_to_one_are_one_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 11 and of 12 frames with latents of 12: the main bucket, though those of 11 are more."""
    rows = {"short": {(4, 8, 8): 5}, "long": {(6, 8, 8): 4, (12, 8, 8): 6, (11, 8, 8): 9}}
    monkeypatch.setattr(bucketed, "MADE_ROWS", rows)
    monkeypatch.setattr(bucketed, "latents_of", lambda p: latents_of((12 if p[0] == 11 else p[0], *p[1:])))
    bucketed.make(tmp_path)
    dataset = ShardDataset(str(tmp_path), "long")
    assert [len(bucket) for bucket in dataset.buckets] == [15, 4]
    assert dataset.read(dataset.main).latents.shape == (15, 12, 3, 2, 2)


def test_settings_without_buckets_keep_their_version_and_others_have_their_own() -> None:
    """The version is the hash of the settings that there were before buckets and learned codes."""
    plain = asdict(DataConfig())
    spread = "short long links limits block_bytes max_reject_share encode_batch min_actors max_actors"
    settings = {name: value for name, value in plain.items() if name not in spread.split()}
    before = {name: value for name, value in settings.items() if name not in ("shapes", "long_lengths")}
    version = dataset_version(DataConfig(), FIT, 0)
    code = {name: value for name, value in asdict(FIT).items() if name != "fit_steps"}
    assert version == hash_of([FORMAT, before, code, 0])[:12]
    others = [DataConfig(long_lengths=(16,)), DataConfig(shapes=((64, 128),)), DataConfig(long_lengths=(8,))]
    assert len({version, *(dataset_version(data, FIT, 0) for data in others)}) == 4


@pytest.mark.parametrize(
    ("stride", "cuts"),
    [(32, ((32, 32), (16, 16), (9, 9))), (16, ((32, 16), (16, 8), (9, 4))), (2, ((32, 2), (16, 1), (9, 1)))],
)
def test_shorter_windows_overlap_in_the_same_proportion(
    stride: int, cuts: tuple[tuple[int, int], ...]
) -> None:
    data = DataConfig(long_frames=32, long_stride=stride, long_lengths=(9, 16))
    assert data.cuts_of("long") == cuts
    assert data.cuts_of("short") == ((8, 8),)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"long_lengths": (32,)}, "long_lengths"),
        ({"long_lengths": (7,)}, "long_lengths"),
        ({"long_lengths": (16, 16)}, "long_lengths"),
        ({"shapes": ((0, 8),)}, "shapes"),
        ({"shapes": ((64, 64),)}, "aspect ratio twice"),
        ({"shapes": ((64, 32), (128, 64))}, "aspect ratio twice"),
    ],
)
def test_lengths_and_sizes_that_no_window_can_have_are_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        check_data(replace(DataConfig(), **change))
    assert caught.value.remedy


@pytest.mark.parametrize(("patch", "fine"), [(0, False), (16, True), (24, False), (32, True)])
def test_sizes_that_a_linear_code_does_not_tile_are_refused_before_a_file_is_read(
    patch: int, fine: bool, tmp_path: Path
) -> None:
    data, code = DataConfig(shapes=((64, 96),)), AutoencoderConfig(patch_size=patch)
    if fine:
        autoencoder_kind(code).check_sizes(data.sizes)
        return
    with pytest.raises(ConfigError, match="does not tile") as caught:
        ingest("nowhere", "nowhere", str(tmp_path / "out"), data, code, 0)
    assert "autoencoder.patch_size" in caught.value.remedy
    assert not Storage(tmp_path).list()
