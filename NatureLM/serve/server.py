"""The service: routes, what stands in front of them, and its life from start to the last answer.

`create_app` makes the application, which any ASGI server can run; `serve` runs it with uvicorn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import NatureLM
from NatureLM.errors import NatureLMError
from NatureLM.serve import chat, predictions, recordings
from NatureLM.serve.bodies import first_problem
from NatureLM.serve.model import ServedModel
from NatureLM.serve.settings import RequestError, ServeSettings
from NatureLM.util import format_bytes, library
from NatureLM.web.guard import Guard, Route, Rules
from NatureLM.web.server import (
    LOOPBACK,
    App,
    Message,
    Receive,
    Send,
    check_port,
    in_address,
    server_config,
)

logger = logging.getLogger(__name__)
_API_HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'self'; "
    "style-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_BODY_SECONDS = 300.0
_SEND_SECONDS = 60.0  # that a client may leave an answer unread
_SMALL = 64 * 1024
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)  # s of requests


@dataclass
class Page:
    """The web page, behind a guard of its own.

    alive: a context manager, within which it answers
    has_ended: set when the server stops
    """

    app: App
    alive: Callable[[], AbstractAsyncContextManager[None]]
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer; visitors have left once the server stops."""

        async def until_the_end() -> Message:
            coming = asyncio.ensure_future(receive())
            ending = asyncio.ensure_future(self.has_ended.wait())
            try:
                await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
                return coming.result() if coming.done() else {"type": "http.disconnect"}
            finally:
                coming.cancel()
                ending.cancel()

        await self.app(scope, until_the_end, send)


def create_app(
    settings: ServeSettings, served: ServedModel | None = None, page: Page | None = None
) -> Any:
    """The application behind its guard. The model loads when the application is started.

    page: has all addresses that are not the service's
    """
    model = served or ServedModel(settings)
    metrics = Metrics(model)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        model.loader.start()
        try:
            async with page.alive() if page is not None else nullcontext():
                yield
        finally:
            model.close()

    app = FastAPI(
        title="NatureLM",
        summary="Ask questions of animal sound: audio and a text prompt in, text out.",
        version=NatureLM.__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        responses={
            "4XX": {"description": "What is wrong with the request, as OpenAI writes errors."},
            "5XX": {"description": "The model loads or has failed (503), or was too slow (504)."},
        },
    )
    app.state.served = model
    for part in (chat, recordings, predictions):
        app.include_router(part.router)
    _add_errors(app)

    @app.get("/health", tags=["Service"])
    def health() -> JSONResponse:
        """200 where questions are answered, 503 while the model loads and when it has failed."""
        is_ready = model.state == "ready"
        content = {"status": "ok" if is_ready else model.state}
        return JSONResponse(content, 200 if is_ready else 503)

    @app.get("/metrics", tags=["Service"], response_class=Response)
    def measured() -> Response:
        """Figures in the text format of Prometheus."""
        text, kind = metrics.text()
        return Response(text, media_type=kind)

    @app.get("/", include_in_schema=False)
    def start() -> RedirectResponse:
        """Where a browser arrives that opens the printed address."""
        return RedirectResponse("/docs")

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        """The routes, for people; drawn from `/openapi.json` without any other computer."""
        return HTMLResponse(_static("docs.html"))

    @app.get("/docs/{name}", include_in_schema=False)
    def docs_part(name: str) -> Response:
        kinds = {"docs.js": "text/javascript", "docs.css": "text/css"}
        if name not in kinds:
            raise HTTPException(404)
        return Response(_static(name), media_type=kinds[name])

    own = rules(settings)
    guard = Guard(_Logged(app, metrics), own)
    return guard if page is None else _beside(page, guard, own)


def _beside(page: Page, service: Guard, own: Rules) -> App:
    """The service at its addresses, the page at the root and at all others."""
    paths = re.compile("|".join(f"(?:{route.path})" for route in own.routes))

    async def either(scope: Any, receive: Receive, send: Send) -> None:
        is_own = scope["type"] == "lifespan" or (
            scope["path"] != "/" and paths.fullmatch(scope["path"])
        )
        await (service if is_own else page)(scope, receive, send)

    return either


def rules(settings: ServeSettings) -> Rules:
    """What the guard lets through: each route with what its requests may bring."""
    limits = settings.limits
    routes = (
        Route("/health", public=True),
        Route("/(|info|metrics|openapi[.]json|docs|docs/docs[.](js|css)|v1/models(/.{1,300})?)"),
        Route(
            "/(predict|v1/(chat/completions|decisions|embeddings))",
            ("POST",),
            limits.body_bytes,
            _BODY_SECONDS,
        ),
        Route(
            "/v1/(audio/transcriptions|windows)",
            ("POST",),
            limits.upload_bytes + _SMALL,
            _BODY_SECONDS,
        ),
    )
    return Rules(
        routes=routes,
        hosts=(*LOOPBACK, settings.host, *settings.server_names),
        addresses=not settings.is_loopback,
        keys=settings.api_keys,
        way_in="send an API key as `Authorization: Bearer …`",
        headers=_API_HEADERS,
        error_body=lambda status, message: _refusal(status, message).body(),
    )


def _refusal(status: int, message: str) -> RequestError:
    """A refusal of the guard, or of the routes themselves."""
    return RequestError(message, status=status, code="invalid_api_key" if status == 401 else None)


def _add_errors(app: FastAPI) -> None:
    """Every error has one shape, and none says where on the server something lies."""

    async def said(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, RequestValidationError):
            error = first_problem(error.errors())
        elif isinstance(error, HTTPException):
            error = _refusal(error.status_code, str(error.detail))
        elif not isinstance(error, RequestError):
            error = _refusal(400, str(error))
        again = error.retry_after
        headers = {} if again is None else {"Retry-After": str(max(1, round(again)))}
        return JSONResponse(error.body(), error.status, headers)

    for kind in (RequestError, RequestValidationError, HTTPException, NatureLMError):
        app.add_exception_handler(kind, said)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the log does

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", request.url.path, exc_info=error)
        text = f"the service failed at this ({type(error).__name__}); its log says more"
        return JSONResponse(_refusal(500, text).body(), 500)


def _static(name: str) -> str:
    return (files("NatureLM.serve") / "static" / name).read_text(encoding="utf-8")


class _Logged:
    """ASGI middleware: a line in the log and a count for each request, of sizes and times only."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sizes = time.monotonic(), 499, [0, 0]  # 499: the client went away

        async def counted_receive() -> MutableMapping[str, Any]:
            message: MutableMapping[str, Any] = await receive()
            sizes[0] += len(message.get("body", b""))
            return message

        async def counted_send(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            sizes[1] += len(message.get("body", b""))
            # Who reads nothing would hold a thread, a file and places in the queue for ever.
            await asyncio.wait_for(send(message), _SEND_SECONDS)

        try:
            await self._app(scope, counted_receive, counted_send)
        except asyncio.TimeoutError:
            status = 499
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.count(route, status, seconds)
            logger.info(
                "%s %s %d, %.3f s, %s in, %s out%s",
                scope["method"],
                route,
                status,
                seconds,
                *map(format_bytes, sizes),
                f", {scope['visitor']}" if scope.get("visitor") else "",
            )


class Metrics:
    """Counts requests, and reads the engine's own counts when it is asked."""

    def __init__(self, model: ServedModel) -> None:
        prometheus: Any = library(
            "prometheus_client",
            "naturelm serve needs prometheus_client: pip install 'naturelm-audio[serve]'",
        )
        self._prometheus, self._model = prometheus, model
        self._registry = prometheus.CollectorRegistry()
        self._requests = prometheus.Counter(
            "naturelm_requests", "Requests.", ["route", "status"], registry=self._registry
        )
        self._seconds = prometheus.Histogram(
            "naturelm_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._registry.register(self)

    def count(self, route: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> tuple[str, str]:
        """All figures, and the content type that they have."""
        text: bytes = self._prometheus.generate_latest(self._registry)
        return text.decode(), str(self._prometheus.CONTENT_TYPE_LATEST)

    def collect(self) -> Iterator[Any]:
        """The engine's counts, as a collector of prometheus_client gives them."""
        core = library("prometheus_client.core", "prometheus_client is not whole")
        for name, what, value in self._model.counts():
            kind = core.CounterMetricFamily if name.endswith("_total") else core.GaugeMetricFamily
            yield kind(f"naturelm_{name.removesuffix('_total')}", what, value=value)


def serve(settings: ServeSettings, say: Callable[[str], None] = print) -> None:
    """Serve until SIGTERM or Ctrl-C; answers that are under way are finished, unless it is twice.

    Raises NatureLMError with the reason where the model cannot be loaded or the engine dies.
    """
    check_port(settings.host, settings.port)
    reasons: list[str] = []

    def end(reason: str) -> None:
        reasons.append(reason)
        server.should_exit = True

    model = ServedModel(settings, end)
    place = f"{in_address(settings.host)}:{settings.port}"
    say(f"The service is at http://{place} (stop it with Ctrl-C).")
    with _page(settings, model, say) as page, _log_shown():
        server = make_server(settings, model, page)
        say(f"The model {model.name} is loading; /health says when it is ready.")
        server.run()
    if reasons:
        raise NatureLMError(reasons[0])


@contextmanager
def _log_shown() -> Iterator[None]:
    """Within the block each request is a line on stderr, with its time."""
    log, handler = logging.getLogger("NatureLM.serve"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # errors of the service stand in the same log
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


@contextmanager
def _page(
    settings: ServeSettings, model: ServedModel, say: Callable[[str], None]
) -> Iterator[Page | None]:
    """Within the block there is the web page, if it is wanted; it asks the model of the service."""
    if not settings.with_page:
        yield None
        return
    from NatureLM.app.settings import AppSettings, folder_of_samples, need_gradio

    need_gradio()
    from NatureLM.app.context import AppContext
    from NatureLM.app.page import build, mounted, who_can_open_it

    token = next(iter(settings.api_keys.values()), None)
    of_page = AppSettings(
        model=settings.model,
        config=settings.config,
        alpha=settings.alpha,
        host=settings.host,
        port=settings.port,
        hosts=settings.server_names,
        token=token,
        assets_dir=folder_of_samples(None),
    )
    os.umask(0o077)  # what visitors give is for nobody else on this computer
    context = AppContext(of_page, model.loader)
    page = build(context)
    try:
        key = "?token=<an API key>" if token else ""
        say(f"The page for people is at the same address{', as ' + key if key else ''}.")
        for line in who_can_open_it(of_page, key):
            say(line)
        yield Page(*mounted(page, context))
    finally:
        page.close(verbose=False)
        context.close()


def make_server(settings: ServeSettings, model: ServedModel, page: Page | None = None) -> Any:
    """A `uvicorn.Server`, whose `run` serves until its `should_exit` is set or a signal comes."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            if page is not None:  # what its visitors listen to has no end
                page.has_ended.set()
            await super().shutdown(sockets)

    config = server_config(
        create_app(settings, model, page),
        *(settings.host, settings.port),
        date_header=False,
        timeout_graceful_shutdown=round(settings.limits.request_seconds),
        lifespan="on",
    )
    return Server(config)
