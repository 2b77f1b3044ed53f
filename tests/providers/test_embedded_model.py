"""The demo model itself: real weights, a real server, inside this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from providers.base import Endpoint, Finished, FinishReason, JsonFormat, TextDelta
from providers.embedded_model import MODEL_ID, EmbeddedModel
from providers.errors import PromptTooLarge
from providers.local import LocalProvider
from tests.conftest import unavailable
from tests.providers.vendor import events_of, prompt


@pytest.fixture
async def smollm() -> AsyncIterator[LocalProvider]:
    if why := EmbeddedModel.unavailable():
        unavailable(why)
    provider = LocalProvider(Endpoint(), EmbeddedModel())
    yield provider
    await provider.aclose()


async def test_a_real_model_answers_in_pieces_whole_and_in_json(smollm: LocalProvider) -> None:
    streamed = await events_of(smollm, prompt("Name a river.", model=MODEL_ID, max_tokens=16, stream=True))
    assert sum(isinstance(event, TextDelta) for event in streamed) > 3
    finished = streamed[-1]
    assert isinstance(finished, Finished)
    assert (finished.model, finished.usage.input_tokens > 5) == (MODEL_ID, True)

    whole = await events_of(smollm, prompt("Count to a hundred.", model=MODEL_ID, max_tokens=3, temperature=0.0))
    assert isinstance(whole[-1], Finished)
    assert (whole[-1].reason, whole[-1].usage.output_tokens) == (FinishReason.LENGTH, 3)

    schema = {"type": "object", "properties": {"dry": {"enum": ["yes", "no"]}}, "required": ["dry"]}
    asked = prompt(
        "Is a desert dry?", model=MODEL_ID, max_tokens=64, temperature=0.0, response_format=JsonFormat(schema)
    )
    said = "".join(event.text for event in await events_of(smollm, asked) if isinstance(event, TextDelta))
    assert orjson.loads(said)["dry"] in {"yes", "no"}

    with pytest.raises(PromptTooLarge):
        await events_of(smollm, prompt("river " * 6000, model=MODEL_ID, max_tokens=8))


async def test_a_cancelled_generation_stops_and_frees_its_slot(smollm: LocalProvider) -> None:
    await smollm.open()
    stories = [
        asyncio.create_task(
            events_of(smollm, prompt("Tell a long story.", model=MODEL_ID, max_tokens=1000, stream=True))
        )
        for _ in range(4)
    ]
    await asyncio.wait(stories, timeout=0.3)
    for story in stories:
        story.cancel()
    await asyncio.wait(stories)
    async with asyncio.timeout(5):  # four stories of a thousand tokens take longer
        await events_of(smollm, prompt("Hi", model=MODEL_ID, max_tokens=2))
