"""The server of the page: what each address answers. Everything is one line of JSON or a file."""

import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import lasr
from lasr.errors import UserError
from lasr.ui.config import MANIFEST, UiConfig, is_loopback
from lasr.ui.enlarge import Enlarger
from lasr.ui.guard import Guard
from lasr.ui.jobs import Answer, Job, Queue, Turns, said
from lasr.ui.photographs import Viewer
from lasr.ui.questions import Desk
from lasr.ui.uploads import Store, clean, receive

TEMPLATES = Path(__file__).with_name("templates")
STATIC = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
_BODY = 2**16  # bytes of a question
_BYTES = 8  # of a pixel at most: 16-bit RGBA, not compressed
_LEAST = 2**22  # bytes that any file may have, whatever its pixels
Endpoint = Callable[[Request], Awaitable[Response]]


def answered(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are answers, too: one line each."""

    @functools.wraps(endpoint)
    async def safe(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            status = 422 if isinstance(error, UserError) else 500
            return JSONResponse({"error": said(error)}, status)

    return safe


class Page:
    """What is behind the page. folder: for dropped files and results."""

    def __init__(self, config: UiConfig, folder: Path):
        self.config = config
        self.store, self.queue, self.turns = Store(folder), Queue(), Turns()
        self.enlarger = Enlarger(
            self.store, config.weights or [], config.runs, config.device, config.tile,
            config.max_pixels,
        )  # fmt: skip
        self.viewer = Viewer(self.store, config.device, config.max_pixels)
        self.desk = Desk(config.manifest or MANIFEST, config.timeout, config.memory_limit)
        self.max_bytes = max(_LEAST, _BYTES * config.max_pixels)

    def close(self) -> bool:
        """Stop what runs; returns whether it ended."""
        return self.queue.close()

    def app(self) -> Starlette:
        """All addresses."""
        static = [Route(path, _static(*of)) for path, of in STATIC.items()]
        return Starlette(
            routes=[
                *static,
                Route("/api/about", answered(self.about)),
                Route("/api/upscale", answered(self.upscale), methods=["POST"]),
                Route("/api/photograph", answered(self.photograph), methods=["POST"]),
                Route("/api/patches", answered(self.patches), methods=["POST"]),
                Route("/api/query", answered(self.query), methods=["POST"]),
                Route("/api/jobs/{id}", answered(self.job)),
                Route("/api/jobs/{id}/stop", answered(self.stop), methods=["POST"]),
                Route("/files/{key}/{name}", answered(self.file)),
            ]
        )

    async def about(self, _: Request) -> Response:
        """What can be chosen."""
        return JSONResponse(await run_in_threadpool(self._about))

    def _about(self) -> Answer:
        return {
            "version": lasr.__version__,
            "weights": [{"label": c.label, "note": c.note} for c in self.enlarger.choices()],
            "estimators": self.viewer.estimators(),
            "manifest": self.desk.about(),
            "max_bytes": self.max_bytes,
            "max_pixels": self.config.max_pixels,
        }

    async def upscale(self, request: Request) -> Response:
        """Take a picture, and upscale it when it is its turn."""
        weights = self.enlarger.value_of(request.query_params.get("weights", ""))
        return await self._start(
            request, lambda job, source: self.enlarger.upscale(job, weights, source)
        )

    async def photograph(self, request: Request) -> Response:
        """Take a photograph, and compute its distance map when it is its turn."""
        depth = request.query_params.get("depth", "")
        return await self._start(request, lambda job, source: self.viewer.open(job, source, depth))

    async def _start(self, request: Request, work: Callable[[Job, Path], Answer]) -> Response:
        """Receive a file into a folder of its own, and let the work on it wait for its turn."""
        self.queue.check_room()
        folder = self.store.new()
        source = folder / "in" / clean(request.query_params.get("name", ""))
        source.parent.mkdir()

        def run(job: Job) -> Answer:
            try:
                return work(job, source)
            except UserError as error:  # the folder is of no use to the reader
                problem = error.problem.replace(f"{source.parent}/", "")
                raise UserError(problem, error.fix) from error
            finally:
                source.unlink(missing_ok=True)

        try:
            await receive(request, source, self.max_bytes)
            job = self.queue.add(run)
        except BaseException:
            self.store.drop(folder)
            raise
        return JSONResponse({"job": job.id}, 202)

    async def job(self, request: Request) -> Response:
        """How far a job is."""
        return JSONResponse(self.queue.look(request.path_params["id"]))

    async def stop(self, request: Request) -> Response:
        """Stop a job."""
        self.queue.end(request.path_params["id"])
        return JSONResponse({})

    async def patches(self, request: Request) -> Response:
        """Select the patches of a photograph."""
        asked = await _body(request)

        def select() -> Answer:
            with self.turns.turn():
                return self.viewer.patches(asked)

        return JSONResponse(await run_in_threadpool(select))

    async def query(self, request: Request) -> Response:
        """Answer a question in SQL."""
        sql = str((await _body(request)).get("sql", ""))
        return JSONResponse(await run_in_threadpool(self.desk.ask, sql))

    async def file(self, request: Request) -> Response:
        """A file that was offered to the page."""
        path = self.store.file(**request.path_params)
        name = request.query_params.get("as")
        return FileResponse(path, filename=clean(name) if name else None)


def server(page: Page, host: str, port: int, token: str | None) -> uvicorn.Server:
    """The server, not yet running. host, port: where it listens."""
    names = frozenset({"localhost", "127.0.0.1", "::1", host}) if is_loopback(host) else None
    guard = Guard(page.app(), names, token, f"lasr-ui-{port}")
    config = uvicorn.Config(
        guard, log_config=None, log_level="critical", access_log=False, server_header=False,
        lifespan="off", ws="none", limit_concurrency=64, timeout_graceful_shutdown=1,
    )  # fmt: skip
    return uvicorn.Server(config)


def _static(name: str, kind: str) -> Endpoint:
    """An endpoint that answers a file of the package."""

    async def endpoint(_: Request) -> Response:
        return Response((TEMPLATES / name).read_bytes(), media_type=kind)

    return endpoint


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises UserError: there is none, or too large a one."""
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > _BODY:
            raise UserError(f"the question is longer than {_BODY} bytes", "ask a shorter one")
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UserError("the request is not a JSON object", "reload the page")
    return body
