"""A dataset grows and shrinks with its corpora, and reads nothing twice."""

import io
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import DataError
from pipelines.data.ingest import pipeline as ingest_module
from pipelines.data.ingest.pipeline import ingest
from pipelines.data.source.corpus import Corpus
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.ledger import Status
from tests.pipelines.data.conftest import Ingested
from tests.pipelines.data.corpora import DATA, RANK, SIZE
from tests.pipelines.data.ingest.test_pipeline import FIT, contents, run, stamps, table
from tests.pipelines.data.videos import low_rank, write_video


def add_video(folder: Path, name: str = "new.mp4", phase: float = 50.0) -> Path:
    return write_video(folder / name, low_rank(16, RANK, SIZE, 7, phase=phase), crf="4")


def test_an_added_video_adds_only_itself(copied: Ingested) -> None:
    before = contents(copied.out / "short") | contents(copied.out / "long")
    add_video(copied.short)
    info = run(copied.short, copied.long, copied.out)
    after = contents(copied.out / "short") | contents(copied.out / "long")
    assert {name: after[name] for name in before} == before
    assert info.short.videos == copied.info.short.videos + 1
    assert info.short.windows == copied.info.short.windows + 2
    assert (info.long, info.version) == (copied.info.long, copied.info.version)
    assert info.data_hash != copied.info.data_hash
    assert info.autoencoder == copied.info.autoencoder
    added = [row for row in table(copied.out, "index.parquet") if row["source"] == "new.mp4"]
    assert [row["start_frame"] for row in added] == [0, 8]


def test_a_removed_video_is_gone_and_comes_back_unread(copied: Ingested) -> None:
    gone = copied.short / "part0" / "clip0.mp4"
    data = gone.read_bytes()
    gone.unlink()
    (copied.short / "metadata.jsonl").write_text(
        "".join(f"{line}\n" for line in (copied.short / "metadata.jsonl").read_text().splitlines()[1:])
    )
    shards = stamps(copied.out / "short")
    info = run(copied.short, copied.long, copied.out)
    assert info.short.videos == copied.info.short.videos - 1
    assert not [
        row
        for row in table(copied.out, "index.parquet")
        if (row["corpus"], row["source"]) == ("short", "part0/clip0.mp4")
    ]
    (copied.short / "back.mp4").write_bytes(data)
    again = run(copied.short, copied.long, copied.out)
    assert again.short.windows == copied.info.short.windows
    assert stamps(copied.out / "short") == shards


def test_a_new_caption_or_name_reads_no_video_again(copied: Ingested) -> None:
    lines = (copied.long / "metadata.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    os.rename(copied.long / row["file_name"], copied.long / "renamed.mp4")
    lines[0] = json.dumps({"file_name": "renamed.mp4", "caption": "quite another"})
    (copied.long / "metadata.jsonl").write_text("\n".join(lines))
    shards = stamps(copied.out / "long")
    info = run(copied.short, copied.long, copied.out)
    assert stamps(copied.out / "long") == shards
    assert info.data_hash != copied.info.data_hash
    renamed = [row for row in table(copied.out, "index.parquet") if row["source"] == "renamed.mp4"]
    assert {row["caption"] for row in renamed} == {"quite another"}
    assert len(renamed) == 3
    assert "quite another" in ShardDataset(str(copied.out), "long").captions


def test_other_videos_altogether_are_refused(copied: Ingested, tmp_path: Path) -> None:
    """The autoencoder was fitted on the first ones."""
    for corpus, length in (("short", 16), ("long", 40)):
        write_video(tmp_path / "other" / corpus / "a.mp4", low_rank(length, RANK, SIZE, 9))
    with pytest.raises(DataError, match="made from other videos") as caught:
        run(tmp_path / "other" / "short", tmp_path / "other" / "long", copied.out)
    assert "--fresh" in caught.value.remedy


def test_limits_and_grouping_are_no_other_version(copied: Ingested) -> None:
    other = replace(DATA, block_bytes=1 << 20, limits=replace(DATA.limits, timeout_s=5.0))
    before = contents(copied.out / "short")
    info = run(copied.short, copied.long, copied.out, other)
    assert replace(info, made_from="") == replace(copied.info, made_from="")
    assert contents(copied.out / "short") == before


def test_raised_limits_give_what_they_refused_another_chance(copied: Ingested) -> None:
    write_video(copied.short / "lasting.mp4", low_rank(64, RANK, SIZE, 7, phase=60.0))
    tight = replace(DATA, limits=replace(DATA.limits, max_frames=60))
    assert run(copied.short, copied.long, copied.out, tight).short.rejects == 1
    (reject,) = table(copied.out, "rejects.parquet")
    assert (reject["path"], reject["stage"]) == ("lasting.mp4", "limits")
    read: list[Status] = []
    info = run(copied.short, copied.long, copied.out, on_video=read.append)
    assert info.short.rejects == 0
    assert info.short.windows == copied.info.short.windows + 8
    assert [(s.source, s.num_windows) for s in read] == [("lasting.mp4", 8)], "what this run did"


def test_what_the_disk_did_not_give_is_tried_again_though_nothing_has_changed(
    copied: Ingested, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file comes back as it was: same bytes, same time."""
    late, time_ns = add_video(copied.short), 10**18
    os.utime(late, ns=(time_ns, time_ns))
    data, listed = late.read_bytes(), ingest_module.list_corpora

    def list_and_lose(*words: Any, **more: Any) -> Any:
        listings = listed(*words, **more)
        late.unlink()
        return listings

    with monkeypatch.context() as patch:
        patch.setattr(ingest_module, "list_corpora", list_and_lose)
        assert run(copied.short, copied.long, copied.out).short.rejects == 1
    (reject,) = table(copied.out, "rejects.parquet")
    assert (reject["path"], reject["stage"]) == ("new.mp4", "fetch")
    late.write_bytes(data)
    os.utime(late, ns=(time_ns, time_ns))
    info = run(copied.short, copied.long, copied.out)
    assert (info.short.rejects, info.short.windows) == (0, copied.info.short.windows + 2)


def test_other_columns_of_the_metadata_are_in_the_manifest(copied: Ingested) -> None:
    lines = (copied.long / "metadata.jsonl").read_text().splitlines()
    row = json.loads(lines[0]) | {"licence": "CC0", "shots": [1, 2]}
    (copied.long / "metadata.jsonl").write_text("\n".join([json.dumps(row), *lines[1:]]))
    shards = stamps(copied.out / "long")
    assert run(copied.short, copied.long, copied.out).data_hash == copied.info.data_hash
    assert stamps(copied.out / "long") == shards
    rows = table(copied.out, "manifest.parquet")
    said = {(row["corpus"], row["source"]): row["metadata"] for row in rows}
    assert json.loads(said.pop(("long", row["file_name"]))) == {"licence": "CC0", "shots": [1, 2]}
    assert set(said.values()) == {""}


def as_tar(folder: Path, path: Path) -> str:
    """The videos of a corpus folder as a WebDataset tar, captions beside them."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    with tarfile.open(path, "w") as tar:
        for row in rows:
            tar.add(folder / row["file_name"], row["file_name"])
            caption = row["caption"].encode()
            member = tarfile.TarInfo(row["file_name"].removesuffix(".mp4") + ".txt")
            member.size = len(caption)
            tar.addfile(member, io.BytesIO(caption))
    return str(path)


def test_a_tar_and_a_manifest_give_the_same_rows(ingested: Ingested, tmp_path: Path) -> None:
    tar = as_tar(ingested.short, tmp_path / "short.tar")
    info = ingest(tar, str(ingested.long / "metadata.jsonl"), str(tmp_path / "out"), DATA, FIT, 0)
    assert info.data_hash == ingested.info.data_hash
    assert info.short.windows == ingested.info.short.windows


def test_a_listing_again_hashes_only_what_is_new(copied: Ingested, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Corpus.blocks
    monkeypatch.setattr(
        Corpus, "blocks", lambda self, path, *a: read.append(path) or original(self, path, *a)
    )
    run(copied.short, copied.long, copied.out)
    assert read == []
    add_video(copied.short)
    run(copied.short, copied.long, copied.out)
    assert read == ["new.mp4"]
