"""What happens after a failed attempt, for any sequence of failures."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import ErrorType, RequestError
from processor.outcome import (
    BACKOFF_CAP_S,
    HAND_BACK_S,
    LONGEST_PARK_S,
    Contender,
    HandBack,
    Option,
    Park,
    Plan,
    Wait,
    standstill,
    verdict,
)
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
    [InvalidPrompt, PromptTooLarge, BadCredentials, RateLimited, Overloaded, VendorError, StreamCut, ModelNoise]
)


def plan(candidates: int, max_retries: int = 3, jitter: float = 0.5) -> Plan:
    """Each candidate of its own provider, with a larger window than the one before."""
    return Plan([Contender(str(n), 1000 * (n + 1)) for n in range(candidates)], max_retries, lambda: jitter)


def order(trying: Plan) -> list[int]:
    return [option.index for option in trying.options()]


def test_nothing_to_try() -> None:
    assert plan(0).options() == []


def test_the_next_candidate_is_tried_at_once() -> None:
    trying = plan(3)
    assert trying.options()[0] == Option(0, 0.0)
    trying.failed(0, Overloaded("busy", retry_after_s=60), 100.0)
    assert trying.options()[0] == Option(1, 0.0)
    trying.failed(1, VendorError("boom"), 100.0)
    assert trying.options() == [Option(2, 0.0), Option(1, 100.25), Option(0, 160.25)]


def test_a_lone_candidate_is_tried_again_after_its_pause() -> None:
    for error, at in ((VendorError("boom"), 100.25), (RateLimited("slow", retry_after_s=7), 107.25)):
        trying = plan(1)
        trying.failed(0, error, 100.0)
        assert [(option.index, option.not_before) for option in trying.options()] == [(0, at)]


@pytest.mark.parametrize("error", [BadCredentials("no"), Unsupported("no"), PromptTooLarge("no")])
def test_what_only_another_model_can_cure_is_not_tried_again_on_the_same(error: ProviderError) -> None:
    trying = plan(2)
    trying.failed(0, error, 0)
    assert order(trying) == [1]


def test_what_nothing_can_cure_ends_it() -> None:
    trying = plan(3)
    trying.failed(0, InvalidPrompt("bad"), 0)
    assert order(trying) == []


def test_what_a_fallback_calls_wrong_may_be_right_for_the_others() -> None:
    trying = Plan([Contender(name, 1000) for name in ("anthropic", "groq", "groq", "gemini")], 3, lambda: 0.5)
    trying.failed(0, Overloaded("busy"), 0)
    trying.failed(1, InvalidPrompt("property 'x' is unsupported"), 0)
    assert order(trying) == [3, 0]


def test_two_that_ran_at_once_may_both_fail() -> None:
    trying = plan(3)
    trying.failed(0, InvalidPrompt("bad"), 0)
    trying.failed(1, Overloaded("busy"), 0)
    assert order(trying) == []


def test_a_pause_that_a_limit_asks_for_is_told_as_a_limit() -> None:
    trying = plan(2)
    trying.failed(0, RateLimited("slow", retry_after_s=7), 0)
    trying.failed(1, Overloaded("busy", retry_after_s=7), 0)
    assert {option.index: option.limited for option in trying.options()} == {0: True, 1: False}


def test_noise_after_another_failure_is_worth_one_more_try_too() -> None:
    trying = plan(1)
    trying.failed(0, Overloaded("busy"), 0)
    trying.failed(0, ModelNoise("botched call"), 1)
    assert trying.options() == [Option(0, 0.0)]


def test_noise_of_the_model_is_worth_one_more_try_at_once_and_then_the_next_candidate() -> None:
    trying = plan(2)
    trying.failed(0, ModelNoise("botched call"), 7)
    assert trying.options() == [Option(0, 0.0), Option(1, 0.0)]
    trying.failed(0, ModelNoise("botched call"), 8)
    assert order(trying) == [1]


def test_a_prompt_that_was_too_large_goes_only_where_the_window_is_larger() -> None:
    windows = [131_072, 200_000, 131_072, 1_000_000, 8_192]
    trying = Plan([Contender("any", window) for window in windows], 3, lambda: 0.5)
    trying.failed(0, PromptTooLarge("context overflow"), 0)
    assert order(trying) == [1, 3]
    trying.failed(1, PromptTooLarge("context overflow"), 0)
    assert order(trying) == [3]


@pytest.mark.parametrize("error", [BadCredentials("no"), OutOfCredit("no")])
def test_a_key_that_is_no_good_takes_out_all_models_of_its_provider(error: ProviderError) -> None:
    trying = Plan([Contender(name, 1000) for name in ("anthropic", "anthropic", "groq")], 3, lambda: 0.5)
    trying.failed(0, error, 0)
    assert order(trying) == [2]


@given(st.integers(1, 5), st.integers(0, 8), st.lists(errors, max_size=60), st.floats(0, 1, exclude_max=True))
def test_rounds_are_bounded_pauses_are_bounded_and_nobody_is_tried_before_his_pause_is_over(
    candidates: int, max_retries: int, kinds: list[type[ProviderError]], jitter: float
) -> None:
    trying, now = plan(candidates, max_retries, jitter), 0.0
    tried = [0] * candidates
    for kind in kinds:
        if not (options := trying.options()):
            break
        index, not_before = options[0].index, options[0].not_before
        assert not_before - now <= BACKOFF_CAP_S
        again = (
            bool(trying.failures) and trying.failures[-1][0] == index and trying.failures[-1][1].kind == "model_noise"
        )
        assert tried[index] == 0 or again or all(tried[option.index] for option in options)
        now = max(now, not_before)
        tried[index] += 1
        trying.failed(index, kind("x"), now)
    assert all(times <= max_retries + 1 for times in tried)
    assert len(trying.failures) == sum(tried)


def wait(wait_s: float, why: str = "its limit is used up", *, limited: bool = True) -> Wait:
    return Wait(0, wait_s, why, limited)


def test_over_the_limit_means_wait_as_long_as_the_deadline_allows() -> None:
    assert standstill([wait(40), wait(10)], 30) == Park(10)
    assert standstill([wait(LONGEST_PARK_S)], None) == Park(LONGEST_PARK_S)


def test_a_wait_beyond_the_deadline_is_told_at_once_and_with_the_time_to_come_back() -> None:
    error = standstill([wait(40.2), wait(50)], 30)
    assert isinstance(error, RequestError)
    assert (error.type, error.retry_after_s) == (ErrorType.RATE_LIMITED, 41)
    broken = standstill([wait(40), wait(50, "its circuit is open", limited=False)], 30)
    assert isinstance(broken, RequestError)
    assert broken.type is ErrorType.UNAVAILABLE


def test_a_wait_of_hours_goes_back_into_the_queue_where_there_is_no_deadline() -> None:
    assert standstill([wait(7200)], None) == HandBack(HAND_BACK_S)
    assert standstill([wait(LONGEST_PARK_S + 1), wait(math.inf)], None) == HandBack(LONGEST_PARK_S + 1)


def test_a_wait_of_minutes_that_the_deadline_allows_is_waited_in_the_queue() -> None:
    assert standstill([wait(LONGEST_PARK_S + 30)], 300) == HandBack(LONGEST_PARK_S + 30)
    assert standstill([wait(7200)], 86_400) == HandBack(HAND_BACK_S)


@pytest.mark.parametrize("left_s", [None, 30.0])
def test_what_is_larger_than_every_limit_is_told_and_not_waited_for(left_s: float | None) -> None:
    error = standstill([wait(math.inf, "haiku: about 60000 tokens")], left_s)
    assert isinstance(error, RequestError)
    assert (error.type, error.message) == (ErrorType.TOO_LARGE, "haiku: about 60000 tokens")


@given(st.lists(st.floats(0, 1e5) | st.just(math.inf), min_size=1), st.none() | st.floats(0.1, 1e4))
def test_whoever_is_parked_is_free_before_the_deadline_and_whoever_could_be_is_parked(
    waits: list[float], left_s: float | None
) -> None:
    decision = standstill([wait(w) for w in waits], left_s)
    free = [w for w in waits if w <= LONGEST_PARK_S and (left_s is None or w < left_s)]
    assert isinstance(decision, Park) == bool(free)
    in_time = [w for w in waits if not math.isinf(w) and (left_s is None or w < left_s)]
    assert isinstance(decision, RequestError) == (not in_time)


def test_a_fault_of_the_caller_beside_one_of_a_vendor_may_be_cured_by_time() -> None:
    failures: list[tuple[str, ProviderError]] = [("haiku", Overloaded("busy")), ("tiny", PromptTooLarge("long"))]
    assert verdict(failures).type is ErrorType.UNAVAILABLE


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
    error = verdict([], [("haiku", "it has no images")], ErrorType.INVALID_REQUEST)
    assert (error.type, error.message) == (ErrorType.INVALID_REQUEST, "haiku: it has no images")
    busy = verdict([("haiku", Overloaded("busy"))], [("llama", "it has no images")], ErrorType.INVALID_REQUEST)
    assert (verdict([]).type, busy.type) == (ErrorType.UNAVAILABLE, ErrorType.UNAVAILABLE)
