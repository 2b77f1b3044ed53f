"""Durations in buckets: none is lost, and the recent past forgets in time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from processor.histogram import BOUNDS_S, RECENT_S, SLOT_S, Histogram, Recent

seconds = st.floats(0, 10_000)


@given(st.lists(seconds))
def test_every_duration_is_in_the_one_bucket_that_reaches_up_to_it(durations: list[float]) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    assert sum(histogram.counts) == len(durations)
    for index, bound in enumerate(BOUNDS_S):
        assert sum(histogram.counts[: index + 1]) == sum(duration <= bound for duration in durations)


def test_a_negative_duration_as_clocks_give_that_differ_counts_as_none() -> None:
    histogram = Histogram()
    histogram.add(-3)
    assert (histogram.counts[0], histogram.sum_s) == (1, 0)


@given(st.lists(seconds, max_size=20), st.lists(seconds, max_size=20))
def test_taking_in_another_is_as_if_all_had_been_counted_in_one(mine: list[float], others: list[float]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for histogram, durations in ((one, mine), (other, others), (both, mine + others)):
        for duration in durations:
            histogram.add(duration)
    one.take_in(other)
    assert one.counts == both.counts


@given(st.lists(st.floats(0, 60), max_size=100), st.floats(0, 400))
def test_the_recent_past_has_all_of_the_last_minutes_and_nothing_that_is_a_slot_older(
    pauses: list[float], later: float
) -> None:
    recent: Recent[list[float]] = Recent(list)
    now, counted = 1000.0, []
    for pause in pauses:
        now += pause
        recent.at(now).append(now)
        counted.append(now)
    now += later
    found = [at for slot in recent.within(now) for at in slot]
    assert {at for at in counted if at > now - RECENT_S + SLOT_S} <= set(found)
    assert all(at > now - RECENT_S - SLOT_S for at in found)
    assert len(list(recent.within(now))) <= RECENT_S / SLOT_S + 1
