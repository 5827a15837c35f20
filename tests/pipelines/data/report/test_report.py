"""A dataset looked at: known numbers, frames at their places, a page that no caption can change."""

import io
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.errors import DataError
from pipelines.data.report import histograms as plots
from pipelines.data.report.contact_sheets import (
    CONTEXT,
    WINDOWS,
    SampledWindow,
    first_middle_last,
    pick_windows,
    sample_windows,
)
from pipelines.data.report.page import count_rows, inspect_dataset, report_html, total_rows
from pipelines.data.report.summary import DatasetTables, KindCount, read_tables, summarise
from pipelines.data.store.dataset import ShardDataset
from pipelines.data.store.info import dataset_autoencoder
from pipelines.data.store.ledger import Window
from pipelines.data.tables import columns_of
from pipelines.media.contact_sheet import sheet_grid, zoom

COLUMNS = pa.schema(
    [
        ("corpus", pa.string()),
        *columns_of(Window),
        *((name, pa.string()) for name in ("source", "caption", "split")),
        ("kept", pa.bool_()),
    ]
)
EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>\x1b[31m"


def video(corpus, name, **values):
    """A manifest row of a video that was written."""
    usual = {
        "corpus": corpus,
        "source_id": f"id-{corpus}-{name}",
        "source": f"{name}.mp4",
        "caption": f"about {name}",
        "num_bytes": 1000,
        "status": "written",
        "stage": "",
        "reason": "",
        "reader": "decord",
        "reader_reason": "",
        "width": 320,
        "height": 240,
        "source_fps": 8.0,
        "num_frames": 40,
        "seconds": 5.0,
        "num_windows": 4,
    }
    return usual | values


def refused(corpus, name, stage, reason):
    nothing = dict.fromkeys(("num_frames", "num_windows", "width", "height"), 0)
    return video(
        corpus, name, status="rejected", stage=stage, reason=reason, reader="", seconds=0.0, **nothing
    )


def window(corpus, name, start, **values):
    """An index row of a window that is trained on."""
    usual = {
        "corpus": corpus,
        "window_id": f"{corpus}-{name}-{start:08d}",
        "source_id": f"id-{corpus}-{name}",
        "source": f"{name}.mp4",
        "caption": f"about {name}",
        "file": f"{corpus}/0.parquet",
        "row_group": 0,
        "row": 0,
        "start_frame": start,
        "num_frames": 8,
        "shot": 0,
        "brightness": 0.5,
        "motion": 0.01,
        "flash": 0.0,
        "sharpness": 0.1,
        "split": "train",
        "kept": True,
        "reason": "",
    }
    return usual | values


def dropped(corpus, name, start, reason):
    return window(corpus, name, start, kept=False, reason=reason, file="")


def tables(manifest, index):
    files = {"short": 2, "long": 1}
    part = {
        c: SimpleNamespace(files=[file(c, i) for i in range(n)], buckets=(), note="")
        for c, n in files.items()
    }
    code = {"kind": "pca", "channels": 4, "temporal_factor": 1, "reconstruction_error": float("nan")}
    info = SimpleNamespace(
        version="v", data_hash="h", height=16, width=24, autoencoder=code, corpus=part.__getitem__
    )
    return DatasetTables(info, pa.Table.from_pylist(manifest), pa.Table.from_pylist(index, schema=COLUMNS))


def file(corpus, number):
    return SimpleNamespace(file=f"{corpus}/{number}.parquet", rows=5, num_bytes=70, sha256="ab" * 32)


MANIFEST = [
    video("short", "a", seconds=10.0, num_frames=80, reader="pyav", reader_reason="no duration"),
    video("short", "b", caption="about a"),
    refused("short", "c", "bytes", "the file is empty"),
    refused("short", "d", "open", "truncated"),
    refused("short", "e", "bytes", "the first bytes are of no known video container"),
    video("long", "f", seconds=3600.0, num_frames=28800),
]
INDEX = [
    *(window("short", "a", start, brightness=0.1 * start) for start in range(5)),
    window("short", "b", 0, split="holdout", brightness=0.9),
    dropped("short", "b", 8, "min_motion"),
    dropped("short", "b", 16, "near duplicate of short-a-00000000"),
    dropped("short", "b", 24, "min_motion"),
    window("long", "f", 0),
]


def test_numbers_of_a_known_manifest():
    summary = summarise(tables(MANIFEST, INDEX))
    short, long = summary.short, summary.long
    assert (short.videos, short.rejected_videos, short.windows) == (2, 3, 6)
    assert (short.holdout_windows, short.dropped_windows) == (1, 3)
    assert (short.frames, short.source_bytes, short.shard_bytes, short.shard_files) == (120, 2000, 140, 2)
    assert short.hours == pytest.approx(15 / 3600)
    assert long.hours == pytest.approx(1.0)
    assert short.captions == 1
    assert short.seconds.median == pytest.approx(7.5)
    assert short.measures["brightness"].median == pytest.approx(0.25)
    assert short.measures["brightness"].low == pytest.approx(0.025)
    assert short.readers == (
        KindCount(kind="pyav", count=1, examples=("no duration",)),
        KindCount(kind="decord", count=1),
    )
    assert [(found.kind, found.count) for found in short.rejects] == [("bytes", 2), ("open", 1)]
    assert short.rejects[0].examples[0] == "c.mp4: the file is empty"
    assert [(found.kind, found.count) for found in short.drops] == [("min_motion", 2), ("near duplicate", 1)]
    assert [(found.kind, found.count) for found in short.commonest] == [("about a", 5), ("about b", 1)]
    assert summary.to_json()["autoencoder"]["reconstruction_error"] is None


def test_every_count_is_shown_for_both_corpora():
    shown = {name: (short, long) for name, short, long in total_rows(summarise(tables(MANIFEST, INDEX)))}
    assert shown["windows"] == ("6", "1")
    assert shown["hours of video"] == ("0.00417", "1")
    assert shown["frames"] == ("120", "28,800")
    assert count_rows({"short": summarise(tables(MANIFEST, INDEX)).short}, "drops", examples=1) == [
        ("SHORT", "min_motion", 2, "min_motion"),
        ("SHORT", "near duplicate", 1, "near duplicate of short-a-00000000"),
    ]


def test_a_corpus_of_which_every_window_was_dropped_has_no_measures():
    found = summarise(tables(MANIFEST, [window("short", "a", 0), dropped("long", "f", 0, "max_flash")]))
    assert found.long.measures == {}
    assert found.long.windows == 0
    assert found.long.drops[0].kind == "max_flash"


def test_windows_are_spread_over_videos_and_along_them():
    rows = [window("short", f"v{v:02d}", 8 * i) for v in range(30) for i in range(5)]
    many = pick_windows(pa.Table.from_pylist(rows, schema=COLUMNS), 12)
    assert len({row["source"] for row in many}) == 12
    assert {many[0]["source"], many[-1]["source"]} == {"v00.mp4", "v29.mp4"}
    assert {row["start_frame"] for row in many} == {16}
    few = pick_windows(pa.Table.from_pylist(rows[:10], schema=COLUMNS), 5)
    assert [(row["source"], row["start_frame"]) for row in few] == [
        ("v00.mp4", 0), ("v00.mp4", 16), ("v00.mp4", 32), ("v01.mp4", 8), ("v01.mp4", 24)
    ]  # fmt: skip
    assert pick_windows(pa.Table.from_pylist([], schema=COLUMNS), 5) == []


values = st.lists(st.floats(1e-6, 1e4), max_size=40).map(np.array)


@given(values=values)
def test_edges_hold_every_value(values):
    edges = plots.value_edges(values).values
    assert (np.diff(edges) > 0).all()
    assert np.histogram(values, edges)[0].sum() == len(values)


@given(counts=st.lists(st.integers(1, 5000), max_size=40).map(np.array))
def test_edges_of_counts_lie_between_whole_numbers(counts):
    edges = plots.count_edges(counts).values
    assert (np.diff(edges) > 0).all()
    assert np.histogram(counts, edges)[0].sum() == len(counts)
    assert ((edges % 1 == 0.5) | (edges == plots.LEFT)).all()


def test_bars_stand_as_high_as_there_are_windows():
    figure = plots._windows(tables(MANIFEST, INDEX))
    brightness = figure.axes[0]
    assert "Motion: change of luma per second" in {axis.get_title() for axis in figure.axes}
    assert sum(bar.get_height() for bar in brightness.patches) == 9
    assert {axis.get_ylabel() for axis in figure.axes} == {"SHORT windows", "LONG windows"}


def not_blank(data):
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    assert min(pixels.shape) > 200
    return pixels.std() > 5


@pytest.mark.parametrize("index", [INDEX, INDEX[:1]])
def test_histograms_are_pictures(index):
    found = plots.histograms(tables(MANIFEST, index))
    assert set(found) == {"videos.png", "windows.png"}
    assert all(not_blank(data) for data in found.values())


class Tags(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_takes_no_orders_from_what_it_shows():
    manifest = [
        video("short", "a", caption=EVIL, source=EVIL, reader="pyav", reader_reason=EVIL),
        refused("short", EVIL, EVIL, EVIL),
        video("long", "f"),
    ]
    index = [window("short", "a", 0, caption=EVIL), dropped("long", "f", 0, EVIL), window("long", "f", 8)]
    made = tables(manifest, index)
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    seen = {"short": [SampledWindow("short-a-0", EVIL, EVIL, "1 - 2 s of 5 s", frames)], "long": []}
    page = Tags(report_html(EVIL, made, summarise(made), seen, plots.histograms(made)))
    assert page.open == []
    assert set(page.tags).isdisjoint({"script", "iframe", "object", "link", "a", "base", "form"})
    assert page.tags.count("img") == 2
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert {name for name, _ in page.attributes} == {"lang", "charset", "class", "alt", "src", "tabindex"}
    style = page.words[page.words.index(next(w for w in page.words if "border-collapse" in w))]
    assert "url(" not in style
    assert "@import" not in style
    assert sum(EVIL in words for words in page.words) >= 6


@pytest.fixture
def dataset(ingested, tmp_path):
    """A copy."""
    shutil.copytree(ingested.out, tmp_path / "dataset")
    return tmp_path / "dataset"


def test_a_dataset_is_looked_at(dataset, ingested):
    seen = inspect_dataset(str(dataset), str(dataset.parent / "looks"), "Clips")
    folder = Path(seen.folder)
    assert set(seen.files) == {path.name for path in folder.iterdir()}
    info = ingested.info
    for corpus in ("short", "long"):
        own = seen.summary.corpus(corpus)
        assert (own.windows, own.videos) == (info.corpus(corpus).windows, info.corpus(corpus).videos)
        assert own.holdout_windows == info.corpus(corpus).holdout_windows
        assert own.hours == pytest.approx(info.corpus(corpus).hours)
        assert own.captions == info.corpus(corpus).captions
    assert all(not_blank((folder / name).read_bytes()) for name in seen.files[1:])
    page = Tags((folder / "report.html").read_text())
    assert page.tags.count("img") == len(seen.files) - 1
    assert any("short clip, number 1" in words for words in page.words)


def test_the_sheet_shows_what_the_model_sees(dataset):
    folder = inspect_dataset(str(dataset), str(dataset.parent / "looks"), "Clips").folder
    sheet, index = Image.open(f"{folder}/long.png"), read_tables(str(dataset)).index
    rows = [row for row in index.to_pylist() if row["corpus"] == "long" and row["split"] == "train"]
    picked = pick_windows(pa.Table.from_pylist(rows, schema=index.schema), WINDOWS)
    shards, grid = ShardDataset(str(dataset), "long"), sheet_grid(len(picked), 3, 32, 32, lines=3)
    assert zoom(32, 32) == (4, 1)
    autoencoder = dataset_autoencoder(str(dataset))
    for place, row in enumerate(picked):
        latents = shards.read([shards.ids.index(row["window_id"])]).latents
        frames = autoencoder.decode(latents)[0].numpy()
        for number, frame in enumerate((0, 11, 23)):
            tile = np.asarray(sheet.crop(grid.box(place, number)))
            np.testing.assert_array_equal(tile[::4, ::4], frames[frame])


class Causal:
    """An autoencoder whose frames know `memory` latents before their own; counts what it decodes."""

    def __init__(self, factor, memory):
        self.temporal_factor, self.memory, self.decoded = factor, memory, 0

    def decode(self, latents):
        self.decoded += latents.shape[1]
        values = latents[0, :, 0, 0, 0].tolist()
        frames = [self._value(values, 0, 0)] if self.temporal_factor > 1 else []
        first = 1 if self.temporal_factor > 1 else 0
        frames += [
            self._value(values, at, part)
            for at in range(first, len(values))
            for part in range(self.temporal_factor)
        ]
        return torch.tensor(frames, dtype=torch.uint8).view(1, -1, 1, 1, 1).expand(1, -1, 2, 2, 3)

    def _value(self, values, at, part):
        return (sum(values[max(0, at - self.memory) : at + 1]) * 7 + part) % 251


@pytest.mark.parametrize(("factor", "memory"), [(1, 0), (4, CONTEXT)])
@pytest.mark.parametrize("length", [1, 2, 3, 6, 7, 40])
def test_no_more_is_decoded_than_three_frames_need(factor, memory, length):
    latents = torch.arange(3, 3 + length).float().view(1, -1, 1, 1, 1)
    code = Causal(factor, memory)
    whole = code.decode(latents)[0].numpy()
    assert len(whole) == (length - 1) * factor + 1
    code.decoded = 0
    found = first_middle_last(latents, code)
    np.testing.assert_array_equal(found, whole[[0, (len(whole) - 1) // 2, len(whole) - 1]])
    assert code.decoded <= 3 + 2 * memory


def test_a_damaged_index_is_told(dataset):
    path = dataset / "index.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"index.parquet is damaged"):
        read_tables(str(dataset))


def test_the_time_of_a_window_is_its_videos(dataset):
    made = read_tables(str(dataset))
    starts = dict(
        zip(made.index["window_id"].to_pylist(), made.index["start_frame"].to_pylist(), strict=True)
    )
    seen = sample_windows(str(dataset), made, "long", dataset_autoencoder(str(dataset)))
    assert len({window.span for window in seen}) > 1
    for window in seen:
        begin = starts[window.window_id] / 8.0
        assert window.span == f"{begin:.1f} - {begin + 24 / 8.0:.1f} s of {50 / 8.0:.1f} s"
