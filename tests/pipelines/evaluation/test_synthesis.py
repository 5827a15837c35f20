"""Datasets of generated clips: each clip once, the same bytes however often it was stopped, exact labels."""

import dataclasses
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import webdataset

from models.config import SamplingConfig
from models.errors import DataError
from pipelines.generation import Method
from pipelines.media.video import decode, read_mp4
from pipelines.ray_map import Pool
from pipelines.storage import Storage
from pipelines.synthesis import METADATA, Synthesis, synthesize, world_labels
from pipelines.world.captions import COLOURS, SPEEDS, TEXTURES, caption
from pipelines.world.config import WorldConfig
from pipelines.world.factors import draw_long
from pipelines.world.render import render
from tests.pipelines.evaluation.dying import DIED, Dying

CAPTIONS = (caption(0, 1, 0), caption(3, 4, 1), caption(5, 0, 0))
POOL = Pool(1, 1)


@pytest.fixture(scope="module")
def synthesis(world_dataset, networks):
    return Synthesis(
        checkpoint=networks["student"],
        weights="0" * 64,
        dataset=world_dataset,
        system="MMM, 2 steps",
        method=Method("dm", "few_step", 2),
        sampling=SamplingConfig(steps=(1.0, 0.5)),
        seed=7,
        frames=32,
        form="mp4",
        captions=CAPTIONS,
        is_world=True,
        batch=2,
        part=3,
    )


@pytest.fixture(scope="module")
def whole(ray_local, synthesis, tmp_path_factory):
    out = tmp_path_factory.mktemp("synthesis") / "whole"
    assert synthesize(synthesis, 7, str(out), POOL) == 7
    return out


def rows_of(folder: Path):
    return [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]


def load(folder: Path, cache: Path):
    """As `datasets` reads a folder of which it is told nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        return datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))


def contents(folder: Path):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_folder_opens_as_video_folders_do(whole):
    rows = rows_of(whole)
    assert [row["sample"] for row in rows] == list(range(7))
    assert len({row["id"] for row in rows}) == 7
    assert all(read_mp4(whole / row["file_name"]).shape == (32, 64, 64, 3) for row in rows)
    assert {row["system"] for row in rows} == {"MMM, 2 steps"}


def test_datasets_opens_it_by_its_folder_alone(whole, tmp_path):
    opened = load(whole, tmp_path).cast_column("video", datasets.Video(decode=False))
    for found, row in zip(opened, rows_of(whole), strict=True):
        assert found.pop("video")["path"] == str(whole / row.pop("file_name"))
        assert found == row


def test_captions_come_equally_often_in_every_round(whole):
    named = [row["caption"] for row in rows_of(whole)]
    assert Counter(named[:3]) == Counter(named[3:6]) == Counter(CAPTIONS)


def test_labels_are_of_the_caption_and_of_every_frame(whole):
    for row in rows_of(whole):
        sky, colour, motion = TEXTURES.index(row["sky"]), COLOURS.index(row["colour"]), row["motion"]
        assert row["caption"] == caption(sky, colour, SPEEDS.index(motion))
        assert len(row["sun"]) == len(row["light"]) == 32


def test_labels_of_the_worlds_own_clips_are_those_they_were_drawn_with():
    clips = draw_long(WorldConfig(size=64), 6, seed=3, grade="clean")
    for factors, text in zip(clips.factors, clips.captions, strict=True):
        labels = world_labels(text, np.stack(list(render(factors, 64))))
        steady = np.abs(factors[:, 6]) == 1
        np.testing.assert_array_equal(np.array(labels["sun"])[steady], (factors[:, 6] > 0)[steady])
        np.testing.assert_allclose(labels["light"], factors[:, 5], atol=0.05)


def test_again_adds_nothing_and_more_adds_the_difference(synthesis, whole, tmp_path):
    before = contents(whole)
    assert synthesize(synthesis, 7, str(whole), POOL) == 0
    assert contents(whole) == before
    out = tmp_path / "grown"
    assert [synthesize(synthesis, count, str(out), POOL) for count in (4, 7)] == [4, 4], "a part is whole"
    assert contents(out) == before


def test_what_a_stop_left_behind_is_made_the_same(synthesis, whole, tmp_path):
    """A part without its ledger, a file that is cut off, unfinished ones, and no metadata yet."""
    out = tmp_path / "stopped"
    synthesize(synthesis, 7, str(out), POOL)
    (out / METADATA).unlink()
    (out / ".parts/00001.json").unlink()
    cut = next((out / "clips/00001").iterdir())
    cut.write_bytes(cut.read_bytes()[:100])
    for name in (METADATA, ".parts/00001.json", f"clips/00001/{cut.name}", "shards/00001.tar"):
        Storage(out).pending(name)
    assert synthesize(synthesis, 7, str(out), POOL) == 3
    assert contents(out) == contents(whole)


@pytest.mark.long
@pytest.mark.kill
def test_a_killed_worker_costs_time_only(synthesis, networks, whole, tmp_path):
    shutil.copytree(networks["student"], tmp_path / "student")
    dying = Dying(**vars(synthesis) | {"checkpoint": str(tmp_path / "student")})
    assert synthesize(dying, 7, str(tmp_path / "made"), POOL) == 7
    assert (tmp_path / "student" / DIED).exists()
    assert contents(tmp_path / "made") == contents(whole)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_tars_open_with_webdataset(synthesis, whole, tmp_path):
    out = tmp_path / "tars"
    synthesize(dataclasses.replace(synthesis, form="webdataset"), 7, str(out), POOL)
    shards = [str(path) for path in sorted((out / "shards").iterdir())]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [row["id"] for row in rows_of(whole)]
    for sample, row in zip(samples, rows_of(whole), strict=True):
        assert sample["txt"].decode() == row["caption"]
        assert json.loads(sample["json"])["sun"] == row["sun"]
        frames = np.stack(list(decode(io.BytesIO(sample["mp4"]))))
        np.testing.assert_array_equal(frames, read_mp4(whole / row["file_name"]))
    assert load(out, tmp_path / "cache")["json"] == [json.loads(sample["json"]) for sample in samples]


def test_clips_of_other_settings_are_not_mixed(synthesis, whole):
    for changes in ({"seed": 8}, {"weights": "1" * 64}, {"captions": CAPTIONS[:2]}):
        with pytest.raises(DataError, match=f"other settings: {next(iter(changes))} differ"):
            synthesize(dataclasses.replace(synthesis, **changes), 7, str(whole), POOL)
