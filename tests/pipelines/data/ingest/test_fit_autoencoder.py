"""The autoencoder is fitted on the same frames on every run, half of each corpus."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.autoencoders.conv import ConvAutoencoder
from models.autoencoders.pca import PcaAutoencoder
from models.config import AutoencoderConfig
from models.errors import CheckpointError, ClusterError, ConfigError
from pipelines.data.ingest import fit_autoencoder as fit
from pipelines.data.ingest.fit_autoencoder import _draw, _groups, prepare_autoencoder, sample_group
from pipelines.data.ingest.worker import Group, Task
from pipelines.data.source.manifest import Source, list_corpus
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.types import CORPORA
from pipelines.storage import Storage
from tests.pipelines.data.corpora import DATA, SIZE
from tests.pipelines.data.videos import low_rank


def listed(count: int) -> list[Source]:
    return [Source(id=f"{i:064x}", path=f"{i}.mp4", caption="", num_bytes=1) for i in range(count)]


@pytest.mark.parametrize(
    ("videos", "frames", "drawn", "each"),
    [(3000, 1250, 625, 2), (192, 1250, 179, 7), (8, 1250, 8, 157), (37, 1250, 37, 34), (1, 2, 1, 2)],
)
def test_many_videos_give_few_frames_each_and_few_give_many(
    videos: int, frames: int, drawn: int, each: int
) -> None:
    picked, picks = _draw(listed(videos), frames, seed=0)
    assert (len(picked), picks) == (drawn, each)
    assert len({source.id for source in picked}) == drawn
    assert frames <= drawn * each < frames + each + drawn


def test_the_draw_is_the_seeds_not_the_listings() -> None:
    def ids(videos: list[Source], seed: int) -> list[str]:
        return [source.id for source in _draw(videos, 20, seed)[0]]

    videos = listed(100)
    assert ids(videos, 0) == ids(videos[::-1], 0)
    assert ids(videos, 0) != ids(videos, 1)
    assert ids(videos, 0) != [video.id for video in videos[:10]]


def test_groups_are_bounded_by_the_bytes_of_their_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "GROUP_BYTES", 100)
    groups = _groups("short", listed(7), 3, frame_bytes=10)
    assert [len(group.sources) for group in groups] == [3, 3, 1]
    assert groups[0].picks == 3
    assert _groups("short", [], 3, frame_bytes=10) == []


def make_task(corpora: tuple[Path, Path], out: Path) -> Task:
    folders = {"short": str(corpora[0]), "long": str(corpora[1])}
    return Task(out=str(out), folders=folders, version=out.name, data=DATA)


def videos(corpora: tuple[Path, Path]) -> dict[str, list[Source]]:
    return {name: list_corpus(folder).sources for name, folder in zip(CORPORA, corpora, strict=True)}


def test_what_is_there_is_not_fitted_again(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "config.json").write_text("{}")
    prepare_autoencoder(
        make_task(corpora, tmp_path), videos(corpora), AutoencoderConfig(), 0, lambda *step: None
    )
    assert (tmp_path / "autoencoder" / "config.json").read_text() == "{}"


def test_the_sample_is_bounded_in_bytes(
    ray_local: None, corpora: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "SAMPLE_BYTES", 40 * 32 * 32 * 3)
    seen = []
    original = PcaAutoencoder.fit
    monkeypatch.setattr(
        PcaAutoencoder, "fit", lambda frames, *rest: seen.append(frames) or original(frames, *rest)
    )
    config = AutoencoderConfig(components=4)
    prepare_autoencoder(make_task(corpora, tmp_path), videos(corpora), config, 0, lambda *step: None)
    assert 40 <= len(seen[0]) <= 48
    code = dataset_autoencoder(str(tmp_path))
    assert code.channels == 4


def test_another_seed_samples_other_frames(
    ray_local: None, corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    codes = []
    for seed in (0, 0, 1):
        out = tmp_path / f"{len(codes)}"
        config = AutoencoderConfig(components=3, fit_frames=24)
        prepare_autoencoder(make_task(corpora, out), videos(corpora), config, seed, lambda *step: None)
        code = dataset_autoencoder(str(out))
        assert isinstance(code, PcaAutoencoder)
        codes.append(code.scale)
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_a_network_is_learned_with_its_progress_shown_and_comes_out_the_same(
    ray_local: None, corpora: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    config = AutoencoderConfig(kind="conv", patch_size=8, components=3, fit_frames=24, fit_steps=3)
    weights, shown = [], []
    for name in ("first", "again"):
        task = make_task(corpora, tmp_path / name)
        prepare_autoencoder(task, videos(corpora), config, 0, lambda *step: shown.append(step))
        code = dataset_autoencoder(task.out)
        assert isinstance(code, ConvAutoencoder)
        weights.append(code.state_dict())
    assert [step for step in shown if step[0] == "autoencoder"] == 2 * [
        ("autoencoder", i, 3) for i in (1, 2, 3)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    prepare_autoencoder(task, videos(corpora), config, 0, pytest.fail)


def test_a_sample_has_the_frames_that_were_asked_for(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    group = Group(corpus="short", sources=tuple(videos(corpora)["short"]), picks=3)
    frames, rejects = sample_group(make_task(corpora, tmp_path), group)
    assert set(frames) == {source.id for source in group.sources}
    assert {own.shape for own in frames.values()} == {(3, SIZE, SIZE, 3)}
    assert rejects == {}


def test_a_sample_names_what_cannot_be_read(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("words")
    group = Group(corpus="short", sources=tuple(list_corpus(tmp_path).sources), picks=2)
    frames, rejects = sample_group(make_task((tmp_path, corpora[1]), tmp_path), group)
    assert frames == {}
    assert "no known video container" in rejects["a.mp4"]


def wan(pretrained: str | None) -> AutoencoderConfig:
    return AutoencoderConfig(kind="wan", pretrained=pretrained)


def test_wan_needs_its_folder(corpora: tuple[Path, Path], tmp_path: Path) -> None:
    task = make_task(corpora, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no autoencoder\.pretrained"):
        prepare_autoencoder(task, videos(corpora), wan(None), 0, lambda *step: None)
    with pytest.raises(CheckpointError, match="no AutoencoderKLWan"):
        prepare_autoencoder(task, videos(corpora), wan(str(tmp_path)), 0, lambda *step: None)


def test_wan_refuses_windows_that_it_would_cut(
    corpora: tuple[Path, Path], tmp_path: Path, wan_folder: Path
) -> None:
    task = make_task(corpora, tmp_path / "out")
    with pytest.raises(ConfigError, match="a window of 8 frames"):
        prepare_autoencoder(task, videos(corpora), wan(str(wan_folder)), 0, lambda *step: None)


def test_half_an_autoencoder_in_a_store_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line breaks after one file; the next run fits again."""
    storage = Storage(f"memory://{tmp_path.name}")
    task = Task(out=str(storage), folders={}, version="v", data=replace(DATA, height=8, width=8))
    code = AutoencoderConfig(components=3)
    upload, arrived = Storage.upload, []

    def once(self: Storage, local: str, path: str) -> None:
        if arrived:
            raise ClusterError("the line broke", "Run it again")
        arrived.append(path)
        upload(self, local, path)

    monkeypatch.setattr(fit, "_sample", lambda *_: low_rank(20, 3, 8, 0))
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "upload", once)
        with pytest.raises(ClusterError):
            prepare_autoencoder(task, {}, code, 0, lambda *_: None)
    prepare_autoencoder(task, {}, code, 0, lambda *_: None)
    assert dataset_autoencoder(storage).channels == 3
