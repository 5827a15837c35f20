"""Every command that README.md and docs/ show is run, with the `ci` preset and in a test's own places.

Those that need a head: test_head.py.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import yaml
from typer.main import get_group

from jobs.cli import app
from tests.command import REPOSITORY
from tests.docs.conftest import run, serving
from tests.docs.shown import KINDS, LONG, all_shown, of_kind, rewritten, shown_on
from tests.jobs.test_cluster import validate

pytestmark = pytest.mark.timeout(900)

NEED_A_CLOUD = {"ray up cluster.yaml", "ray dashboard cluster.yaml", "ray down cluster.yaml"}
"""Commands that start, reach and end machines that are paid for."""

PAGE = """
`sostenuto sample` names a command; `sostenuto train sft --dry-run` is one.

| to | see `ray job logs` |
|---|---|
| look | `sostenuto doctor` |

```text
sostenuto no command
```

```sh
A=1 sostenuto ingest --short DIR \\
    --long DIR  # why
frobnicate
```
"""

ALL = all_shown()


def test_commands_are_found_in_blocks_cells_and_spans_with_options():
    found = shown_on("page", PAGE)
    assert [(shown.where, shown.kind, shown.words) for shown in found] == [
        ("page:2", "local", ["sostenuto", "train", "sft", "--dry-run"]),
        ("page:6", "local", ["sostenuto", "doctor"]),
        ("page:14", "local", ["sostenuto", "ingest", "--short", "DIR", "--long", "DIR"]),
        ("page:15", None, ["frobnicate"]),
    ]
    assert found[2].variables == {"A": "1"}
    with pytest.raises(ValueError, match="page:1: a block of 'fortran'"):
        shown_on("page", "```fortran\n```\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sostenuto world", "sostenuto world --config ci"),
        ("sostenuto ingest --config clips --seed 1", "sostenuto ingest --config ci --seed 1"),
        (
            "sostenuto train sft --config wan-1.3b --dry-run",
            "sostenuto train sft --config wan-1.3b --dry-run",
        ),
        ("sostenuto submit --no-wait train sft", "sostenuto submit --no-wait train sft --config ci"),
        ("sostenuto ingest --short DIR --long DIR", "sostenuto ingest --short S --long L --config ci"),
        ("mlflow server --port 5000 --hosts a:5000", "mlflow server --port 1 --hosts a:1"),
    ],
)
def test_commands_are_rewritten_for_a_test(text, expected):
    places = {"/mnt/short": "S", "/mnt/long": "L", "5000": "1"}
    assert rewritten(text.split(), places) == expected.split()


@pytest.mark.parametrize("word", ["/mnt/elsewhere", "s3://other/runs", "http://example.org", "DIR"])
def test_a_place_that_no_test_has_is_refused(word):
    with pytest.raises(ValueError, match=word):
        rewritten(["sostenuto", "world", "--set", f"storage.root={word}"], {})


def test_every_command_is_of_a_kind_and_every_kind_is_shown():
    unknown = [f"{shown.where}: {shown.text}" for shown in ALL if shown.kind is None]
    assert not unknown, "a command that no test runs"
    assert {shown.kind for shown in ALL} == set(KINDS)
    assert {shown.text for shown in ALL} >= set(LONG)


@of_kind("make")
def test_make_knows_its_target(shown):
    words = [*shown.words, "--dry-run", "--no-print-directory"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin/" in done.stdout


@of_kind("benchmark")
def test_a_benchmark_knows_its_options(shown, home):
    script, *words = shown.words[1:]
    told = run([sys.executable, script, "--help"], REPOSITORY, home).stdout
    assert all(word in told for word in words if word.startswith("--"))


@of_kind("local")
def test_a_command_runs_on_this_machine(shown, folder, own_folder, home, head, places):
    words = rewritten(shown.words, places)
    place = own_folder if "--short" in words and "storage.root" not in shown.text else folder
    variables = shown.variables | ({} if "doctor" in words else head.variables)
    done = run([sys.executable, "-m", "jobs", *words[1:]], place, home, **variables)
    assert done.stdout
    assert "Traceback" not in done.stderr


@of_kind("registry")
def test_a_download_is_understood(shown):
    commands = get_group(app).commands
    assert commands[shown.words[1]].make_context(shown.text, shown.words[2:]).params["what"] == "i3d"


@of_kind("token")
def test_a_token_is_made_once(shown, home, tmp_path):
    first, again = (run(shown.words, tmp_path, tmp_path).stdout.strip() for _ in range(2))
    assert len(first) == 64
    assert first == again == (tmp_path / ".ray" / "auth_token").read_text().strip()


@of_kind("chmod")
def test_only_the_owner_reads_the_token(shown, home):
    assert (home / shown.words[-1].removeprefix("~/")).stat().st_mode & 0o777 == int(shown.words[1], 8)


@of_kind("server")
def test_the_tracking_pages_answer_and_hold_the_runs(shown, folder, home, places, request):
    if shown.words[1] == "server":
        address = request.getfixturevalue("tracking_server")
        assert asked(address, "mlflow.internal:" + places["5000"]) == 200
        assert asked(address, "elsewhere.example") == 403
        return
    with serving(shown.words, places, folder, home) as address:
        assert asked(address, "127.0.0.1") == 200
        with urllib.request.urlopen(
            f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name=sostenuto"
        ) as found:
            assert json.load(found)["experiment"]["lifecycle_stage"] == "active"


def asked(address: str, host: str) -> int:
    """The status of the first page, asked for by a host name."""
    request = urllib.request.Request(address, headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_cloud_is_described_to_rays_liking():
    shown = {shown.text for shown in ALL if shown.kind == "cloud"}
    assert shown == NEED_A_CLOUD
    for text in shown:
        validate(yaml.safe_load((REPOSITORY / text.split()[-1]).read_text()))
