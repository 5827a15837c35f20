"""Sets of real videos: what names them, which rows of a corpus they take, and what is measured."""

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.evaluation import reference, temporal
from pipelines.evaluation.features.extractors import EXTRACTORS
from pipelines.evaluation.reference import CleanSpec, Part, corpus_spec, kept_file, measure_part, measure_real
from pipelines.evaluation.settings import video_shape
from pipelines.media.video import read_mp4
from pipelines.ray_map import Tasks
from pipelines.world.captions import caption
from pipelines.world.config import WorldConfig
from pipelines.world.measures import measure_all
from tests.pipelines.data import bucketed

LABELS = tuple((i % 3, i % 5, i % 2) for i in range(6))


def spec(**changes):
    plain = CleanSpec(
        name="ideal",
        world=WorldConfig(size=64),
        labels=LABELS,
        window_frames=8,
        windows=5,
        temporal=2,
        showcase=1,
        dataset="a",
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "clean"},
        {"world": WorldConfig(size=32)},
        {"world": WorldConfig(size=64, seed=1)},
        {"world": WorldConfig(size=64, crf=23)},
        {"labels": LABELS[::-1]},
        {"window_frames": 4},
        {"windows": 3},
        {"temporal": 1},
        {"showcase": 0},
        {"dataset": "b"},
    ],
    ids=str,
)
def test_a_kept_set_is_named_by_everything_that_decides_it(changes):
    assert kept_file(spec(**changes)) != kept_file(spec())
    assert kept_file(spec()) == kept_file(spec())


def test_captions_are_those_of_the_labels():
    assert spec().captions == [caption(*label) for label in LABELS]


def corpus(name, settings, shown=()):
    return corpus_spec(name, settings, video_shape(settings), shown)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: dataclasses.replace(s, world=None),
        lambda s: dataclasses.replace(s, use_gpu=True),
        lambda s: dataclasses.replace(s, evaluation=dataclasses.replace(s.evaluation, subject="dark_blob")),
        *(
            lambda s, n=name: dataclasses.replace(s, evaluation=dataclasses.replace(s.evaluation, **{n: 3}))
            for name in ("reference_videos", "windows_per_video", "temporal_videos", "showcase")
        ),
    ],
    ids=[
        "world",
        "use_gpu",
        "subject",
        "reference_videos",
        "windows_per_video",
        "temporal_videos",
        "showcase",
    ],
)
def test_a_kept_corpus_is_named_by_everything_that_decides_it(settings, change):
    own = corpus("long", settings)
    assert kept_file(corpus("long", settings)) == kept_file(own)
    assert kept_file(corpus("long", change(settings))) != kept_file(own)
    assert kept_file(corpus("long", settings, own.captions[3:4])) != kept_file(own)
    assert kept_file(dataclasses.replace(own, dataset="other")) != kept_file(own)
    slower = dataclasses.replace(own.clip, fps=1.0)
    assert kept_file(dataclasses.replace(own, clip=slower)) != kept_file(own)


def test_how_the_work_is_done_does_not_decide_it(settings):
    more = dataclasses.replace(settings.evaluation, max_actors=9, batch_size=1, draws=7)
    other = dataclasses.replace(settings, evaluation=more, seed=5, references="elsewhere")
    assert kept_file(corpus("long", other)) == kept_file(corpus("long", settings))


def test_clean_videos_have_the_labels_and_do_not_depend_on_how_they_are_cut(settings):
    whole = measure_part(settings, Part(spec(), range(6)))
    apart = [measure_part(settings, Part(spec(), indices)) for indices in (range(4), range(4, 6))]
    for name in ("factors", *EXTRACTORS):
        joined = np.concatenate([piece[name] for piece in apart])
        np.testing.assert_allclose(joined, whole[name], rtol=1e-5, atol=1e-5)
    exact = measure_all(whole["factors"], np.array(LABELS))
    assert exact["caption_accuracy"] == exact["rule"] == 1
    assert 0 < exact["texture_error"] < 0.2
    assert np.isfinite(whole["temporal"][:2, 0]).all()
    assert np.isnan(whole["temporal"][2:]).all()


def test_a_second_draw_is_another_draw(settings):
    first, second = (measure_part(settings, Part(spec(name=name), range(6))) for name in ("clean", "ideal"))
    assert np.abs(first["factors"] - second["factors"]).mean() > 0.1


def test_corpus_rows_with_the_shown_captions_come_first(settings):
    captions = ShardDataset(settings.dataset, "long").captions
    shown = [captions[7], captions[3], "a caption that is nowhere"]
    found = corpus("long", settings, shown)
    assert found.captions[:2] == shown[:2]
    assert len(set(found.rows)) == len(found.rows) == settings.evaluation.reference_videos
    assert found.captions == [captions[row] for row in found.rows]
    assert found.split == "train"


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_corpus_rows_are_of_the_main_bucket(settings, tmp_path, holdout):
    bucketed.make(tmp_path, holdout)
    here = dataclasses.replace(settings, dataset=str(tmp_path))
    for name in ("short", "long"):
        found = corpus(name, here)
        rows = ShardDataset(str(tmp_path), name, "holdout" if holdout else "train")
        assert found.split == ("holdout" if holdout else "train")
        assert found.rows == rows.main[: here.evaluation.reference_videos]
        assert rows.read(found.rows).latents.shape[1:] == rows.latent_shape


def test_a_short_clip_is_one_window_and_a_long_one_several(ray_local, settings, tmp_path):
    here = dataclasses.replace(settings, references=str(tmp_path))
    specs = [corpus("short", here), corpus("long", here)]
    told = []
    found = measure_real(specs, here, lambda *step: told.append(step))
    assert found["short"].columns["rand3d-diff"].shape[1:] == (1, 64)
    assert found["long"].columns["rand3d-diff"].shape[1:] == (5, 64)
    assert len(found["long"].captions) == 10
    assert told[-1] == ("real videos", 2, 2)
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mp4"))
    assert kept == ["clips/corpus_long/000.mp4", "clips/corpus_long/001.mp4"]
    assert read_mp4(tmp_path / kept[0]).shape == (32, 64, 64, 3)


def test_kept_sets_are_read_and_not_made_again(ray_local, settings, tmp_path):
    here = dataclasses.replace(settings, references=str(tmp_path))
    specs, told = [spec(), corpus("short", here), corpus("long", here)], []
    first = measure_real(specs, here, lambda *step: told.append(step))
    made = len(told)
    again = measure_real(specs, here, lambda *step: told.append(step))
    assert made > 0
    assert len(told) == made
    for one in specs:
        before, after = first[one.name], again[one.name]
        assert after.captions == before.captions == tuple(one.captions)
        assert after.columns.keys() == before.columns.keys()
        for name, column in before.columns.items():
            np.testing.assert_array_equal(after.columns[name], column)


@pytest.mark.parametrize("use_gpu", [False, True])
def test_tasks_ask_for_what_they_work_on(settings, tmp_path, monkeypatch, use_gpu):
    here = dataclasses.replace(settings, references=str(tmp_path), use_gpu=use_gpu)
    given = []

    def run(work, parts, workers, progress):
        given.append(workers)
        return [{"factors": np.zeros((10, 1, 1))}]

    monkeypatch.setattr(reference, "ray_map_all", run)
    measure_real([corpus("long", here)], here, lambda *_: None)
    assert given == [Tasks(here.evaluation.max_actors, use_gpu)]


@pytest.mark.parametrize("made", ["ideal", "short", "long"])
def test_a_task_with_a_gpu_has_its_autoencoder_there(settings, tmp_path, monkeypatch, made):
    here = dataclasses.replace(settings, references=str(tmp_path), use_gpu=True)
    places = []

    def autoencoder(folder, device):
        places.append(device.type)
        return dataset_autoencoder(folder)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(reference, "dataset_autoencoder", autoencoder)
    measure_part(here, Part(spec() if made == "ideal" else corpus(made, here), range(1)))
    assert places == ["cuda"]


def test_a_kept_set_without_a_metric_is_measured_again(settings, tmp_path, monkeypatch):
    here, one = dataclasses.replace(settings, references=str(tmp_path)), spec(labels=LABELS[:1])
    measured = []

    def run(work, parts, workers, progress):
        measured.extend(parts)
        return [work(part) for part in parts]

    monkeypatch.setattr(reference, "ray_map_all", run)
    measure_real([one], here, lambda *_: None)
    monkeypatch.setitem(temporal.METRICS, "length", lambda video: float(len(video)))
    assert measure_real([one], here, lambda *_: None)["ideal"].temporal()["length"] == 32
    assert measure_real([one], here, lambda *_: None)["ideal"].temporal()["length"] == 32
    assert len(measured) == 2
