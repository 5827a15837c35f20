"""What somebody does with the page, in Debian's Chromium; not run where that or Playwright is missing."""

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn

from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.serve.app import create_app
from jobs.serve.desk import Desk
from jobs.serve.guard import LOGIN
from jobs.serve.history import History
from pipelines.media.video import read_mp4, write_mp4
from tests.browser import MARKS, SIZES, assert_no_grave_fault, window
from tests.command import free_port
from tests.jobs.serve.tiny_run import FPS, SIDE, made_here, make_page

pytestmark = MARKS


@pytest.fixture
def address(run: RunConfig) -> Iterator[str]:
    """A server in a thread, which makes its clips itself."""
    history, port = History(Path(RunPaths.of(run).serve)), free_port()
    app = create_app(Desk(make_page(run), history, made_here(run)))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    server.should_exit = True
    thread.join(30)
    history.close()


@pytest.fixture(params=list(SIZES))
def page(address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a window, whose scripts may not fail and which may ask nobody else."""
    faults: list[str] = []
    with window(request.param) as page:
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda one: one.url.startswith(address) or faults.append(one.url))
        page.goto(address)
        page.locator("#lines textarea").wait_for()
        yield page
        width, _ = SIZES[request.param]
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, "it scrolls sideways"
    assert faults == []


def make(page: Any) -> None:
    page.click("#make")
    page.locator("#state", has_text="made in").wait_for()


def test_systems_play_side_by_side_under_one_bar(page: Any) -> None:
    for box in page.locator("[name=system]").all():
        box.check()
    page.select_option("#seeds", "2")
    make(page)
    assert page.locator("#grid figure").count() == 6
    assert page.locator("#grid figcaption", has_text="network evaluations").count() == 6
    page.locator("#play", has_text="Pause").click()
    page.locator("#seek").evaluate("bar => { bar.value = 0.5; bar.dispatchEvent(new Event('input')) }")
    times = page.locator("#grid video").evaluate_all("all => all.map(one => one.currentTime)")
    assert times == [0.5] * 6
    page.select_option("#speed", "0.25")
    rates = page.locator("#grid video").evaluate_all("all => all.map(one => one.playbackRate)")
    assert rates == [0.25] * 6


def test_captions_are_moved_by_mouse_and_by_keys(page: Any) -> None:
    page.click("#add")
    page.locator("#lines textarea").nth(1).fill("<img src=x onerror=alert(1)>")
    edge = page.locator(".edge").first
    box = edge.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 60, box["y"] + 10)
    page.mouse.up()
    dragged = float(page.locator("#lines input").nth(1).input_value())
    assert dragged < 0.5
    page.locator(".edge").last.press("ArrowRight")
    assert float(page.input_value("#seconds")) == pytest.approx(1.125)
    page.locator(".edge").first.press("ArrowRight")
    assert float(page.locator("#lines input").nth(1).input_value()) == pytest.approx(dragged + 0.125)
    make(page)
    assert "<img src=x onerror=alert(1)>" in page.inner_text("#what")
    assert page.locator("img").count() == 0


def test_a_clip_goes_on_and_comes_back_after_a_reload(page: Any, tmp_path: Path) -> None:
    write_mp4(tmp_path / "own.mp4", np.full((6, SIDE, SIDE, 3), 90, np.uint8), FPS)
    page.set_input_files("#file", str(tmp_path / "own.mp4"))
    page.locator("#start", has_text="Goes on from own.mp4 (0.8 s)").wait_for()
    make(page)
    page.locator("button", has_text="Go on from here").click()
    assert "Goes on from MMM, seed 0" in page.inner_text("#start")
    page.locator("#lines textarea").fill("a moon")
    page.locator("#lines textarea").press("Control+Enter")
    page.locator("#history button").nth(1).wait_for()
    page.locator("#state", has_text="made in").wait_for()
    with page.expect_download() as kept:
        page.locator("#grid a", has_text="MP4").click()
    assert len(read_mp4(kept.value.path())) > 8
    page.reload()
    page.locator("#what", has_text="a moon").wait_for()
    assert page.locator("#history button").count() == 2


def test_what_is_refused_is_told(page: Any) -> None:
    page.locator("#lines textarea").evaluate("area => area.removeAttribute('maxlength')")
    page.locator("#lines textarea").fill("x" * 10_000)
    page.click("#make")
    page.locator("#notice.bad").wait_for()
    assert "serve.prompt_length is 1000" in page.inner_text("#notice")
    assert page.locator("#history button").count() == 0, "nothing was asked for"


def test_axe_finds_no_grave_fault(page: Any, address: str, tmp_path: Path) -> None:
    assert_no_grave_fault(page, "nothing was asked for")
    write_mp4(tmp_path / "own.mp4", np.full((6, SIDE, SIDE, 3), 90, np.uint8), FPS)
    page.set_input_files("#file", str(tmp_path / "own.mp4"))
    page.locator("#start", has_text="Goes on from own.mp4").wait_for()
    page.click("#add")
    page.click("summary")
    for box in page.locator("[name=system]").all()[:2]:
        box.check()
    page.select_option("#seeds", "2")
    make(page)
    page.locator("#history button").wait_for()
    assert_no_grave_fault(page, "clips side by side that go on from a file")
    page.fill("#times", "2")
    page.click("#make")
    page.locator("#notice.bad").wait_for()
    assert_no_grave_fault(page, "a refusal")
    page.goto(f"{address}api.html")
    page.locator("#endpoints h2").first.wait_for()
    assert_no_grave_fault(page, "the API")
    page.route(f"{address}login", lambda route: route.fulfill(body=LOGIN, content_type="text/html"))
    page.goto(f"{address}login")
    assert_no_grave_fault(page, "the question for a token")
