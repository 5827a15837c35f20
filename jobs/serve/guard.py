"""Who may ask: on this machine whoever uses its own name, from elsewhere whoever has the token."""

import secrets
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "sostenuto-token"
UPLOADS = "/api/uploads"
JSON_BYTES = 1 << 20
"""Most bytes of a request that is no upload."""
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Sostenuto</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/static/page.css">
<main class="login"><h1>Sostenuto</h1><form action="/"><label>Token, as the server printed it
<input name="token" type="password" autocomplete="current-password" required autofocus></label>
<button class="primary">Open</button></form></main></html>"""


class Guard:
    """Stands before an application.

    Args:
        app: the application.
        token: what to ask for; None asks for nothing.
        hosts: names by which this server may be called where no token is asked for: a page elsewhere whose
            name points at this machine is refused.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str]) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; what is refused gets no further."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        await (refusal or self._app)(scope, receive, headed)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if self._token is None and name_in(host) not in self._hosts:
            return refused(403, f"this server is not called {host[:100]!r}. Call it 127.0.0.1")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD"):
            if origin is not None and urlsplit(origin).netloc != host:
                return refused(403, "another page may not ask for anything here")
            if scope["path"] != UPLOADS:
                length = headers.get("content-length", "0" if "transfer-encoding" not in headers else "")
                if not length.isdigit():
                    return refused(411, "say how long the request is")
                if int(length) > JSON_BYTES:
                    return refused(413, f"the request is longer than {JSON_BYTES} bytes")
        if self._token is None or scope["path"] == "/static/page.css":
            return None
        return self._without_token(self._token, scope, headers)

    def _without_token(self, token: str, scope: Scope, headers: Headers) -> Response | None:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and same(given, token):
            response = RedirectResponse("/", 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", max_age=30 * 86400)
            return response
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and same(bearer, token):
            return None
        if same(cookie(headers), token):
            return None
        if scope["path"] == "/":
            return Response(LOGIN, 401, media_type="text/html")
        return refused(401, "the token is missing or wrong. Send the header Authorization: Bearer TOKEN")


def name_in(host: str) -> str:
    """The name or address in a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def cookie(headers: Headers) -> str:
    """The token in the cookie, if any."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def same(given: str, token: str) -> bool:
    """In a time that does not depend on how much of it is right."""
    return secrets.compare_digest(given.encode(), token.encode())


def refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)
