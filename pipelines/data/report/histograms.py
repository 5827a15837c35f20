"""How the videos and windows of both corpora are spread, as pictures: SHORT above LONG on the same axis."""

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

from pipelines.data.report.inspection import Tables, kept, of_corpus, written
from pipelines.data.types import CORPORA
from pipelines.media.html import blank_figure, png

COLOURS = {"short": "#7a8aa0", "long": "#c85a3c"}
DROPPED = "#cdc8be"
BINS = 24
WIDE = 20.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""
FLOOR = 1e-5
"""Motion below it stands in the first bar."""
NEAR = 1000.0
"""Ratio of its ends up to which a logarithmic axis has ticks at 1, 2 and 5."""
LEFT = 0.7
"""Where the bar of 1 begins on a logarithmic axis."""
SIZES = 6
"""Resolutions that are named; the others are one bar."""

Numbers = NDArray[np.float64]


class Edges(NamedTuple):
    """Where the bars of an axis begin and end."""

    values: Numbers
    """Rising."""
    log: bool = False
    """They grow by a factor instead of a step."""


class _Sample(NamedTuple):
    """What one panel shows."""

    kept: Numbers
    dropped: Numbers


_NONE: Numbers = np.empty(0)


def histograms(tables: Tables) -> dict[str, bytes]:
    """PNG files by name: `videos.png` (duration, windows a video, resolution) and `windows.png` (brightness,
    motion, sharpness; windows that were dropped stand on those kept)."""
    return {"videos.png": png(_videos(tables)), "windows.png": png(_windows(tables))}


def _videos(tables: Tables) -> Figure:
    figure = blank_figure(11, 4.6)
    axes: Any = figure.subplots(2, 3)
    seconds = {c: _Sample(_numbers(written(m)["seconds"]), _NONE) for c, (m, _) in _split(tables)}
    windows = {c: _Sample(_windows_a_video(i), _NONE) for c, (_, i) in _split(tables)}
    _column(axes[:, 0], seconds, value_edges(_all(seconds)), "Duration of a video, s", "videos")
    _column(axes[:, 1], windows, count_edges(_all(windows)), "Windows kept of a video", "videos")
    for axis, (corpus, (manifest, _)) in zip(axes[:, 2], _split(tables), strict=True):
        _resolutions(axis, corpus, written(manifest))
    axes[0, 2].set_title("Resolution before resizing", fontsize=10)
    axes[1, 2].set_xlabel("videos", fontsize=9)
    return figure


def _windows(tables: Tables) -> Figure:
    figure = blank_figure(11, 4.6)
    axes: Any = figure.subplots(2, 3)
    brightness, motion, sharpness = (_measured(tables, m) for m in ("brightness", "motion", "sharpness"))
    motion = {c: _Sample(*(np.maximum(part, FLOOR) for part in found)) for c, found in motion.items()}
    unit = Edges(np.linspace(0, 1, BINS + 1))
    _column(axes[:, 0], brightness, unit, "Brightness: mean luma", "windows")
    _column(axes[:, 1], motion, value_edges(_all(motion)), "Motion: change of luma a second", "windows")
    _column(axes[:, 2], sharpness, value_edges(_all(sharpness)), "Sharpness", "windows")
    if not pc.all(tables.index["kept"]).as_py():
        figure.supxlabel("grey, on top: windows that were dropped", fontsize=9)
    return figure


def _split(tables: Tables) -> list[tuple[str, tuple[pa.Table, pa.Table]]]:
    return [(corpus, of_corpus(tables, corpus)) for corpus in CORPORA]


def _windows_a_video(index: pa.Table) -> Numbers:
    return _numbers(pc.value_counts(kept(index)["source_id"].combine_chunks()).field("counts"))


def _measured(tables: Tables, name: str) -> dict[str, _Sample]:
    return {
        corpus: _Sample(_numbers(kept(index)[name]), _numbers(index.filter(pc.invert(index["kept"]))[name]))
        for corpus, (_, index) in _split(tables)
    }


def _numbers(values: Any) -> Numbers:
    found = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
    return found[np.isfinite(found)]


def _all(samples: Mapping[str, _Sample]) -> Numbers:
    return np.concatenate([part for sample in samples.values() for part in sample])


def value_edges(values: Numbers) -> Edges:
    """Edges that hold every value; logarithmic where the largest is many times the smallest.

    Args:
        values: finite numbers.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if low > 0 and high / low >= WIDE:
        edges = np.geomspace(low, high, BINS + 1)
        edges[[0, -1]] = low, high
        return Edges(edges, log=True)
    return Edges(np.linspace(low, high if high > low else low + max(1e-3, abs(low) / 10), BINS + 1))


def count_edges(values: Numbers) -> Edges:
    """Edges between whole numbers that hold every value.

    Args:
        values: counts of 1 or more.
    """
    low, high = (float(values.min()), float(values.max())) if len(values) else (1.0, 1.0)
    if high / low < WIDE:
        step = -(-(high - low + 1) // BINS)
        return Edges(np.arange(low, high + step + 1, step) - 0.5)
    edges = np.unique(np.geomspace(low, high + 1, BINS + 1).round()) - 0.5
    return Edges(np.maximum(edges, LEFT), log=True)


def _column(
    axes: Sequence[Axes], samples: Mapping[str, _Sample], edges: Edges, title: str, counted: str
) -> None:
    """One measure of SHORT above the same of LONG."""
    for axis, (corpus, found) in zip(axes, samples.items(), strict=True):
        _bars(axis, corpus, found, edges.values)
        axis.set_ylabel(f"{corpus.upper()} {counted}", fontsize=9)
        if edges.log:
            _logarithmic(axis, edges.values)
    axes[0].set_title(title, fontsize=10)
    axes[0].tick_params(which="both", labelbottom=False)


def _logarithmic(axis: Axes, edges: Numbers) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    axis.set_xscale("log")
    axis.set_xlim(edges[0], edges[-1])
    near = edges[-1] / edges[0] < NEAR
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _bars(axis: Axes, corpus: str, sample: _Sample, edges: Numbers) -> None:
    below, _ = np.histogram(sample.kept, edges)
    above, _ = np.histogram(sample.dropped, edges)
    wide = np.diff(edges)
    for height, bottom, colour in ((below, below * 0, COLOURS[corpus]), (above, below, DROPPED)):
        axis.bar(
            edges[:-1], height, wide, bottom, align="edge", color=colour, edgecolor="white", linewidth=0.5
        )
    axis.set_xlim(edges[0], edges[-1])
    _plain(axis)
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


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
