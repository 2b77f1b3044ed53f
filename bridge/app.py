"""The bridge's HTTP application: its surfaces put together, and one answer for everything that goes wrong."""

from __future__ import annotations

import structlog
from fastapi import FastAPI, Request, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridge.anthropic_routes import anthropic
from bridge.batch import batches
from bridge.bodies import json_response
from bridge.body_budget import BodyBudget
from bridge.client_gone import ClientGone
from bridge.forms import error_form
from bridge.guards import Guards, cross_origin
from bridge.keyring import Keyring
from bridge.line import Line
from bridge.live import live
from bridge.native import native
from bridge.observing import observing
from bridge.openai_routes import openai
from bridge.openapi import describe
from bridge.page_headers import page_headers
from bridge.pages import pages
from bridge.questions import questions
from bridge.rates import KeyRates
from bridge.recent import recent
from bridge.snapshot import Collector
from bridge.traffic import Counting, Traffic
from bridge.trail import trail
from processor.config import Settings
from processor.errors import ErrorType, RequestError

log = structlog.get_logger(__name__)


def create_app(line: Line, settings: Settings, keyring: Keyring, collector: Collector) -> FastAPI:
    """The application; it keeps nothing between two requests."""
    traffic = Traffic()
    app = FastAPI(title="CKCIAS Sidecar", docs_url=None, redoc_url=None, redirect_slashes=False)
    describe(app)
    app.state.keyring, app.state.rates = keyring, KeyRates(line, keyring)
    # What is added last stands outermost: pages that are let in also read why they are refused.
    app.add_middleware(BodyBudget)
    app.add_middleware(Guards, keyring=keyring, rates=app.state.rates, origins=settings.sidecar_cors_origins)
    if settings.sidecar_cors_origins:
        app.add_middleware(CORSMiddleware, **cross_origin(settings.sidecar_cors_origins))
    app.add_middleware(_Edge)
    app.add_middleware(Counting, traffic=traffic)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(ClientGone, _nobody_there)
    app.include_router(native(line, wait_s=settings.request_timeout))
    app.include_router(openai(line))
    app.include_router(anthropic(line))
    app.include_router(observing(collector, traffic, enabled=settings.enable_metrics))
    app.include_router(live(collector, traffic, keyring.authenticate if keyring.required else None))
    app.include_router(batches(line))
    app.include_router(questions(line))
    app.include_router(recent(line))
    app.include_router(trail(line))
    app.include_router(pages())

    @app.get("/health")
    async def health() -> Response:
        """The process is alive; nothing is said of the broker."""
        return json_response(b'{"status":"ok"}')

    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_form(request.scope)(error)


async def _nobody_there(_: Request, __: Exception) -> Response:
    """For the record: nobody reads it."""
    return Response(status_code=ErrorType.CANCELLED.code)


async def _not_served(request: Request, error: Exception) -> Response:
    """What the framework refuses: a path that is not served, or a method that is not served there."""
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == 404:
        why = RequestError(ErrorType.NOT_FOUND, f"nothing is served at {request.url.path[:200]}")
    elif allowed:
        why = RequestError(ErrorType.INVALID_REQUEST, f"{request.method} is not served here, but {allowed} is")
    else:
        why = RequestError(ErrorType.INVALID_REQUEST, str(error.detail))
    return error_form(request.scope)(why, error.status_code, error.headers)


class _Edge:
    """Around every answer: headers for browsers, and no error that shows more than its type."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        begun = False

        async def send_on(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(scope=message).update(page_headers(scope["path"]))
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            log.exception("request failed", path=scope["path"][:200], error=repr(error))
            if begun:
                raise
            failed = RequestError(ErrorType.INTERNAL, "the bridge failed at this; its log says why")
            await error_form(scope)(failed)(scope, receive, send_on)
        return None
