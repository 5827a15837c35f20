"""Rows are the same whether the corpus is held or read, and damage is noticed either way."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.autoencoders.pca import PcaAutoencoder
from models.errors import ClusterError, DataError
from pipelines.data.store import shards
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.index import is_holdout
from pipelines.data.store.info import INFO_FILE, DatasetInfo, dataset_autoencoder, read_info, write_sealed
from pipelines.storage import Storage
from tests.pipelines.data.made import ROW_BYTES, SHAPE, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_BYTES", 7 * ROW_BYTES["short"])
        root = tmp_path_factory.mktemp("made")
        make(root)
        yield root


def test_held_and_read_rows_are_the_same(made: Path) -> None:
    held = ShardDataset(str(made), "short")
    read = ShardDataset(str(made), "short", memory_bytes=3 * 7 * ROW_BYTES["short"])
    assert len(held) == len(read) == 90
    assert held.ids == read.ids == sorted(held.ids)
    assert held.captions == read.captions
    wanted = np.random.default_rng(1).permutation(90)
    for part in np.split(wanted, 9):
        a, b = held.read(list(part)), read.read(list(part))
        assert torch.equal(a.latents, b.latents)
        assert a.ids == b.ids == [held.ids[i] for i in part]
        assert a.captions == [held.captions[i] for i in part]


def test_rows_are_float_tensors_of_the_windows_shape(made: Path) -> None:
    for corpus, shape in SHAPE.items():
        dataset = ShardDataset(str(made), corpus)
        rows = dataset.read([0, 0, 5])
        assert rows.latents.shape == (3, *shape)
        assert rows.latents.dtype == torch.float32
        assert torch.equal(rows.latents[0], rows.latents[1])
        assert dataset.latent_shape == shape
        assert dataset.read([]).latents.shape == (0, *shape)


def test_a_row_may_be_changed_without_harm(made: Path) -> None:
    dataset = ShardDataset(str(made), "short")
    before = dataset.read([3]).latents.clone()
    dataset.read([3]).latents.zero_()
    assert torch.equal(dataset.read([3]).latents, before)


def test_memory_stays_bounded(made: Path) -> None:
    bound = 2 * 7 * ROW_BYTES["short"]
    dataset = ShardDataset(str(made), "short", memory_bytes=bound)
    for index in range(90):
        dataset.read([index])
        assert dataset._cache.held_bytes <= bound
    assert dataset._cache.held_bytes > bound // 2


def test_memory_stays_bounded_though_few_windows_of_large_files_count(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "d")
    info = read_info(str(made))
    write_sealed(Storage(tmp_path / "d"), replace(info, short=replace(info.short, windows=1)).to_json())
    bound = 2 * 7 * ROW_BYTES["short"]
    dataset = ShardDataset(str(tmp_path / "d"), "short", memory_bytes=bound)
    dataset.read(range(90))
    assert dataset._cache.held_bytes <= bound


def test_row_groups_read_last_are_not_read_again(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShardDataset(str(made), "short", memory_bytes=2 * 7 * ROW_BYTES["short"])
    opened = []
    original = shards.open_shard
    monkeypatch.setattr(shards, "open_shard", lambda *a: opened.append(a) or original(*a))
    for _ in range(5):
        dataset.read([4])
    assert len(opened) == 1


def test_a_row_that_is_not_there(made: Path) -> None:
    with pytest.raises(IndexError):
        ShardDataset(str(made), "long").read([30])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_holdout_is_a_fixed_share_of_the_ids(share: float, tmp_path: Path) -> None:
    info = make(tmp_path, holdout=share)
    train, held_out = (ShardDataset(str(tmp_path), "short", split) for split in ("train", "holdout"))
    assert set(train.ids).isdisjoint(held_out.ids)
    assert len(train) + len(held_out) == info.short.windows == 90
    assert len(held_out) == info.short.holdout_windows
    assert abs(len(held_out) / 90 - share) < 0.15
    assert all(is_holdout(i, share) for i in held_out.ids)


def test_no_holdout_keeps_everything() -> None:
    assert not any(is_holdout(str(i), 0.0) for i in range(1000))
    assert 850 < sum(is_holdout(str(i), 0.9) for i in range(1000)) < 950


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("memory_bytes", [1 << 30, 7 * ROW_BYTES["short"]])
def test_no_flipped_bit_passes(memory_bytes: int, made: Path, tmp_path: Path) -> None:
    """Anywhere in the file: pages, headers, footer, magic; held at once or read later."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    path = copy / "short" / "shard1-00000.parquet"
    whole = path.read_bytes()
    for place in np.random.default_rng(2).integers(0, len(whole), 40):
        flip(path, int(place))
        with pytest.raises(DataError, match=r"short/shard1-00000\.parquet is damaged"):
            ShardDataset(str(copy), "short", memory_bytes=memory_bytes).read(range(90))
        path.write_bytes(whole)
    assert len(ShardDataset(str(copy), "short").read(range(90)).ids) == 90


@pytest.mark.parametrize("name", ["index.parquet", "dataset.json"])
def test_no_flipped_bit_of_the_tables_passes(name: str, made: Path, tmp_path: Path) -> None:
    """Nothing but a DataError, or, where JSON means the same, the same rows."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    whole = (copy / name).read_bytes()
    ids = ShardDataset(str(copy), "long").ids
    noticed = 0
    for place in np.random.default_rng(3).integers(0, len(whole), 60):
        flip(copy / name, int(place))
        try:
            assert ShardDataset(str(copy), "long").ids == ids
        except (DataError, ClusterError):
            noticed += 1
        (copy / name).write_bytes(whole)
    assert noticed > 50


def test_missing_and_exchanged_files_are_noticed(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    shutil.copy(copy / "short" / "shard0-00000.parquet", copy / "short" / "shard1-00000.parquet")
    with pytest.raises(DataError, match="sha256"):
        ShardDataset(str(copy), "short").read(range(90))
    (copy / "short" / "shard1-00000.parquet").unlink()
    with pytest.raises(ClusterError, match="No such file") as caught:
        ShardDataset(str(copy), "short").read(range(90))
    assert caught.value.remedy


def test_the_description_survives_json(made: Path) -> None:
    info = read_info(str(made))
    assert DatasetInfo.from_json(info.to_json()) == info
    assert info.corpus("long") is info.long
    assert info.short.latent_bytes == 90 * ROW_BYTES["short"]


@pytest.mark.parametrize("damage", ["{", '{"complete": true}', '{"complete": true, "short": {}}'])
def test_a_damaged_description_is_named(damage: str, made: Path, tmp_path: Path) -> None:
    try:
        write_sealed(Storage(tmp_path), json.loads(damage))
    except json.JSONDecodeError:
        (tmp_path / INFO_FILE).write_text(damage)
    with pytest.raises(Exception, match="damaged") as caught:
        read_info(str(tmp_path))
    assert caught.value.remedy


def test_the_autoencoder_is_read_from_any_storage(made: Path) -> None:
    remote = Storage("memory://dataset-autoencoder")
    remote.put_folder(made / "autoencoder", "autoencoder")
    local, far = dataset_autoencoder(str(made)), dataset_autoencoder(remote)
    assert isinstance(local, PcaAutoencoder)
    assert isinstance(far, PcaAutoencoder)
    assert torch.equal(local.basis, far.basis)


def test_a_dataset_in_an_object_store_reads_alike(made: Path) -> None:
    remote = Storage("memory://dataset-whole")
    remote.put_folder(made, "d")
    for memory_bytes in (1, 1 << 30):
        far = ShardDataset(remote.child("d"), "long", memory_bytes=memory_bytes)
        near = ShardDataset(str(made), "long")
        assert torch.equal(far.read([7, 2]).latents, near.read([7, 2]).latents)
