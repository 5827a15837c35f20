"""Histograms of the videos and windows of both corpora: SHORT above LONG on the same axis."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipelines.data.report.summary import DatasetTables, kept_windows, written_videos
from pipelines.data.types import CORPORA
from pipelines.media.html import ACCENT, MUTED, blank_figure, png

COLOURS = {"short": MUTED, "long": ACCENT}
DROPPED = "#cdc8be"
BINS = 24
WIDE = 20.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""
FLOOR = 1e-5
"""Motion below it is in the first bar."""
NEAR = 1000.0
"""Ratio of its ends below which a logarithmic axis has ticks at 1, 2 and 5."""
LEFT = 0.7
"""Left edge of the bar of 1 on a logarithmic axis."""
SIZES = 6
"""Resolutions with a bar of their own; the others share one."""

Numbers = NDArray[np.float64]


class BinEdges(NamedTuple):
    values: Numbers
    """Rising edges of an axis's bars."""
    log: bool = False
    """They grow by a factor instead of a step."""


class _Samples(NamedTuple):
    """The values counted in one panel."""

    kept: Numbers
    dropped: Numbers = np.empty(0)


def histograms(tables: DatasetTables) -> dict[str, bytes]:
    """PNG files by name: `videos.png` (duration, windows per video, resolution) and `windows.png`
    (brightness, motion, sharpness; dropped windows on top of the kept ones)."""
    return {"videos.png": png(_videos(tables)), "windows.png": png(_windows(tables))}


def _videos(tables: DatasetTables) -> Figure:
    figure = blank_figure(11, 4.6)
    axes: Any = figure.subplots(2, 3)
    seconds: dict[str, _Samples] = {}
    windows: dict[str, _Samples] = {}
    for axis, corpus in zip(axes[:, 2], CORPORA, strict=True):
        manifest, index = tables.of_corpus(corpus)
        videos = written_videos(manifest)
        seconds[corpus] = _Samples(_finite(videos["seconds"]))
        per_video = pc.value_counts(kept_windows(index)["source_id"].combine_chunks()).field("counts")
        windows[corpus] = _Samples(_finite(per_video))
        _resolutions(axis, corpus, videos)
    _column(axes[:, 0], seconds, value_edges(_all(seconds)), "Duration of a video, s", "videos")
    _column(axes[:, 1], windows, count_edges(_all(windows)), "Windows kept per video", "videos")
    axes[0, 2].set_title("Resolution before resizing", fontsize=10)
    axes[1, 2].set_xlabel("videos", fontsize=9)
    return figure


def _windows(tables: DatasetTables) -> Figure:
    figure = blank_figure(11, 4.6)
    axes: Any = figure.subplots(2, 3)
    titles = {
        "brightness": "Brightness: mean luma",
        "motion": "Motion: change of luma per second",
        "sharpness": "Sharpness",
    }
    for column, (measure, title) in enumerate(titles.items()):
        samples: dict[str, _Samples] = {}
        for corpus in CORPORA:
            _, index = tables.of_corpus(corpus)
            parts = kept_windows(index), index.filter(pc.invert(index["kept"]))
            samples[corpus] = _Samples(*(_finite(part[measure]) for part in parts))
        edges = BinEdges(np.linspace(0, 1, BINS + 1))
        if measure == "motion":
            samples = {c: _Samples(*(np.maximum(part, FLOOR) for part in s)) for c, s in samples.items()}
        if measure != "brightness":
            edges = value_edges(_all(samples))
        _column(axes[:, column], samples, edges, title, "windows")
    if not pc.all(tables.index["kept"]).as_py():
        figure.supxlabel("grey, on top: windows that were dropped", fontsize=9)
    return figure


def _finite(values: Any) -> Numbers:
    found = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    return found[np.isfinite(found)]


def _all(samples: Mapping[str, _Samples]) -> Numbers:
    return np.concatenate([part for sample in samples.values() for part in sample])


def value_edges(values: Numbers) -> BinEdges:
    """Edges around finite numbers; logarithmic where the largest is many times the smallest."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and high / low >= WIDE:
        edges = np.geomspace(low, high, BINS + 1)
        edges[[0, -1]] = low, high
        return BinEdges(edges, log=True)
    return BinEdges(np.linspace(low, high if high > low else low + max(1e-3, abs(low) / 10), BINS + 1))


def count_edges(values: Numbers) -> BinEdges:
    """Edges between whole numbers around counts of 1 or more."""
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    if high / low < WIDE:
        step = -(-(high - low + 1) // BINS)
        return BinEdges(np.arange(low, high + step + 1, step) - 0.5)
    edges = np.unique(np.geomspace(low, high + 1, BINS + 1).round()) - 0.5
    return BinEdges(np.maximum(edges, LEFT), log=True)


def _column(
    axes: Sequence[Axes], samples: Mapping[str, _Samples], edges: BinEdges, title: str, counted: str
) -> None:
    lefts, widths = edges.values[:-1], np.diff(edges.values)
    style: dict[str, Any] = {"align": "edge", "edgecolor": "white", "linewidth": 0.5}
    for axis, (corpus, found) in zip(axes, samples.items(), strict=True):
        kept, dropped = (np.histogram(part, edges.values)[0] for part in found)
        axis.bar(lefts, kept, widths, color=COLOURS[corpus], **style)
        axis.bar(lefts, dropped, widths, kept, color=DROPPED, **style)
        axis.set_ylabel(f"{corpus.upper()} {counted}", fontsize=9)
        axis.set_xlim(edges.values[0], edges.values[-1])
        _plain(axis)
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if edges.log:
            axis.set_xscale("log")
            axis.set_xlim(edges.values[0], edges.values[-1])
            near = edges.values[-1] / edges.values[0] < NEAR
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_title(title, fontsize=10)
    axes[0].tick_params(which="both", labelbottom=False)


def _resolutions(axis: Axes, corpus: str, videos: pa.Table) -> None:
    pairs = zip(videos["width"].to_pylist(), videos["height"].to_pylist(), strict=True)
    counts = Counter(f"{width}x{height}" for width, height in pairs).most_common()
    named = SIZES if len(counts) > SIZES + 1 else len(counts)
    bars = dict(counts[:named])
    if counts[named:]:
        bars[f"{len(counts) - named} others"] = sum(count for _, count in counts[named:])
    axis.barh(range(len(bars)), list(bars.values()), color=COLOURS[corpus], height=0.7)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    _plain(axis)
    axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _plain(axis: Axes) -> None:
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
