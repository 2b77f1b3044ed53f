"""The live feed on `/ws`: a whole snapshot a second to everybody who looks, and the same once for who asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from bridge.bodies import json_response
from bridge.callers import Caller, caller
from bridge.snapshot import Collector
from bridge.traffic import Traffic
from processor.errors import ErrorType, RequestError

MAX_WATCHERS: Final = 100
KEY_WITHIN_S: Final = 5.0
LOOK_AGAIN_S = 5.0
"""Between two looks whether a watcher's key is still one that may see this."""
FULL, NO_KEY, NO_OPERATOR = 1013, 4401, 4403
"""Close codes: come back later; no key, or a wrong one; a key that may not see this."""

Authenticate = Callable[[str], Caller | None]
Refused = tuple[int, str]
"""A close code, and why."""


class _Key(msgspec.Struct):
    key: str


_KEY = msgspec.json.Decoder(_Key)


def live(collector: Collector, traffic: Traffic, authenticate: Authenticate | None = None) -> APIRouter:
    """The routes. With `authenticate`, a watcher's first message is `{"key": …}`, of an operator."""
    router = APIRouter()

    @router.get("/api/snapshot")
    async def snapshot(request: Request) -> Response:
        """Everything at a glance, at most a second old."""
        of_operators(request)
        return json_response((await collector.latest()).text.encode())

    @router.websocket("/ws")
    async def feed(socket: WebSocket) -> None:
        """A snapshot a second. What a watcher says after its key is not looked at."""
        try:
            await socket.accept()
            key = None if authenticate is None else await _key(socket)
            refusal = partial(_refusal, authenticate, key)
            refused = refusal()
            if refused is None and collector.watchers >= MAX_WATCHERS:
                refused = FULL, f"there are {MAX_WATCHERS} watchers"
            if refused is not None:
                await socket.close(*refused)
                return
            with collector.watched(), traffic.watchers.track_inprogress():
                await _feed(socket, collector, refusal)
        except WebSocketDisconnect:
            return

    return router


def of_operators(request: Request) -> None:
    """Raises RequestError, `forbidden`, for who may see one tenant only."""
    if not caller(request).operator:
        raise RequestError(ErrorType.FORBIDDEN, "this shows all tenants: it takes a key with operator = true")


async def _key(socket: WebSocket) -> str | None:
    """The key that a watcher shows; None where it shows none in time. Raises WebSocketDisconnect."""
    try:
        async with asyncio.timeout(KEY_WITHIN_S):
            said = await socket.receive_text()
        return _KEY.decode(said).key
    except (TimeoutError, ValueError, KeyError, RecursionError):  # KeyError: starlette's, for a message of bytes
        return None


def _refusal(authenticate: Authenticate | None, key: str | None) -> Refused | None:
    """Why a watcher may not look, or None."""
    if authenticate is None:
        return None
    if key is None:
        return NO_KEY, 'the first message has to be {"key": "..."}'
    if (found := authenticate(key)) is None:
        return NO_KEY, "this key is not known"
    return None if found.operator else (NO_OPERATOR, "this shows all tenants: it takes an operator's key")


async def _feed(socket: WebSocket, collector: Collector, refusal: Callable[[], Refused | None]) -> None:
    """Until the watcher goes, its key is taken away, or the server closes the connection."""
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send(socket, collector, refusal))
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
        sending.cancel()


async def _send(socket: WebSocket, collector: Collector, refusal: Callable[[], Refused | None]) -> None:
    """A watcher that is behind gets the newest snapshot, not all that it has missed."""
    number: int | None = None
    looked = time.monotonic()
    with suppress(WebSocketDisconnect):  # whoever reads sees it too
        while socket.application_state is WebSocketState.CONNECTED:
            try:
                frame = await (collector.latest() if number is None else collector.after(number))
            except RequestError:  # none yet
                continue
            if time.monotonic() - looked >= LOOK_AGAIN_S:
                if (refused := refusal()) is not None:
                    await socket.close(*refused)
                    return
                looked = time.monotonic()
            await socket.send_text(frame.text)
            number = frame.number
