"""Batches are a function of (seed, step) only: any number of workers, any stop, read ahead or not."""

import dataclasses
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from models.errors import DataError
from models.rng import Key
from pipelines.training.batches import BatchSource, caption_pool
from pipelines.training.collectives import Workers
from pipelines.training.config import DistillConfig, StageConfig
from pipelines.training.distill import DistillStage
from pipelines.training.stage import Batches
from tests.pipelines.data.made import COUNT, make
from tests.pipelines.training import makers

STAGE = StageConfig(steps=40, short_batch=12, long_batch=4)
TWO_EPOCHS = 15
"""Steps that show 180 SHORT and 60 LONG rows."""
STOPS = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("batches")
    make(folder)
    return str(folder)


def source(dataset: str, rank: int = 0, size: int = 1) -> BatchSource:
    return BatchSource(dataset, STAGE, 3, Workers(rank, size))


def latents(batches: Batches) -> dict[str, torch.Tensor]:
    assert batches.short is not None
    assert batches.long is not None
    return {"short": batches.short.latents, "long": batches.long.latents}


@pytest.fixture(scope="module")
def unbroken(dataset: str) -> list[dict[str, torch.Tensor]]:
    alone = source(dataset)
    return [latents(alone.at(step, "cpu")) for step in range(STOPS + 2)]


def test_each_epoch_shows_every_window_once_at_the_set_ratio(
    unbroken: list[dict[str, torch.Tensor]],
) -> None:
    for corpus, batch in (("short", 12), ("long", 4)):
        assert {len(step[corpus]) for step in unbroken} == {batch}
        shown = Counter(row.numpy().tobytes() for step in unbroken[:TWO_EPOCHS] for row in step[corpus])
        assert set(shown.values()) == {2}
        assert len(shown) == COUNT[corpus]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stop_at_any_step_and_any_number_of_workers_change_no_batch(
    size: int, dataset: str, unbroken: list[dict[str, torch.Tensor]]
) -> None:
    """Each stop is a new reader that begins at that step."""
    for stop in range(STOPS):
        readers = [source(dataset, rank, size) for rank in range(size)]
        for step in (stop, stop + 1):
            shares = [latents(reader.at(step, "cpu")) for reader in readers]
            for corpus in ("short", "long"):
                together = torch.cat([share[corpus] for share in shares])
                assert torch.equal(together, unbroken[step][corpus])


def test_a_curriculum_cuts_long_clips_to_their_first_frames(
    dataset: str, unbroken: list[dict[str, torch.Tensor]]
) -> None:
    whole = unbroken[0]["long"].shape[1]
    stage = dataclasses.replace(STAGE, lengths=((1, 2), (3, 4), (5, whole + 7), (6, None)))
    reader = BatchSource(dataset, stage, 3, Workers())
    for step, frames in enumerate((whole, 2, 2, 4, 4, whole, whole)):
        own = latents(reader.at(step, "cpu"))
        assert torch.equal(own["long"], unbroken[step]["long"][:, :frames])
        assert torch.equal(own["short"], unbroken[step]["short"])


def test_rollout_captions_come_from_the_corpora_or_from_a_file(dataset: str, tmp_path: Path) -> None:
    pool = caption_pool(DistillConfig(), dataset)
    assert {name: len(captions) for name, captions in pool.items()} == COUNT
    file = tmp_path / "captions.txt"
    file.write_text("a blue sun\n\n  été, slow waves \n", encoding="utf-8")
    config = DistillConfig(captions=str(file))
    assert caption_pool(config, dataset) == {"file": ["a blue sun", "été, slow waves"]}
    stage = DistillStage(makers.recipe(config), caption_pool(config, dataset))
    assert set(stage.rollouts.captions_at(Key(0))) == {"a blue sun", "été, slow waves"}


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe\n"])
def test_a_file_without_captions_is_told(content: bytes | None, dataset: str, tmp_path: Path) -> None:
    file = tmp_path / "captions.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"captions\.txt"):
        caption_pool(DistillConfig(captions=str(file)), dataset)


def test_steps_may_be_asked_for_in_any_order(dataset: str, unbroken: list[dict[str, torch.Tensor]]) -> None:
    reader = source(dataset)
    for step in (7, 3, 4, 5, 0, 14, 14):
        assert torch.equal(latents(reader.at(step, "cpu"))["long"], unbroken[step]["long"])


def test_the_next_batch_is_read_while_this_one_is_used(dataset: str) -> None:
    reader = source(dataset)
    reader.at(0, "cpu")
    assert reader._next is not None
    step, reading = reader._next
    assert step == 1
    reading.result(timeout=60)
    began = time.monotonic()
    reader.at(1, "cpu")
    assert time.monotonic() - began < 0.05


def test_damage_found_ahead_is_told_when_its_step_comes(dataset: str, tmp_path: Path) -> None:
    make(tmp_path)
    for shard in tmp_path.glob("long/*.parquet"):
        shard.write_bytes(b"no shard")
    with pytest.raises(DataError, match="damaged"):
        source(str(tmp_path)).at(0, "cpu")
