"""The report of an evaluation as a page: table, remarks, plots inside it, and the videos beside it."""

import io
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.evaluation.claims import CLAIM_COLUMNS, Judged
from pipelines.evaluation.report.plots import plots
from pipelines.evaluation.report.summary import cell, columns, over_time, remarks, systems, values
from pipelines.evaluation.run import Evaluation
from pipelines.media.color import Frames
from pipelines.media.contact_sheet import side_by_side
from pipelines.media.html import render
from pipelines.media.video import decode, store_mp4
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
    """Side-by-side videos, one per caption."""


def write_report(
    evaluations: Sequence[Evaluation],
    folder: str,
    title: str,
    fps: float,
    claims: Sequence[Judged] = (),
    not_won: Sequence[Judged] = (),
) -> Report:
    """Write report.html below `folder`, with plots and side-by-side videos in `report/`.

    Args:
        evaluations: one per seed; the videos are the first one's.
        folder: a path or any fsspec URI.
        title: heading.
        fps: frames per second of the videos.
        claims, not_won: what was judged, and every figure in which MMM does not clearly win.
    """
    storage, first = Storage(folder), evaluations[0]
    pictures = plots(evaluations)
    for name, data in pictures.items():
        storage.write_bytes(f"{_FOLDER}/{name}", data)
    abreast = [f"{_FOLDER}/side-by-side-{index}.mp4" for index in range(len(first.captions))]
    for index, name in enumerate(abreast):
        clips = {system: paths[index] for system, paths in first.clips.items()}
        store_mp4(storage, name, frames_side_by_side(clips), fps)
    shown = columns(first)
    html = render(
        "evaluation/report/page.html.j2",
        title=title,
        seeds=[evaluation.seed for evaluation in evaluations],
        head=["system", *shown],
        rows=[
            [system, *(cell(values(evaluations, system, metric)) for metric in shown.values())]
            for system in systems(evaluations)
        ],
        remarks=remarks(evaluations),
        over_time=over_time(evaluations),
        claim_head=CLAIM_COLUMNS,
        claims=[judged.cells for judged in claims],
        not_won=[judged.cells for judged in not_won],
        abreast=zip(abreast, first.captions, strict=True),
        pictures=pictures,
        clips={
            name: [_relative(path, str(storage)) for path in paths] for name, paths in first.clips.items()
        },
    )
    storage.write_bytes(REPORT, html.encode())
    return Report(
        f"{storage}/{REPORT}",
        tuple(f"{storage}/{_FOLDER}/{name}" for name in pictures),
        tuple(f"{storage}/{name}" for name in abreast),
    )


def frames_side_by_side(clips: Mapping[str, str]) -> Iterator[Frames]:
    """Frames of several videos in a grid, each under its label, until the shortest ends.

    Args:
        clips: path or URI of an MP4 by label; all have the size of the first.
    """
    streams = []
    for path in clips.values():
        folder, name = path.rsplit("/", 1)
        streams.append(decode(io.BytesIO(Storage(folder).read_bytes(name))))
    for frames in zip(*streams, strict=False):
        yield side_by_side(dict(zip(clips, frames, strict=True)))


def _relative(path: str, home: str) -> str:
    """A path or URI as seen from the folder `home`, with forward slashes."""
    return posixpath.relpath(path.replace(os.sep, "/"), home.replace(os.sep, "/"))
