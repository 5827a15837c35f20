"""Plots of an evaluation as PNG files."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.evaluation.report.summary import is_world, systems, values
from pipelines.evaluation.run import Evaluation
from pipelines.media.html import ACCENT, MUTED, blank_figure, png

DISTANCES = {
    "window_frechet": "windows, factors",
    "video_frechet": "whole videos, factors",
    "pixel_window_frechet": "windows, pixels",
    "unseen_window_frechet": "windows, unseen textures",
}
DRIFTS = ("drift.luma", "drift.saturation", "drift.contrast", "drift.log_sharpness", "drift.log_motion")
PANEL = 3.4, 3.6
"""Width and height of a panel, inches."""


def plots(evaluations: Sequence[Evaluation]) -> dict[str, bytes]:
    """PNG files by name: drift, similarity over lags, distances, and for the world errors along the clip."""
    names, first = systems(evaluations), evaluations[0]
    metrics = list(dict.fromkeys(name for row in first.rows.values() for name in row.metrics))
    lags = [name for name in metrics if name.startswith("temporal_ssim.")]
    similarity = {name: [_mean(evaluations, name, lag)[0] for lag in lags] for name in names}
    made = {
        "drift.png": _bars(evaluations, {name: name.split(".", 1)[1] for name in DRIFTS}, log=False),
        "similarity.png": _lines(
            similarity, [lag.split(".", 1)[1] for lag in lags], "lag", "similarity of frames"
        ),
    }
    distances = {name: title for name, title in DISTANCES.items() if name in metrics}
    if distances:
        made["distances.png"] = _bars(evaluations, distances, log=True)
    if is_world(first):
        lists = {name: values(evaluations, name, "texture_error_by_eighth") for name in names}
        eighths = {
            name: np.mean([value for value in found if isinstance(value, list)], axis=0).tolist()
            for name, found in lists.items()
            if any(isinstance(value, list) for value in found)
        }
        ticks = [str(eighth) for eighth in range(1, 9)]
        made["eighths.png"] = _lines(eighths, ticks, "eighth of the clip", "texture error")
    return made


def _mean(evaluations: Sequence[Evaluation], system: str, metric: str) -> tuple[float, float]:
    """Mean and deviation over seeds; not-a-number where there is none."""
    numbers = [v for v in values(evaluations, system, metric) if isinstance(v, int | float)]
    if not numbers:
        return float("nan"), 0.0
    return float(np.mean(numbers)), float(np.std(numbers))


def _bars(evaluations: Sequence[Evaluation], panels: Mapping[str, str], *, log: bool) -> bytes:
    """A panel per metric, a bar per system; `panels` gives each metric's title."""
    names = systems(evaluations)
    figure = blank_figure(PANEL[0] * len(panels), PANEL[1])
    for place, (metric, title) in enumerate(panels.items()):
        axis = figure.add_subplot(1, len(panels), place + 1)
        means, deviations = zip(*(_mean(evaluations, name, metric) for name in names), strict=True)
        colours = [ACCENT if name == "mmm_4" else MUTED for name in names]
        axis.barh(range(len(names)), means, xerr=deviations, color=colours)
        axis.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        if log and np.nanmax([*means, 0.0]) > 0:
            axis.set_xscale("log")
    return png(figure)


def _lines(series: Mapping[str, Sequence[float]], ticks: Sequence[str], x: str, y: str) -> bytes:
    """A line per system, a point per tick."""
    figure = blank_figure(2 * PANEL[0], PANEL[1])
    axis = figure.add_subplot()
    for name, heights in series.items():
        axis.plot(range(len(ticks)), heights, "o-", label=name)
    axis.set_xticks(range(len(ticks)), ticks)
    axis.set(xlabel=x, ylabel=y)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return png(figure)
