"""All three vendors on one loopback port, each in its own wire format, with usage to check to the digit."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import orjson
from aiohttp import web

WORDS = ["Rain ", "is ", "due ", "on ", "Monday."]
ANSWER = "".join(WORDS)

V = TypeVar("V", bound="Vendors")


class Vendors:
    """Answers ANSWER. `delay_s` is the time before each answer; `asked` counts calls by the last user text."""

    def __init__(self) -> None:
        self.url = ""
        self.delay_s = 0.0
        self.asked: Counter[str] = Counter()

    def words(self, request: web.Request) -> list[str]:
        """The pieces of the answer; a hook, as is `send`."""
        return WORDS

    async def send(self, request: web.Request, *events: Any) -> web.StreamResponse:
        """An event stream."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(frame(event))
        return response

    def settings(self) -> dict[str, str]:
        """The environment that points a sidecar here."""
        return {
            "ANTHROPIC_API_KEY": "sk-ant-test",
            "GROQ_API_KEY": "gsk-test",
            "GEMINI_API_KEY": "AIza-test",
            "ANTHROPIC_BASE_URL": self.url,
            "GROQ_BASE_URL": self.url,
            "GEMINI_BASE_URL": self.url,
        }

    async def anthropic(self, request: web.Request) -> web.StreamResponse:
        body = await self._asked(request)
        words = self.words(request)
        usage = {
            "input_tokens": 12,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 50,
            "cache_creation": {"ephemeral_5m_input_tokens": 40, "ephemeral_1h_input_tokens": 10},
            "output_tokens": 7,
        }
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
        if not body.get("stream"):
            content = [{"type": "text", "text": "".join(words)}]
            return web.json_response(message | {"content": content, "stop_reason": "end_turn", "usage": usage})
        start = {"type": "message_start", "message": message | {"content": [], "usage": usage | {"output_tokens": 1}}}
        return await self.send(
            request,
            start,
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *[
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
                for word in words
            ],
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
        )

    async def groq(self, request: web.Request) -> web.StreamResponse:
        body = await self._asked(request)
        words = self.words(request)
        usage = {
            "prompt_tokens": 112,
            "completion_tokens": 9,
            "total_tokens": 121,
            "prompt_tokens_details": {"cached_tokens": 100},
            "completion_tokens_details": {"reasoning_tokens": 2},
        }
        common = {"id": "chatcmpl-1", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(words)}, "finish_reason": "stop"}
            return web.json_response(common | {"object": "chat.completion", "choices": [choice], "usage": usage})

        def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return common | {"object": "chat.completion.chunk", "choices": [choice]}

        last = common | {"object": "chat.completion.chunk", "choices": [], "x_groq": {"id": "r", "usage": usage}}
        return await self.send(request, *[chunk(content=word) for word in words], chunk("stop"), last, "[DONE]")

    async def gemini(self, request: web.Request) -> web.StreamResponse:
        await self._asked(request)
        usage = {
            "promptTokenCount": 112,
            "cachedContentTokenCount": 100,
            "candidatesTokenCount": 7,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 122,
        }
        model = request.path.rpartition("/")[2].partition(":")[0]
        words = self.words(request)

        def chunk(text: str, **more: Any) -> dict[str, Any]:
            content = {"role": "model", "parts": [{"text": text}]}
            return {"candidates": [{"index": 0, "content": content, **more}], "modelVersion": model}

        if "stream" not in request.path:
            return web.json_response(chunk("".join(words), finishReason="STOP") | {"usageMetadata": usage})
        last = chunk(words[-1], finishReason="STOP") | {"usageMetadata": usage}
        return await self.send(request, *[chunk(word) for word in words[:-1]], last)

    async def _asked(self, request: web.Request) -> dict[str, Any]:
        raw = await request.read()
        body: dict[str, Any] = orjson.loads(raw)
        said = body.get("contents") or body.get("messages")
        self.asked[last_text(said)] += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        return body


def last_text(turns: Any) -> str:
    last = turns[-1]
    content = last.get("content", last.get("parts"))
    return content if isinstance(content, str) else str(content[0]["text"])


def frame(event: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (event.encode() if isinstance(event, str) else orjson.dumps(event)) + b"\n\n"


@asynccontextmanager
async def serving_vendors() -> AsyncIterator[Vendors]:
    async with serving(Vendors()) as vendors:
        yield vendors


@asynccontextmanager
async def serving(vendors: V) -> AsyncIterator[V]:
    """Vendors of one's own kind."""
    app = web.Application()
    app.router.add_post("/v1/messages", vendors.anthropic)
    app.router.add_post("/openai/v1/chat/completions", vendors.groq)
    app.router.add_post("/v1/models/{call}", vendors.gemini)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    vendors.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield vendors
    finally:
        await runner.cleanup()
