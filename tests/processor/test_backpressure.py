"""What is refused at the door, and what is promised to whoever is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.backpressure import LONGEST_RETRY_S, Drain, LaneLoad, refusal
from processor.subjects import Priority

IDLE = {p: LaneLoad(0, None) for p in Priority}
FILLS = {Priority.LOW: 80, Priority.MEDIUM: 90, Priority.HIGH: 95, Priority.CRITICAL: 100}


@pytest.mark.parametrize(("priority", "fill"), FILLS.items())
def test_low_is_refused_first_and_critical_only_by_a_full_queue(priority: Priority, fill: int) -> None:
    assert refusal(priority, IDLE, held=fill - 1, capacity=100, deadline_s=30) is None
    refused = refusal(priority, IDLE, held=fill, capacity=100, deadline_s=30)
    assert refused is not None
    assert refused.why.startswith(f"the queue is full for {priority} requests")


def test_a_wait_beyond_the_deadline_is_refused_with_the_time_after_which_it_would_fit() -> None:
    loads = IDLE | {Priority.LOW: LaneLoad(1000, 10.0)}
    assert refusal(Priority.LOW, loads, held=1000, capacity=50_000, deadline_s=100) is None
    refused = refusal(Priority.LOW, loads, held=1000, capacity=50_000, deadline_s=30)
    assert refused is not None
    assert refused.retry_after_s == 70
    assert "about 100 s" in refused.why


def test_other_lanes_and_requests_with_time_do_not_suffer_from_a_long_one() -> None:
    loads = IDLE | {Priority.LOW: LaneLoad(40_000, 1.0)}
    assert refusal(Priority.HIGH, loads, held=39_000, capacity=50_000, deadline_s=1) is None
    assert refusal(Priority.LOW, loads, held=39_000, capacity=50_000, deadline_s=None) is None


def test_an_unknown_rate_refuses_nobody() -> None:
    loads = IDLE | {Priority.LOW: LaneLoad(1000, None)}
    assert refusal(Priority.LOW, loads, held=1000, capacity=50_000, deadline_s=0.1) is None


def test_a_lane_that_stands_still_is_told_so() -> None:
    refused = refusal(Priority.LOW, IDLE | {Priority.LOW: LaneLoad(5, 0.0)}, held=5, capacity=100, deadline_s=30)
    assert refused is not None
    assert "too long" in refused.why


@given(
    st.sampled_from(Priority),
    st.integers(0, 100_000),
    st.none() | st.floats(0, 1e4),
    st.integers(0, 60_000),
    st.none() | st.floats(0.1, 1e5),
)
def test_whoever_comes_back_when_told_is_let_in_if_nobody_else_came(
    priority: Priority, queued: int, per_s: float | None, held: int, deadline_s: float | None
) -> None:
    loads = IDLE | {priority: LaneLoad(queued, per_s)}
    refused = refusal(priority, loads, held=held, capacity=50_000, deadline_s=deadline_s)
    if refused is None:
        return
    assert 1 <= refused.retry_after_s <= LONGEST_RETRY_S
    if per_s and refused.retry_after_s < LONGEST_RETRY_S:
        gone = math.floor(refused.retry_after_s * per_s + 1e-6)
        later = loads | {priority: LaneLoad(max(0, queued - gone), per_s)}
        again = refusal(priority, later, held=max(0, held - gone), capacity=50_000, deadline_s=deadline_s)
        assert again is None or again.why[:20] != refused.why[:20]


def drained(*looks: tuple[int, int, float]) -> Drain:
    drain = Drain()
    for look in looks:
        drain = drain.seen(*look)
    return drain


def test_the_rate_is_known_after_two_seconds_of_a_queue() -> None:
    assert drained((0, 5000, 0), (1000, 4000, 1)).per_s is None
    assert drained((0, 5000, 0), (1000, 4000, 1), (2000, 3000, 2), (3000, 2000, 3)).per_s == pytest.approx(
        1000, rel=0.01
    )


def test_a_lane_whose_workers_are_just_busy_has_a_slow_rate_and_not_none_at_all() -> None:
    busy = drained(*[(10, 1, float(n)) for n in range(60)])
    assert busy.per_s == pytest.approx(0.1, rel=0.1)


def test_an_idle_lane_says_nothing_of_its_rate() -> None:
    assert drained(*[(n, 0, float(n)) for n in range(60)]).per_s is None


def test_a_consumer_made_anew_starts_anew() -> None:
    assert drained((1000, 50, 0), (1030, 40, 3), (5, 30, 6)).per_s is None


@given(st.floats(0.5, 500), st.floats(0.5, 500))
def test_the_rate_follows_a_change_within_half_a_minute(before: float, after: float) -> None:
    drain, total = Drain(), 0.0
    for second in range(60):
        drain = drain.seen(int(total), 1000, float(second))
        total += before if second < 30 else after
    assert drain.per_s is not None
    assert abs(drain.per_s - after) <= 1 + 0.08 * abs(before - after)
