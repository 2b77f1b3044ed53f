"""Vendors' own usage figures, priced by this project and by genai-prices itself: equal to the last digit.

Both sides read the same recorded answer: ours through the vendor's adapter and `Catalog.price`, theirs through the
extractor and the sum of the installed package, never over the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import orjson
import pytest

from processor.catalog import CatalogModel, load_catalog
from providers.anthropic_answer import AnthropicAnswer
from providers.base import Usage
from providers.chat_completions import ChatAnswer
from providers.gemini_answer import GeminiAnswer

CATALOG = load_catalog(None)
PRICED = [model for model in CATALOG.models.values() if not model.free]
DAYS = [
    datetime(2026, 11, 25, 12, tzinfo=UTC),
    datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC),  # the last second of Gemini 3.8 Flash's first price
    datetime(2027, 1, 1, tzinfo=UTC),
]
THEIR_PROVIDER = {"gemini": "google"}

Raw = Mapping[str, Any]

ANTHROPIC: dict[str, Raw] = {
    "zero": {"input_tokens": 0, "output_tokens": 0},
    "plain": {
        "input_tokens": 2_095,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": 503,
        "service_tier": "standard",
    },
    "cache read": {"input_tokens": 21, "cache_read_input_tokens": 18_802, "output_tokens": 393},
    "cache written for 5 minutes": {
        "input_tokens": 21,
        "cache_creation_input_tokens": 18_802,
        "cache_creation": {"ephemeral_5m_input_tokens": 18_802, "ephemeral_1h_input_tokens": 0},
        "cache_read_input_tokens": 0,
        "output_tokens": 393,
    },
    "cache written for an hour": {
        "input_tokens": 21,
        "cache_creation_input_tokens": 18_802,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 18_802},
        "cache_read_input_tokens": 0,
        "output_tokens": 393,
    },
    "cache read and written for both": {
        "input_tokens": 2_048,
        "cache_creation_input_tokens": 556,
        "cache_creation": {"ephemeral_5m_input_tokens": 456, "ephemeral_1h_input_tokens": 100},
        "cache_read_input_tokens": 1_800,
        "output_tokens": 503,
    },
    "cache written, the lifetime not told": {
        "input_tokens": 7,
        "cache_creation_input_tokens": 1_111,
        "output_tokens": 1,
    },
    "thinking": {"input_tokens": 44, "output_tokens": 1_777, "output_tokens_details": {"thinking_tokens": 1_234}},
    "100 K of context": {"input_tokens": 100_000, "output_tokens": 1_001},
    "just over 100 K, most of it cached": {
        "input_tokens": 1,
        "cache_read_input_tokens": 90_000,
        "cache_creation_input_tokens": 10_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 9_000, "ephemeral_1h_input_tokens": 1_000},
        "output_tokens": 1_001,
    },
    "200 K of context": {"input_tokens": 200_000, "output_tokens": 1_001},
    "just over 200 K": {"input_tokens": 200_001, "output_tokens": 1_001},
    "over 200 K, most of it cached": {
        "input_tokens": 3,
        "cache_read_input_tokens": 190_000,
        "cache_creation_input_tokens": 20_000,
        "cache_creation": {"ephemeral_5m_input_tokens": 15_000, "ephemeral_1h_input_tokens": 5_000},
        "output_tokens": 1_001,
    },
    "a million": {"input_tokens": 1_000_000, "output_tokens": 128_000},
}
GROQ: dict[str, Raw] = {
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "plain": {
        "queue_time": 0.037,
        "prompt_tokens": 1_207,
        "prompt_time": 0.000680594,
        "completion_tokens": 331,
        "completion_time": 0.463,
        "total_tokens": 1_538,
        "total_time": 0.464,
    },
    "cached": {
        "prompt_tokens": 4_641,
        "completion_tokens": 1_817,
        "total_tokens": 6_458,
        "prompt_tokens_details": {"cached_tokens": 4_608},
    },
    "thinking": {
        "prompt_tokens": 83,
        "completion_tokens": 719,
        "total_tokens": 802,
        "completion_tokens_details": {"reasoning_tokens": 601},
    },
    "cached and thinking": {
        "prompt_tokens": 100_003,
        "completion_tokens": 65_001,
        "total_tokens": 165_004,
        "prompt_tokens_details": {"cached_tokens": 99_999},
        "completion_tokens_details": {"reasoning_tokens": 64_999},
    },
    "over 200 K": {"prompt_tokens": 262_143, "completion_tokens": 7, "total_tokens": 262_150},
}
GEMINI: dict[str, Raw] = {
    "zero": {"promptTokenCount": 0, "candidatesTokenCount": 0, "totalTokenCount": 0},
    "plain": {
        "promptTokenCount": 1_001,
        "candidatesTokenCount": 73,
        "totalTokenCount": 1_074,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 1_001}],
    },
    "an image": {
        "promptTokenCount": 1_301,
        "candidatesTokenCount": 73,
        "totalTokenCount": 1_374,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 11}, {"modality": "IMAGE", "tokenCount": 1_290}],
    },
    "cached": {
        "promptTokenCount": 5_003,
        "cachedContentTokenCount": 4_077,
        "candidatesTokenCount": 73,
        "totalTokenCount": 5_076,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 5_003}],
        "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 4_077}],
    },
    "thinking": {
        "promptTokenCount": 9,
        "candidatesTokenCount": 73,
        "thoughtsTokenCount": 1_021,
        "totalTokenCount": 1_103,
    },
    "all of it thought": {"promptTokenCount": 9, "thoughtsTokenCount": 1_021, "totalTokenCount": 1_030},
    "a tool's input": {
        "promptTokenCount": 43,
        "toolUsePromptTokenCount": 3_019,
        "candidatesTokenCount": 73,
        "thoughtsTokenCount": 131,
        "totalTokenCount": 3_266,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 43}],
        "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 3_019}],
    },
    "over 200 K, cached and thinking": {
        "promptTokenCount": 200_001,
        "cachedContentTokenCount": 199_001,
        "candidatesTokenCount": 1_003,
        "thoughtsTokenCount": 2_003,
        "totalTokenCount": 203_007,
    },
    "a million": {"promptTokenCount": 1_000_000, "candidatesTokenCount": 65_536, "totalTokenCount": 1_065_536},
}
RECORDED = {"anthropic": ANTHROPIC, "groq": GROQ, "gemini": GEMINI}


def recorded(model: CatalogModel, raw: Raw) -> dict[str, Any]:
    """A whole answer of the model's vendor with these figures, as it comes over the wire."""
    match model.provider:
        case "anthropic":
            return {"type": "message", "model": model.id, "content": [], "stop_reason": "end_turn", "usage": raw}
        case "groq":
            choice = {"index": 0, "message": {"role": "assistant", "content": "."}, "finish_reason": "stop"}
            return {"model": model.id, "choices": [choice], "usage": raw}
        case _:
            candidate = {"content": {"parts": [{"text": "."}]}, "finishReason": "STOP"}
            return {"modelVersion": model.id, "candidates": [candidate], "usageMetadata": raw}


READERS: dict[str, Callable[[str], Any]] = {
    "anthropic": AnthropicAnswer,
    "groq": lambda model: ChatAnswer(model, "Groq"),
    "gemini": GeminiAnswer,
}


def ours(model: CatalogModel, raw: Raw, at: datetime) -> Decimal:
    reader = READERS[model.provider](model.id)
    reader.feed(orjson.dumps(recorded(model, raw)))
    finished = reader.finish()
    cost = CATALOG.price(finished.usage, model, served_by=finished.model, at=at)
    assert not cost.estimated
    return cost.usd


def theirs(model: CatalogModel, raw: Raw, at: datetime) -> Decimal:
    provider = THEIR_PROVIDER.get(model.provider, model.provider)
    extracted = genai_prices.extract_usage(recorded(model, raw), provider_id=provider)
    return genai_prices.calc_price(
        extracted.usage, model.id, provider_id=provider, genai_request_timestamp=at
    ).total_price


@pytest.mark.parametrize("at", DAYS, ids=lambda at: f"{at:%Y-%m-%d}")
@pytest.mark.parametrize("model", PRICED, ids=lambda model: model.alias)
def test_every_recorded_usage_costs_what_genai_prices_says(model: CatalogModel, at: datetime) -> None:
    costs = {case: (ours(model, raw, at), theirs(model, raw, at)) for case, raw in RECORDED[model.provider].items()}
    assert {case: mine for case, (mine, _) in costs.items()} == {case: other for case, (_, other) in costs.items()}
    assert [case for case, (mine, _) in costs.items() if mine == 0] == ["zero"]


def test_the_table_has_a_case_for_every_part_of_a_usage() -> None:
    """Else two sides that both forget a part would agree on it."""
    reached: dict[str, set[str]] = {}
    parts = [name for name in Usage.__slots__ if name != "raw"]
    for provider, cases in RECORDED.items():
        model = next(model for model in PRICED if model.provider == provider)
        for raw in cases.values():
            reader = READERS[provider]("m")
            reader.feed(orjson.dumps(recorded(model, raw)))
            usage = reader.finish().usage
            reached.setdefault(provider, set()).update(name for name in parts if getattr(usage, name))
    common = {"input_fresh", "cache_read", "output_visible", "output_thinking"}
    assert reached == {
        "anthropic": common | {"cache_write_5m", "cache_write_1h"},
        "groq": common,
        "gemini": common | {"tool_input"},
    }


@pytest.mark.parametrize(
    ("alias", "case", "usd"),
    [
        ("haiku", "cache read and written for both", "0.005513"),
        ("sonnet", "200 K of context", "0.615015"),
        ("sonnet", "just over 200 K", "1.2225285"),
        ("sonnet", "over 200 K, most of it cached", "0.3090405"),
        ("haiku-5.5", "100 K of context", "0.0105005"),
        ("haiku-5.5", "just over 100 K, most of it cached", "0.013628"),
        ("gpt-oss-120b", "cached", "0.00144075"),
        ("gemini", "thinking", "0.0027377"),
        ("gemini", "a tool's input", "0.0014286"),
    ],
)
def test_costs_worked_out_by_hand(alias: str, case: str, usd: str) -> None:
    """From the vendors' list prices: both sides read the same price data, and a wrong figure there would be equal."""
    model = CATALOG.models[alias]
    assert ours(model, RECORDED[model.provider][case], DAYS[0]) == Decimal(usd)


# --- where the two differ, and why --------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "raw", "mine", "other"),
    [
        pytest.param(
            "gemini",
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 1_094,
                "thoughtsTokenCount": 1_021,
                "totalTokenCount": 1_103,
            },
            "0.0027377",
            "0.0052902",
            id="by Gemini's own total the candidates hold the thoughts already, theirs counts them twice",
        ),
        pytest.param(
            "gemini",
            {
                "promptTokenCount": 9,
                "candidatesTokenCount": 10,
                "totalTokenCount": 19,
                "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 9}],
            },
            "0.0000277",
            "0.000034",
            id="audio costs what theirs says, but no request of ours holds any",
        ),
        pytest.param(
            "haiku",
            {"input_tokens": 5, "output_tokens": 1, "server_tool_use": {"web_search_requests": 2}},
            "0.00001",
            "0.02001",
            id="a web search costs what theirs says, but no request of ours asks for one",
        ),
    ],
)
def test_a_difference_has_a_reason(alias: str, raw: Raw, mine: str, other: str) -> None:
    model = CATALOG.models[alias]
    assert (ours(model, raw, DAYS[0]), theirs(model, raw, DAYS[0])) == (Decimal(mine), Decimal(other))


@pytest.mark.parametrize(
    ("alias", "raw", "usd"),
    [
        (
            "gpt-oss-120b",
            {"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}},
            "9.75e-7",
        ),
        ("gemini", {"promptTokenCount": 5, "cachedContentTokenCount": 9, "candidatesTokenCount": 1}, "0.00000277"),
        (
            "haiku",
            {
                "input_tokens": 5,
                "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 3},
                "output_tokens": 1,
            },
            "0.00002475",
        ),
    ],
)
def test_figures_that_contradict_each_other_still_have_a_cost(alias: str, raw: Raw, usd: str) -> None:
    """They are a vendor's mistake, after an answer that was paid for: theirs refuses to price them."""
    model = CATALOG.models[alias]
    with pytest.raises(ValueError, match="usage"):
        theirs(model, raw, DAYS[0])
    assert ours(model, raw, DAYS[0]) == Decimal(usd)
