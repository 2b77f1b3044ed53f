"""The client's side: one request over NATS, its deltas as they come, and its ending."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from processor import subjects
from processor.subjects import Priority


@dataclass(frozen=True, slots=True)
class Update:
    """One message to the client: `event` is delta, restarted, final or error; `fields` its decoded body."""

    event: str
    fields: dict[str, Any]


class NoSidecar(Exception):
    """Nobody serves `llm.request.*` on this broker."""


async def ask(
    nc: Client, body: dict[str, Any], *, priority: Priority, request_id: str, timeout_s: float
) -> AsyncGenerator[Update]:
    """Publish the request and yield its updates; the last one is `final` or `error`.

    Closing the generator before that cancels the request.

    Raises:
        NoSidecar: no sidecar is running.
        TimeoutError: no ending within `timeout_s` seconds.
    """
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    ended = False
    try:
        await nc.publish(subjects.ask(priority), orjson.dumps(body), reply=inbox, headers={"Nats-Msg-Id": request_id})
        async with asyncio.timeout(timeout_s):
            while not ended:
                update = _read(await _next(sub))
                ended = update.event in {"final", "error"}
                yield update
    finally:
        if not ended and nc.is_connected:
            await nc.publish(subjects.cancel(request_id))
            await nc.flush(timeout=2)
        await sub.unsubscribe()


async def _next(sub: Any) -> Msg:
    while True:
        try:
            message: Msg = await sub.next_msg(timeout=1)
            return message
        except nats.errors.TimeoutError:
            continue


def _read(msg: Msg) -> Update:
    headers = msg.headers or {}
    if headers.get("Status") == "503":
        raise NoSidecar
    return Update(headers.get("Sidecar-Event", "error"), orjson.loads(msg.data))
