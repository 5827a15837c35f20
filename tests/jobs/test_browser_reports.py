"""The pages that commands write, judged by axe-core in Debian's Chromium; not run where that is missing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.data.report.contact_sheets import SampledWindow
from pipelines.data.report.histograms import histograms
from pipelines.data.report.page import report_html
from pipelines.data.report.summary import summarise
from pipelines.evaluation.report.page import write_report
from pipelines.storage import Storage
from pipelines.training.config import DistillConfig
from pipelines.training.monitors import run
from pipelines.training.monitors.verdicts import Facts
from tests.browser import MARKS, SIZES, assert_no_grave_fault, grave_faults, window
from tests.jobs.commands.test_watch import record
from tests.pipelines.data.report.test_report import INDEX, MANIFEST, tables
from tests.pipelines.evaluation.report.test_summary import evaluation, solid
from tests.pipelines.training.makers import recipe

pytestmark = MARKS


@pytest.fixture(params=list(SIZES))
def page(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty window."""
    with window(request.param) as page:
        yield page


def watched(folder: Path) -> Path:
    """`sostenuto watch --html`, of a stage that is unwell."""
    facts = replace(Facts.of(recipe(DistillConfig(steps=100), {"student": "x"})), stage="distill")
    record(str(folder), "seed-0/distill", facts, 40.0)
    (folder / "watch.html").write_text(run.page("Watched", run.watched_stages(Storage(str(folder)))))
    return folder / "watch.html"


def inspected(folder: Path) -> Path:
    """`sostenuto inspect`."""
    made = tables(MANIFEST, INDEX)
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    seen = {"short": [SampledWindow("short-a-0", "about a", "a.mp4", "1 - 2 s of 5 s", frames)], "long": []}
    html = report_html("Inspected", made, summarise(made), seen, histograms(made))
    (folder / "report.html").write_text(html)
    return folder / "report.html"


def evaluated(folder: Path) -> Path:
    """`sostenuto evaluate`."""
    clips = {name: (solid(folder / f"clips/{name}/000.mp4", 90),) for name in ("mmm_4", "sft_50", "ideal")}
    return Path(write_report([evaluation(0, clips=clips)], str(folder), "Evaluated", 8.0).html)


@pytest.mark.parametrize("written", [watched, inspected, evaluated])
def test_axe_finds_no_grave_fault(page: Any, written: Any, tmp_path: Path) -> None:
    page.goto(written(tmp_path).as_uri())
    assert_no_grave_fault(page, written.__doc__)


def test_axe_sees_a_fault(page: Any) -> None:
    page.set_content("<html lang=en><title>A page</title><main><h1>A page</h1><img src=x></main>")
    light, dark = grave_faults(page)
    assert light.startswith("light: critical image-alt")
    assert dark.startswith("dark: critical image-alt")
    with pytest.raises(AssertionError, match="a picture without words"):
        assert_no_grave_fault(page, "a picture without words")
