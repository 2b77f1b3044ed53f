"""Which models may answer, in which order, and why the others may not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from processor.catalog import Catalog, load_catalog
from processor.errors import ErrorType, RequestError
from processor.messages import decode_request
from processor.router import Route, route

NOVEMBER = datetime(2026, 11, 23, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
ALL = {"anthropic", "groq", "gemini", "local"}
CATALOG: Catalog = load_catalog(None)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def routed(available: set[str] = ALL, on: datetime = NOVEMBER, text: str = "hi", **fields: Any) -> Route:
    message = {"role": "user", "content": text}
    request = decode_request(orjson.dumps({"messages": [message], **fields}))
    return route(request, CATALOG, available=available, default="haiku", on=on)


def names(found: Route) -> list[str]:
    return [candidate.name for candidate in found.candidates]


def test_the_model_that_was_asked_for_comes_first_then_the_others_cheapest_first() -> None:
    found = routed(model="sonnet")
    assert names(found)[0] == "sonnet"
    prices = [CATALOG.list_price(candidate.model, NOVEMBER) for candidate in found.candidates[1:]]
    assert prices == sorted(prices)
    assert found.candidates[0].reason == "sonnet was asked for"


def test_auto_is_the_default_model() -> None:
    assert names(routed())[0] == names(routed(model="auto"))[0] == "haiku"


@pytest.mark.parametrize(("model", "answers"), [("llama", ["llama"]), ("auto", ["haiku"])])
def test_without_fallback_there_is_one_candidate(model: str, answers: list[str]) -> None:
    assert names(routed(model=model, fallback=False)) == answers


def test_auto_without_fallback_is_the_first_model_that_can() -> None:
    assert len(names(routed(available={"groq"}, fallback=False))) == 1


@pytest.mark.parametrize("name", ["claude-haiku-4-5-20251001", "claude-haiku-4-5", "openai/gpt-oss-20b"])
def test_a_full_model_id_pins_the_model_unless_fallback_is_asked_for(name: str) -> None:
    assert names(routed(model=name)) == [name]
    assert len(names(routed(model=name, fallback=True))) > 1
    assert names(routed(available={"local"}, model=name)) == []


def test_a_retired_name_moves_on_to_its_successor_and_says_so() -> None:
    found = routed(model="llama")
    assert (found.candidates[0].name, found.candidates[0].model.id) == ("llama", "openai/gpt-oss-120b")
    assert "retired on 2026-08-16" in found.candidates[0].warnings[0]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("sonnet", "claude-sonnet-4-5-20250929", "claude-sonnet-5-5"),
        ("gemini", "gemini-2.5-flash", "gemini-3.5-flash-lite"),
    ],
)
def test_a_name_changes_its_model_on_the_day_the_old_one_goes(name: str, before: str, after: str) -> None:
    assert routed(model=name).candidates[0].model.id == before
    assert routed(model=name, on=DECEMBER).candidates[0].model.id == after


def test_a_retired_model_is_no_fallback() -> None:
    assert not {"llama", "kimi"} & set(names(routed(model="haiku")))


def test_a_provider_without_key_is_refused_with_its_reason() -> None:
    found = routed(available={"groq"}, model="haiku")
    assert all(candidate.model.provider == "groq" for candidate in found.candidates)
    assert ("haiku", "provider anthropic is not configured") in [(r.model, r.reason) for r in found.refusals]


def test_a_demo_model_answers_by_name_or_when_there_is_nothing_else() -> None:
    assert names(routed(model="local"))[0] == "local"
    assert names(routed(available={"local"})) == ["local"]
    assert "local" not in names(routed(model="haiku"))
    assert names(routed(available={"local"}, model="haiku")) == []


def test_images_tools_and_json_leave_out_models_that_cannot() -> None:
    picture = {"type": "image", "media_type": "image/png", "data": PIXEL}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, picture]}]
    request = decode_request(orjson.dumps({"messages": messages, "model": "llama"}))
    found = route(request, CATALOG, available=ALL, default="haiku", on=NOVEMBER)
    assert {candidate.model.provider for candidate in found.candidates} == {"anthropic", "gemini"}
    assert any("it has no images" in refusal.reason for refusal in found.refusals)
    with_tools = routed(available={"local"}, model="local", tools=[{"name": "f"}])
    assert (names(with_tools), with_tools.refusals[0].reason) == ([], "it has no tools")


def test_a_prompt_that_does_not_fit_the_window_goes_where_it_fits() -> None:
    found = routed(model="llama", text="x" * 900_000)
    assert all(candidate.model.context > 225_000 for candidate in found.candidates)
    assert "do not fit its window" in next(r.reason for r in found.refusals if r.provider == "groq")


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(RequestError, match="did you mean haiku") as raised:
        routed(model="hauku")
    assert raised.value.type is ErrorType.NOT_FOUND


def test_everything_considered_is_told() -> None:
    considered = routed(available={"anthropic"}, model="haiku").considered
    assert len(considered) == len([m for m in CATALOG.models.values() if not m.retired(NOVEMBER.date())])
    assert considered[0].reason == "haiku was asked for"
