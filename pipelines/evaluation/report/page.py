"""A report that opens in a browser: table, remarks, plots inside the file, and the videos beside it."""

import os
import posixpath
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipelines.evaluation.report.plots import plots, side_by_side
from pipelines.evaluation.report.summary import cell, columns, remarks, systems, values
from pipelines.evaluation.run import Evaluation
from pipelines.media.html import page, picture, table
from pipelines.media.video import write_mp4
from pipelines.storage import Storage

REPORT = "report.html"
_FOLDER = "report"
"""Folder of plots and side-by-side videos, beside the report."""


@dataclass(frozen=True)
class Report:
    """Where a report is."""

    html: str
    """Path of report.html."""
    plots: tuple[str, ...]
    """PNG files."""
    clips: tuple[str, ...]
    """Side-by-side videos, one a caption."""


def write_report(evaluations: Sequence[Evaluation], folder: str, title: str, fps: float) -> Report:
    """Writes report.html below `folder`, with plots and side-by-side videos in `report/`.

    Args:
        evaluations: one a seed; the videos are the first one's.
        folder: a path or any fsspec URI.
        title: heading.
        fps: frames a second of the videos.
    """
    storage = Storage(folder)
    pictures = plots(evaluations)
    for name, data in pictures.items():
        storage.write_bytes(f"{_FOLDER}/{name}", data)
    clips = [
        _side_by_side(evaluations[0], place, storage, fps) for place in range(len(evaluations[0].captions))
    ]
    storage.write_bytes(REPORT, _page(evaluations, title, pictures, clips, str(storage)).encode())
    return Report(
        f"{storage}/{REPORT}",
        tuple(f"{storage}/{_FOLDER}/{name}" for name in pictures),
        tuple(f"{storage}/{clip}" for clip in clips),
    )


def _side_by_side(evaluation: Evaluation, place: int, storage: Storage, fps: float) -> str:
    """Writes the videos of one caption beside each other; the path below the report's folder."""
    name = f"{_FOLDER}/side-by-side-{place}.mp4"
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / "clip.mp4"
        write_mp4(
            local, side_by_side({label: paths[place] for label, paths in evaluation.clips.items()}), fps
        )
        storage.write_bytes(name, local.read_bytes())
    return name


def _page(
    evaluations: Sequence[Evaluation], title: str, pictures: dict[str, bytes], clips: Sequence[str], home: str
) -> str:
    first = evaluations[0]
    seeds = ", ".join(str(evaluation.seed) for evaluation in evaluations)
    told = "".join(f"<li>{escape(remark)}</li>" for remark in remarks(evaluations))
    shown = "".join(
        f"<figure>{_video(clip)}<figcaption>{escape(text)}</figcaption></figure>"
        for clip, text in zip(clips, first.captions, strict=True)
    )
    figures = "".join(picture(name, data) for name, data in pictures.items())
    alone = "".join(
        f"<h3>{escape(name)}</h3>" + "".join(_video(_relative(path, home), 160) for path in paths)
        for name, paths in first.clips.items()
    )
    return page(
        title,
        f"<p>Seeds {seeds}. Means over seeds, with the deviation of several.</p>"
        f"{_table(evaluations)}<ul>{told}</ul>"
        f"<h2>Side by side</h2>{shown}<h2>Plots</h2>{figures}<h2>Videos</h2>{alone}",
    )


def _table(evaluations: Sequence[Evaluation]) -> str:
    shown = columns(evaluations[0])
    rows = (
        [system, *(cell(values(evaluations, system, metric)) for metric in shown.values())]
        for system in systems(evaluations)
    )
    return table(["system", *shown], rows)


def _video(source: str, width: int | None = None) -> str:
    size = "" if width is None else f' width="{width}"'
    return f'<video src="{escape(source)}" controls loop muted playsinline preload="metadata"{size}></video>'


def _relative(path: str, home: str) -> str:
    """A path or URI as seen from the folder `home`, with forward slashes."""
    return posixpath.relpath(path.replace(os.sep, "/"), home.replace(os.sep, "/"))
