"""The line before a limit: the most urgent first, each lane with its share, and nobody forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from processor.schedule import Schedule
from processor.subjects import Priority
from processor.waiting import PASSES, Line, Waiter

SCHEDULE = Schedule.of((70, 15, 10, 5))


def waiter(priority: Priority, woken: list[Waiter] | None = None) -> Waiter:
    one = Waiter(priority, lambda: None)
    if woken is not None:
        one.wake = lambda: woken.append(one)
    return one


def test_whoever_comes_first_of_the_most_urgent_lane_is_first() -> None:
    line = Line(SCHEDULE)
    low, high, later = waiter(Priority.LOW), waiter(Priority.HIGH), waiter(Priority.HIGH)
    for one in (low, high, later):
        line.join(one)
    assert line.first() is high
    assert [line.may_try(one) for one in (low, high, later)] == [False, True, False]


def test_a_passer_by_may_try_only_where_nobody_as_urgent_waits() -> None:
    line = Line(SCHEDULE)
    assert line.may_try(waiter(Priority.LOW))
    line.join(waiter(Priority.MEDIUM))
    assert line.may_try(waiter(Priority.HIGH))
    assert not line.may_try(waiter(Priority.MEDIUM))


def test_the_next_one_is_woken_when_the_first_leaves_and_only_then() -> None:
    woken: list[Waiter] = []
    line = Line(SCHEDULE)
    first, second, third = (waiter(Priority.HIGH, woken) for _ in range(3))
    for one in (first, second, third):
        line.join(one)
    line.leave(third)
    assert woken == []
    line.passed(Priority.HIGH)
    line.leave(first)
    assert woken == [second]


def test_standing_in_line_twice_is_standing_in_it_once() -> None:
    line, one = Line(SCHEDULE), waiter(Priority.HIGH)
    line.join(one)
    line.join(one)
    line.leave(one)
    assert not line


def test_low_has_its_share_of_a_limit_that_high_could_use_up_alone() -> None:
    for passes_by in (True, False):
        line, high = Line(SCHEDULE), waiter(Priority.HIGH)
        line.join(low := waiter(Priority.LOW))
        n = 0
        while line.may_try(high):
            n += 1
            if not passes_by:
                line.join(high)
            line.passed(Priority.HIGH)
            line.leave(high)
            assert n < 100
        assert line.first() is low
        assert 10 <= n <= 25


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "admit", "leave", "pass"]), st.sampled_from(Priority), st.integers(0, 9))
    )
)
def test_a_line_with_waiters_always_has_a_first_who_may_try_and_was_woken_if_he_was_not_first_before(
    walk: list[tuple[str, Priority, int]],
) -> None:
    woken: list[Waiter] = []
    line, waiting = Line(SCHEDULE), list[Waiter]()
    knows: set[int] = set()
    for step, priority, which in walk:
        if step == "join":
            one = waiter(priority, woken)
            line.join(one)
            waiting.append(one)
            knows.add(id(one))  # it has just tried, and looks whether it is the first
        elif step == "admit" and (first := line.first()) is not None:
            line.passed(first.priority)
            line.leave(first)
            waiting.remove(first)
        elif step == "pass" and line.may_try(passer_by := waiter(priority)):
            line.passed(passer_by.priority)
        elif step == "leave" and waiting:
            one = waiting.pop(which % len(waiting))
            line.leave(one)
        before = line.first()
        assert (before is None) == (not waiting)
        if before is not None:
            assert line.may_try(before)
            assert id(before) in knows or before in woken
        assert sum(line.may_try(one) for one in waiting) == min(1, len(waiting))


def test_critical_goes_past_a_lower_lane_whose_turn_it_is_but_not_for_ever() -> None:
    woken: list[Waiter] = []
    line, low = Line(SCHEDULE), waiter(Priority.LOW, woken)
    line.join(low)
    while line.may_try(waiter(Priority.HIGH)):
        line.passed(Priority.HIGH)
    passed = 0
    while line.may_try(waiter(Priority.CRITICAL)):
        assert not line.is_overdue(low)
        line.passed(Priority.CRITICAL)
        passed += 1
    assert (passed, line.is_overdue(low)) == (PASSES, True)
    line.passed(Priority.LOW)
    line.leave(low)
    assert line.may_try(waiter(Priority.HIGH))


def test_critical_that_waits_is_before_a_lower_lane_whose_turn_it_is() -> None:
    line, low, critical = Line(SCHEDULE), waiter(Priority.LOW), waiter(Priority.CRITICAL)
    line.join(low)
    while line.may_try(waiter(Priority.HIGH)):
        line.passed(Priority.HIGH)
    line.join(critical)
    assert line.first() is critical
    line.leave(critical)
    assert line.first() is low
