"""docs/data.md as a story: its commands run in order on two synthesised folders, and print what it shows."""

import json
import re
import sys
from dataclasses import dataclass

import pytest

from pipelines.data.report.summary import INDEX_COLUMNS, MANIFEST_COLUMNS
from tests.docs.conftest import run
from tests.docs.footage import write_footage
from tests.docs.shown import STORY, Shown, shown_on

pytestmark = pytest.mark.timeout(900)

_BLOCK = re.compile(r"^```(sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LOOSE = re.compile(r"\.\.\./\S+|/\S+|\d+\.\d+|\d+(?= windows a second)|(?<=of these held out ).*")
"""What no two machines print alike: places, fractions, speeds, and how the hash of ids falls."""


@dataclass(frozen=True)
class Told:
    """A command, what it printed, and what the page shows of that."""

    command: Shown
    output: str
    shown: str


def plain(line):
    return _LOOSE.sub("#", " ".join(line.split()))


def expected(text):
    """Each command of a page with the block of text after it."""
    last = None
    for language, block in _BLOCK.findall(text):
        if language == "sh":
            last = [*shown_on("page", f"```sh\n{block}```")][-1]
            yield last, ""
        elif last is not None:
            yield last, block


@pytest.fixture(scope="module")
def story(tmp_path_factory, head):
    """Every command of the page, run in order."""
    folder = tmp_path_factory.mktemp("story")
    places = write_footage(folder)
    told = []
    for command, block in expected(STORY.read_text()):
        if block:
            told[-1] = Told(command, told[-1].output, block)
            continue
        words = [places.get(word, word) for word in command.words[1:]]
        done = run([sys.executable, "-m", "jobs", *words], folder, folder / "home", **head.variables)
        told.append(Told(command, done.stdout, ""))
    return folder, told


def test_the_page_is_read_as_commands_with_what_they_print():
    page = "```text\na folder\n```\n```sh\nsostenuto ingest\n```\nso:\n```text\ndone\n```\n"
    assert [(c.text, block) for c, block in expected(page)] == [
        ("sostenuto ingest", ""),
        ("sostenuto ingest", "done\n"),
    ]
    assert plain("36  windows in 4.1 s: 9 windows a second; dataset: /a/b") == plain(
        "36 windows in 52.7 s: 0.7 windows a second; dataset: .../runs"
    )
    assert plain("videos 12 3") != plain("videos 12 4")


@pytest.mark.long
def test_the_commands_print_what_the_page_shows(story):
    _, told = story
    shown = [one for one in told if one.shown]
    assert len(shown) == 3
    for one in shown:
        printed = [plain(line) for line in one.output.splitlines()]
        missing = [line for line in one.shown.splitlines() if plain(line) not in printed]
        assert not missing, f"{one.command.text} printed {one.output}"


@pytest.mark.long
def test_json_is_one_object_and_the_files_lie_where_the_page_says(story):
    folder, told = story
    ingest, inspect = (json.loads(one.output) for one in told if "--json" in one.command.words)
    assert ingest["written"] == 15
    assert ingest["rejects"] == {"manifest": 1, "open": 1}
    assert ingest["this_run"]["windows"] == 0
    assert inspect["short"]["windows"] == 24
    assert inspect["report"] == f"{folder}/looks/report.html"
    for name in ("report.html", "short.png", "long.png", "videos.png", "windows.png"):
        assert (folder / "runs" / "clips" / "inspection" / name).is_file()
        assert (folder / "looks" / name).is_file()


def test_every_column_that_inspect_reads_is_on_the_page():
    page = STORY.read_text()
    manifest, index = page.split("`manifest.parquet`:")[1].split("`index.parquet`:")
    for columns, part in ((MANIFEST_COLUMNS, manifest), (INDEX_COLUMNS, index)):
        assert [name for name in columns if f"`{name}`" not in part] == []


def test_the_story_has_only_commands_of_its_own():
    assert {shown.words[1] for shown in shown_on("page", STORY.read_text())} == {"ingest", "inspect"}
