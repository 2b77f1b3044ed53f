"""The mission's five models on all four priorities, through a sidecar process and three vendors' wire formats."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from nats.aio.client import Client

from processor.catalog import load_catalog
from tests.acceptance.vendors import ANSWER, WORDS, Vendors, serving_vendors
from tests.processes import running
from tests.talk import ask, ask_stream, body

EXPECTED: dict[str, dict[str, Any]] = {
    "anthropic": {
        "input_tokens": 162,
        "output_tokens": 7,
        "cache_read_tokens": 100,
        "cache_write_tokens": 50,
        "reasoning_tokens": 0,
    },
    "groq": {
        "input_tokens": 112,
        "output_tokens": 9,
        "cache_read_tokens": 100,
        "cache_write_tokens": 0,
        "reasoning_tokens": 2,
    },
    "gemini": {
        "input_tokens": 112,
        "output_tokens": 10,
        "cache_read_tokens": 100,
        "cache_write_tokens": 0,
        "reasoning_tokens": 3,
    },
}
MODELS = {"haiku": "anthropic", "sonnet": "anthropic", "llama": "groq", "kimi": "groq", "gemini": "gemini"}


@pytest.fixture
async def vendors(nc: Client, nats_url: str) -> AsyncIterator[Vendors]:
    async with serving_vendors() as vendors, running("processor", NATS_URL=nats_url, **vendors.settings()):
        yield vendors


async def test_every_model_answers_on_every_priority_with_exact_usage_and_cost(nc: Client, vendors: Vendors) -> None:
    catalog = load_catalog(None)
    for model, provider in MODELS.items():
        for priority in ("critical", "high", "medium", "low"):
            reply = await ask(nc, body(f"{model} {priority}", model=model), priority, timeout=20)
            assert (reply["response"], reply["finish_reason"]) == (ANSWER, "stop")
            assert (reply["model"], reply["provider"], reply["attempts"]) == (model, provider, 1)
            assert reply["usage"] == EXPECTED[provider]
            assert reply["cost_usd"] == pytest.approx(float(_price(catalog, reply["served_by"], provider)), rel=1e-12)
            assert reply["cost_usd"] > 0
    assert set(vendors.asked.values()) == {1}


def _price(catalog: Any, served_by: str, provider: str) -> Decimal:
    """By genai-prices' own sum, from the vendors' figures: the part of this project is checked against theirs."""
    from genai_prices import Usage, calc_price

    model = next(model for model in catalog.models.values() if model.id == served_by)
    usage = EXPECTED[provider]
    calculated = calc_price(
        Usage(
            input_tokens=usage["input_tokens"],
            output_tokens=usage["output_tokens"],
            cache_read_tokens=usage["cache_read_tokens"],
            cache_write_tokens=usage["cache_write_tokens"],
            **({"cache_write_1h_tokens": 10} if provider == "anthropic" else {}),
        ),
        model.id,
        provider_id="google" if provider == "gemini" else provider,
    )
    return calculated.total_price


async def test_every_model_streams_without_holes_and_the_final_reply_is_the_joined_deltas(
    nc: Client, vendors: Vendors
) -> None:
    for model, provider in MODELS.items():
        streamed = await ask_stream(nc, body(model, model=model, stream=True), timeout=20)
        assert streamed.events() == ["delta"] * len(WORDS) + ["final"]
        assert streamed.seqs() == list(range(len(WORDS) + 1))
        assert streamed.text() == streamed.final["response"] == ANSWER
        assert streamed.final["usage"] == EXPECTED[provider]
