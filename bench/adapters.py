"""What a call costs through an adapter and through its SDK's own typed calls: CPU of this process, side by side.

    .venv/bin/python -m bench.adapters [--calls 400] [--chunks 50]

Vendors are played by a process of its own on loopback, with answers encoded beforehand. Take the ratios: the absolute
figures are this machine's. `bare` is aiohttp alone, reading the same bytes: the floor.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from rich.console import Console
from rich.table import Table

from providers.anthropic import AnthropicProvider
from providers.base import Endpoint, Message, Prompt, Provider, Text
from providers.gemini import GeminiProvider
from providers.groq import GroqProvider

WORD = "drought "
Calls = dict[str, Callable[[bool], Awaitable[None]]]


# --- the vendors ----------------------------------------------------------------------------


def answers(chunks: int) -> dict[str, tuple[bytes, bytes]]:
    """path → (whole answer, stream)."""
    usage = {"input_tokens": 10, "output_tokens": chunks}
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None}
    anthropic: list[dict[str, Any]] = [
        {"type": "message_start", "message": message | {"content": [], "stop_reason": None, "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *[{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": WORD}}] * chunks,
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]
    chat = {"id": "c", "created": 1, "model": "m"}
    tokens = {"prompt_tokens": 10, "completion_tokens": chunks, "total_tokens": chunks + 10}

    def piece(finish: str | None, **delta: str) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return chat | {"object": "chat.completion.chunk", "choices": [choice]}

    groq: list[dict[str, Any]] = [
        *[piece(None, content=WORD)] * chunks,
        piece("stop") | {"x_groq": {"id": "r", "usage": tokens}},
    ]
    said = {"role": "assistant", "content": WORD * chunks}
    choice = {"index": 0, "message": said, "finish_reason": "stop"}

    def candidate(text: str, **more: Any) -> dict[str, Any]:
        return {"candidates": [{"index": 0, "content": {"role": "model", "parts": [{"text": text}]}, **more}]}

    counted = {"promptTokenCount": 10, "candidatesTokenCount": chunks, "totalTokenCount": chunks + 10}
    last = candidate(WORD, finishReason="STOP") | {"usageMetadata": counted}
    gemini: list[dict[str, Any]] = [*[candidate(WORD)] * (chunks - 1), last]
    whole_message = message | {
        "content": [{"type": "text", "text": WORD * chunks}],
        "stop_reason": "end_turn",
        "usage": usage,
    }
    return {
        "/v1/messages": (orjson.dumps(whole_message), _stream(anthropic)),
        "/openai/v1/chat/completions": (
            orjson.dumps(chat | {"object": "chat.completion", "choices": [choice], "usage": tokens}),
            _stream(groq) + b"data: [DONE]\n\n",
        ),
        "/v1/models/m:generateContent": (orjson.dumps(candidate(WORD * chunks) | last), b""),
        "/v1/models/m:streamGenerateContent": (b"", _stream(gemini)),
    }


def _stream(events: list[dict[str, Any]]) -> bytes:
    frames = [(f"event: {event['type']}\n" if "type" in event else "", orjson.dumps(event)) for event in events]
    return b"".join(name.encode() + b"data: " + data + b"\n\n" for name, data in frames)


def serve_vendors(chunks: int, told: Connection) -> None:
    """Answer for ever, as a process of its own."""
    played = answers(chunks)

    async def handle(request: web.Request) -> web.Response:
        body = await request.read()
        whole, stream = played[request.path]
        if not whole or b'"stream":true' in body.replace(b" ", b""):
            return web.Response(body=stream, content_type="text/event-stream")
        return web.Response(body=whole, content_type="application/json")

    async def main() -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(main())


# --- the ways to call -----------------------------------------------------------------------


def ours(provider: Provider) -> Callable[[bool], Awaitable[None]]:
    async def call(stream: bool) -> None:
        async for _ in provider.stream(Prompt("m", (Message("user", (Text("hi"),)),), 1000, stream=stream)):
            pass

    return call


@asynccontextmanager
async def typed(url: str) -> AsyncIterator[Calls]:
    """The SDKs as their documentation shows them, on the same aiohttp transports."""
    import anthropic
    import groq
    from google import genai

    claude = anthropic.AsyncAnthropic(
        api_key="k", base_url=url, http_client=anthropic.DefaultAioHttpClient(), max_retries=0
    )
    fast = groq.AsyncGroq(api_key="k", base_url=url, http_client=groq.DefaultAioHttpClient(), max_retries=0)
    google = genai.Client(api_key="k", http_options=genai.types.HttpOptions(base_url=url))
    messages: Any = [{"role": "user", "content": "hi"}]

    async def with_anthropic(stream: bool) -> None:
        if stream:
            async for _ in await claude.messages.create(model="m", max_tokens=9, messages=messages, stream=True):
                pass
        else:
            await claude.messages.create(model="m", max_tokens=9, messages=messages)

    async def with_groq(stream: bool) -> None:
        if stream:
            async for _ in await fast.chat.completions.create(model="m", messages=messages, stream=True):
                pass
        else:
            await fast.chat.completions.create(model="m", messages=messages)

    async def with_gemini(stream: bool) -> None:
        if stream:
            async for _ in await google.aio.models.generate_content_stream(model="m", contents="hi"):
                pass
        else:
            await google.aio.models.generate_content(model="m", contents="hi")

    yield {"anthropic": with_anthropic, "groq": with_groq, "gemini": with_gemini}
    await claude.close()
    await fast.close()
    await google.aio.aclose()


async def cost(call: Callable[[bool], Awaitable[None]], calls: int, *, stream: bool) -> float:
    """Milliseconds of CPU a call, eight at a time, after a warm-up."""

    async def some(count: int) -> None:
        for _ in range(count):
            await call(stream)

    await some(20)
    before = time.process_time()
    await asyncio.gather(*(some(calls // 8) for _ in range(8)))
    return (time.process_time() - before) / (calls // 8 * 8) * 1000


async def compare(url: str, calls: int, chunks: int) -> None:
    endpoint = Endpoint(api_key="k", base_url=url)
    providers: dict[str, Provider] = {
        "anthropic": AnthropicProvider(endpoint),
        "groq": GroqProvider(endpoint),
        "gemini": GeminiProvider(endpoint),
    }
    table = Table("", "whole: ms", f"{chunks} chunks: ms", "× bare", "× bare", title="CPU a call")
    async with aiohttp.ClientSession() as session:

        async def bare(stream: bool) -> None:
            body = b'{"stream":true}' if stream else b"{}"
            async with session.post(f"{url}/v1/messages", data=body) as response:
                await response.read()

        floor = await cost(bare, calls, stream=False), await cost(bare, calls, stream=True)
    table.add_row("bare", f"{floor[0]:.2f}", f"{floor[1]:.2f}", "1.0", "1.0")
    async with typed(url) as sdk:
        for name, provider in providers.items():
            for way, call in (("adapter", ours(provider)), ("typed SDK", sdk[name])):
                whole, stream = await cost(call, calls, stream=False), await cost(call, calls, stream=True)
                ratios = f"{whole / floor[0]:.1f}", f"{stream / floor[1]:.1f}"
                table.add_row(f"{name}, {way}", f"{whole:.2f}", f"{stream:.2f}", *ratios)
            await provider.aclose()
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--chunks", type=int, default=50)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    hear, tell = multiprocessing.Pipe()
    vendors = multiprocessing.get_context("spawn").Process(
        target=serve_vendors, args=(options.chunks, tell), daemon=True
    )
    vendors.start()
    try:
        asyncio.run(compare(f"http://127.0.0.1:{hear.recv()}", options.calls, options.chunks))
    finally:
        vendors.terminate()
        vendors.join()


if __name__ == "__main__":
    main()
