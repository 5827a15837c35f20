"""The commands that the documentation shows, and what a test gives instead of their settings and places."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
from typer.main import get_group

from jobs.cli import app
from tests.command import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))

STORY = REPOSITORY / "docs" / "data.md"
"""A page whose commands build on each other: test_data_page.py runs them in order."""

STORIES = (STORY, REPOSITORY / "docs" / "wan.md")
"""All such pages; tests/e2e/test_wan_path.py runs the second."""

SHELL, OTHER = {"", "sh"}, {"text", "yaml", "python"}
"""Languages of fenced blocks whose lines are commands, and of those that hold something else."""

CONFIGURED = {
    name
    for name, command in get_group(app).commands.items()
    if any("--config" in option.opts for option in command.params)
}
"""Commands that take a config."""

KINDS = {
    "local": (("sostenuto",),),
    "registry": (("sostenuto", "fetch"),),
    "head": (("sostenuto", "submit"), ("ray", "job", "submit")),
    "page": (("sostenuto", "serve"), ("sostenuto", "submit", "--no-wait", "serve")),
    "job": (("ray", "job", "logs"), ("ray", "job", "stop")),
    "start": (("ray", "start", "--head", "--block"),),
    "token": (("ray", "get-auth-token"),),
    "cloud": (("ray", "up"), ("ray", "dashboard"), ("ray", "down")),
    "kubernetes": (("kubectl",), ("docker", "build"), ("docker", "push")),
    "server": (("mlflow", "ui"), ("mlflow", "server")),
    "make": (("make",),),
    "benchmark": (("python",),),
    "chmod": (("chmod",),),
    "export": (("export",),),
}
"""How a command is tested, by its first words; the longest that fit count."""

PLACES = (
    "/mnt/runs /tmp/sostenuto-runs s3://bucket/runs /mnt/short /mnt/long /mnt/mlflow "
    "http://127.0.0.1:8265 http://mlflow.internal:5000 5000 0.0.0.0"
).split()
"""What stands in commands for a user's own folders, addresses and ports."""

_FENCE = re.compile(r"^\s*```(\w*)")
_SPAN = re.compile(r"`([^`]+)`")
_ASSIGNED = re.compile(r"^\w+=")
_PLACE = re.compile("|".join(rf"{re.escape(place)}\b" for place in PLACES))
_STRANGE = re.compile(r"/mnt/|s3://|https?://|\bDIR\b")


@dataclass(frozen=True)
class Shown:
    """A command as a page shows it."""

    where: str
    text: str

    @property
    def variables(self) -> dict[str, str]:
        """The NAME=VALUE before it."""
        words = shlex.split(self.text, comments=True)
        return dict(word.split("=", 1) for word in words[: len(words) - len(self.words)])

    @property
    def words(self) -> list[str]:
        """Its words, without variables and comment."""
        words = shlex.split(self.text, comments=True)
        while words and _ASSIGNED.match(words[0]):
            words = words[1:]
        return words

    @property
    def kind(self) -> str | None:
        """One of KINDS; None is a command that no test knows."""
        fits = {
            len(first): kind
            for kind, leads in KINDS.items()
            for first in leads
            if tuple(self.words[: len(first)]) == first
        }
        return fits[max(fits)] if fits else None


def shown_on(name: str, text: str) -> list[Shown]:
    """The commands of a page: lines of shell blocks, whole cells of tables, and spans that hold options.

    Args:
        name: of the page.
        text: its Markdown.

    Raises:
        ValueError: a fenced block in a language that is neither of SHELL nor of OTHER.
    """
    found, language, open_line = [], None, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
            if language is not None and language not in SHELL | OTHER:
                raise ValueError(f"{name}:{number}: a block of {language!r}")
        elif language is None:
            found += [Shown(f"{name}:{number}", span) for span in _in_prose(line)]
        elif language in SHELL:
            open_line += line.strip()
            if open_line.endswith("\\"):
                open_line = open_line[:-1]
                continue
            found += [Shown(f"{name}:{number}", open_line)] if open_line else []
            open_line = ""
    return [command for command in found if command.words]


def _in_prose(line: str) -> Iterator[str]:
    """Spans that are a whole cell of a table, or that have options; others only name a command."""
    programs = {first[0] for leads in KINDS.values() for first in leads} - {"export", "chmod"}
    cells = [cell.strip() for cell in line.split("|")] if line.startswith("|") else []
    for span in _SPAN.findall(line):
        whole = f"`{span}`" in cells and " " in span
        if span.split()[0] in programs and (whole or " --" in span):
            yield span


def all_shown() -> list[Shown]:
    """The commands of every page, each once."""
    found = [command for page in PAGES for command in shown_on(page.name, page.read_text())]
    return list({command.text: command for command in reversed(found)}.values())[::-1]


def rewritten(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """The same command with the `ci` preset, in a test's own places.

    Args:
        words: of a command.
        places: what stands for each of PLACES, and for the two DIR.

    Raises:
        ValueError: it names a place that no test has.
    """
    known = _with_folders(words, places)
    strange = [
        word for word in known if _STRANGE.search(_PLACE.sub("", word)) and word not in places.values()
    ]
    if strange:
        raise ValueError(f"{strange} is none of {PLACES}")
    return _with_preset([_PLACE.sub(lambda place: places[place[0]], word) for word in known])


def _with_folders(words: Sequence[str], places: Mapping[str, str]) -> list[str]:
    """DIR is the folder of the corpus whose option is before it."""
    corpora = {"--short": "/mnt/short", "--long": "/mnt/long"}
    before = ["", *words[:-1]]
    return [
        places[corpora[option]] if word == "DIR" and option in corpora else word
        for option, word in zip(before, words, strict=True)
    ]


def _with_preset(words: Sequence[str]) -> list[str]:
    """`--config ci` for what takes a config; a dry run keeps its own."""
    command = next((place for place, word in enumerate(words) if word in CONFIGURED), None)
    if command is None or "--dry-run" in words[command:] or "--help" in words[command:]:
        return list(words)
    if "--config" not in words[command:]:
        return [*words, "--config", "ci"]
    value = words.index("--config", command) + 1
    return [*words[:value], "ci", *words[value + 1 :]]


LONG = (
    "sostenuto quickstart",
    "sostenuto quickstart --config clips --short DIR --long DIR",
    "sostenuto quickstart --config mouse",
    "sostenuto serve --config minute --port 9000",
    "sostenuto serve --set serve.longest_seconds=300 --set serve.max_replicas=4",
    "sostenuto sweep",
    "sostenuto compare --config tiny --seeds 1",
    "sostenuto evaluate",
    "sostenuto sample --count 10000 --dataset clips10k --captions-from world",
    "sostenuto sample --seconds 8 --set cluster.num_workers=2 --set cluster.context_parallel=2",
    (
        "sostenuto sample --count 12 --set cluster.num_workers=4 --set cluster.context_parallel=2 "
        "--set evaluation.batch_size=1"
    ),
    "sostenuto serve",
    "sostenuto serve --host 0.0.0.0",
    "sostenuto ingest --config clips --short /mnt/short --long /mnt/long --set storage.root=/mnt/runs",
    "sostenuto train teacher --config clips --set storage.root=/mnt/runs",
    "sostenuto submit train teacher --set storage.root=/mnt/runs",
    "sostenuto submit world --config ci --set storage.root=/tmp/sostenuto-runs",
    "sostenuto submit ingest --config ci --set storage.root=/tmp/sostenuto-runs",
    "sostenuto submit --no-wait evaluate --config ci --set storage.root=/tmp/sostenuto-runs",
    (
        "sostenuto submit --submission-id teacher-1 train teacher --config ci "
        "--set storage.root=/tmp/sostenuto-runs"
    ),
    (
        "sostenuto submit train sft --config wan-1.3b --set storage.root=s3://bucket/runs "
        "--set tracking.uri=http://mlflow.internal:5000"
    ),
)
"""Commands that other tests run too: finished_quickstart, test_sweep.py, test_compare.py, test_synthesis.py,
test_sample_together.py; or the same command with other options."""


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    """One test per command of these kinds, as its argument `shown`; those of STORIES are not among them."""
    stories = {story.name for story in STORIES}
    chosen = [
        pytest.param(shown, id=" ".join(shown.words), marks=[pytest.mark.long] if shown.text in LONG else [])
        for shown in all_shown()
        if shown.kind in kinds and shown.where.split(":")[0] not in stories
    ]
    return pytest.mark.parametrize("shown", chosen)
