"""What was spent, in rows: nothing is lost by grouping, and the month's end follows from the last days."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.budgets import Budget, Period
from processor.grouping import By
from processor.spend import Cell, Unit, dollars, pico
from processor.usage import budget_shares, grouped, money, projection

DAY_PICO = 86_400_000_000
"""A multiple of a day's microseconds, so that any part of a day costs whole pico-dollars."""

days = st.dates(date(2026, 9, 1), date(2026, 12, 31))
cells = st.builds(
    Cell,
    days,
    st.sampled_from(["default", "acme", "pond"]),
    st.sampled_from(["haiku", "sonnet", "gpt-oss-120b"]),
    st.sampled_from(Unit),
)
counters = st.dictionaries(cells, st.integers(0, 10**16), max_size=40)
moments = st.integers(0, 92 * DAY_PICO - 1).map(
    lambda us: datetime(2026, 10, 1, tzinfo=UTC) + timedelta(microseconds=us)
)
from_counters = [by for by in By if by is not By.TASK_TYPE]


@given(counters)
def test_every_grouping_has_the_same_total(counts: dict[Cell, int]) -> None:
    totals = [grouped(counts.items(), by).total() for by in from_counters]
    assert all(total == totals[0] for total in totals)
    assert totals[0].cost_usd == dollars(sum(n for cell, n in counts.items() if cell.unit is Unit.COST))


@given(counters, st.sampled_from(from_counters))
def test_the_rows_add_up_to_the_total(counts: dict[Cell, int], by: By) -> None:
    tally = grouped(counts.items(), by)
    rows, total = tally.rows(in_time=by.is_time), tally.total()
    for column in ("cost_usd", "estimated_usd", "saved_usd", "calls", "failed", "cached", "input_tokens"):
        assert sum(getattr(row, column) for row in rows) == getattr(total, column)
    assert len({row.key for row in rows}) == len(rows)


def test_days_and_months_follow_each_other_and_models_come_dearest_first() -> None:
    counts = {
        Cell(date(2026, 11, 2), "default", "haiku", Unit.COST): 5,
        Cell(date(2026, 10, 31), "default", "sonnet", Unit.COST): 9,
        Cell(date(2026, 11, 1), "acme", "haiku", Unit.CALLS): 3,
    }
    keys = {by: [row.key for row in grouped(counts.items(), by).rows(in_time=by.is_time)] for by in from_counters}
    assert keys == {
        By.DAY: ["2026-10-31", "2026-11-01", "2026-11-02"],
        By.MONTH: ["2026-10", "2026-11"],
        By.MODEL: ["sonnet", "haiku"],
        By.TENANT: ["default", "acme"],
    }


def test_a_counter_knows_no_kind_of_task() -> None:
    with pytest.raises(ValueError, match="no kinds of task"):
        grouped([(Cell(date(2026, 11, 2), "default", "haiku", Unit.COST), 5)], By.TASK_TYPE)


@given(st.dictionaries(days, st.integers(0, 10**15), max_size=60), moments)
def test_a_projection_is_never_below_what_is_spent_this_month(costs: dict[date, int], now: datetime) -> None:
    spent = sum(cost for day, cost in costs.items() if day >= now.date().replace(day=1))
    projected = projection(costs, now)
    assert (projected or 0) >= dollars(spent)


@given(st.integers(1, 10**6), st.integers(7, 60), moments)
def test_constant_spending_is_projected_exactly(rate: int, back: int, now: datetime) -> None:
    """So many pico-dollars a microsecond for at least a week: the month costs that times its length."""
    costs: Counter[date] = Counter()
    for n in range(1, back):
        costs[now.date() - timedelta(days=n)] = rate * DAY_PICO
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    costs[now.date()] = rate * ((now - midnight) // timedelta.resolution)
    began = max(datetime.combine(min(costs), midnight.time(), UTC), midnight.replace(day=1))
    length = Period.MONTH.next_begins(now.date()) - began
    assert projection(costs, now) == dollars(rate * (length // timedelta.resolution))


def test_days_before_the_first_that_cost_anything_do_not_lower_the_mean() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)  # ten days are left
    costs = {date(2026, 11, 19): pico(Decimal(4)), date(2026, 11, 20): pico(Decimal(2)), date(2026, 11, 1): 0}
    assert projection(costs, now) == 6 + 3 * 10


def test_of_a_month_that_has_just_begun_the_last_one_tells() -> None:
    costs = {date(2026, 11, 30) - timedelta(days=n): pico(Decimal(7)) for n in range(6)}
    assert projection(costs, datetime(2026, 12, 1, tzinfo=UTC)) == 7 * 31


def test_minutes_of_spending_are_no_mean_of_a_month() -> None:
    """The first cent, at one minute past midnight, does not make 430 dollars."""
    now = datetime(2026, 11, 1, 0, 1, tzinfo=UTC)
    projected = projection({now.date(): pico(Decimal("0.01"))}, now)
    assert projected is not None
    assert projected < Decimal("7.21")


@pytest.mark.parametrize("costs", [{}, {date(2026, 11, 20): 0}, {date(2026, 9, 1): 5}])
def test_where_nothing_was_spent_there_is_no_projection(costs: dict[date, int]) -> None:
    assert projection(costs, datetime(2026, 11, 21, 12, tzinfo=UTC)) is None


def test_a_budgets_share_is_of_its_own_tenant_and_period() -> None:
    today = date(2026, 11, 21)
    costs = {
        (today, "acme"): pico(Decimal(1)),
        (today, "pond"): pico(Decimal(2)),
        (date(2026, 11, 2), "acme"): pico(Decimal(4)),
        (date(2026, 10, 31), "acme"): pico(Decimal(100)),
    }
    budgets = [
        Budget(None, Period.MONTH, pico(Decimal(14))),
        Budget("acme", Period.DAY, pico(Decimal(4))),
        Budget("acme", Period.MONTH, pico(Decimal(10))),
    ]
    assert [share.share for share in budget_shares(budgets, costs, today)] == [0.5, 0.25, 0.5]


@pytest.mark.parametrize(
    ("usd", "shown"),
    [
        ("0", "$0"),
        ("41.2", "$41.20"),
        ("1234.5", "$1,234.50"),
        ("1.23456", "$1.235"),
        ("0.000012345678", "$0.00001235"),
        ("0.000000000001", "$0.000000000001000"),
        ("-2.5", "-$2.500"),
    ],
)
def test_money_keeps_four_digits_however_small(usd: str, shown: str) -> None:
    assert money(Decimal(usd)) == shown


@given(st.decimals(Decimal("1e-12"), Decimal("1e9"), places=12))
def test_no_amount_of_money_is_shown_as_nothing_or_off_by_more_than_its_fourth_digit(usd: Decimal) -> None:
    read = Decimal(money(usd).removeprefix("$").replace(",", ""))
    assert abs(read - usd) <= usd * Decimal("0.0005")
