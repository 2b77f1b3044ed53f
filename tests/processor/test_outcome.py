"""What happens after a failed attempt, for any sequence of failures."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import ErrorType
from processor.outcome import BACKOFF_CAP_S, Plan, Try, verdict
from providers.errors import (
    BadCredentials,
    InvalidPrompt,
    ModelNoise,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    StreamCut,
    Unsupported,
    VendorError,
)

errors = st.sampled_from(
    [InvalidPrompt, PromptTooLarge, BadCredentials, RateLimited, Overloaded, VendorError, StreamCut]
)


def plan(candidates: int, max_attempts: int = 4, jitter: float = 0.5) -> Plan:
    return Plan([str(n) for n in range(candidates)], max_attempts, lambda: jitter)


def test_nothing_to_try() -> None:
    assert plan(0).first() is None


def test_the_next_candidate_is_tried_at_once() -> None:
    trying = plan(3)
    assert trying.first() == Try(0)
    assert trying.failed(0, Overloaded("busy", retry_after_s=60), 100.0) == Try(1)
    assert trying.failed(1, VendorError("boom"), 100.0) == Try(2)


def test_a_lone_candidate_is_tried_again_after_its_pause() -> None:
    assert plan(1).failed(0, VendorError("boom"), 100.0) == Try(0, 0.25)
    assert plan(1).failed(0, RateLimited("slow", retry_after_s=7), 100.0) == Try(0, 7.25)


def test_being_throttled_without_a_word_waits_a_second_at_least() -> None:
    again = plan(1, jitter=0).failed(0, RateLimited("slow"), 0)
    assert again == Try(0, 1.0)


@pytest.mark.parametrize("error", [BadCredentials("no"), Unsupported("no"), PromptTooLarge("no")])
def test_what_only_another_model_can_cure_is_not_tried_again_on_the_same(error: ProviderError) -> None:
    assert plan(1).failed(0, error, 0) is None
    assert plan(2).failed(0, error, 0) == Try(1)


def test_what_nothing_can_cure_ends_it() -> None:
    assert plan(3).failed(0, InvalidPrompt("bad"), 0) is None


def test_noise_of_the_model_is_worth_another_try() -> None:
    assert plan(1).failed(0, ModelNoise("botched call"), 0) is not None


def test_a_wait_of_hours_is_not_slept_out() -> None:
    assert plan(1).failed(0, RateLimited("a day's limit", retry_after_s=7200), 0) is None
    both = plan(2)
    assert both.failed(0, RateLimited("a day's limit", retry_after_s=7200), 0) == Try(1)
    assert both.failed(1, VendorError("boom"), 0) == Try(1, 0.25)


@pytest.mark.parametrize("error", [BadCredentials("no"), OutOfCredit("no")])
def test_a_key_that_is_no_good_takes_out_all_models_of_its_provider(error: ProviderError) -> None:
    trying = Plan(["anthropic", "anthropic", "groq"], 4, lambda: 0.5)
    assert trying.failed(0, error, 0) == Try(2)


def test_what_was_never_sent_is_no_attempt() -> None:
    trying = plan(4, max_attempts=1)
    for index in range(3):
        assert trying.failed(index, Unsupported("it cannot do that"), 0) == Try(index + 1)
    assert trying.failed(3, VendorError("boom"), 0) is None


def test_a_fault_of_the_caller_beside_one_of_a_vendor_may_be_cured_by_time() -> None:
    failures: list[tuple[str, ProviderError]] = [("haiku", Overloaded("busy")), ("tiny", PromptTooLarge("long"))]
    assert verdict(failures).type is ErrorType.UNAVAILABLE


@given(st.integers(1, 5), st.integers(1, 8), st.lists(errors, max_size=20), st.floats(0, 1, exclude_max=True))
def test_attempts_are_bounded_pauses_are_bounded_and_indexes_are_candidates(
    candidates: int, max_attempts: int, kinds: list[type[ProviderError]], jitter: float
) -> None:
    trying = plan(candidates, max_attempts, jitter)
    step, attempts, now = trying.first(), 0, 0.0
    for kind in kinds:
        if step is None:
            break
        attempts += 1
        assert 0 <= step.index < candidates
        assert 0 <= step.delay_s <= max(BACKOFF_CAP_S, 1.0)
        now += step.delay_s
        step = trying.failed(step.index, kind("x"), now)
    assert attempts <= max_attempts
    assert len(trying.failures) == attempts


def test_the_verdict_says_why_each_candidate_failed_and_when_to_come_back() -> None:
    error = verdict(
        [("haiku", Overloaded("busy", retry_after_s=9)), ("llama", RateLimited("slow", retry_after_s=3))],
        [("gemini", "not configured"), ("kimi", "it has no images"), ("local", "not configured")],
    )
    assert (error.type, error.retry_after_s) == (ErrorType.UNAVAILABLE, 3)
    assert error.message == (
        "haiku: busy (overloaded); llama: slow (rate_limited); gemini, local: not configured; kimi: it has no images"
    )


@pytest.mark.parametrize(
    ("error", "kind"),
    [(InvalidPrompt("bad"), ErrorType.INVALID_REQUEST), (PromptTooLarge("long"), ErrorType.TOO_LARGE)],
)
def test_a_callers_fault_is_told_as_such(error: ProviderError, kind: ErrorType) -> None:
    assert verdict([("haiku", error)]).type is kind


def test_a_verdict_without_any_candidate() -> None:
    assert verdict([], [("haiku", "it has no images")]).message == "haiku: it has no images"
