"""Two folders in, one dataset out: every video ends somewhere, and a second run does what is missing."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from models.config import AutoencoderConfig
from models.errors import ClusterError, ConfigError, DataError
from pipelines import ray_map
from pipelines.data.config import DataConfig
from pipelines.data.decode.decoder import Decoder
from pipelines.data.ingest import pipeline as ingest_module
from pipelines.data.ingest.pipeline import ingest, read_videos
from pipelines.data.ingest.worker import Group, Task, new_status, write_group
from pipelines.data.source.manifest import Source, list_corpus
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder, dataset_version, read_info, write_sealed
from pipelines.data.store.ledger import Status, read_ledger, read_ledgers
from pipelines.ray_map import Pool
from pipelines.storage import Storage
from tests.pipelines.data.conftest import Ingested
from tests.pipelines.data.corpora import DATA, RANK, SIZE, write_corpora
from tests.pipelines.data.videos import low_rank, write_video

FIT = AutoencoderConfig(fit_frames=120)
REPLACED = ("rejects.parquet", "sources.parquet")
"""What a run that is refused may still say."""


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / name, page_checksum_verification=True).to_pylist()


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}


def run(short: Path, long: Path, out: Path | str, data: DataConfig = DATA, **more: Any) -> Any:
    return ingest(str(short), str(long), str(out), data, FIT, 0, **more)


def test_the_code_finds_the_directions_of_the_corpora(ingested: Ingested) -> None:
    assert ingested.info.autoencoder["channels"] == RANK
    assert ingested.info.autoencoder["reconstruction_error"] < 0.02
    assert ingested.info.long.latent_shape == (24, RANK, 1, 1)


def test_every_video_ends_as_windows(ingested: Ingested) -> None:
    rows = table(ingested.out, "manifest.parquet")
    assert len(rows) == 18
    assert {row["status"] for row in rows} == {"written"}
    assert {row["reader"] for row in rows} == {"decord"}
    for row in rows:
        length, stride = (8, 8) if row["corpus"] == "short" else (24, 12)
        starts = range(0, row["num_frames"] - length + 1, stride)
        assert row["num_windows"] == len(starts)
        assert row["tail_frames"] == row["num_frames"] - starts[-1] - length
        assert row["seconds"] == pytest.approx(row["num_frames"] / 8)
    assert table(ingested.out, "rejects.parquet") == []


def test_the_description_counts_what_is_there(ingested: Ingested) -> None:
    info, rows = ingested.info, table(ingested.out, "manifest.parquet")
    assert info == read_info(str(ingested.out))
    for corpus, described in (("short", info.short), ("long", info.long)):
        own = [row for row in rows if row["corpus"] == corpus]
        assert described.videos == len(own)
        assert described.windows == sum(row["num_windows"] for row in own)
        assert described.windows == sum(file.rows for file in described.files)
        assert described.frames == sum(row["num_frames"] for row in own)
        assert described.hours == pytest.approx(described.frames / 8 / 3600)
        assert described.fps == pytest.approx(8)
        assert described.captions == len({row["caption"] for row in own})
    assert len(info.short.files) > 1


def test_rows_are_the_encoded_frames_of_their_windows(ingested: Ingested) -> None:
    """Decoded and encoded here once more, without Ray: equal to the last bit that matters."""
    code = dataset_autoencoder(str(ingested.out))
    rows = [row for row in table(ingested.out, "index.parquet") if row["corpus"] == "long"]
    stored = {row["window_id"]: row for f in ingested.info.long.files for row in table(ingested.out, f.file)}
    with Decoder(ingested.data.limits) as decoder:
        for row in rows:
            frames = np.concatenate(list(decoder.open(ingested.long / row["source"], [(SIZE, SIZE)]).frames))
            window = frames[row["start_frame"] : row["start_frame"] + row["num_frames"]]
            latents = code.encode(torch.from_numpy(window)[None])[0].numpy()
            found = np.asarray(stored[row["window_id"]]["latents"]).reshape(latents.shape)
            np.testing.assert_allclose(found, latents, atol=1e-4)
            assert row["num_frames"] == 24
            assert row["caption"].startswith("long clip")
            assert row["kept"]
    assert len({row["window_id"] for row in rows}) == len(rows) == len(stored) == 12


def test_the_index_says_where_each_window_lies(ingested: Ingested) -> None:
    for row in table(ingested.out, "index.parquet"):
        group = pq.ParquetFile(ingested.out / row["file"]).read_row_group(row["row_group"]).to_pylist()
        assert group[row["row"]]["window_id"] == row["window_id"]
        assert group[row["row"]]["source_id"] == row["source_id"]


def test_the_latents_statistics_are_those_of_the_rows(ingested: Ingested) -> None:
    for corpus in ("short", "long"):
        rows = [
            ShardDataset(str(ingested.out), corpus, split).read(range(n)).latents
            for split in ("train", "holdout")
            if (n := len(ShardDataset(str(ingested.out), corpus, split)))
        ]
        latents = torch.cat(rows).double().movedim(2, 0).flatten(1)
        described = ingested.info.corpus(corpus)
        np.testing.assert_allclose(described.latent_mean, latents.mean(dim=1), atol=1e-9)
        np.testing.assert_allclose(described.latent_std, latents.std(dim=1, correction=0), rtol=1e-9)


def test_latents_are_standardised_over_both_corpora(ingested: Ingested) -> None:
    latents = [
        ShardDataset(str(ingested.out), corpus).read([0, 1, 2, 3]).latents.flatten(0, 1)
        for corpus in ("short", "long")
    ]
    spread_of = torch.cat(latents).std(dim=0).flatten()
    assert ((spread_of > 0.4) & (spread_of < 2.0)).all()


def test_progress_rises_to_the_total(ingested: Ingested) -> None:
    for stage, total in (("short", 14), ("long", 4)):
        done = [step[1] for step in ingested.progress if step[0] == stage]
        assert done == sorted(done)
        assert done[-1] == total
    assert ingested.progress[0][0] == "fit"


def test_a_second_run_writes_nothing(ingested: Ingested) -> None:
    before = {p: p.stat().st_mtime_ns for p in ingested.out.rglob("*")}
    assert run(ingested.short, ingested.long, ingested.out) == ingested.info
    assert {p: p.stat().st_mtime_ns for p in ingested.out.rglob("*")} == before


def test_a_clean_run_gives_the_same_bytes(ingested: Ingested, tmp_path: Path) -> None:
    run(ingested.short, ingested.long, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(ingested.out)


def test_a_broken_run_does_only_what_is_missing(copied: Ingested) -> None:
    out = copied.out
    write_sealed(Storage(out), {"complete": False, "version": copied.info.version})
    ledger = min(out.glob("short/*.ledger"))
    lost = {file.file for file in read_ledger(Storage(out), f"short/{ledger.name}").files}
    ledger.unlink()
    (out / "short" / ".aside-half").write_bytes(b"half")
    before = stamps(out / "short") | stamps(out / "long")
    info = run(copied.short, copied.long, out)
    after = stamps(out / "short") | stamps(out / "long")
    assert {f"short/{name}" for name in before if after[name] != before[name]} == lost
    assert set(after) == set(before)
    assert info == copied.info
    assert not list(out.rglob(".aside-*"))


def test_an_unfinished_dataset_is_not_read(tmp_path: Path) -> None:
    write_sealed(Storage(tmp_path), {"complete": False, "version": "x"})
    with pytest.raises(DataError, match="not finished") as caught:
        ShardDataset(str(tmp_path), "short")
    assert "again" in caught.value.remedy
    with pytest.raises(DataError, match="holds no dataset"):
        ShardDataset(str(tmp_path / "nowhere"), "short")


@pytest.mark.parametrize("change", [{"long_frames": 16}, {"fps": 4.0}, {"holdout": 0.0}, {"height": 16}])
def test_other_settings_never_mix_into_a_dataset(change: dict[str, Any], ingested: Ingested) -> None:
    before = contents(ingested.out)
    other = replace(DATA, **change)
    with pytest.raises(DataError, match="other settings") as caught:
        run(ingested.short, ingested.long, ingested.out, other)
    assert "Delete that folder" in caught.value.remedy
    assert contents(ingested.out) == before
    assert dataset_version(other, FIT, 0) != ingested.info.version


def test_grouping_changes_files_but_not_rows(
    ingested: Ingested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "SHARES", 1)
    info = run(ingested.short, ingested.long, tmp_path / "d", replace(DATA, block_bytes=1 << 30))
    assert len(info.short.files) == 1 < len(ingested.info.short.files)
    assert info.data_hash == ingested.info.data_hash
    one, many = (ShardDataset(str(out), "short") for out in (tmp_path / "d", ingested.out))
    assert one.ids == many.ids
    everything = range(len(one))
    assert torch.equal(one.read(everything).latents, many.read(everything).latents)


def test_a_folder_with_something_else_is_left_alone(ingested: Ingested, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty"):
        run(ingested.short, ingested.long, tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_uri_serves_as_well_as_a_path(ingested: Ingested, tmp_path: Path) -> None:
    info = run(ingested.short, ingested.long, f"file://{tmp_path}/dataset")
    assert info == ingested.info
    assert (
        len(ShardDataset(f"file://{tmp_path}/dataset", "long"))
        == info.long.windows - info.long.holdout_windows
    )


@pytest.fixture
def with_bad(tmp_path: Path) -> tuple[Path, Path]:
    """Good corpora with, in SHORT, one of each kind of bad file."""
    short, long = write_corpora(tmp_path, short=8, long=2)
    good = (short / "part0" / "clip0.mp4").read_bytes()
    (short / "empty.mp4").write_bytes(b"")
    (short / "text.mp4").write_text("not a video")
    (short / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{short}/part0/clip0.mp4\n")
    (short / "cut.mp4").write_bytes(good[: len(good) // 2])
    write_video(short / "brief.mp4", low_rank(5, RANK, SIZE, 3))
    os.symlink("/etc/hostname", short / "link.mp4")
    (short / "twin.mp4").write_bytes(good)
    return short, long


def test_bad_videos_cost_themselves_only(
    ray_local: None, with_bad: tuple[Path, Path], tmp_path: Path
) -> None:
    info = run(*with_bad, tmp_path / "out")
    rejects = {
        row["path"]: (row["stage"], row["reason"]) for row in table(tmp_path / "out", "rejects.parquet")
    }
    assert {name: stage for name, (stage, _) in rejects.items()} == {
        "empty.mp4": "bytes",
        "text.mp4": "bytes",
        "playlist.mp4": "bytes",
        "cut.mp4": "open",
        "brief.mp4": "window",
        "link.mp4": "manifest",
        "twin.mp4": "manifest",
    }
    assert rejects["brief.mp4"][1] == "5 frames, a window of SHORT needs 8"
    assert info.short.rejects == 7
    assert info.short.videos == 8
    assert len(table(tmp_path / "out", "manifest.parquet")) == 8 + 7 + 2


def test_too_many_rejects_fail_with_the_list(
    ray_local: None, with_bad: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"SHORT: 6 of 14 videos were rejected: brief\.mp4 ") as caught:
        run(*with_bad, tmp_path / "out", replace(DATA, max_reject_share=0.4))
    assert "and 1 more" in caught.value.problem
    assert "max_reject_share" in caught.value.remedy
    assert len(table(tmp_path / "out", "rejects.parquet")) == 7
    info = run(*with_bad, tmp_path / "out", replace(DATA, max_reject_share=0.5))
    assert info.short.videos == 8


def folders(tmp_path: Path, change: Callable[[Path], None]) -> tuple[Path, Path]:
    short, long = write_corpora(tmp_path, short=2, long=1)
    change(short)
    return short, long


def only_corrupt(short: Path) -> None:
    for path in short.rglob("*.mp4"):
        path.write_text(f"no video: {path.name}")


@pytest.mark.parametrize(
    ("change", "data", "words", "remedy"),
    [
        (only_corrupt, DATA, "SHORT: 2 of 2 videos were rejected: part0/clip0.mp4 (bytes", "Mend or remove"),
        (lambda short: None, replace(DATA, short_frames=100), "2 of 2 videos", "data.short_frames"),
        (lambda short: None, replace(DATA, long_frames=100), "LONG: 1 of 1", "data.long_frames"),
        (shutil.rmtree, DATA, "is no folder", "data.short"),
        (lambda short: None, replace(DATA, short_stride=0), "data.short_stride = 0", "1 or more"),
        (lambda short: None, replace(DATA, fps=0.0), "data.fps", "above 0"),
        (lambda short: None, replace(DATA, holdout=1.0), "data.holdout", "share"),
    ],
)
def test_hopeless_input_names_the_remedy(
    ray_local: None,
    change: Callable[[Path], None],
    data: DataConfig,
    words: str,
    remedy: str,
    tmp_path: Path,
) -> None:
    short, long = folders(tmp_path, change)
    with pytest.raises((DataError, ConfigError)) as caught:
        run(short, long, tmp_path / "out", data)
    assert words in caught.value.problem
    assert remedy in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_corpus_of_which_too_little_is_there_is_refused_before_a_video_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No Ray is needed to say so."""
    short, long = write_corpora(tmp_path, short=3, long=1)
    for path in sorted(short.rglob("*.mp4"))[:2]:
        path.unlink()
    (short / "twin.mp4").write_bytes(next(short.rglob("*.mp4")).read_bytes())
    monkeypatch.setattr(ingest_module, "prepare_autoencoder", None)
    with pytest.raises(DataError, match=r"SHORT: 2 of 3 videos .* \(manifest: its metadata names it"):
        run(short, long, tmp_path / "out")
    assert len(table(tmp_path / "out", "rejects.parquet")) == 3


def test_a_fresh_start_deletes_nothing_before_it_can_begin(copied: Ingested, tmp_path: Path) -> None:
    before = {name: data for name, data in contents(copied.out).items() if name not in REPLACED}
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing"
    shutil.copytree(copied.short, missing)
    for path in sorted(missing.rglob("*.mp4"))[:10]:
        path.unlink()
    for short, words in (("typo", "is no folder"), ("empty", "holds no video"), ("missing", "10 of 14")):
        with pytest.raises(DataError, match=words):
            run(tmp_path / short, copied.long, copied.out, fresh=True)
        assert {name: contents(copied.out)[name] for name in before} == before
        assert read_info(str(copied.out)) == copied.info


def test_a_fresh_start_forgets_everything(copied: Ingested) -> None:
    (copied.out / "sources.parquet").write_bytes(b"damaged")
    (copied.out / "short" / "old.ledger").write_bytes(b"damaged")
    (copied.out / "text").mkdir()
    info = run(copied.short, copied.long, copied.out, fresh=True)
    assert info == copied.info
    assert not (copied.out / "text").exists()
    assert not (copied.out / "short" / "old.ledger").exists()


def test_both_corpora_corrupt_says_so(ray_local: None, tmp_path: Path) -> None:
    short, long = folders(tmp_path, only_corrupt)
    only_corrupt(long)
    with pytest.raises(DataError, match=r"No video could be decoded: part0/clip0\.mp4"):
        run(short, long, tmp_path / "out")


def test_a_patch_that_does_not_tile_is_refused(ray_local: None, tmp_path: Path) -> None:
    short, long = folders(tmp_path, lambda short: None)
    with pytest.raises(ConfigError, match="patch of 7 pixels"):
        ingest(str(short), str(long), str(tmp_path / "out"), DATA, AutoencoderConfig(patch_size=7), 0)


def test_ray_must_run(corpora: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_map.ray, "is_initialized", lambda: False)
    with pytest.raises(ClusterError, match="Ray is not running"):
        run(*corpora, tmp_path / "out")


class Walked(list[Source]):
    """Videos that count how often all of them are looked at."""

    times = 0

    def __iter__(self) -> Iterator[Source]:
        self.times += 1
        return super().__iter__()


def test_no_group_looks_at_all_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be a hundred thousand of them, in a quarter as many groups."""
    listed = Walked(Source(id=f"{i:064x}", path=f"{i}.mp4", caption="", num_bytes=10) for i in range(300))

    def map_here(work: Any, groups: list[Group], _pool: Any) -> Iterator[tuple[int, list[Status]]]:
        return ((index, work(group)) for index, group in enumerate(groups))

    def written(_task: Task, group: Group) -> list[Status]:
        return [new_status(group.corpus, source) for source in group.sources]

    monkeypatch.setattr(ingest_module, "ray_map", map_here)
    said: list[tuple[str, int, int]] = []
    task = Task(out=str(tmp_path), folders={}, version="v", data=replace(DATA, block_bytes=10))
    done = {("short", listed[0].id)}
    videos = {"short": listed, "long": []}
    added = list(read_videos(task, videos, done, written, lambda *step: said.append(step)))
    assert listed.times < 10
    assert said == [("short", count, 300) for count in range(2, 301)]
    assert [s.source for s in added] == [source.path for source in list(listed)[1:]]


@pytest.mark.long
@pytest.mark.parametrize("actors", [False, True])
def test_a_video_that_kills_its_worker_ends_as_one_reject(
    actors: bool, ingested: Ingested, tmp_path: Path
) -> None:
    """Its group is lost three times, then each of the group alone: the poison is tried in vain, once more."""
    out = tmp_path / "dataset"
    shutil.copytree(ingested.out / "autoencoder", out / "autoencoder")
    (out / "tries").mkdir()
    listed = list_corpus(ingested.short).sources
    poison = listed[3].id

    def work(task: Task, group: Group) -> list[Status]:
        if any(source.id == poison for source in group.sources):
            (out / "tries" / str(time.monotonic_ns())).touch()
            os._exit(1)
        return write_group(task, group)

    task = Task(
        out=str(out),
        folders={"short": str(ingested.short), "long": str(ingested.long)},
        version="v",
        data=replace(DATA, block_bytes=60_000),
    )
    pool = Pool(1, 2) if actors else None
    videos = {"short": listed, "long": []}
    ends = list(read_videos(task, videos, (), work, lambda *step: None, pool))
    assert len(ends) == len(listed)
    assert [(s.source_id, s.stage) for s in ends if s.status == "rejected"] == [(poison, "worker")]
    files = [file for ledger in read_ledgers(Storage(out), "short") for file in ledger.files]
    assert sum(file.rows for file in files) == sum(s.num_windows for s in ends)
    tries = len(list((out / "tries").iterdir()))
    assert 2 <= tries <= 2 * (1 + ray_map.MAX_RETRIES)
