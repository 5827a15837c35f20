"""Everything a user can get wrong ends in one line that names the remedy, an exit code, and nothing lost."""

import errno
import http.server
import shutil
import threading

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from pipelines import storage as storage_module
from pipelines.storage import Storage
from pipelines.world.render import write_world

runner = CliRunner()


def call(*words):
    return runner.invoke(app, words, prog_name="sostenuto")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two folders of good clips."""
    folder = tmp_path_factory.mktemp("good")
    write_world(configs.load("ci", ["world.short_clips=4", "world.long_clips=2"]).world, folder)
    return folder


def missing(folder):
    shutil.rmtree(folder / "short")


def empty(folder):
    missing(folder)
    (folder / "short").mkdir()


def corrupt(folder):
    for path in (folder / "short").rglob("*.mp4"):
        path.write_bytes(b"not a video")


def captions_alone(folder):
    for path in (folder / "short").rglob("*.mp4"):
        path.unlink()


def ingest(folder, root, *words):
    paths = ("--short", str(folder / "short"), "--long", str(folder / "long"))
    return call(
        "ingest", "--config", "clips", *paths, "--set", f"storage.root={root}", "--set", "data.fps=8", *words
    )


def is_one_line_with_a_remedy(done):
    assert done.exit_code == 1, done.output
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert ". " in done.stderr, "a remedy follows the problem"
    return done.stderr


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("spoil", [missing, empty, corrupt, captions_alone])
def test_a_bad_corpus_is_refused_and_then_mended(tmp_path, root, good, spoil):
    folder = tmp_path / "corpora"
    shutil.copytree(good, folder)
    spoil(folder)
    before = sorted(path.name for path in (folder / "long").iterdir())
    told = is_one_line_with_a_remedy(ingest(folder, root))
    assert "short" in told.lower()
    assert sorted(path.name for path in (folder / "long").iterdir()) == before
    shutil.rmtree(folder)
    shutil.copytree(good, folder)
    mended = ingest(folder, root, "--fresh")
    assert mended.exit_code == 0, mended.output
    assert "4 videos" in mended.stdout


@pytest.mark.parametrize("command", ["ingest", "quickstart"])
def test_a_fresh_start_with_a_wrong_path_loses_nothing(command, root, good):
    config = configs.load("clips", [f"storage.root={root}"])
    dataset = Storage(RunPaths.of(config).dataset)
    dataset.write_bytes("short/latents.parquet", b"days of work")
    corpora = ("--short", str(good / "typo"), "--long", str(good / "long"))
    told = is_one_line_with_a_remedy(
        call(command, "--config", "clips", *corpora, "--set", f"storage.root={root}", "--fresh")
    )
    assert f"{good}/typo is no folder" in told
    assert dataset.read_bytes("short/latents.parquet") == b"days of work"


@pytest.mark.usefixtures("ray_local")
def test_a_window_longer_than_every_clip_is_refused(root, good):
    told = is_one_line_with_a_remedy(ingest(good, root, "--set", "data.long_frames=64"))
    assert "long" in told.lower()


@pytest.mark.usefixtures("ray_local")
def test_a_full_disk_is_told_and_nothing_is_lost(root, good, monkeypatch):
    done = ingest(good, root)
    assert done.exit_code == 0, done.output
    whole = {path: path.read_bytes() for path in (root / "clips").rglob("*") if path.is_file()}

    def full(*_words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage_module, "_sync", full)
    told = is_one_line_with_a_remedy(ingest(good, root, "--set", "name=other"))
    assert "space" in told.lower()
    assert {path: path.read_bytes() for path in (root / "clips").rglob("*") if path.is_file()} == whole


COMMANDS = [
    (("train", "teacher", "--set", "teacher.stepz=1"), "teacher.steps"),
    (("train", "teacher", "--set", "model.patch_size=[1,3,3]"), "model.patch_size"),
    (("train", "teacher", "--set", "distill.window_frames=99"), "distill.window_frames"),
    (("train", "teacher"), "ingest"),
    (("train", "distill"), "ingest"),
    (("sample",), "sostenuto train"),
    (("evaluate",), "sostenuto train"),
    (("world", "--set", "storage.root=/proc/nowhere"), "storage.root"),
]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("words", "remedy"), COMMANDS, ids=lambda value: " ".join(value)[:50] if isinstance(value, tuple) else ""
)
def test_a_command_that_cannot_work_says_what_to_do(root, words, remedy):
    rooted = (
        words if any("storage.root" in word for word in words) else (*words, "--set", f"storage.root={root}")
    )
    assert remedy in is_one_line_with_a_remedy(call(*rooted, "--config", "ci"))


class Other(http.server.BaseHTTPRequestHandler):
    """A server that is not Ray's."""

    def do_GET(self):
        self.send_error(404)

    def log_message(self, *_words):
        """Say nothing."""


def test_another_program_at_the_port_is_told():
    server = http.server.HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        done = call("submit", "--address", f"http://127.0.0.1:{server.server_port}", "world")
        assert "--address" in is_one_line_with_a_remedy(done)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
