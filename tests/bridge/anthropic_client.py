"""What the tests of Anthropic's surface share: its SDK, what it asks, and what a scripted vendor answers."""

from __future__ import annotations

from typing import Any

import orjson
from anthropic import AsyncAnthropic

from providers.base import Finished, FinishReason, Opened, Usage
from providers.scripted import ScriptedProvider, Step
from tests.bridge.edge import Edge, Event, events

WORDS = "one two three four"
USAGE = Usage(input_fresh=9, cache_read=4, output_visible=5, output_thinking=2)


def sdk(edge: Edge, **options: Any) -> AsyncAnthropic:
    chosen: dict[str, Any] = {"max_retries": 0, "api_key": "any"} | options
    return AsyncAnthropic(base_url=edge.url, _strict_response_validation=True, **chosen)


def says(text: str = WORDS, **fields: Any) -> Any:
    return {"model": "haiku", "max_tokens": 50, "messages": [{"role": "user", "content": text}]} | fields


def answers(*steps: Step, reason: FinishReason = FinishReason.STOP) -> ScriptedProvider:
    return ScriptedProvider([Opened(), *steps, Finished(reason, USAGE, "served-model")])


async def answered(client: AsyncAnthropic, way: str, said: Any) -> Any:
    """The message, by `whole`, `stream`, `beta whole` or `beta stream`."""
    messages: Any = client.beta.messages if "beta" in way else client.messages
    if "stream" not in way:
        return await messages.create(**said)
    async with messages.stream(**said) as stream:
        return await stream.get_final_message()


async def streamed(edge: Edge, said: Any, **headers: str) -> list[Event]:
    async with edge.client.post("/v1/messages?beta=true", data=orjson.dumps(said), headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        return [event async for event in events(response)]
