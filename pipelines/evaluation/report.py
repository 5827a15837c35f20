"""A report that opens in a browser: table, remarks, plots inside the file, and the videos beside it."""

import base64
import os
import posixpath
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipelines.evaluation.evaluate import Evaluation
from pipelines.evaluation.plots import plots, side_by_side
from pipelines.evaluation.summary import cell, columns, remarks, systems, values
from pipelines.storage import Storage
from pipelines.video import write_mp4

REPORT = "report.html"
_FOLDER = "report"
"""Folder of plots and side-by-side videos, beside the report."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } video, img { max-width: 100%; } .wide { overflow-x: auto; }
"""


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
    figures = "".join(
        f'<img alt="{escape(name)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
        for name, data in pictures.items()
    )
    alone = "".join(
        f"<h3>{escape(name)}</h3>" + "".join(_video(_relative(path, home), 160) for path in paths)
        for name, paths in first.clips.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>Seeds {seeds}. Means over seeds, with the deviation of several.</p>"
        f"<div class=wide>{_table(evaluations)}</div><ul>{told}</ul>"
        f"<h2>Side by side</h2>{shown}<h2>Plots</h2>{figures}<h2>Videos</h2>{alone}</html>\n"
    )


def _table(evaluations: Sequence[Evaluation]) -> str:
    shown = columns(evaluations[0])
    head = "".join(f"<th>{escape(heading)}</th>" for heading in ("system", *shown))
    rows = (
        f"<tr><td>{escape(system)}</td>"
        + "".join(f"<td>{cell(values(evaluations, system, metric))}</td>" for metric in shown.values())
        + "</tr>"
        for system in systems(evaluations)
    )
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _video(source: str, width: int | None = None) -> str:
    size = "" if width is None else f' width="{width}"'
    return f'<video src="{escape(source)}" controls loop muted playsinline preload="metadata"{size}></video>'


def _relative(path: str, home: str) -> str:
    """A path or URI as seen from the folder `home`, with forward slashes."""
    return posixpath.relpath(path.replace(os.sep, "/"), home.replace(os.sep, "/"))
