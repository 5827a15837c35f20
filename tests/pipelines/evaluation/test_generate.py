"""Videos of systems: the same however the work is cut, with the systems' own steps and shared noise."""

import dataclasses

import numpy as np
import pytest
import torch

from models.errors import ConfigError
from pipelines.checkpoints import load_network
from pipelines.data.store.info import dataset_autoencoder
from pipelines.evaluation import generate
from pipelines.evaluation.generate import Generator, VideoBatch
from pipelines.evaluation.settings import System, video_shape
from pipelines.media.video import read_mp4
from pipelines.world.captions import caption


@pytest.fixture(scope="module")
def shape(settings):
    return video_shape(settings)


def run(settings, shape, batches, out):
    actor = Generator(shape, settings, str(out))
    return [actor(batch) for batch in batches]


def captions(count):
    return [caption(i % 3, i % 5, i % 2) for i in range(count)]


def system(networks, name="mmm_4"):
    student, teacher = networks["student"], networks["teacher"]
    return {
        "mmm_4": System("mmm_4", student, "dm", "few_step", 4, 2),
        "sft_4": System("sft_4", student, "fm", "ode", 4),
        "teacher_rollout": System("teacher_rollout", teacher, "teacher", "windows", 3),
    }[name]


@pytest.mark.parametrize("name", ["mmm_4", "sft_4", "teacher_rollout"])
def test_how_work_is_cut_changes_nothing(settings, shape, networks, tmp_path, name):
    texts = captions(5)
    whole = [VideoBatch(system(networks, name), "seen", 0, 0, tuple(texts))]
    parts = [
        VideoBatch(system(networks, name), "seen", 0, start, tuple(texts[start : start + 2]))
        for start in (0, 2, 4)
    ]
    together = run(settings, shape, whole, tmp_path / "a")[0]
    apart = run(settings, shape, parts, tmp_path / "b")
    for column in ("factors", "rand3d-diff", "st-stats", "temporal"):
        joined = np.concatenate([part[column] for part in apart])
        np.testing.assert_allclose(joined, together[column], rtol=2e-3, atol=2e-3)


def test_draws_groups_and_indices_have_noise_of_their_own(settings, shape, networks, tmp_path):
    text = captions(1) * 2
    one = system(networks)
    batches = [
        VideoBatch(one, "seen", 0, 0, tuple(text)),
        VideoBatch(one, "seen", 1, 0, tuple(text)),
        VideoBatch(one, "unseen", 0, 0, tuple(text)),
    ]
    factors = [part["factors"] for part in run(settings, shape, batches, tmp_path)]
    videos = np.concatenate(factors)
    gaps = np.abs(videos[:, None] - videos[None]).mean(axis=(2, 3)) + np.eye(len(videos))
    assert gaps.min() > 0.1


def test_pixels_are_looked_at_only_where_wanted(settings, shape, networks, tmp_path):
    batch = VideoBatch(system(networks), "unseen", 0, 0, tuple(captions(2)))
    columns = run(settings, shape, [batch], tmp_path)[0]
    assert np.isnan(columns["rand3d-diff"]).all()
    assert np.isfinite(columns["factors"]).all()
    assert not list(tmp_path.rglob("*.mp4"))


def test_the_first_videos_are_kept_as_mp4_and_get_temporal_numbers(settings, shape, networks, tmp_path):
    batch = VideoBatch(system(networks), "seen", 0, 0, tuple(captions(5)))
    columns = run(settings, shape, [batch], tmp_path)[0]
    kept = sorted(path.relative_to(tmp_path / "clips").as_posix() for path in tmp_path.rglob("*.mp4"))
    assert kept == ["mmm_4/000.mp4", "mmm_4/001.mp4"]
    assert read_mp4(tmp_path / "clips" / kept[0]).shape == (32, 64, 64, 3)
    assert np.isfinite(columns["temporal"][:4, 0]).all()
    assert np.isnan(columns["temporal"][4:]).all()
    assert (columns["sampling"] > 0).all()
    assert (columns["decoding"] > 0).all()


def test_evaluations_of_a_video(networks, shape):
    assert shape.evaluations(system(networks), 1.0) == 4
    assert shape.evaluations(system(networks, "teacher_rollout"), 1.0) == 3 * 7
    assert shape.evaluations(system(networks, "teacher_rollout"), 5.0) == 2 * 3 * 7
    assert shape.seconds == 4.0


def test_an_actor_holds_one_network_at_a_time(settings, shape, networks, tmp_path, monkeypatch):
    loaded = []

    def load(folder, device):
        loaded.append((folder, device.type))
        return load_network(folder, device)

    monkeypatch.setattr(generate, "load_network", load)
    names = ["mmm_4", "sft_4", "teacher_rollout", "mmm_4"]
    batches = [VideoBatch(system(networks, name), "unseen", 0, 0, tuple(captions(1))) for name in names]
    run(settings, shape, batches, tmp_path)
    student, teacher = networks["student"], networks["teacher"]
    assert loaded == [(student, "cpu"), (teacher, "cpu"), (student, "cpu")]


def test_an_actor_with_a_gpu_brings_everything_there(settings, shape, networks, tmp_path, monkeypatch):
    places = []

    def load(folder, device):
        places.append(("network", device.type))
        return load_network(folder)

    def autoencoder(folder, device):
        places.append(("autoencoder", device.type))
        return dataset_autoencoder(folder)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(generate, "load_network", load)
    monkeypatch.setattr(generate, "dataset_autoencoder", autoencoder)
    batch = VideoBatch(system(networks), "unseen", 0, 0, tuple(captions(1)))
    run(dataclasses.replace(settings, use_gpu=True), shape, [batch], tmp_path)
    assert places == [("autoencoder", "cuda"), ("network", "cuda")]


def test_a_gpu_that_is_not_there_is_told(settings, shape, networks, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sees no GPU"):
        Generator(shape, dataclasses.replace(settings, use_gpu=True), str(tmp_path))
