"""Models in the form of Anthropic's Models API, and how long a client of an SDK waits."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import ModelInfo

from bridge import openai_models
from bridge.anthropic_models import model, models
from bridge.patience import SDK_HEADERS, patience_ms
from processor.messages import MAX_DEADLINE_MS


def row(alias: str, id: str, **fields: Any) -> dict[str, Any]:
    """As `llm.models` lists it."""
    known = {"provider": "anthropic", "context": 200_000, "max_output": 64_000, "abilities": [], "successor": None}
    return {"model": alias, "id": id, "answered_by": alias, "available": True, "retires": None} | known | fields


ROWS = [
    row("haiku", "claude-haiku-4-5-20251001", retires="2031-01-01"),
    row("sonnet", "claude-sonnet-4-5-20250929", answered_by="sonnet-5.5"),
    row("sonnet-5.5", "claude-sonnet-5-5", context=1_000_000),
    row("llama", "llama-3.3-70b-versatile", provider="groq", available=False),
]


def test_all_that_can_be_called_is_listed_by_its_alias_and_by_its_vendors_id() -> None:
    page = models(ROWS)
    assert [listed["id"] for listed in page["data"]] == [
        *("auto", "haiku", "claude-haiku-4-5-20251001", "sonnet", "claude-sonnet-4-5-20250929"),
        *("sonnet-5.5", "claude-sonnet-5-5"),
    ]
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "auto", "claude-sonnet-5-5")
    for listed in page["data"]:
        ModelInfo.model_validate(listed, strict=False)


def test_a_model_tells_what_it_takes_and_until_when() -> None:
    haiku, sonnet = model(ROWS, "haiku"), model(ROWS, "sonnet")
    assert haiku is not None
    assert sonnet is not None
    assert (haiku["lifecycle"], haiku["retires_at"]) == ("deprecated", "2031-01-01T00:00:00Z")
    assert (haiku["max_input_tokens"], haiku["max_tokens"]) == (200_000, 64_000)
    assert (sonnet["display_name"], sonnet["max_input_tokens"]) == ("sonnet-5.5 (anthropic)", 1_000_000)


def test_every_name_that_is_answered_is_known_on_both_surfaces() -> None:
    """Also a retired model's, which its successor answers."""
    for name in [listed["id"] for listed in models(ROWS)["data"]]:
        assert model(ROWS, name) is not None
        assert openai_models.model(ROWS, name) is not None
    retired = model(ROWS, "claude-sonnet-4-5-20250929")
    assert retired is not None
    assert retired["display_name"] == "sonnet-5.5 (anthropic)"


@pytest.mark.parametrize("name", ["llama", "llama-3.3-70b-versatile", "no-such-model"])
def test_what_cannot_be_called_is_not_there(name: str) -> None:
    assert model(ROWS, name) is None


def test_where_nothing_can_be_called_nothing_is_listed() -> None:
    assert models([]) == {"data": [], "has_more": False, "first_id": None, "last_id": None}


@pytest.mark.parametrize(
    ("said", "stream", "ms"),
    [
        ("60", False, 58_000),
        ("0.3", False, 270),
        ("60", True, 3_600_000),
        ("7200", True, 7_200_000),
        (None, False, 598_000),
        ("NOT_GIVEN", False, 598_000),
        ("-5", False, 598_000),
        ("0", False, 598_000),
        ("99999999", False, MAX_DEADLINE_MS),
    ],
)
def test_an_answer_ends_shortly_before_its_client_stops_waiting(said: str | None, stream: bool, ms: int) -> None:
    for name in SDK_HEADERS:
        assert patience_ms({} if said is None else {name: said}, stream=stream) == ms
