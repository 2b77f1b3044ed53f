"""The scripted vendors misbehave as they are told, and their bill says so."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from tests.acceptance.vendors import serving
from tests.chaos.vendor import PIECES, Call, Cut, Delay, Hang, Mischief, Refuse, Rule, ScriptedVendor, during, sometimes

PLACES = {
    "anthropic": "/v1/messages",
    "groq": "/openai/v1/chat/completions",
    "gemini": "/v1/models/m:streamGenerateContent",
}


def always(mischief: Mischief | None) -> Rule:
    return lambda call: mischief


@asynccontextmanager
async def asked(
    mischief: Mischief | None, name: str = "groq", *, stream: bool = True
) -> AsyncIterator[tuple[ScriptedVendor, aiohttp.ClientResponse]]:
    body: dict[str, Any] = {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "q7"}]}
    if name == "gemini":
        body = {"contents": [{"role": "user", "parts": [{"text": "q7"}]}]}
    async with (
        serving(ScriptedVendor(always(mischief), pause_s=0)) as vendor,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5, sock_read=0.3)) as session,
        session.post(vendor.url + PLACES[name], json=body) as response,
    ):
        yield vendor, response


@pytest.mark.parametrize("name", PLACES)
async def test_a_vendor_left_alone_answers_in_many_pieces_and_bills_the_call(name: str) -> None:
    async with asked(None, name) as (vendor, response):
        text = (await response.read()).decode()
        (call,) = vendor.calls
    assert (call.vendor, call.model, call.key, call.streamed) == (name, "m", "q7", True)
    assert [text.count(word) for word in call.words] == [1] * PIECES
    assert call.answered is not None
    assert call.answered >= call.arrived


@pytest.mark.parametrize("retry_after_s", [None, 7])
@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_it_refuses(status: int, retry_after_s: int | None) -> None:
    async with asked(Refuse(status, retry_after_s)) as (vendor, response):
        assert response.status == status
        assert response.headers.get("Retry-After") == (retry_after_s and str(retry_after_s))
        assert vendor.calls[0].answered is None


async def test_it_ends_a_stream_without_its_last_event() -> None:
    async with asked(Cut(after=4, abrupt=False)) as (vendor, response):
        assert (await response.read()).count(b"data: ") == 4
        assert vendor.calls[0].answered is None


@pytest.mark.parametrize("stream", [True, False])
async def test_it_resets_the_connection_in_the_middle(stream: bool) -> None:
    async with asked(Cut(after=4), stream=stream) as (vendor, response):
        with pytest.raises(aiohttp.ClientError):
            await response.read()
        assert vendor.calls[0].answered is None


async def test_it_hangs_in_the_middle() -> None:
    async with asked(Hang(after=2)) as (vendor, response):
        with pytest.raises(aiohttp.SocketTimeoutError):
            await response.read()
        assert vendor.calls[0].answered is None


async def test_it_takes_its_time() -> None:
    async with asked(Delay(0.2)) as (vendor, response):
        await response.read()
        (call,) = vendor.calls
    assert call.answered is not None
    assert call.answered - call.arrived >= 0.2


def test_the_same_seed_hits_the_same_calls_and_spans_have_ends() -> None:
    call = Call(0, "groq", "m", "q7", streamed=True, arrived=100.0)

    def hits(seed: int) -> list[bool]:
        rule = sometimes(random.Random(seed), 0.3, Hang())
        return [rule(call) is not None for _ in range(1000)]

    assert hits(3) == hits(3) != hits(4)
    assert 200 < sum(hits(3)) < 400
    assert during("groq", 100.0, 101.0, Hang())(call) == Hang()
    assert during("groq", 99.0, 100.0, Hang())(call) is None
    assert during("gemini", 100.0, 101.0, Hang())(call) is None
