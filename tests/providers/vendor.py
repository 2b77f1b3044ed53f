"""A vendor on loopback that plays answers written by hand, for what llmock cannot say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from providers.base import Endpoint, Event, Message, Prompt, Provider, Text

Play = Callable[[web.Request], Awaitable[web.StreamResponse]]
KEY = "sk-secret-secret-secret"


class Vendor:
    """Answers every request with `play`; `gone` is set when a client leaves before the answer's end."""

    def __init__(self) -> None:
        self.play: Play = whole({})
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        self.connections: set[object] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        self.paths.append(request.path_qs)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.connections.add(request.transport)
        self.asked.set()
        try:
            return await self.play(request)
        except asyncio.CancelledError:
            self.gone.set()
            raise

    def endpoint(self, **settings: Any) -> Endpoint:
        return Endpoint(**{"api_key": KEY, "base_url": self.url, "read_timeout_s": 5.0, **settings})


@asynccontextmanager
async def serving() -> AsyncIterator[Vendor]:
    vendor = Vendor()
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", vendor.handle)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    vendor.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendor
    finally:
        await runner.cleanup()


def whole(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Play:
    async def play(request: web.Request) -> web.StreamResponse:
        return web.Response(
            status=status, body=orjson.dumps(body), content_type="application/json", headers=headers or {}
        )

    return play


def streamed(*chunks: Any, end: str = "eof") -> Play:
    """Chunks as events (bytes as they are), then `end`: "eof", "cut" (the connection breaks) or "hang"."""

    async def play(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk if isinstance(chunk, bytes) else _event(chunk))
        if end == "cut":
            assert request.transport is not None
            request.transport.abort()
        elif end == "hang":
            await asyncio.Event().wait()
        return response

    return play


def _event(chunk: Any) -> bytes:
    """Anthropic names its events, and its own client needs the name."""
    name = f"event: {chunk['type']}\r\n" if "type" in chunk else ""
    return name.encode() + b"data: " + orjson.dumps(chunk) + b"\r\n\r\n"


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def dropped(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def events_of(provider: Provider, prompt: Prompt) -> list[Event]:
    return [event async for event in provider.stream(prompt)]


def prompt(text: str = "hello", **settings: Any) -> Prompt:
    messages = (Message("user", (Text(text),)),)
    return Prompt(**{"model": "m", "messages": messages, "max_tokens": 4096, **settings})
