"""Vendors that misbehave to order, and keep a bill of their own: every call, and whether it was answered in full."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import orjson
from aiohttp import web

from tests.acceptance.vendors import Vendors, frame, last_text

PIECES = 20
NAMES = ("anthropic", "groq", "gemini")


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection after that many events of a stream (or within a whole answer): a reset, or a clean end."""

    after: int
    abrupt: bool = True


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with this status, and Retry-After in seconds where it is given."""

    status: int
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Delay:
    """Wait that long, then answer as one should."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hang:
    """Send that many events and then nothing, until the caller goes away."""

    after: int = 0


Mischief = Cut | Refuse | Delay | Hang


@dataclass(slots=True, eq=False)
class Call:
    """One call as the vendor saw it. Times are seconds since the epoch; `key` is the last user text."""

    number: int
    vendor: str
    model: str
    key: str
    streamed: bool
    arrived: float
    answered: float | None = None
    """When its last byte was handed over; None: never."""
    mischief: Mischief | None = None

    @property
    def words(self) -> list[str]:
        """No two calls have a piece in common, so that glued or crossed answers show."""
        return [f"{self.key}/{self.number}.{piece} " for piece in range(PIECES)]

    @property
    def answer(self) -> str:
        return "".join(self.words)


CALL = web.RequestKey("call", Call)

Rule = Callable[[Call], Mischief | None]
"""What a vendor does to a call; None: answer, unless a later rule says otherwise."""


def sometimes(rng: random.Random, probability: float, *mischiefs: Mischief) -> Rule:
    """One of `mischiefs` with this probability; which calls are hit follows from the seed and the calls' order."""

    def rule(call: Call) -> Mischief | None:
        return rng.choice(mischiefs) if rng.random() < probability else None

    return rule


def during(vendor: str, start: float, end: float, mischief: Mischief) -> Rule:
    """`mischief` for every call that reaches `vendor` between two moments, in seconds since the epoch."""

    def rule(call: Call) -> Mischief | None:
        return mischief if call.vendor == vendor and start <= call.arrived < end else None

    return rule


class ScriptedVendor(Vendors):
    """All three vendors; `calls` is the bill, `rules` are asked in order, `pause_s` lies between two pieces."""

    def __init__(self, *rules: Rule, pause_s: float = 0.02) -> None:
        super().__init__()
        self.rules = list(rules)
        self.pause_s = pause_s
        self.calls: list[Call] = []

    async def anthropic(self, request: web.Request) -> web.StreamResponse:
        return await self._play("anthropic", request, super().anthropic)

    async def groq(self, request: web.Request) -> web.StreamResponse:
        return await self._play("groq", request, super().groq)

    async def gemini(self, request: web.Request) -> web.StreamResponse:
        return await self._play("gemini", request, super().gemini)

    def words(self, request: web.Request) -> list[str]:
        return request[CALL].words

    async def _play(
        self, vendor: str, request: web.Request, answer: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        call = await self._arrived(vendor, request)
        request[CALL] = call
        match call.mischief:
            case Refuse() as refuse:
                return _refusal(refuse)
            case Delay(seconds):
                await asyncio.sleep(seconds)
            case Hang() if not call.streamed:
                await asyncio.Event().wait()
        if not call.streamed:
            await asyncio.sleep(self.pause_s * PIECES)
        response = await answer(request)
        if isinstance(response, web.Response):
            if isinstance(call.mischief, Cut):
                return await _half(request, response)
            call.answered = time.time()
        return response

    async def send(self, request: web.Request, *events: object) -> web.StreamResponse:
        call = request[CALL]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for sent, event in enumerate(events):
            match call.mischief:
                case Cut(after, abrupt) if sent == after:
                    if abrupt:
                        _reset(request)
                    return response
                case Hang(after) if sent == after:
                    await asyncio.Event().wait()
            await asyncio.sleep(self.pause_s)
            await response.write(frame(event))
        call.answered = time.time()
        return response

    async def _arrived(self, vendor: str, request: web.Request) -> Call:
        arrived = time.time()
        body = orjson.loads(await request.read())
        call = Call(
            number=len(self.calls),
            vendor=vendor,
            model=body.get("model") or request.path.rpartition("/")[2].partition(":")[0],
            key=last_text(body.get("contents") or body.get("messages")),
            streamed=bool(body.get("stream")) or "stream" in request.path,
            arrived=arrived,
        )
        self.calls.append(call)
        call.mischief = next((mischief for rule in self.rules if (mischief := rule(call))), None)
        return call


def _refusal(refuse: Refuse) -> web.Response:
    headers = {} if refuse.retry_after_s is None else {"Retry-After": str(refuse.retry_after_s)}
    error = {"type": "error", "error": {"type": "scripted", "message": f"refused with {refuse.status}"}}
    return web.json_response(error, status=refuse.status, headers=headers)


async def _half(request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Promise a body and break off in its middle."""
    body = whole.body
    assert isinstance(body, bytes)
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": str(len(body))})
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    _reset(request)
    return response


def _reset(request: web.Request) -> None:
    transport = request.transport
    assert transport is not None
    transport.abort()
