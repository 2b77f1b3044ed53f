"""Estimates before a call: from the size first, from experience then."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.estimate import (
    COMPARED_AFTER,
    KEPT_CALLS,
    KNOWN_AFTER,
    RATIO_BOUNDS,
    RECENT_CALLS,
    RECENT_S,
    Learned,
    base_tokens,
)
from processor.messages import Request, decode_request


def request(content: Any = "hello", **fields: Any) -> Request:
    return decode_request(orjson.dumps({"messages": [{"role": "user", "content": content}]} | fields))


@pytest.mark.parametrize(
    ("content", "tokens"),
    [("x" * 400, 104), ("", 4), ("水" * 100, 79), ([{"type": "image", "url": "https://x.y/z.png"}], 1504)],
)
def test_a_prompts_size_counts_bytes_images_and_messages(content: Any, tokens: int) -> None:
    assert base_tokens(request(content or "    ")) == tokens + (0 if content else 1)


def test_tools_and_schemas_are_part_of_the_prompt() -> None:
    tool = {"name": "look", "description": "d" * 400, "parameters": {"type": "object", "properties": {}}}
    assert base_tokens(request(tools=[tool])) > base_tokens(request()) + 100
    schema = {"type": "object", "properties": {"x" * 400: {"type": "string"}}}
    assert (
        base_tokens(request(response_format={"type": "json_schema", "schema": schema})) > base_tokens(request()) + 100
    )


def test_nothing_is_known_of_a_model_that_was_never_called() -> None:
    learned = Learned()
    assert learned.need("haiku", 100, 4096) == (100, 4096)
    assert learned.first_token_p95("haiku") is None


def test_the_estimate_follows_what_the_vendor_counts() -> None:
    learned = Learned()
    for _ in range(50):
        learned.observe("haiku", 100, 130, 10, None)
    assert learned.need("haiku", 1000, 4096)[0] == 1300
    assert learned.need("sonnet", 1000, 4096)[0] == 1000


def test_what_a_vendors_cache_holds_is_not_reserved_once_it_is_known_that_its_limits_do_not_count_it() -> None:
    learned = Learned()
    for _ in range(100):
        learned.observe("haiku", 40_000, 52_000, 300, None, counted_input_tokens=1_300)
    assert learned.need("haiku", 40_000, 4096)[0] == pytest.approx(1_300, abs=1)
    learned.observe("haiku", 40_000, 52_000, 300, None)
    assert learned.need("haiku", 40_000, 4096)[0] == pytest.approx(1_300, abs=1)
    for _ in range(200):
        learned.observe("haiku", 40_000, 52_000, 300, None, counted_input_tokens=52_000)
    assert learned.need("haiku", 40_000, 4096)[0] == pytest.approx(52_000, rel=0.03)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**7), st.integers(-1, 10**8)), max_size=100))
def test_what_limits_count_is_never_more_than_all_input(reports: list[tuple[int, int, int]]) -> None:
    learned, all_input = Learned(), Learned()
    for base, reported, counted in reports:
        learned.observe("haiku", base, reported, 1, None, counted)
        all_input.observe("haiku", base, reported, 1, None)
    assert 0 <= learned.need("haiku", 1000, 1)[0] <= all_input.need("haiku", 1000, 1)[0]


def test_a_usual_answers_length_is_taken_in_place_of_max_tokens_and_never_more() -> None:
    learned = Learned()
    for n in range(KNOWN_AFTER - 1):
        learned.observe("haiku", 100, 100, 50 + n, None)
    assert learned.need("haiku", 100, 4096)[1] == 4096
    learned.observe("haiku", 100, 100, 900, None)
    assert learned.need("haiku", 100, 4096)[1] == 68
    assert learned.need("haiku", 100, 30)[1] == 30


def test_the_usual_first_token_is_known_after_twenty() -> None:
    learned = Learned()
    for n in range(20):
        learned.observe("haiku", 100, 100, 50, n / 10)
    assert learned.first_token_p95("haiku") == 1.8


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**7), st.integers(0, 10**5)), max_size=300))
def test_whatever_vendors_report_estimates_stay_within_bounds(reports: list[tuple[int, int, int]]) -> None:
    learned = Learned()
    for base, reported, output in reports:
        learned.observe("haiku", base, reported, output, 0.1)
    low, high = RATIO_BOUNDS
    tokens, output = learned.need("haiku", 1000, 4096)
    assert 1000 * low <= tokens <= 1000 * high
    assert 0 <= output <= 4096
    assert len(learned._models["haiku"].outputs) <= KEPT_CALLS if reports else True


@given(st.floats(0.3, 3.5), st.integers(200, 5000))
def test_the_ratio_is_found_again_after_the_vendor_changed_its_tokenizer(ratio: float, base: int) -> None:
    learned = Learned()
    for _ in range(200):
        learned.observe("haiku", base, base, 1, None)
    for _ in range(300):
        learned.observe("haiku", base, round(base * ratio), 1, None)
    assert learned.need("haiku", 1000, 1)[0] == pytest.approx(1000 * ratio, rel=0.03)


def test_the_first_tokens_of_streams_say_nothing_of_whole_answers() -> None:
    learned = Learned()
    for _ in range(KNOWN_AFTER):
        learned.observe("haiku", 100, 100, 10, 0.4, streamed=True)
    assert learned.first_token_p95("haiku", streamed=True) == 0.4
    assert learned.first_token_p95("haiku", streamed=False) is None
    for _ in range(KNOWN_AFTER):
        learned.observe("haiku", 100, 100, 10, 5.0, streamed=False)
    assert learned.first_token_p95("haiku", streamed=False) == 5.0


def watched(calls: int, *, first_s: float | None, total_s: float, tokens: int = 100, streamed: bool = True) -> Learned:
    learned = Learned()
    for _ in range(calls):
        learned.observe("haiku", 100, 100, tokens, first_s, streamed=streamed, duration_s=total_s)
    return learned


def test_a_models_speed_is_its_wait_and_its_pace_once_some_calls_are_known() -> None:
    assert watched(COMPARED_AFTER - 1, first_s=0.5, total_s=2.5).speed("haiku", 0.0) is None
    assert watched(COMPARED_AFTER, first_s=0.5, total_s=2.5).speed("haiku", 0.0) == (0.5, 50.0)
    assert Learned().speed("haiku", 0.0) is None


def test_of_whole_answers_all_the_time_is_in_the_pace_and_streams_count_before_them() -> None:
    learned = watched(COMPARED_AFTER, first_s=4.0, total_s=4.0, streamed=False)
    assert learned.speed("haiku", 0.0) == (0.0, 25.0)
    for _ in range(COMPARED_AFTER):
        learned.observe("haiku", 100, 100, 100, 1.0, duration_s=3.0)
    assert learned.speed("haiku", 0.0) == (1.0, 50.0)


def test_a_speed_follows_the_vendor_and_one_slow_call_does_not_move_it() -> None:
    learned = watched(2 * RECENT_CALLS, first_s=0.5, total_s=2.5)
    learned.observe("haiku", 100, 100, 100, 30.0, duration_s=90.0)
    assert learned.speed("haiku", 0.0) == (0.5, 50.0)
    for _ in range(RECENT_CALLS):
        learned.observe("haiku", 100, 100, 100, 1.0, duration_s=5.0)
    assert learned.speed("haiku", 0.0) == (1.0, 25.0)


def test_a_speed_is_forgotten_after_an_hour_so_that_a_model_which_was_slow_is_tried_again() -> None:
    learned = Learned()
    for n in range(COMPARED_AFTER + 1):
        learned.observe("haiku", 100, 100, 100, 20.0, duration_s=40.0, now=60.0 * n)
    assert learned.speed("haiku", RECENT_S + 59) == (20.0, 5.0)
    assert learned.speed("haiku", RECENT_S + 60) is None
    for n in range(1, COMPARED_AFTER + 1):
        assert learned.speed("haiku", 2 * RECENT_S) is None
        learned.observe("haiku", 100, 100, 100, 0.5, duration_s=2.5, now=2 * RECENT_S + n)
    assert learned.speed("haiku", 2 * RECENT_S + 9) == (0.5, 50.0)


def test_old_streams_do_not_stand_before_whole_answers_of_today() -> None:
    learned = watched(COMPARED_AFTER, first_s=4.0, total_s=6.0)
    for n in range(COMPARED_AFTER):
        learned.observe("haiku", 100, 100, 100, 4.0, streamed=False, duration_s=4.0, now=RECENT_S + n)
    assert learned.speed("haiku", RECENT_S + 9) == (0.0, 25.0)


def test_an_answer_that_came_at_once_or_is_empty_divides_by_nothing() -> None:
    speed = watched(COMPARED_AFTER, first_s=0.5, total_s=0.5).speed("haiku", 0.0)
    assert speed is not None
    assert 0 < speed[1] < float("inf")
    assert watched(COMPARED_AFTER, first_s=0.5, total_s=0.5, tokens=0).speed("haiku", 0.0) is None


def test_a_models_usual_answer_is_the_median() -> None:
    learned = Learned()
    for tokens in (10, 20, 30, 40):
        learned.observe("haiku", 100, 100, tokens, None)
    assert learned.usual_output("haiku") is None
    learned.observe("haiku", 100, 100, 4_000, None)
    assert learned.usual_output("haiku") == 30
