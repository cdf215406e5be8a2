# SPDX-License-Identifier: Apache-2.0
"""Routes: HTTP in, HTTP out. What an answer is made of is `service.py`'s."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kcmoe.serve.errors import ApiError
from kcmoe.serve.limits import Bodies
from kcmoe.serve.openapi import describe
from kcmoe.serve.operations import OPERATIONS
from kcmoe.serve.service import Service, as_json

_log = logging.getLogger(__name__)
_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("app", "words", "client", "label", "fill", "experts", "csv")
    },
}
# Nothing from elsewhere, and nothing written into the page as code.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_GONE = 499  # nginx's number for a client that went away
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = value if isinstance(value, bytes) else as_json(value)
    return Response(content, status, headers, media_type="application/json")


def _error(error: ApiError) -> Response:
    return _json(error.as_json(), error.status, error.headers())


def make_app(service: Service, *, local: bool) -> ASGIApp:
    """The application.

    Args:
      service: what it serves.
      local: whether only this machine can reach it; then it answers to local names only, so that a page
        of another site cannot reach it through a name of its own (DNS rebinding).
    """
    bodies = Bodies(service.limits)

    def post(operation: str) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            _check_type(request)
            if service.stopping:
                raise ApiError(503, "the server is stopping", "server", "ask another one", 5)
            chunks = request.stream()
            body = await bodies.read(chunks, request.headers.get("content-length"))
            answer = service.answer(operation, body)
            return _json(await _unless_gone(request, answer))

        return endpoint

    async def page(request: Request) -> Response:
        name, media_type = _PAGE[request.url.path]
        content = (resources.files("kcmoe.serve") / "page" / name).read_bytes()
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    async def healthz(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        if service.ready and not service.stopping:
            return _json({"status": "ready"})
        why = "the server is stopping" if service.stopping else "the first answer is being computed"
        raise ApiError(503, why, "server", "ask again", retry_after_s=1)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def model(request: Request) -> Response:
        limits = service.limits
        bounds = {
            "lines": limits.lines,
            "characters": limits.characters,
            "body_bytes": limits.body_bytes,
        }
        return _json({**service.engine.describe(), "limits": bounds})

    async def openapi(request: Request) -> Response:
        return _json(describe(service.limits, service.engine.describe()))

    async def preferences(request: Request) -> Response:
        return _json(await service.preferences())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        first = asyncio.create_task(service.start())
        first.add_done_callback(_say_if_failed)
        yield
        first.cancel()
        service.stop()

    routes = [
        *(Route(path, page) for path in _PAGE),
        *(Route(f"/v1/{name}", post(name), methods=["POST"]) for name in OPERATIONS),
        Route("/v1/experts/preferences", preferences),
        Route("/v1/model", model),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
    ]
    handlers: dict[Any, Any] = {
        ApiError: _on_api_error,
        HTTPException: _on_http_error,
        Exception: _on_failure,
    }
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    return _Outer(app, service, local)


async def _on_api_error(request: Request, error: ApiError) -> Response:
    return _error(error)


async def _on_failure(request: Request, error: Exception) -> Response:
    return _error(ApiError(500, "the server failed", "server", "see its log, and report it"))


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    where = f"{request.method} {request.url.path[:200]}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        response = _error(ApiError(405, f"not with {request.method}", where, f"use {allowed}"))
        response.headers["allow"] = allowed
        return response
    return _error(
        ApiError(
            error.status_code, str(error.detail), where, "GET /openapi.json lists what there is"
        )
    )


def _check_type(request: Request) -> None:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        # A form of another site could send any other type without asking.
        raise ApiError(
            415,
            f"the content type is {kind[:60] or 'not given'}, not application/json",
            "header content-type",
            "send the header content-type: application/json",
            close=True,
        )


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, Any]) -> Any:
    """The answer; given up when the client closes its connection before."""
    working = asyncio.ensure_future(answer)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watching = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        watching.cancel()
        if not working.done():
            working.cancel()


def _say_if_failed(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("the first answer failed: %s", task.exception())


class _Outer:
    """Around the routes: counts, security headers, local names, and a log of our own failures."""

    def __init__(self, app: ASGIApp, service: Service, local: bool):
        self._app, self._service, self._local = app, service, local
        self._known = {*_PAGE, *(f"/v1/{name}" for name in OPERATIONS), "/v1/model",
                       "/v1/experts/preferences", "/healthz", "/readyz", "/metrics",
                       "/openapi.json"}  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s, status = time.monotonic(), _GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            if self._local and not self._is_local(scope):
                error = ApiError(
                    421, "this server answers to local names only", "header host",
                    "ask localhost or 127.0.0.1, or start the server with --host",
                )  # fmt: skip
                await _error(error)(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _GONE  # whatever was sent on the way here, nobody read it
        except Exception:
            _log.exception("%s %s failed", scope["method"], scope["path"][:200])
        finally:
            path = scope["path"] if scope["path"] in self._known else "other"
            self._service.metrics.request(path, status, time.monotonic() - started_s)

    def _is_local(self, scope: Scope) -> bool:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        return all(_without_port(host).lower() in _LOCAL_NAMES for host in hosts)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
