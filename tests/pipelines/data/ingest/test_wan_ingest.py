"""Ingest with Wan's autoencoder: actors keep it, and latents are those of the frames encoded here."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.autoencoders.wan import WanAutoencoder
from models.config import AutoencoderConfig, UnevenFrames
from models.errors import ConfigError
from pipelines.data.config import DataConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import DatasetInfo, dataset_autoencoder
from tests.pipelines.data.videos import low_rank, write_video

SIZE = 16
LONG = (1, 2, 3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of SHORT and LONG."""
    root = tmp_path_factory.mktemp("clips")
    for index in range(4):
        write_video(root / "short" / f"{index}.mp4", low_rank(20, 3, SIZE, index, phase=1.0 + index))
    for index in LONG:
        write_video(root / "long" / f"{index}.mp4", low_rank(30, 3, SIZE, index, phase=5.0 + index))
    return root / "short", root / "long"


def run(
    clips: tuple[Path, Path], out: Path, wan: Path, uneven: UnevenFrames = "refuse", **data: int
) -> DatasetInfo:
    shape = {"short_frames": 9, "short_stride": 5, "long_frames": 17, "long_stride": 6, "block_bytes": 1}
    return ingest(
        str(clips[0]),
        str(clips[1]),
        str(out),
        DataConfig(height=SIZE, width=SIZE, **{**shape, **data}),
        AutoencoderConfig(kind="wan", pretrained=str(wan), uneven_frames=uneven),
        0,
    )


def check_rows(folder: Path, out: Path, wan: Path, length: int) -> int:
    """Each window of LONG decoded and encoded here, each alone; how many there are."""
    code = WanAutoencoder.load(wan, uneven_frames="pad")
    places = [row for row in pq.read_table(out / "index.parquet").to_pylist() if row["corpus"] == "long"]
    names = {row["source_id"]: row["source"] for row in pq.read_table(out / "manifest.parquet").to_pylist()}
    rows = ShardDataset(str(out), "long")
    found = dict(zip(rows.ids, rows.read(range(len(rows))).latents, strict=True))
    with Decoder(DataConfig().limits) as decoder:
        for row in places:
            clip = decoder.open(folder / names[row["source_id"]], [(SIZE, SIZE)])
            frames = np.concatenate(list(clip.frames))
            window = torch.from_numpy(frames[row["start_frame"] : row["start_frame"] + length])
            expected = code.encode(window[None])[0]
            torch.testing.assert_close(found[row["window_id"]], expected, atol=1e-5, rtol=1e-5)
    return len(places)


@pytest.mark.parametrize(("batch", "actors"), [pytest.param(1, (1, 1), marks=pytest.mark.long), (2, (2, 2))])
def test_rows_are_the_windows_encoded_whatever_the_batch_and_the_actors(
    ray_local: None,
    clips: tuple[Path, Path],
    tmp_path: Path,
    wan_folder: Path,
    batch: int,
    actors: tuple[int, int],
) -> None:
    out = tmp_path / "out"
    info = run(clips, out, wan_folder, encode_batch=batch, min_actors=actors[0], max_actors=actors[1])
    assert (info.short.latent_shape, info.long.latent_shape) == ((3, 4, 2, 2), (5, 4, 2, 2))
    assert (info.long.window_frames, info.long.padded_frames) == (17, 0)
    assert info.autoencoder["crop_safe"] is False
    assert info.autoencoder["reconstruction_error"] is None
    assert check_rows(clips[1], out, wan_folder, 17) == 3 * len(LONG)


def test_windows_are_padded_and_the_dataset_says_so(
    ray_local: None, clips: tuple[Path, Path], tmp_path: Path, wan_folder: Path
) -> None:
    out = tmp_path / "out"
    info = run(clips, out, wan_folder, "pad", short_frames=8, long_frames=15)
    assert info.long.latent_shape == (5, 4, 2, 2)
    assert (info.long.window_frames, info.long.padded_frames) == (17, 2)
    assert (info.short.window_frames, info.short.padded_frames) == (9, 1)
    assert check_rows(clips[1], out, wan_folder, 15) == 3 * len(LONG)
    rows = ShardDataset(str(out), "long").read([0])
    assert dataset_autoencoder(str(out)).decode(rows.latents).shape[1] == info.long.window_frames


def test_windows_are_refused_before_anything_is_decoded(
    ray_local: None, clips: tuple[Path, Path], tmp_path: Path, wan_folder: Path
) -> None:
    with pytest.raises(ConfigError, match="15 frames"):
        run(clips, tmp_path / "out", wan_folder, long_frames=15)
    assert not (tmp_path / "out" / "short").exists()
