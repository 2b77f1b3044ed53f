"""The breaker's table, and what holds for any walk through it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.breaker import (
    Abandoned,
    Breaker,
    BreakerEvent,
    BreakerPolicy,
    BreakerState,
    Failed,
    Hinted,
    Started,
    Succeeded,
)

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def after(*events: BreakerEvent, breaker: Breaker | None = None, now: float = 100.0) -> Breaker:
    breaker = breaker or Breaker()
    for event in events:
        breaker = breaker.on(event, now)
    return breaker


OPENED = after(*[Failed()] * 5)
TURNS: list[BreakerEvent] = [Succeeded(), Failed()]


def test_five_failures_in_a_row_open_it_and_four_do_not() -> None:
    assert after(*[Failed()] * 4).state is CLOSED
    assert (OPENED.state, OPENED.ready_in(100), OPENED.ready_in(104), OPENED.ready_in(105)) == (OPEN, 5, 1, 0)


def test_a_success_between_failures_starts_the_row_anew() -> None:
    assert after(*[Failed()] * 4, Succeeded(), *[Failed()] * 4).state is CLOSED


def test_half_of_ten_calls_open_it_though_never_five_in_a_row() -> None:
    assert after(*TURNS * 4).state is CLOSED
    assert after(*TURNS * 5).state is OPEN


def test_failures_older_than_the_window_do_not_count() -> None:
    old = after(*TURNS * 4, now=100)
    assert after(*TURNS * 4, breaker=old, now=131).state is CLOSED


def test_a_dead_key_opens_it_at_once_and_for_as_long_as_was_said() -> None:
    dead = after(Failed(open_for_s=300))
    assert (dead.state, dead.ready_in(100)) == (OPEN, 300)


def test_when_its_time_is_over_one_probe_is_let_through() -> None:
    probing = OPENED.on(Started(), 105)
    assert (probing.state, probing.ready_in(105) > 0) == (HALF_OPEN, True)
    assert probing.on(Started(), 106) == probing


def test_a_call_that_starts_too_early_is_no_probe() -> None:
    assert OPENED.on(Started(), 104).state is OPEN


def test_a_good_probe_closes_it_with_nothing_remembered() -> None:
    assert after(Started(), Succeeded(), breaker=OPENED, now=105) == Breaker()


def test_a_bad_probe_opens_it_for_twice_as_long_up_to_the_cap() -> None:
    breaker, now, waits = OPENED, 105.0, []
    for _ in range(6):
        breaker = after(Started(), Failed(), breaker=breaker, now=now)
        waits.append(breaker.ready_in(now))
        now += waits[-1]
    assert waits == [10, 20, 40, 60, 60, 60]


def test_a_probe_without_a_verdict_is_given_back() -> None:
    again = after(Started(), Abandoned(), breaker=OPENED, now=105)
    assert (again.state, again.ready_in(105)) == (HALF_OPEN, 0)


def test_a_probe_that_never_comes_back_is_replaced_when_its_lease_ends() -> None:
    probing = OPENED.on(Started(), 105)
    assert (probing.ready_in(224), probing.ready_in(225)) == (1, 0)


@pytest.mark.parametrize("late", [Succeeded(), Failed(), Abandoned(), Hinted(60)])
def test_what_comes_back_while_it_is_open_changes_nothing(late: BreakerEvent) -> None:
    assert OPENED.on(late, 101) == OPENED


def test_another_replicas_word_opens_a_closed_one_and_counts_as_no_opening_of_its_own() -> None:
    hinted = after(Hinted(40))
    assert (hinted.state, hinted.ready_in(100)) == (OPEN, 40)
    assert after(Started(), Failed(), breaker=hinted, now=140).ready_in(140) == 10


events = st.one_of(
    st.builds(Started),
    st.builds(Succeeded),
    st.builds(Failed, st.none() | st.floats(0, 1000)),
    st.builds(Abandoned),
    st.builds(Hinted, st.floats(0, 1000)),
)


@given(st.lists(st.tuples(events, st.floats(0, 100))))
def test_for_any_walk_there_is_one_probe_at_most_what_is_kept_is_bounded_and_a_call_may_start_some_day(
    walk: list[tuple[BreakerEvent, float]],
) -> None:
    policy = BreakerPolicy(remembered=20)
    breaker, now = Breaker(policy), 0.0
    for event, pause in walk:
        now += pause
        before, ready = breaker, breaker.ready_in(now)
        breaker = breaker.on(event, now)
        assert breaker.ready_in(now) >= 0
        assert breaker.ready_in(now + 1001) == 0
        assert len(breaker.calls) <= policy.remembered
        if isinstance(event, Started) and before.state is not CLOSED:
            assert ready == 0 or breaker == before
        if breaker.state is HALF_OPEN and breaker.probe_until is not None and breaker.probe_until > now:
            assert breaker.ready_in(now) > 0
        if breaker.state is CLOSED and before.state is HALF_OPEN:
            assert isinstance(event, Succeeded)
        if breaker.state is OPEN and before.state is not OPEN:
            assert isinstance(event, Failed | Hinted)
        if before.state is OPEN and breaker.state is not OPEN:
            assert isinstance(event, Started)
            assert ready == 0


@given(st.lists(events), st.floats(0, 10))
def test_from_anywhere_a_good_probe_in_time_closes_it(walk: list[BreakerEvent], pause: float) -> None:
    breaker, now = after(*walk), 2000.0
    breaker = after(Started(), Succeeded(), breaker=breaker, now=now + pause)
    assert breaker.state is CLOSED
