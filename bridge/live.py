"""The live feed on `/ws`: a whole snapshot a second to everybody who looks, and the same once for who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
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
FULL, NO_KEY, NO_OPERATOR = 1013, 4401, 4403
"""Close codes: come back later; no key, or a wrong one; a key that may not see this."""

Authenticate = Callable[[str], Caller | None]


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
            refused = None if authenticate is None else await _refusal(socket, authenticate)
            if refused is None and collector.watchers >= MAX_WATCHERS:
                refused = FULL, f"there are {MAX_WATCHERS} watchers"
            if refused is not None:
                await socket.close(*refused)
                return
            with collector.watched(), traffic.watchers.track_inprogress():
                await _feed(socket, collector)
        except WebSocketDisconnect:
            return

    return router


def of_operators(request: Request) -> None:
    """Raises RequestError, `forbidden`, for who may see one tenant only."""
    if not caller(request).operator:
        raise RequestError(ErrorType.FORBIDDEN, "this shows all tenants: it takes a key with operator = true")


async def _refusal(socket: WebSocket, authenticate: Authenticate) -> tuple[int, str] | None:
    """Why a watcher may not look, or None. Raises WebSocketDisconnect."""
    try:
        async with asyncio.timeout(KEY_WITHIN_S):
            said = await socket.receive_text()
        found = authenticate(_KEY.decode(said).key)
    except (TimeoutError, ValueError, KeyError, RecursionError):  # KeyError: starlette's, for a message of bytes
        return NO_KEY, 'the first message has to be {"key": "..."}'
    if found is None:
        return NO_KEY, "this key is not known"
    return None if found.operator else (NO_OPERATOR, "this shows all tenants: it takes an operator's key")


async def _feed(socket: WebSocket, collector: Collector) -> None:
    """Until the watcher goes, or the server closes the connection."""
    async with asyncio.TaskGroup() as tasks:
        sending = tasks.create_task(_send(socket, collector))
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
        sending.cancel()


async def _send(socket: WebSocket, collector: Collector) -> None:
    """A watcher that is behind gets the newest snapshot, not all that it has missed."""
    number: int | None = None
    with suppress(WebSocketDisconnect):  # whoever reads sees it too
        while socket.application_state is WebSocketState.CONNECTED:
            try:
                frame = await (collector.latest() if number is None else collector.after(number))
            except RequestError:  # none yet
                continue
            await socket.send_text(frame.text)
            number = frame.number
