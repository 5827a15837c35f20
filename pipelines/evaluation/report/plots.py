"""Plots of an evaluation as PNG, and its showcase as side-by-side videos."""

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipelines.evaluation.report.summary import is_world, systems, values
from pipelines.evaluation.run import Evaluation
from pipelines.media.html import blank_figure, png
from pipelines.media.video import decode
from pipelines.storage import Storage

Frames = NDArray[np.uint8]

DISTANCES = {
    "window_frechet": "windows, factors",
    "video_frechet": "whole videos, factors",
    "pixel_window_frechet": "windows, pixels",
    "unseen_window_frechet": "windows, unseen textures",
}
DRIFTS = ("drift.luma", "drift.saturation", "drift.contrast", "drift.log_sharpness", "drift.log_motion")
_BAND = 14
"""Pixels of the label above a video."""
_COLUMNS = 5


def plots(evaluations: Sequence[Evaluation]) -> dict[str, bytes]:
    """PNG files by name: distances, temporal numbers, and for the world what happens along the clip."""
    first = evaluations[0]
    found = _metrics(first)
    distances = {name: title for name, title in DISTANCES.items() if name in found}
    lags = {name: name.split(".", 1)[1] for name in found if name.startswith("temporal_ssim.")}
    made = {"drift.png": _bars(evaluations, {name: name.split(".", 1)[1] for name in DRIFTS}, log=False)}
    made["similarity.png"] = _lines(
        evaluations, list(lags), list(lags.values()), "lag", "similarity of frames"
    )
    if distances:
        made["distances.png"] = _bars(evaluations, distances, log=True)
    if is_world(first):
        made["eighths.png"] = _eighths(evaluations)
    return made


def side_by_side(clips: Mapping[str, str]) -> Iterator[Frames]:
    """Frames of several videos in a grid, each under its label; all have the size of the first.

    Args:
        clips: path or URI of an MP4 by label.
    """
    streams = {label: decode(io.BytesIO(_read(path))) for label, path in clips.items()}
    while True:
        frames = [next(stream, None) for stream in streams.values()]
        if any(frame is None for frame in frames):
            return
        yield _grid(list(streams), [frame for frame in frames if frame is not None])


def _read(path: str) -> bytes:
    folder, name = path.rsplit("/", 1)
    return Storage(folder).read_bytes(name)


def _grid(labels: Sequence[str], frames: Sequence[Frames]) -> Frames:
    height, width = frames[0].shape[:2]
    columns = min(_COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    canvas = Image.new("RGB", (columns * width, rows * (height + _BAND)), (24, 24, 28))
    draw = ImageDraw.Draw(canvas)
    for place, (label, frame) in enumerate(zip(labels, frames, strict=True)):
        left, top = place % columns * width, place // columns * (height + _BAND)
        draw.text((left + 3, top + 1), label, fill=(235, 235, 235))
        canvas.paste(Image.fromarray(frame), (left, top + _BAND))
    return np.asarray(canvas.crop((0, 0, canvas.width // 2 * 2, canvas.height // 2 * 2)))


def _metrics(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for row in evaluation.rows.values() for name in row.metrics))


def _figure(panels: int) -> Figure:
    return blank_figure(3.4 * panels, 3.6)


def _means(evaluations: Sequence[Evaluation], system: str, metric: str) -> tuple[float, float]:
    """Mean and deviation over seeds; not-a-number where there is none."""
    numbers = [v for v in values(evaluations, system, metric) if isinstance(v, int | float)]
    if not numbers:
        return float("nan"), 0.0
    return float(np.mean(numbers)), float(np.std(numbers))


def _bars(evaluations: Sequence[Evaluation], panels: Mapping[str, str], *, log: bool) -> bytes:
    names = systems(evaluations)
    figure = _figure(len(panels))
    for place, (metric, title) in enumerate(panels.items()):
        axis = figure.add_subplot(1, len(panels), place + 1)
        means, spreads = zip(*(_means(evaluations, name, metric) for name in names), strict=True)
        axis.barh(
            range(len(names)),
            means,
            xerr=spreads,
            color=["#c85a3c" if n == "mmm_4" else "#7a8aa0" for n in names],
        )
        axis.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        if log and np.nanmax([*means, 0.0]) > 0:
            axis.set_xscale("log")
    return png(figure)


def _lines(
    evaluations: Sequence[Evaluation], metrics: Sequence[str], ticks: Sequence[str], x: str, y: str
) -> bytes:
    figure = _figure(2)
    axis = figure.add_subplot()
    for name in systems(evaluations):
        axis.plot(
            range(len(ticks)), [_means(evaluations, name, metric)[0] for metric in metrics], "o-", label=name
        )
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set(xlabel=x, ylabel=y)
    axis.legend(fontsize=7)
    return png(figure)


def _eighths(evaluations: Sequence[Evaluation]) -> bytes:
    figure = _figure(2)
    axis = figure.add_subplot()
    for name in systems(evaluations):
        series = [v for v in values(evaluations, name, "texture_error_by_eighth") if isinstance(v, list)]
        if series:
            axis.plot(range(1, 9), np.mean(series, axis=0), "o-", label=name)
    axis.set(xlabel="eighth of the clip", ylabel="texture error")
    axis.legend(fontsize=7)
    return png(figure)
