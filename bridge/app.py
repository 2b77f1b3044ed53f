"""The bridge's HTTP surface: it checks a body, asks over NATS, and gives back what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request, Response
from nats.aio.msg import Msg
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bridge.line import Line
from processor.errors import ErrorType, RequestError
from processor.messages import MAX_BODY_BYTES, decode_request
from processor.reply_bodies import ErrorBody, ErrorReply

BODY_WITHIN_S = 30.0
"""For a whole body to arrive."""
_HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_SERVICE_ERROR = "Nats-Service-Error-Code"

log = structlog.get_logger(__name__)


def create_app(line: Line) -> FastAPI:
    """The application; it keeps nothing between two requests."""
    app = FastAPI(title="CKCIAS Sidecar", openapi_url=None, redirect_slashes=False)
    app.add_middleware(_Edge)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(RequestError, _refused)

    @app.get("/health")
    async def health() -> Response:
        """The process is alive; nothing is said of the broker."""
        return Response(b'{"status":"ok"}', media_type="application/json")

    @app.post("/api/route")
    async def route(request: Request) -> Response:
        """Which models would answer the body of an ask, and why. No model is called."""
        body = await read_body(request)
        decode_request(body)
        return _answer(await line.ask("llm.route", body))

    return app


async def read_body(request: Request) -> bytes:
    """The body, never more of it than a request may have.

    Raises:
        RequestError: `too_large`, before all of it was read; `invalid_request` where it does not come to its end
            within `BODY_WITHIN_S`; `cancelled` where the client has gone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_BODY_BYTES:
                    raise _too_large()
                body += chunk
    except TimeoutError:
        raise RequestError(ErrorType.INVALID_REQUEST, f"the body did not arrive within {BODY_WITHIN_S:g} s") from None
    except ClientDisconnect:
        raise RequestError(ErrorType.CANCELLED, "the client has gone") from None
    return bytes(body)


def _too_large() -> RequestError:
    return RequestError(ErrorType.TOO_LARGE, f"the body has more than {MAX_BODY_BYTES} bytes")


def _answer(msg: Msg) -> Response:
    """A sidecar's answer as it is, under the status that its services-API header says."""
    code = (msg.headers or {}).get(_SERVICE_ERROR)
    if code is None:
        return Response(msg.data, media_type="application/json")
    if not msg.data or not (code.isdecimal() and 400 <= int(code) <= 599):
        log.error("a sidecar failed", code=code, error=(msg.headers or {}).get("Nats-Service-Error"))
        raise RequestError(ErrorType.INTERNAL, "the sidecar failed at this; its log says why")
    return Response(msg.data, int(code), media_type="application/json")


def error_response(error: RequestError, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the contract's own form."""
    body = ErrorBody(type=error.type, message=error.message, request_id="", retry_after_s=error.retry_after_s)
    return Response(ErrorReply(error=body).model_dump_json(), status, headers=headers, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error, error.type.code)


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
    return error_response(why, error.status_code, error.headers)


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
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            log.exception("request failed", path=scope["path"][:200], error=repr(error))
            if begun:
                raise
            failed = RequestError(ErrorType.INTERNAL, "the bridge failed at this; its log says why")
            await error_response(failed, ErrorType.INTERNAL.code)(scope, receive, send_on)
        return None
