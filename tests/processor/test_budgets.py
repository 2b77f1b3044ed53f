"""Budgets: a hard one is exceeded by one request's error of estimate at most, and blocks nobody needlessly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.book import LEASE_S, Begin, Book, Entry, Finish, Open, Renew, Reserve, Settle, Told
from processor.budgets import (
    Budget,
    Exceeded,
    HeldUp,
    Period,
    Price,
    admit,
    alarms,
    by_tenant,
    configured,
    forecast,
    used_share,
)
from processor.catalog import Budget as BudgetTable
from processor.catalog import Budgets, CatalogError, build_catalog, load_catalog
from processor.spend import Folded, pico

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
TODAY = NOW.date()
DAILY = Budget(None, Period.DAY, 1000, hard=True)


def opened(*budgets: Budget, spent: int = 0) -> Book:
    return Book(spent={budget.account(TODAY): spent for budget in budgets})


def reserve(book: Book, token: str, expected: int, most: int, *budgets: Budget, tenant: str = "default") -> object:
    return book.apply(Reserve(token, tenant, Price(expected, most)), budgets, NOW)


# --- the rule -----------------------------------------------------------------------------------


def test_the_first_request_of_an_unspent_budget_is_never_blocked_however_much_it_may_cost() -> None:
    assert reserve(opened(DAILY), "a", 5000, 90_000, DAILY) is None


def test_a_hard_budget_of_nothing_lets_nothing_through() -> None:
    nothing = Budget("acme", Period.DAY, 0, hard=True)
    assert isinstance(reserve(opened(nothing), "a", 1, 1, nothing, tenant="acme"), Exceeded)


def test_what_others_may_cost_holds_a_request_up_and_what_is_spent_refuses_it() -> None:
    book = opened(DAILY, spent=1)
    assert reserve(book, "a", 100, 900, DAILY) is None
    assert reserve(book, "b", 100, 900, DAILY) == HeldUp(DAILY)
    book.apply(Settle("a", 850), (DAILY,), NOW)
    assert reserve(book, "b", 100, 900, DAILY) is None
    assert isinstance(reserve(opened(DAILY, spent=950), "c", 100, 900, DAILY), Exceeded)


def test_a_soft_budget_refuses_nobody() -> None:
    soft = Budget(None, Period.DAY, 1000)
    assert reserve(opened(soft, spent=99_999), "a", 100, 900, soft) is None


def test_a_tenants_budget_is_its_own_and_the_global_one_is_everybodys() -> None:
    acme = Budget("acme", Period.MONTH, 1000, hard=True)
    book = opened(acme, spent=1000)
    assert isinstance(reserve(book, "a", 1, 1, acme, tenant="acme"), Exceeded)
    assert reserve(book, "b", 1, 1, acme, tenant="other") is None
    both = Book(spent={acme.account(TODAY): 0, DAILY.account(TODAY): 1000})
    assert isinstance(reserve(both, "c", 1, 1, acme, DAILY, tenant="acme"), Exceeded)


def test_a_budget_whose_account_is_not_open_yet_holds_up_and_does_not_refuse() -> None:
    assert reserve(Book(), "a", 1, 1, DAILY) == HeldUp(DAILY)


@pytest.mark.parametrize(
    ("period", "begins"),
    [(Period.DAY, datetime(2026, 11, 26, tzinfo=UTC)), (Period.MONTH, datetime(2026, 12, 1, tzinfo=UTC))],
)
def test_whoever_is_refused_hears_when_the_budget_begins_anew(period: Period, begins: datetime) -> None:
    budget = Budget("acme", period, 1000, hard=True)
    refused = reserve(opened(budget, spent=1000), "a", 1, 1, budget, tenant="acme")
    assert isinstance(refused, Exceeded)
    assert NOW + timedelta(seconds=refused.wait_s) == begins
    assert refused.why.startswith(
        f"tenant acme's {period} budget of $0.00 is spent; it begins anew at {begins:%Y-%m-%d}"
    )


@dataclass(frozen=True)
class Call:
    """What a call is expected to cost, what it does cost, and what it could have."""

    expected: int
    actual: int
    most: int


calls = st.builds(
    lambda most, expected, actual: Call(int(expected * most), int(actual * most), most),
    st.integers(1, 1000),
    st.floats(0, 1),
    st.floats(0, 1),
)


@given(st.lists(calls, min_size=1, max_size=40), st.integers(1, 3000), st.integers(0, 2000), st.randoms())
def test_many_at_once_exceed_a_budget_by_one_requests_error_of_estimate_at_most(
    asked: list[Call], limit: int, spent_before: int, order: object
) -> None:
    """In any order of starts and ends, and whatever each turns out to cost."""
    budget = Budget(None, Period.DAY, limit, hard=True)
    book = opened(budget, spent=spent_before)
    waiting, under_way, spent = dict(enumerate(asked)), dict[int, Call](), spent_before
    first_of_all = not spent_before
    while waiting or under_way:
        admitted = False
        for number in sorted(waiting, key=lambda _: order.random()):  # type: ignore[attr-defined]
            call = waiting[number]
            refused = reserve(book, str(number), call.expected, call.most, budget)
            if refused is None:
                under_way[number] = waiting.pop(number)
                admitted = True
                break
            if isinstance(refused, Exceeded):
                del waiting[number]
            else:
                assert under_way, "held up, and nobody is under way"
        if under_way and (not admitted or order.random() < 0.5):  # type: ignore[attr-defined]
            number = sorted(under_way)[int(order.random() * len(under_way))]  # type: ignore[attr-defined]
            call = under_way.pop(number)
            spent += call.actual
            book.apply(Settle(str(number), call.actual), (budget,), NOW)
    errors = [max(0, call.actual - call.expected) for call in asked]
    overshoot = spent - max(limit, spent_before)
    first = max(call.actual for call in asked) if first_of_all else 0
    assert overshoot <= max(max(errors), first)


@given(st.lists(calls, min_size=1, max_size=20), st.integers(0, 500))
def test_a_budget_of_which_enough_is_left_refuses_nobody(asked: list[Call], spent: int) -> None:
    plenty = Budget(None, Period.DAY, spent + sum(call.most for call in asked) + 1000, hard=True)
    book = opened(plenty, spent=spent)
    assert [reserve(book, str(n), call.expected, call.most, plenty) for n, call in enumerate(asked)] == [None] * len(
        asked
    )


# --- the book -----------------------------------------------------------------------------------


def test_the_same_reservation_twice_is_one_hold() -> None:
    book = opened(DAILY, spent=1)
    assert [reserve(book, "a", 10, 900, DAILY) for _ in range(2)] == [None, None]
    assert len(book.holds) == 1


def test_a_hold_ends_with_its_lease_unless_it_is_renewed() -> None:
    book = opened(DAILY, spent=1)
    reserve(book, "dead", 10, 900, DAILY)
    almost = NOW + timedelta(seconds=LEASE_S - 1)
    assert book.apply(Reserve("b", "default", Price(200, 900)), (DAILY,), almost) == HeldUp(DAILY)
    renewed = Book.decode(book.encode())
    renewed.apply(Renew(("dead",)), (DAILY,), almost)
    later = NOW + timedelta(seconds=LEASE_S + 1)
    assert book.apply(Reserve("b", "default", Price(200, 900)), (DAILY,), later) is None
    assert renewed.apply(Reserve("b", "default", Price(200, 900)), (DAILY,), later) == HeldUp(DAILY)


def test_what_was_spent_is_held_until_it_is_counted_so_that_there_is_no_gap() -> None:
    book = opened(DAILY, spent=1)
    reserve(book, "a", 10, 900, DAILY)
    book.apply(Settle("a", 800), (DAILY,), NOW)
    assert isinstance(reserve(book, "b", 200, 200, DAILY), Exceeded)
    folded = Folded(holds=["a"])
    folded.costs[TODAY, "default"] = 800
    entry = Entry.of(folded, {}, entry_id="e", to=1, at_ms=0, log="made")
    assert book.apply(Begin(-1, entry), (DAILY,), NOW) is True
    book.apply(Finish("e"), (DAILY,), NOW)
    assert (book.holds, book.spent[DAILY.account(TODAY)], book.position) == ({}, 801, 1)


def test_what_was_spent_is_held_though_it_is_not_counted_for_a_long_time() -> None:
    book = opened(DAILY)
    reserve(book, "a", 10, 900, DAILY)
    book.apply(Settle("a", 1000), (DAILY,), NOW)
    later = NOW + timedelta(seconds=5 * LEASE_S)
    assert isinstance(book.apply(Reserve("b", "default", Price(10, 900)), (DAILY,), later), Exceeded)


def test_a_call_that_was_never_made_holds_nothing_any_more() -> None:
    book = opened(DAILY, spent=1)
    reserve(book, "a", 10, 900, DAILY)
    book.apply(Settle("a", None), (DAILY,), NOW)
    assert book.holds == {}


def test_only_one_of_two_that_want_to_count_may() -> None:
    book = opened(DAILY)
    mine, theirs = (Entry.of(Folded(), {}, entry_id=name, to=5, at_ms=0, log="made") for name in ("mine", "theirs"))
    assert book.apply(Begin(-1, mine), (), NOW) is True
    assert book.apply(Begin(-1, theirs), (), NOW) is False
    assert book.apply(Begin(-1, mine), (), NOW) is True  # it was lost on the way back
    book.apply(Finish("mine"), (), NOW)
    assert book.apply(Begin(-1, theirs), (), NOW) is False


def test_an_account_is_opened_with_what_the_counters_said_where_the_book_stands_and_nowhere_else() -> None:
    book = Book(position=7)
    assert book.apply(Open(6, {"*|2026-11": 5}), (), NOW) is False
    assert book.apply(Open(7, {"*|2026-11": 5}), (), NOW) is True
    assert book.apply(Open(7, {"*|2026-11": 9}), (), NOW) is True
    assert book.spent == {"*|2026-11": 5}


def test_accounts_of_last_month_are_closed() -> None:
    book = Book(spent={"*|2026-10": 1, "*|2026-10-31": 1, "*|2026-11": 1, "*|2026-11-25": 1, "*|2026-11-26": 0})
    entry = Entry.of(Folded(), {}, entry_id="e", to=1, at_ms=0, log="made")
    book.apply(Begin(-1, entry), (), NOW)
    book.apply(Finish("e"), (), NOW)
    assert set(book.spent) == {"*|2026-11", "*|2026-11-25", "*|2026-11-26"}


def move_on(book: Book, now: datetime) -> None:
    book.apply(Begin(book.position, Entry.of(Folded(), {}, entry_id="e", to=1, at_ms=0, log="made")), (), now)
    book.apply(Finish("e"), (), now)


def test_a_day_is_forgotten_soon_after_it_is_over_and_not_at_the_end_of_its_month() -> None:
    book = Book(spent={f"*|2026-11-{day:02}": 1 for day in range(1, 26)}, told=["9|info|*|2026-11-23"])
    move_on(book, NOW)
    assert (set(book.spent), book.told) == ({"*|2026-11-24", "*|2026-11-25"}, [])


def test_a_replica_whose_clock_is_slow_does_not_tell_last_months_alarms_again() -> None:
    month_begins = datetime(2026, 12, 1, tzinfo=UTC)
    book = Book(spent={"*|2026-11": 1}, told=["9|critical|*|2026-11"])
    move_on(book, month_begins + timedelta(seconds=2))
    slow = month_begins - timedelta(seconds=2)
    assert book.apply(Told(("9|critical|*|2026-11",)), (), slow) == ()
    assert book.spent == {"*|2026-11": 1}


def test_an_alarm_is_new_once() -> None:
    book = Book()
    assert book.apply(Told(("a|2026-11", "b|2026-11")), (), NOW) == ("a|2026-11", "b|2026-11")
    assert book.apply(Told(("b|2026-11", "c|2026-11")), (), NOW) == ("c|2026-11",)


def test_a_book_comes_back_as_it_was_written() -> None:
    book = opened(DAILY, spent=1)
    reserve(book, "a", 10, 900, DAILY)
    folded = Folded(holds=["x"])
    folded.costs[TODAY, "default"] = 3
    book.apply(Begin(-1, Entry.of(folded, {}, entry_id="e", to=9, at_ms=1, log="made")), (), NOW)
    book.apply(Told(("k",)), (), NOW)
    assert Book.decode(book.encode()) == book


# --- alarms and settings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spent", "told"), [(799, []), (800, ["warning"]), (999, ["warning"]), (1000, ["warning", "critical"])]
)
def test_alarms_are_raised_at_eighty_and_at_a_hundred_percent(spent: int, told: list[str]) -> None:
    found = alarms((DAILY,), {DAILY.account(TODAY): spent}, TODAY, 0)
    assert [alarm.severity for alarm in found] == told


def test_an_alarm_of_the_next_day_is_another_one() -> None:
    tomorrow = TODAY + timedelta(days=1)
    keys = {
        alarm.key
        for day in (TODAY, tomorrow)
        for alarm in alarms((DAILY,), {DAILY.account(day): 1000}, day, 0)
    }  # fmt: skip
    assert len(keys) == 4


def test_the_budget_that_is_used_most_says_how_near_a_tenant_is() -> None:
    acme = Budget("acme", Period.MONTH, 1000)
    spent = {DAILY.account(TODAY): 500, acme.account(TODAY): 950}
    assert used_share((DAILY, acme), "acme", spent, TODAY) == 0.95
    assert used_share((DAILY, acme), "other", spent, TODAY) == 0.5


def test_the_catalogs_budgets_and_the_settings_alert_stand_side_by_side() -> None:
    table = Budgets(monthly_usd=Decimal(500), hard=True, tenants={"acme": BudgetTable(daily_usd=Decimal("2.5"))})
    assert configured(table, 100) == (
        Budget(None, Period.MONTH, pico(Decimal(500)), hard=True),
        Budget("acme", Period.DAY, pico(Decimal("2.5"))),
        Budget(None, Period.MONTH, pico(Decimal(100))),
    )


def test_a_forecast_expects_the_usual_answer_and_holds_the_longest() -> None:
    prices = load_catalog().price_lists["haiku"]
    price = forecast(prices, 1000, 200, 4096, TODAY)
    assert price.expected == pico(Decimal("0.002"))
    written = Decimal("1.25") * 1500 / 1_000_000 + Decimal(5) * 4096 / 1_000_000
    assert price.most == pico(written)


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_forecast_never_holds_less_than_it_expects(tokens: int, usual: int, most: int) -> None:
    for prices in load_catalog().price_lists.values():
        price = forecast(prices, tokens, min(usual, most), most, TODAY)
        assert 0 <= price.expected <= price.most < math.inf


def test_who_may_be_admitted_is_decided_by_the_budget_that_is_spent_before_one_that_is_held() -> None:
    held, spent = DAILY, Budget(None, Period.MONTH, 100, hard=True)
    accounts = {held.account(TODAY): 1, spent.account(TODAY): 100}
    refused = admit((held, spent), "default", Price(10, 10), accounts, [("default", 995)], NOW)
    assert isinstance(refused, Exceeded)
    assert refused.budget == spent


@pytest.mark.parametrize("name", ["*", "acme corp", "a|b", ""])
def test_a_budget_for_what_can_be_no_tenant_is_refused(name: str) -> None:
    """`*` would be taken for everybody's account, and another name for nobody's."""
    with pytest.raises(CatalogError, match="budgets"):
        build_catalog({"budgets": {"tenants": {name: {"daily_usd": 5}}}, "routing": {}, "models": {}}, "test")


def test_the_budgets_of_a_tenant_are_found_without_asking_each() -> None:
    acme, other = (Budget(name, Period.MONTH, 1) for name in ("acme", "other"))
    every = (DAILY, acme, other)
    for tenant in ("acme", "other", "nobody"):
        assert set(by_tenant(every)(tenant)) == {budget for budget in every if budget.concerns(tenant)}
