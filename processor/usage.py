"""What was spent, put together by day, month, model, tenant or kind of task, and where the month will end. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

from processor.budgets import Budget, Period
from processor.grouping import By
from processor.spend import Cell, Unit, dollars

WINDOW_DAYS: Final = 7
"""Of which the mean is taken to go on until the month's end."""
SHORTEST_WINDOW: Final = timedelta(hours=1)
"""Where spending began only now: a mean of minutes says nothing of a month."""
SIGNIFICANT: Final = 4
"""Digits of an amount of money that are shown at least."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums of all counters with one key. Money in dollars, exact; `saved_usd`: what cached replies would have cost."""

    key: str
    cost_usd: Decimal
    estimated_usd: Decimal
    """The part of the cost that is an estimate."""
    saved_usd: Decimal
    calls: int
    failed: int
    cached: int
    """Replies that needed no call."""
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    cache_write_tokens: int

    def document(self) -> dict[str, Any]:
        """For JSON: dollars as numbers."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: float(value) if isinstance(value, Decimal) else value for name, value in values.items()}


COLUMNS: Final = tuple(field.name for field in fields(UsageRow))


class Tally:
    """Counters summed up by key."""

    def __init__(self) -> None:
        self._sums: dict[str, Counter[Unit]] = {}

    def add(self, key: str, unit: Unit, amount: int) -> None:
        self._sums.setdefault(key, Counter())[unit] += amount

    def rows(self, *, in_time: bool) -> list[UsageRow]:
        """By key where they follow each other in time, else the dearest first."""
        rows = [_row(key, sums) for key, sums in sorted(self._sums.items())]
        return rows if in_time else sorted(rows, key=lambda row: (-row.cost_usd, -row.saved_usd, row.key))

    def total(self) -> UsageRow:
        total: Counter[Unit] = Counter()
        for sums in self._sums.values():
            total.update(sums)
        return _row("total", total)


def _row(key: str, sums: Mapping[Unit, int]) -> UsageRow:
    return UsageRow(
        key=key,
        cost_usd=dollars(sums.get(Unit.COST, 0)),
        estimated_usd=dollars(sums.get(Unit.ESTIMATED, 0)),
        saved_usd=dollars(sums.get(Unit.SAVED, 0)),
        calls=sums.get(Unit.CALLS, 0),
        failed=sums.get(Unit.FAILED, 0),
        cached=sums.get(Unit.CACHED, 0),
        input_tokens=sums.get(Unit.INPUT, 0),
        output_tokens=sums.get(Unit.OUTPUT, 0),
        cache_read_tokens=sums.get(Unit.CACHE_READ, 0),
        cache_write_tokens=sums.get(Unit.CACHE_WRITE, 0),
    )


def grouped(cells: Iterable[tuple[Cell, int]], by: By) -> Tally:
    """The counters by key. Raises ValueError for `By.TASK_TYPE`."""
    tally = Tally()
    for cell, amount in cells:
        tally.add(by.key(cell), cell.unit, amount)
    return tally


def projection(costs: Mapping[date, int], now: datetime) -> Decimal | None:
    """Dollars that this month (UTC) will have cost: what is spent, and the last days' mean for what is left of it.

    The mean is of the last seven days, or of those since the first that cost anything; today counts as the part of it
    that is over. None where nothing was spent in them nor this month.

    Args:
        costs: pico-dollars by day.
    """
    today = now.date()
    first_of_month = Period.MONTH.first_day(today)
    spent = sum(cost for day, cost in costs.items() if day >= first_of_month)
    first = max(
        min((day for day, cost in costs.items() if cost), default=today), today - timedelta(days=WINDOW_DAYS - 1)
    )
    recent = sum(cost for day, cost in costs.items() if first <= day <= today)
    if not spent and not recent:
        return None
    passed = max(now - datetime.combine(first, time(), now.tzinfo), SHORTEST_WINDOW)
    left = Period.MONTH.next_begins(today) - now
    return dollars(spent + round(recent * Fraction(left // timedelta.resolution, passed // timedelta.resolution)))


@dataclass(frozen=True, slots=True)
class BudgetShare:
    """How much of a budget is spent in its present period."""

    label: str
    limit_usd: Decimal
    spent_usd: Decimal

    @property
    def share(self) -> float:
        """1.0 is all of it."""
        return float(self.spent_usd / self.limit_usd) if self.limit_usd else 1.0

    def document(self) -> dict[str, Any]:
        return {
            "budget": self.label,
            "limit_usd": float(self.limit_usd),
            "spent_usd": float(self.spent_usd),
            "share": self.share,
        }


def budget_shares(budgets: Iterable[Budget], costs: Mapping[tuple[date, str], int], today: date) -> list[BudgetShare]:
    """Every budget's share. `costs`: pico-dollars by day and tenant, of this month at least."""
    shares = []
    for budget in budgets:
        first = budget.period.first_day(today)
        spent = sum(cost for (day, tenant), cost in costs.items() if day >= first and budget.concerns(tenant))
        shares.append(BudgetShare(budget.label, dollars(budget.limit), dollars(spent)))
    return shares


def money(usd: Decimal) -> str:
    """Dollars with at least four significant digits, and at least cents: $1,234.56, $41.20, $0.01234."""
    if not usd:
        return "$0"
    places = max(2, SIGNIFICANT - 1 - usd.adjusted())
    return f"{'-' if usd < 0 else ''}${abs(usd):,.{places}f}"
