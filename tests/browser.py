"""Debian's Chromium, driven by Playwright, and what axe-core has against a page in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
MARKS = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("playwright") is None, reason="Playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium"),
]
SIZES = {"desk": (1280, 900), "phone": (400, 850)}
SCHEMES = ("light", "dark")
GRAVE = ("serious", "critical")


@contextmanager
def window(size: str) -> Iterator[Any]:
    """Playwright's page of a new browser, for the length of a `with` block."""
    from playwright.sync_api import sync_playwright

    width, height = SIZES[size]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": width, "height": height}, has_touch=size == "phone")
        browser.close()


def grave_faults(page: Any) -> list[str]:
    """What axe-core calls serious or critical in a page as it stands, light and dark."""
    from axe_playwright_python.sync_playwright import Axe

    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for fault in Axe().run(page).response["violations"]:
            if fault["impact"] in GRAVE:
                nodes = [f"\n  {node['html'][:200]}\n  {node['failureSummary']}" for node in fault["nodes"]]
                found.append(f"{scheme}: {fault['impact']} {fault['id']}: {fault['help']}{''.join(nodes)}")
    return found


def assert_no_grave_fault(page: Any, state: str) -> None:
    """Tells every grave fault of a page that is in a state."""
    faults = grave_faults(page)
    assert not faults, "\n".join((state, *faults))
