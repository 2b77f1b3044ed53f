"""uvicorn's HTTP connection with bounds: on the time and size of headers, on what waits, and on how many there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bridge.forms import error_form
from bridge.page_headers import page_headers
from processor.errors import ErrorType, RequestError

HEAD_WITHIN_S = 10.0
"""From a connection's begin, or from the first byte of its next request, to the end of the headers."""
REST_WITHIN_S = 30.0
"""For the rest of a body after its answer, and for a client to read at least some of what was sent to it."""
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 256
MAX_PIPELINED: Final = 8
"""Requests that wait behind the one that is being answered on the same connection."""
TELL_EVERY_S: Final = 10.0
_FOR_ORCHESTRATORS: Final = frozenset({"/health", "/ready"})

log = structlog.get_logger(__name__)


class Connection(HttpToolsProtocol):
    """One connection of a client.

    What uvicorn lacks: its timer runs only between two requests, its parser keeps whatever has no end yet, it starts
    all requests that come in one piece, and it closes a connection only as fast as the client reads.
    """

    max_connections = 2_000
    """More are told that there are too many; a tenth more, and they are closed without a word."""
    told_at = float("-inf")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._reads_head = True
        self._reads_body = False
        self._has_begun = False
        """Whether the first byte of the head that is read was seen."""
        self._fed = 0
        """Bytes of that head, with whatever came in one piece with it."""
        self._head_bytes = 0
        self._head_lines = 0
        self._is_refused = False

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_too_much(self) -> bool:
        return self._head_bytes > MAX_HEAD_BYTES or self._head_lines > MAX_HEADERS

    # --- the connection -------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._tell()
            self.app = _crowded(self.config.loaded_app)
            if len(self.connections) > self.max_connections * 1.1 + 1:
                self._is_refused = True
                transport.abort()
                return
        self._start("head", HEAD_WITHIN_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for name in list(self._timers):
            self._stop(name)
        self._is_refused = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._reads_head:
            self._fed += len(data)
        super().data_received(data)
        if self._is_refused or self.transport.is_closing() or self not in self.connections:  # a WebSocket by now
            return
        if self._is_too_much or (self._has_begun and self._fed > MAX_HEAD_BYTES):
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif self._has_begun or (self._reads_head and not self._is_busy and self.timeout_keep_alive_task is None):
            self._start("head", HEAD_WITHIN_S, self._head_is_late)

    def handle_websocket_upgrade(self) -> None:
        if self._is_busy:  # two would write on one connection
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS)
        elif not self._is_refused:
            super().handle_websocket_upgrade()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_unless_read("stall")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop("stall")

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    # --- the parser -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._has_begun, self._head_bytes, self._head_lines = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        if not self._is_too_much:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        self._head_lines += 1
        if self._reads_head and not self._is_too_much:  # what comes after a body is read by nobody
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop("head")
        self._reads_head, self._has_begun, self._reads_body = False, False, True
        if self._is_refused:
            return
        if self._is_too_much:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif len(self.pipeline) >= MAX_PIPELINED:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._reads_head, self._reads_body, self._fed = True, False, 0
        self._stop("rest")
        if self._is_refused:
            return
        super().on_message_complete()
        is_upgrade = self.parser.should_upgrade() and self._should_upgrade()
        if self.cycle is not None and self.cycle.response_complete and not self.pipeline and not is_upgrade:
            # It was answered before its end, and data_received has stopped the timer that ran since then.
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._close()
        elif self._reads_body and not self._is_busy:
            self._start("rest", REST_WITHIN_S, self._close)

    # --- bounds ---------------------------------------------------------------------------------

    def _head_is_late(self) -> None:
        if self._is_busy:  # the next request may wait until this one is answered
            self._start("head", HEAD_WITHIN_S, self._head_is_late)
        elif self._has_begun:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._close()

    def _abort_unless_read(self, timer: str) -> None:
        """End it when the client reads nothing of what is left for it."""
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() < left:
                self._abort_unless_read(timer)
            else:
                self.transport.abort()

        self._start(timer, REST_WITHIN_S, look)

    def _refuse(self, status: HTTPStatus) -> None:
        """Say why, where no answer is under way, and close."""
        self._is_refused = True
        if not self._is_busy and not self.transport.is_closing():
            text = status.phrase.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(text) + text)
        self._close()

    def _close(self) -> None:
        """Close it when all is sent, as long as the client reads on."""
        self.transport.close()
        self._abort_unless_read("close")

    def _start(self, name: str, after_s: float, then: Callable[[], None]) -> None:
        """Start the timer of that name, unless it runs."""

        def fire() -> None:
            del self._timers[name]
            then()

        if name not in self._timers:
            self._timers[name] = self.loop.call_later(after_s, fire)

    def _stop(self, name: str) -> None:
        if (timer := self._timers.pop(name, None)) is not None:
            timer.cancel()

    def _tell(self) -> None:
        if (now := self.loop.time()) - type(self).told_at >= TELL_EVERY_S:
            type(self).told_at = now
            log.warning("too many connections: see SIDECAR_MAX_CONNECTIONS", limit=self.max_connections)


def bounded(max_connections: int) -> type[Connection]:
    """The connections of one server."""
    return type("Connection", (Connection,), {"max_connections": max_connections})


def _crowded(app: Any) -> ASGIApp:
    """What answers where there are too many connections: whoever asks whether the process lives is told so."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _FOR_ORCHESTRATORS:
            return await app(scope, receive, send)  # type: ignore[no-any-return]  # uvicorn types it less
        error = RequestError(ErrorType.UNAVAILABLE, "this bridge has too many connections; try again", retry_after_s=1)
        headers = {"Connection": "close", **page_headers(scope["path"])}
        return await error_form(scope)(error, headers=headers)(scope, receive, send)

    return answer
