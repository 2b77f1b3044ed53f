"""A whole bridge in this process, on a free port of loopback, taken down in order at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import psutil
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge.service import bridge
from providers.scripted import ScriptedProvider
from tests import talk
from tests.conftest import make_settings
from tests.wait import wait_until


@dataclass(frozen=True)
class Event:
    """A server-sent event; `data` is decoded."""

    id: str | None
    name: str | None
    data: Any


async def events(response: aiohttp.ClientResponse) -> AsyncGenerator[Event]:
    """The events of a response, as they come; comments are left out."""
    fields: dict[str, str] = {}
    async for line in response.content:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name:
            fields[name] = value
        elif "data" in fields:
            yield Event(fields.get("id"), fields.get("event"), orjson.loads(fields.pop("data")))
            fields = {}
        else:
            fields = {}


@dataclass(frozen=True)
class Edge:
    """A bridge that serves, and a client of it."""

    url: str
    stopping: asyncio.Event
    serving: asyncio.Task[None]
    client: aiohttp.ClientSession

    async def post(self, body: Any, path: str = "/api/route") -> tuple[int, dict[str, Any]]:
        """Status and decoded answer."""
        async with self.client.post(path, data=body if isinstance(body, bytes) else orjson.dumps(body)) as response:
            return response.status, orjson.loads(await response.read())


@asynccontextmanager
async def bridging(nats_url: str, **settings: Any) -> AsyncIterator[Edge]:
    chosen = make_settings(**{"sidecar_port": 0, "shutdown_grace": 5} | settings)
    stopping, told = asyncio.Event(), list[str]()
    with bridge(chosen) as edge:
        serving = asyncio.create_task(edge.serve(nats_url, stopping, told.append))
        await wait_until(lambda: told or serving.done())
        try:
            async with aiohttp.ClientSession(edge.url) as client:
                yield Edge(edge.url, stopping, serving, client)
        finally:
            stopping.set()
            await serving


async def listen(nc: Client, callback: Callable[[Msg], Awaitable[None]]) -> None:
    """Stand in for a sidecar at `llm.route`; the broker knows of it from here on."""
    await talk.listen(nc, "llm.route", callback)


def our_broker() -> psutil.Process:
    """The one that was started last: another may serve the session."""
    return max(psutil.Process().children(), key=lambda child: (child.create_time(), child.pid))


async def leave_when(
    edge: Edge, vendor: ScriptedProvider, sent: bytes, path: str = "/api/chat", **headers: str
) -> None:
    """Ask, and hang up once the vendor is at work."""
    async with aiohttp.ClientSession(edge.url) as client:

        async def ask() -> None:
            async with client.post(path, data=sent, headers=headers) as response:
                await response.read()

        asking = asyncio.create_task(ask())
        await wait_until(lambda: vendor.calls == 1)
        asking.cancel()
        await asyncio.wait({asking})
