"""Who goes next: the most urgent, and every lower lane its share."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.schedule import Schedule, slots_for
from processor.subjects import Priority

ALL = list(Priority)
weights = st.tuples(*[st.integers(1, 100)] * 4)
walks = st.lists(st.sets(st.sampled_from(ALL)), max_size=300)


def test_the_most_urgent_goes_first() -> None:
    schedule = Schedule.of((70, 15, 10, 5))
    for waiting, first in ((ALL, Priority.CRITICAL), (ALL[1:], Priority.HIGH), (ALL[3:], Priority.LOW)):
        assert schedule.pick(waiting)[0] is first


def test_nobody_waits_is_an_error_of_the_caller() -> None:
    with pytest.raises(ValueError, match="no lane waits"):
        Schedule.of((1, 1, 1, 1)).pick([])


def test_when_all_lanes_wait_each_lower_one_gets_its_share_to_a_hundredth() -> None:
    schedule, count = Schedule.of((70, 15, 10, 5)), Counter[Priority]()
    for _ in range(10_000):
        lane, schedule = schedule.pick(ALL)
        count[lane] += 1
    for lane, share in zip(ALL[1:], (0.15, 0.10, 0.05), strict=True):
        assert abs(count[lane] / 10_000 - share) < 0.01
    assert abs(count[Priority.CRITICAL] / 10_000 - 0.70) < 0.01


@given(st.integers(0, 100))
def test_traffic_on_the_low_lane_alone_never_delays_an_alert(alone: int) -> None:
    schedule = Schedule.of((70, 15, 10, 5))
    for _ in range(alone):
        _, schedule = schedule.pick([Priority.LOW])
    assert schedule.pick([Priority.CRITICAL, Priority.LOW])[0] is Priority.CRITICAL


@given(weights, walks, st.sampled_from(ALL))
def test_a_lane_that_always_waits_gets_its_share_whatever_the_others_do(
    weights: tuple[int, ...], walk: list[set[Priority]], lane: Priority
) -> None:
    schedule, got = Schedule.of(weights), 0
    for n, others in enumerate(walk, start=1):
        chosen, schedule = schedule.pick(others | {lane})
        got += chosen is lane
        assert got >= math.floor(n * schedule.shares[lane]) - 3


@given(weights, walks)
def test_critical_is_passed_over_only_by_lanes_that_are_due(
    weights: tuple[int, ...], walk: list[set[Priority]]
) -> None:
    schedule = Schedule.of(weights)
    for others in walk:
        due = [p for p in others if schedule.gathered.get(p, 0) >= 1]
        chosen, after = schedule.pick(others | {Priority.CRITICAL})
        assert chosen is Priority.CRITICAL or chosen in due
        assert all(0 <= gathered <= 4 for gathered in after.gathered.values())
        schedule = after


def test_some_slots_are_only_for_critical_and_the_others_have_at_least_one() -> None:
    assert [slots_for(Priority.HIGH, total, kept) for total, kept in ((10, 1), (3, 0), (1, 1), (2, 9))] == [9, 3, 1, 1]
    assert slots_for(Priority.CRITICAL, 10, 9) == 10
