"""`sostenuto ingest --json` and `sostenuto inspect` on two small folders, one file of which is no video."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.commands.ingest import Ingested
from jobs.commands.inspect import inspect
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from models.errors import DataError
from pipelines.data.ingest.worker import new_status, rejected_status
from pipelines.data.source.manifest import Source
from pipelines.data.store.info import read_info, write_sealed
from pipelines.data.types import Reject
from pipelines.storage import Storage
from tests.command import sostenuto, succeed
from tests.pipelines.data.videos import low_rank, write_video

EVIL = "[bold]<script>alert(1)</script>"
FRAMES = {"short": 16, "long": 40}
COUNT = {"short": 5, "long": 2}
LONG_WINDED = ", ".join("abcdefghij")
NAMED = "LONG: 1 of 2 videos are captioned by their names; not used: columns lab\u00e9l, files more.csv"
CUT = (
    "1 of 6 captions have more than 8 phrases between commas, up to 10; the rest of each is cut: "
    "text.max_tokens=10 keeps all"
)


def write_corpora(root):
    """Five SHORT clips of two windows, two LONG ones of one, of which one has no caption and another is not
    read; and a text that calls itself a clip."""
    for corpus, count in COUNT.items():
        rows = []
        for number in range(count):
            video = low_rank(FRAMES[corpus], 6, 64, seed=7, phase=1.0 + number + 10 * (corpus == "long"))
            write_video(root / corpus / f"{number}.mp4", video, fps=8.0, crf="4")
            caption = {0: EVIL, 3: LONG_WINDED}.get(number, f"clip {number}" if corpus == "short" else "")
            rows.append({"file_name": f"{number}.mp4", "caption": caption, "lab\u00e9l": number})
        (root / corpus / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "short" / "[red]notes.mp4").write_text("no video")
    (root / "short" / "[red]notes.caption").write_text("of no video")
    (root / "long" / "more.csv").write_text("clip,words\n1,here")


@pytest.fixture(scope="module")
def stand(tmp_path_factory, mlflow_template, head):
    """Where both corpora were ingested with --json: (folder, what was printed)."""
    folder = tmp_path_factory.mktemp("inspect")
    write_corpora(folder)
    (folder / "runs").mkdir()
    shutil.copy(mlflow_template, folder / "runs" / "mlflow.db")
    printed = ingest(folder, head, "--json")
    return folder, json.loads(printed)


def ingest(folder, head, *words):
    corpora = ("--short", "short", "--long", "long")
    return succeed(folder, "ingest", "--config", "ci", *corpora, *words, **head.variables)


def config_of(folder):
    values = [f"data.{corpus}={json.dumps(str(folder / corpus))}" for corpus in FRAMES]
    return configs.load("ci", [f"storage.root={folder}/runs", *values])


def dataset_of(folder):
    return RunPaths.of(config_of(folder)).dataset


def recorded(folder):
    """Metrics, tags and the folder of artifacts of the run `dataset`."""
    with closing(sqlite3.connect(folder / "runs" / "mlflow.db")) as store:
        run = "from {0} t join runs r using (run_uuid) where r.name = 'ci/dataset'"
        metrics = dict(store.execute(f"select t.key, t.value {run.format('latest_metrics')}").fetchall())
        tags = dict(store.execute(f"select t.key, t.value {run.format('tags')}").fetchall())
        found = store.execute("select artifact_uri, status from runs where name = 'ci/dataset'").fetchall()
    assert len(found) == 1, "each command goes on in the same run"
    return metrics, tags, Path(found[0][0].removeprefix("file://")), found[0][1]


def test_ingest_prints_one_object(stand):
    folder, printed = stand
    sizes = [path.stat().st_size for corpus in FRAMES for path in (folder / corpus).glob("*.mp4")]
    work = printed["this_run"]
    assert {name: value for name, value in printed.items() if name != "this_run"} == {
        "dataset": dataset_of(folder),
        "data_hash": read_info(dataset_of(folder)).data_hash,
        "sources": 8,
        "written": 7,
        "windows": 12,
        "rejects": {"bytes": 1},
        "seconds": pytest.approx((5 * 16 + 2 * 40) / 8),
        "bytes": sum(sizes),
        "notes": [NAMED, CUT],
    }
    assert work["windows"] == 12
    assert work["video_hours"] == pytest.approx(20 / 3600)
    assert work["num_bytes"] == sum(sizes) - len("no video")
    assert work["windows_per_second"] == pytest.approx(12 / work["seconds"])


def test_rates():
    done = Ingested(info=None, windows=30, video_hours=0.5, num_bytes=4_000_000, seconds=10.0)
    assert done.rates == pytest.approx(
        {"windows_per_second": 3.0, "video_hours_per_hour": 180.0, "megabytes_per_second": 0.4}
    )


def test_only_what_was_written_counts_as_work():
    source = Source(id="a", path="a.mp4", caption="", num_bytes=500)
    written = replace(new_status("short", source), num_windows=3, seconds=7200.0)
    refused = rejected_status(written, Reject("crash", "it died"))
    done = Ingested.of(None, [written, refused], 5.0)
    assert (done.windows, done.video_hours, done.num_bytes, done.seconds) == (3, 2.0, 500, 5.0)
    assert done.rates["windows_per_second"] == 0.6
    assert Ingested.of(None, [], 5.0).windows == 0


def test_ingest_again_says_that_nothing_was_left(stand, head):
    folder, _ = stand
    out = ingest(folder, head)
    assert "nothing was left to do" in out
    assert "windows a second" not in out
    assert "SHORT: 10 windows" in out
    assert f"{NAMED}\n{CUT}\n" in out


def test_inspect_prints_tables_and_writes_the_report(stand, capsys):
    folder, _ = stand
    seen = inspect(config_of(folder))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in ("videos 5 2", "rejected videos 1 0", "windows 10 2", "different captions 5 2"):
        assert line in lines
    assert "SHORT bytes 1 [red]notes.mp4: the first bytes are of no known video container" in lines
    assert NAMED in lines
    looks = folder / "runs" / "ci" / "inspection"
    assert f"report: {looks}/report.html" in lines
    assert {path.name for path in looks.iterdir()} == set(seen.files)
    page = (looks / "report.html").read_text()
    assert f"<p>{NAMED}</p>" in page
    assert "<script" not in page
    assert "[bold]&lt;script&gt;" in page


def test_inspect_and_ingest_record_the_same_run(stand, capsys):
    folder, printed = stand
    seen = inspect(config_of(folder))
    metrics, tags, artifacts, status = recorded(folder)
    assert status == "FINISHED"
    assert tags["sostenuto.data_hash"] == printed["data_hash"]
    assert metrics["data/windows.short"] == 10
    assert metrics["data/rejects.short"] == 1
    assert metrics["data/hours.long"] == pytest.approx(10 / 3600)
    assert metrics["data/motion.long"] == pytest.approx(seen.summary.long.measures["motion"].median)
    assert metrics["data/windows_per_second"] == pytest.approx(printed["this_run"]["windows_per_second"])
    assert {path.name for path in (artifacts / "inspection").iterdir()} == set(seen.files)


def test_inspect_prints_one_object_of_any_dataset(stand, tmp_path, capsys):
    folder, printed = stand
    before = recorded(folder)[0]
    inspect(configs.load("ci", [f"storage.root={tmp_path}"]), dataset=dataset_of(folder), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["data_hash"] == printed["data_hash"]
    assert told["short"]["windows"] == 10
    assert f"LONG: {told['long']['note']}" == NAMED
    assert told["short"]["rejects"][0]["count"] == 1
    assert told["report"] == f"{Path(dataset_of(folder)).parent}/inspection/report.html"
    assert recorded(folder)[0] == before
    assert list(tmp_path.iterdir()) == []


def test_the_one_dataset_of_a_run_is_found_and_of_several_none(stand, tmp_path, capsys):
    folder, printed = stand
    versions = tmp_path / "dataset"
    shutil.copytree(dataset_of(folder), versions / "first")
    inspect(configs.load("ci"), dataset=str(versions), as_json=True)
    assert json.loads(capsys.readouterr().out)["data_hash"] == printed["data_hash"]
    shutil.copytree(dataset_of(folder), versions / "second")
    with pytest.raises(DataError, match="holds the datasets first, second"):
        inspect(configs.load("ci"), dataset=str(versions))


def test_a_dry_run_says_what_would_be_kept(stand, head):
    folder, _ = stand
    before = {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()}
    lines = [" ".join(line.split()) for line in ingest(folder, head, "--dry-run").splitlines()]
    assert "corpus videos windows hours of video" in lines
    assert "SHORT 5 10 0.00278" in lines
    assert "LONG 2 2 0.00278" in lines
    assert "SHORT bytes 1 [red]notes.mp4: the first bytes are of no known video container" in lines
    assert any(line.startswith("training ") for line in lines)
    assert lines[-3:] == [NAMED, CUT, "nothing was encoded or written"]
    assert {p: p.stat().st_mtime_ns for p in (folder / "runs").rglob("*") if p.is_file()} == before


def test_out_is_where_the_files_go(stand, tmp_path, capsys):
    folder, _ = stand
    seen = inspect(configs.load("ci"), dataset=dataset_of(folder), out=str(tmp_path / "looks"))
    assert {path.name for path in (tmp_path / "looks").iterdir()} == set(seen.files)


def test_a_dataset_that_is_not_there_is_one_line(tmp_path):
    for words in (["inspect", "--config", "ci"], ["inspect", "nowhere"]):
        done = sostenuto(tmp_path, *words)
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert "holds no dataset. Run ingest first" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unfinished_dataset_is_refused(stand, tmp_path):
    folder, _ = stand
    config = configs.load("ci", [f"storage.root={tmp_path}"])
    target = Path(RunPaths.of(config).dataset)
    shutil.copytree(dataset_of(folder), target)
    write_sealed(Storage(target), {"complete": False})
    with pytest.raises(DataError):
        inspect(config)
    assert not (tmp_path / "ci" / "inspection").exists()
