"""A bound on what all bodies take together, so that many large ones are refused instead of filling the memory."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from processor.errors import ErrorType, RequestError
from processor.messages import MAX_BODY_BYTES

MAX_HELD_BYTES = 256 * 1024 * 1024
"""Of the bodies of all requests that are being answered. What becomes of a body takes about as much again, or twice."""
SMALL_BYTES: Final = 64 * 1024
"""So much of every body counts nothing: small requests pass while large ones are refused, and connections are few."""
RETRY_AFTER_S: Final = 2.0


class BodyBudget:
    """Middleware: counts a body while it is read, and gives it back when its request has its answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        read = held = 0

        async def counted() -> Message:
            """Raises RequestError, `unavailable`, where there is no room for more of a body."""
            nonlocal read, held
            message = await receive()
            read = min(read + len(message.get("body", b"")), MAX_BODY_BYTES)  # nobody keeps more of it
            more = max(0, read - SMALL_BYTES) - held
            if more and self._held + more > MAX_HELD_BYTES:
                why = "the bridge is at work on as many large requests as it can hold; try again"
                raise RequestError(ErrorType.UNAVAILABLE, why, retry_after_s=RETRY_AFTER_S)
            held += more
            self._held += more
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held
        return None
