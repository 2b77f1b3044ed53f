"""What might have cost less is computed: the log's requests are routed again, and their usage priced again."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor import suggestions
from processor.audit_events import Attempt, AuditEntry, AuditError, AuditUsage, Ended, Received, Routed, RoutedModel
from processor.catalog import load_catalog
from processor.subjects import AuditEvent, Priority
from processor.suggestions import Advisor, Cached, Suggestion
from processor.traits import Traits
from providers.base import Usage

CATALOG = load_catalog()
NOW = datetime(2026, 9, 25, 12, tzinfo=UTC)
TODAY = NOW.date()
HOUR = timedelta(hours=1)
TOKENS = AuditUsage(
    input_fresh=1000, cache_read=0, cache_write_5m=0, cache_write_1h=0, tool_input=0, output_visible=1000,
    output_thinking=0, raw={},
)  # fmt: skip
PROVIDERS = {"sonnet": "anthropic", "haiku": "anthropic", "gemini": "gemini", "llama": "groq"}


def price(alias: str, tokens: AuditUsage = TOKENS, on: date = TODAY) -> Decimal:
    usage = Usage(input_fresh=tokens.input_fresh, output_visible=tokens.output_visible)
    return CATALOG.price_lists[alias].cost(usage, on)


def advisor(*, today: date = TODAY, cache_size: int = 100) -> Advisor:
    return Advisor(CATALOG, default_model="haiku", today=today, cache_size=cache_size, cache_ttl=HOUR)


def request(
    number: int,
    model: str = "sonnet",
    *,
    complexity: float = 0.1,
    task_type: str | None = None,
    body: str | None = None,
    at: datetime = NOW,
    failed: bool = False,
    cached: bool = False,
    input_tokens: int = 1000,
    **asked: Any,
) -> list[AuditEntry]:
    """The events of a request that named `model`, and cost what its price list says."""
    common: dict[str, Any] = {
        "id": f"r{number}", "at": at, "replica": "a", "priority": Priority.HIGH, "tenant": "default", "delivery": 1,
    }  # fmt: skip
    given = {"model": model, "task_type": task_type, "input_tokens": input_tokens, "complexity": complexity} | asked
    provider = PROVIDERS[model]
    received = Received(
        model=model, stream=False, messages=1, body_bytes=10, body_sha256=body or f"sha-{number}", metadata={}, **common
    )
    routed = Routed(
        traits=Traits(**given), rule="asked", model_class="x", refusals=(),
        candidates=(RoutedModel(model=model, provider=provider, reason="asked for", score=0),), **common,
    )  # fmt: skip
    attempt = Attempt(
        attempt=1, model=model, alias=model, provider=provider, started=at, duration_ms=1, usage=TOKENS,
        cost_usd=price(model), cost_estimated=False,
        error=AuditError(kind="Overloaded", message="x") if failed else None, **common,
    )  # fmt: skip
    event, reason = (AuditEvent.FAILED, None) if failed else (AuditEvent.COMPLETED, "stop")
    ended = Ended(event=event, attempts=1, finish_reason=reason, cached=cached, **common)
    return [received, ended] if cached else [received, routed, attempt, ended]


def said(advisor: Advisor, *requests: list[AuditEntry]) -> list[Suggestion]:
    for events in requests:
        for event in events:
            advisor.see(event)
    return advisor.suggestions()


def of_kind(kind: str, found: list[Suggestion]) -> list[Suggestion]:
    return [one for one in found if one.kind == kind]


# --- a cheaper model --------------------------------------------------------------------------------------------------


def test_simple_requests_of_a_dear_model_would_have_cost_less_with_the_default_one() -> None:
    simple = [request(n) for n in range(38)]
    hard = [request(n, complexity=0.9) for n in range(38, 100)]
    [one] = of_kind("cheaper_model", said(advisor(), *simple, *hard))
    saved = 38 * (price("sonnet") - price("haiku"))
    assert (one.model, one.instead, one.requests, one.of, one.saved_usd) == ("sonnet", "haiku", 38, 100, saved)
    assert one.text == "38% of sonnet's requests (38 of 100) were simple: haiku would have saved $0.4560"


def test_what_the_rules_would_have_sent_to_the_same_model_is_no_suggestion() -> None:
    assert not said(advisor(), *(request(n, task_type="code") for n in range(50)))


def test_a_preference_for_quality_is_respected() -> None:
    assert not said(advisor(), *(request(n, prefer="quality") for n in range(50)))


def test_a_model_that_costs_more_is_never_suggested() -> None:
    """Hard questions that named haiku would go to sonnet."""
    assert not said(advisor(), *(request(n, "haiku", complexity=0.9) for n in range(50)))


def test_only_providers_that_the_log_names_are_suggested() -> None:
    fast = [request(n, prefer="speed") for n in range(50)]
    assert {one.instead for one in of_kind("cheaper_model", said(advisor(), *fast))} <= {"haiku", "haiku-5.5"}
    known = said(advisor(), request(99, "llama"), *fast)
    assert {one.instead for one in of_kind("cheaper_model", known)} == {"gpt-oss-120b"}


def test_a_longer_window_is_told_by_the_rules_name_and_not_called_simple() -> None:
    [one] = of_kind("cheaper_model", said(advisor(), *(request(n, input_tokens=120_000) for n in range(20))))
    assert "simple" not in one.text
    assert "'long-context'" in one.text


@pytest.mark.parametrize(("simple", "hard"), [(4, 96), (0, 10)])
def test_fewer_than_a_twentieth_are_not_worth_a_word(simple: int, hard: int) -> None:
    found = said(
        advisor(), *(request(n) for n in range(simple)), *(request(n, complexity=0.9) for n in range(100, 100 + hard))
    )
    assert not of_kind("cheaper_model", found)


def test_less_than_a_cent_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    one_request = request(1)
    saved = price("sonnet") - price("haiku")
    monkeypatch.setattr(suggestions, "MIN_SAVED", saved + Decimal("1e-12"))
    assert not said(advisor(), one_request)
    monkeypatch.setattr(suggestions, "MIN_SAVED", saved)
    assert said(advisor(), one_request)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["default", "hard", "speed", "failed", "haiku"]), max_size=60))
def test_no_more_is_saved_than_was_spent_and_shares_are_shares(kinds: list[str]) -> None:
    events = []
    for number, kind in enumerate(kinds):
        model = "haiku" if kind == "haiku" else "sonnet"
        prefer = "speed" if kind == "speed" else None
        complexity = 0.9 if kind == "hard" else 0.1
        events.append(request(number, model, complexity=complexity, prefer=prefer, failed=kind == "failed"))
    spent = sum((price("haiku" if kind == "haiku" else "sonnet") for kind in kinds), Decimal(0))
    found = said(advisor(), *events)
    assert sum((one.saved_usd for one in of_kind("cheaper_model", found)), Decimal(0)) <= spent
    assert all(0 < one.requests <= one.of for one in found)


# --- duplicates -------------------------------------------------------------------------------------------------------


def test_a_repeated_body_that_was_paid_for_again_is_what_the_cache_would_have_saved() -> None:
    found = said(advisor(), *(request(n, "haiku", body="same", at=NOW + n * timedelta(minutes=5)) for n in range(6)))
    [one] = of_kind("duplicates", found)
    assert (one.requests, one.of, one.saved_usd) == (5, 6, 5 * price("haiku"))


def test_what_the_cache_answered_already_is_not_told_again() -> None:
    first = request(0, body="same")
    assert not of_kind("duplicates", said(advisor(), first, *(request(n, body="same", cached=True) for n in (1, 2))))


@pytest.mark.parametrize(
    "later",
    [
        request(1, body="same", at=NOW + HOUR),
        request(1, body="another", at=NOW),
    ],
    ids=["an hour later, when it is forgotten", "another body"],
)
def test_what_no_cache_would_have_held_is_no_duplicate(later: list[AuditEntry]) -> None:
    assert not of_kind("duplicates", said(advisor(), request(0, body="same"), later))


def test_a_failed_answer_would_not_have_been_in_the_cache() -> None:
    assert not of_kind("duplicates", said(advisor(), request(0, body="same", failed=True), request(1, body="same")))


def test_two_at_once_are_no_duplicates_since_the_first_had_no_answer_yet() -> None:
    first, second = request(0, body="same"), request(1, body="same")
    interleaved = [event for pair in zip(first, second, strict=True) for event in pair]
    assert not of_kind("duplicates", said(advisor(), interleaved))


def test_the_cache_that_is_played_through_forgets_the_least_recently_used() -> None:
    cache = Cached(2, HOUR)
    for name in ("a", "b"):
        cache.enter(("default", name), NOW)
    assert cache.holds(("default", "a"), NOW)
    cache.enter(("default", "c"), NOW)
    assert [cache.holds(("default", name), NOW) for name in "abc"] == [True, False, True]
    assert not cache.holds(("acme", "a"), NOW)


# --- failures and retirements -----------------------------------------------------------------------------------------


def test_calls_that_failed_after_they_had_cost_are_told_by_model() -> None:
    found = said(advisor(), *(request(n, failed=True) for n in range(2)), request(3, complexity=0.9))
    [one] = of_kind("failed_calls", found)
    assert one.text == "2 of 3 calls of sonnet gave no whole answer and cost $0.03600 all the same"


def test_a_model_that_soon_retires_is_told_with_what_its_successor_costs() -> None:
    retires = CATALOG.models["sonnet"].retires
    assert retires is not None
    events = [request(n, complexity=0.9) for n in range(10)]
    [one] = said(advisor(today=retires - timedelta(days=30)), *events)
    after = 10 * price("sonnet-5.5", on=retires)
    assert (one.kind, one.instead, one.saved_usd) == ("retiring", "sonnet-5.5", 10 * price("sonnet") - after)
    assert str(retires) in one.text
    assert not said(advisor(today=retires - timedelta(days=31)), *events)
    assert not said(advisor(today=retires), *events)


# --- any length of log ------------------------------------------------------------------------------------------------


def test_nothing_is_kept_of_what_has_ended() -> None:
    one = advisor(cache_size=3)
    said(one, *(request(n) for n in range(50)))
    assert one.open == 0


def test_requests_without_an_end_are_kept_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suggestions, "MAX_OPEN", 10)
    one = advisor()
    said(one, *(request(n)[:2] for n in range(50)))
    assert one.open == 10
    [_, _, attempt, ended] = request(3)  # forgotten meanwhile: counted, and nothing is made up about it
    assert not said(one, [attempt, ended])
