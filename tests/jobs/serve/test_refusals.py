"""Whatever is wrong with a request is refused with a reason, and the server goes on."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jobs.config import load as configs
from jobs.config.paths import RunPaths
from jobs.config.schema import RunConfig, ServeConfig
from jobs.serve.app import STATIC
from jobs.serve.desk import follow
from jobs.serve.guard import COOKIE, JSON_BYTES, same
from jobs.serve.uploads import TooLarge, Uploads
from models.errors import ConfigError
from pipelines.data.config import LimitsConfig
from tests.jobs.serve.tiny_run import SIDE, ended, make_run, serving, wanted

PLAYLIST = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"caption": "x" * 10_000}, "a caption has 10000 characters, and serve.prompt_length is 1000"),
        ({"seconds": 61}, "serve.longest_seconds is 60"),
        ({"seconds": float("1e9")}, "serve.longest_seconds is 60"),
        ({"seconds": 0}, "seconds: "),
        ({"systems": []}, "systems: "),
        ({"systems": ["mixed"]}, "this run has no checkpoint of mixed"),
        ({"systems": ["mmm", "mmm"]}, "named twice"),
        ({"systems": ["../../etc"]}, "systems.0: "),
        ({"systems": ["mmm", "sft"], "seeds": 30}, "60 clips"),
        ({"seeds": 1000}, "seeds: "),
        ({"steps": 10**9}, "steps: "),
        ({"times": [0.5, 0.9]}, "do not fall from 1"),
        ({"unknown": 1}, "unknown: "),
        ({"timeline": []}, "timeline: "),
        ({"timeline": [{"second": 1, "caption": ""}]}, "captions begin at 1 s"),
        ({"timeline": [{"second": 0, "caption": ""}, {"second": 2, "caption": ""}]}, "end before the clip"),
        ({"start": {}}, "neither a file nor a clip"),
        ({"start": {"upload": "../../etc/passwd"}}, "start.upload: "),
        ({"start": {"upload": "0123456789abcdef.mp4"}}, "not here any more"),
        ({"start": {"job": "../..", "clip": "mmm-0"}}, "no such request"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(run: RunConfig, more: dict[str, Any], reason: str) -> None:
    with serving(run) as client:
        answer = client.post("/api/jobs", json=wanted(**more))
        assert answer.status_code in (404, 422)
        assert reason in answer.json()["error"]
        assert "x" * 100 not in answer.text, "what was sent is not sent back"
        assert client.get("/api/jobs").json() == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 10_000, b'{"seconds": NaN}'])
def test_what_is_no_request_is_refused(run: RunConfig, body: bytes) -> None:
    with serving(run) as client:
        answer = client.post("/api/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text
        assert answer.json()["error"]


def test_html_in_a_caption_stays_a_text(run: RunConfig) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    with serving(run) as client:
        told = ended(client, client.post("/api/jobs", json=wanted(hostile)).json()["id"])
        answer = client.get(f"/api/jobs/{told['id']}")
        assert told["wanted"]["timeline"][0]["caption"] == hostile
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    code = "".join(path.read_text() for path in STATIC.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", code)


def test_the_page_asks_no_other_host(run: RunConfig) -> None:
    for path in STATIC.iterdir():
        hosts = set(re.findall(r"https?://[^\s\"')]+", path.read_text()))
        assert hosts <= {"http://www.w3.org/2000/svg"}, path
    with serving(run) as client:
        for path in ("/", "/api.html", "/static/page.js", "/api/openapi.json"):
            assert client.get(path).status_code == 200
        assert "/api/jobs/{job}" in client.get("/api/openapi.json").json()["paths"]
        assert client.get("/docs").status_code == 404


@pytest.mark.parametrize("name", ["../../history.db", "..%2f..%2fhistory.db", "mmm-0.json", "mmm-0.mp4.json"])
def test_no_other_file_can_be_had(run: RunConfig, name: str) -> None:
    with serving(run) as client:
        job = ended(client, client.post("/api/jobs", json=wanted()).json()["id"])["id"]
        assert client.get(f"/api/jobs/{job}/files/{name}").status_code == 404
        assert client.get(f"/static/{name}").status_code == 404


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("film.mp4", PLAYLIST, "cannot be gone on from"),
        ("film.mp4", b"", "cannot be gone on from"),
        ("../../x.png", b"\x89PNG\r\n\x1a\n no picture", "cannot be gone on from"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    run: RunConfig, name: str, content: bytes, reason: str
) -> None:
    with serving(run) as client:
        answer = client.post(f"/api/uploads?name={name}", content=content)
        assert (answer.status_code, reason in answer.json()["error"]) == (422, True), answer.text
        uploads = Path(RunPaths.of(run).serve) / "uploads"
        assert list(uploads.iterdir()) == []
        assert str(uploads) not in answer.text
        assert client.get("/api").status_code == 200


def test_a_file_over_the_limit_is_cut_off_while_it_comes(tmp_path: Path) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1000
            yield bytes(1000)

    limits = ServeConfig(upload_bytes=10_000)
    uploads = Uploads(tmp_path / "uploads", limits, LimitsConfig(), (SIDE, SIDE), 8.0)
    with pytest.raises(TooLarge, match="more than 10000 bytes"):
        asyncio.run(uploads.receive(endless(), "film.mp4"))
    assert taken == 11_000
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_file_that_says_that_it_is_too_large_is_not_read(tmp_path: Path) -> None:
    with serving(make_run(tmp_path, "serve.upload_bytes=1000")) as client:
        answer = client.post("/api/uploads?name=film.mp4", content=bytes(1001))
        assert (answer.status_code, "serve.upload_bytes" in answer.json()["error"]) == (413, True)
        assert answer.headers["connection"] == "close", "nobody waits for the rest"


def test_a_long_request_is_refused_before_it_is_read(run: RunConfig) -> None:
    with serving(run) as client:
        assert client.post("/api/jobs", content=bytes(JSON_BYTES + 1)).status_code == 413
        assert client.post("/api/jobs", content=iter([b"{}"])).status_code == 411


def test_only_who_has_the_token_is_answered(run: RunConfig) -> None:
    token = "t" * 43
    with serving(run, token=token) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": f"{COOKIE}=wrong"}):
            for path in ("/", "/api", "/api/jobs", "/static/page.js", "/api/openapi.json", "/?token=wrong"):
                assert client.get(path, headers=headers).status_code == 401, (path, headers)
            assert client.post("/api/jobs", json=wanted(), headers=headers).status_code == 401
        assert client.get("/api", headers={"authorization": f"Bearer {token}"}).status_code == 200
        answer = client.get(f"/?token={token}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert "SameSite=strict" in answer.headers["set-cookie"]
        assert client.get("/api").status_code == 200, "the cookie is enough from now on"


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("jobs.serve.guard.secrets.compare_digest", lambda *two: asked.append(two) or False)
    assert not same("ü", "token")
    assert asked == [("ü".encode(), b"token")]


def test_pages_elsewhere_can_ask_for_nothing(run: RunConfig) -> None:
    with serving(run) as client:
        for host in ("evil.example", "evil.example:8008", "[::1", ""):
            assert client.get("/api", headers={"host": host}).status_code == 403, host
        origin = {"origin": "http://evil.example"}
        assert client.post("/api/jobs", json=wanted(), headers=origin).status_code == 403
        own = {"origin": "http://testserver"}
        assert client.post("/api/jobs", json=wanted(), headers=own).status_code == 201


def test_a_clip_plays_while_it_grows(tmp_path: Path) -> None:
    path, end = tmp_path / "a.mp4", tmp_path / "a.json"
    path.write_bytes(b"one")

    async def play() -> list[bytes]:
        got = []
        async for chunk in follow(path, end):
            got.append(chunk)
            if chunk == b"one":
                with path.open("ab") as file:
                    file.write(b"two")
            elif chunk == b"two":
                (tmp_path / "whole").write_bytes(b"other")
                (tmp_path / "whole").rename(path)
        return got

    assert asyncio.run(play()) == [b"one", b"two"]


def test_fewer_replicas_than_the_least_are_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("serve.min_replicas 2 is more than")):
        configs.load("ci", ["serve.min_replicas=2"])


def test_an_error_nobody_thought_of_is_told_and_ends_nothing(
    run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("of a kind nobody thought of")

    monkeypatch.setattr("jobs.serve.studio.method_of", broken)
    with serving(run) as client:
        told = ended(client, client.post("/api/jobs", json=wanted()).json()["id"])
        assert (told["state"], told["error"]) == (
            "failed",
            "ZeroDivisionError: of a kind nobody thought of",
        )
        monkeypatch.undo()
        assert ended(client, client.post("/api/jobs", json=wanted()).json()["id"])["state"] == "done"
        assert json.loads(client.get("/api").text)["name"] == "ci"
