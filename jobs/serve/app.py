"""The page and its API as one application."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from jobs.serve.desk import Desk
from jobs.serve.guard import UPLOADS, Guard
from jobs.serve.queue import QueueFull
from jobs.serve.uploads import TooLarge
from models.errors import SostenutoError

STATIC = Path(__file__).parent / "static"
HERE = ("127.0.0.1", "localhost", "::1")


def create_app(desk: Desk, *, token: str | None = None, hosts: Sequence[str] = HERE) -> FastAPI:
    """The application; the queue works while it runs.

    Args:
        desk: what it answers.
        token, hosts: as Guard has them.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(desk.queue.run())
        yield
        working.cancel()
        with suppress(asyncio.CancelledError):
            await working

    app = FastAPI(
        title="Sostenuto",
        description="Clips of long, coherent video. What is refused answers {error: reason}.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    app.add_middleware(Guard, token=token, hosts=hosts)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    for path in ("/", "/api.html"):
        app.add_api_route(path, page_file(path), include_in_schema=False)

    def route(method: str, path: str, endpoint: Callable[..., Any], status: int = 200) -> None:
        title = (endpoint.__doc__ or "").rstrip(".")
        app.add_api_route(path, endpoint, methods=[method], status_code=status, summary=title, description="")

    route("GET", "/api", desk.about)
    route("POST", UPLOADS, desk.send, 201)
    route("POST", "/api/jobs", desk.ask, 201)
    route("GET", "/api/jobs", desk.jobs)
    route("GET", "/api/jobs/{job}", desk.job)
    route("DELETE", "/api/jobs/{job}", desk.delete, 204)
    route("POST", "/api/jobs/{job}/cancel", desk.cancel)
    route("GET", "/api/jobs/{job}/files/{clip}.{kind}", desk.file)
    _tell_errors(app)
    return app


def page_file(path: str) -> Callable[[], FileResponse]:
    """Gives a file of the page."""

    def give() -> FileResponse:
        return FileResponse(STATIC / ("page.html" if path == "/" else path.strip("/")))

    return give


def _tell_errors(app: FastAPI) -> None:
    """Whatever goes wrong is told as {"error": reason}."""

    @app.exception_handler(SostenutoError)
    async def refused(_: Request, error: SostenutoError) -> JSONResponse:
        if isinstance(error, TooLarge):  # the rest is not read
            return JSONResponse({"error": str(error)}, 413, {"connection": "close"})
        return JSONResponse({"error": str(error)}, 429 if isinstance(error, QueueFull) else 422)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in fault["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{place}: {fault['msg']}"}, 422)

    @app.exception_handler(HTTPException)
    async def told(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code)
