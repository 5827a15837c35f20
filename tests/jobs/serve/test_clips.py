"""Clips that are asked for are made, found again, and made again by the file that comes with them."""

import json
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig
from jobs.serve.history import CANCEL, History
from jobs.serve.studio import PROGRESS, Studio
from jobs.serve.wanted import Wanted
from pipelines.media.video import read_mp4, write_mp4
from tests.jobs.serve.tiny_run import FPS, LONG, SIDE, ended, serving, wanted


def made(client: TestClient, **more: Any) -> dict[str, Any]:
    """A request that ends well."""
    answer = client.post("/api/jobs", json=wanted(**more))
    assert answer.status_code == 201, answer.text
    told = ended(client, answer.json()["id"])
    assert told["state"] == "done", told
    return told


def test_every_system_makes_a_clip_of_every_seed(run: RunConfig) -> None:
    with serving(run) as client:
        told = made(client, systems=["mmm", "sft", "teacher"], seed=5, seeds=2, steps=3)
        clips = {clip["name"]: clip for clip in told["clips"]}
        assert list(clips) == ["mmm-5", "mmm-6", "sft-5", "sft-6", "teacher-5", "teacher-6"]
        assert [clips[name]["evaluations"] for name in ("mmm-5", "sft-5")] == [2, 3]
        assert clips["teacher-5"]["evaluations"] == 3 * 3, "three windows that overlap by half"
        assert all(clip["latency"] > 0 and clip["frames"] == LONG for clip in clips.values())
        files = {name: client.get(f"/api/jobs/{told['id']}/files/{name}.mp4").content for name in clips}
        assert len(set(files.values())) == 6


def test_a_player_can_seek_and_a_gif_can_be_had(run: RunConfig) -> None:
    with serving(run) as client:
        clip = f"/api/jobs/{made(client)['id']}/files/mmm-0"
        whole = client.get(f"{clip}.mp4")
        part = client.get(f"{clip}.mp4", headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
        assert client.get(f"{clip}.gif").content[:6] == b"GIF89a"
        kept = client.get(f"{clip}.mp4?download=true").headers["content-disposition"]
        assert kept == 'attachment; filename="mmm-0.mp4"'


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"systems": ["sft"], "steps": 3, "seed": 7},
        {"head": "fm", "steps": 2},
        {"times": [1.0, 0.6, 0.1]},
        {"systems": ["teacher"], "steps": 2, "seconds": 2.25},
        {"loop": True},
        {"seconds": 3.0},
        {
            "timeline": [
                {"second": 0, "caption": "a sun; <b>red</b>: \"it's\" 'so'"},
                {"second": 0.00001, "caption": "ünï\ncode"},
                {"second": 0.7, "caption": ""},
            ]
        },
    ],
    ids=["plain", "sft", "fm", "times", "teacher", "loop", "long", "captions"],
)
def test_the_yaml_makes_the_same_bytes_again(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    with serving(run) as client:
        remade(client, made(client, **more), tmp_path, monkeypatch)


def remade(client: TestClient, told: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the command in the YAML of a request's first clip, in another folder, and compare."""
    name = told["clips"][0]["name"]
    clip = f"/api/jobs/{told['id']}/files/{name}"
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    text = client.get(f"{clip}.yaml").text
    Path(f"{name}.yaml").write_text(text)
    done = CliRunner().invoke(app, shlex.split(text.splitlines()[0])[2:], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (place / name / "00000.mp4").read_bytes() == client.get(f"{clip}.mp4").content


def test_a_clip_goes_on_from_a_file(run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mp4(tmp_path / "own.mp4", np.full((6, SIDE, SIDE, 3), 90, np.uint8), FPS)
    with serving(run) as client:
        sent = client.post("/api/uploads?name=../../own.mp4", content=(tmp_path / "own.mp4").read_bytes())
        assert sent.json()["seconds"] == 6 / FPS
        told = made(client, seconds=1.5, start={"upload": sent.json()["upload"]})
        (tmp_path / "got.mp4").write_bytes(client.get(f"/api/jobs/{told['id']}/files/mmm-0.mp4").content)
        frames = read_mp4(tmp_path / "got.mp4")
        assert len(frames) == 12
        np.testing.assert_allclose(frames[:6], read_mp4(tmp_path / "own.mp4"), atol=4)
        remade(client, told, tmp_path, monkeypatch)


def test_a_clip_goes_on_from_a_picture(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (SIDE, SIDE), (200, 90, 20)).save(tmp_path / "own.png")
    with serving(run) as client:
        sent = client.post("/api/uploads?name=own.PNG", content=(tmp_path / "own.png").read_bytes()).json()
        assert sent["upload"].endswith(".png")
        remade(client, made(client, start={"upload": sent["upload"]}), tmp_path, monkeypatch)


def test_a_clip_goes_on_from_the_middle_of_another(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(run) as client:
        first = made(client)
        start = {"job": first["id"], "clip": "mmm-0", "second": 0.5}
        told = made(client, caption="a moon", start=start)
        for name, job in (("first", first), ("next", told)):
            file = client.get(f"/api/jobs/{job['id']}/files/mmm-0.mp4").content
            (tmp_path / f"{name}.mp4").write_bytes(file)
        before, after = read_mp4(tmp_path / "first.mp4"), read_mp4(tmp_path / "next.mp4")
        apart = np.abs(before.astype(int) - after).mean(axis=(1, 2, 3))
        assert apart[:4].mean() < 7, "what the codec does to noise"
        assert apart[4:].mean() > 1.5 * apart[:4].mean(), "another caption, other frames"
        assert client.delete(f"/api/jobs/{first['id']}").status_code == 204
        remade(client, told, tmp_path, monkeypatch)


def test_a_clip_that_cannot_be_made_says_why_beside_those_that_can(run: RunConfig) -> None:
    lines = [{"second": 0, "caption": "a sun"}, {"second": 0.5, "caption": "a moon"}]
    with serving(run) as client:
        told = made(client, timeline=lines, systems=["mmm", "teacher"])
        assert told["clips"][0]["frames"] == LONG
        assert "window by window" in told["clips"][1]["error"]
        answer = client.get(f"/api/jobs/{told['id']}/files/teacher-0.mp4")
        assert (answer.status_code, "window by window" in answer.json()["error"]) == (404, True)
        alone = client.post("/api/jobs", json=wanted(loop=True, seconds=9.0)).json()
        failed = ended(client, alone["id"])
        assert failed["state"] == "failed"
        assert "a loop is made in one piece" in failed["error"]


def studio_of(run: RunConfig, **more: Any) -> tuple[Studio, str, Path]:
    """A replica, a request, and its folder."""
    folder = Path(RunPaths.of(run).serve) / "jobs" / "one"
    folder.mkdir(parents=True)
    return Studio(configs.to_json(run)), Wanted(**wanted(**more)).model_dump_json(), folder


def test_what_a_dead_replica_has_finished_is_not_made_again(run: RunConfig) -> None:
    studio, asked, folder = studio_of(run, seeds=2)
    assert studio.make("one", asked) == ("done", "")
    first = (folder / "mmm-0.mp4").stat().st_mtime_ns
    (folder / "mmm-1.json").unlink()
    (folder / "mmm-1.mp4").write_bytes(b"half")
    assert studio.make("one", asked) == ("done", "")
    assert (folder / "mmm-0.mp4").stat().st_mtime_ns == first
    assert len(read_mp4(folder / "mmm-1.mp4")) == LONG


def test_a_request_that_is_cancelled_ends_at_the_next_evaluation(run: RunConfig) -> None:
    studio, asked, folder = studio_of(run)
    (folder / CANCEL).touch()
    assert studio.make("one", asked) == ("cancelled", "")
    assert not (folder / "mmm-0.mp4").exists()
    assert json.loads((folder / PROGRESS).read_text())["step"] == 0


def test_how_far_a_clip_is_can_be_seen(run: RunConfig) -> None:
    began = time.monotonic()
    with serving(run) as client:
        job = client.post("/api/jobs", json=wanted(systems=["sft"], steps=100, seconds=2.0)).json()["id"]
        seen = []
        while (told := client.get(f"/api/jobs/{job}").json())["state"] in ("queued", "running"):
            seen += [clip["progress"] for clip in told["clips"] if "progress" in clip]
            assert time.monotonic() - began < 120
            time.sleep(0.01)
        assert told["clips"][0]["evaluations"] == 3 * 100
    assert {one["steps"] for one in seen} == {100}
    assert {one["of"] for one in seen} == {16}
    frames = [one["frames"] for one in seen]
    assert frames == sorted(frames)
    assert any(0 < one["step"] < 100 for one in seen)


def test_a_restart_finds_what_was_made_and_goes_on_with_the_rest(run: RunConfig) -> None:
    with serving(run) as client:
        first = made(client)["id"]
    history = History(Path(RunPaths.of(run).serve))
    second = history.add(json.dumps(wanted(seed=3)))
    assert history.take() is not None
    history.files(second.id).mkdir(parents=True)
    history.close()
    assert (history.files(second.id) / CANCEL).exists(), "a replica that outlives its server ends"
    with serving(run) as client:
        told = ended(client, second.id)
        assert [job["id"] for job in client.get("/api/jobs").json()] == [second.id, first]
        assert told["clips"][0]["frames"] == LONG
        assert client.get(f"/api/jobs/{first}/files/mmm-0.mp4").status_code == 200
