"""What may be spent in a day and a month, by all and by a tenant: who is let through, and when to raise an alarm. Pure.

A hard budget holds what is under way, so that many requests at once do not overshoot together. A request is let through
when its own expected cost fits beside what is spent and the most that all others under way may cost. So whatever they
turn out to cost, a budget is exceeded by no more than the error of the last one's own estimate. Nobody is refused for
what others hold, only for what is spent: it waits until they are settled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, Literal

from processor import catalog
from processor.bucket import GUESS_MARGIN
from processor.pricing import PriceList
from processor.spend import dollars, pico
from providers.base import Usage

THRESHOLDS: Final = ((Decimal("0.8"), "warning"), (Decimal(1), "critical"))
"""Shares of a budget at which there is one alert, and how severe that is."""

Severity = Literal["info", "warning", "critical"]


class Period(StrEnum):
    """A day or a month, in UTC."""

    DAY = "daily"
    MONTH = "monthly"

    def name_of(self, day: date) -> str:
        return day.isoformat() if self is Period.DAY else day.isoformat()[:7]

    def first_day(self, day: date) -> date:
        return day if self is Period.DAY else day.replace(day=1)

    def next_begins(self, day: date) -> datetime:
        after = (
            day + timedelta(days=1) if self is Period.DAY else (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        )
        return datetime.combine(after, time(), UTC)


@dataclass(frozen=True, slots=True)
class Budget:
    """`limit` pico-dollars in each period, for one tenant or (None) for all together."""

    tenant: str | None
    period: Period
    limit: int
    hard: bool = False

    @property
    def label(self) -> str:
        whose = "the" if self.tenant is None else f"tenant {self.tenant}'s"
        return f"{whose} {self.period} budget of ${dollars(self.limit):,.2f}"

    def concerns(self, tenant: str) -> bool:
        return self.tenant is None or self.tenant == tenant

    def account(self, day: date) -> str:
        """Under which name its spending is kept. A tenant's name is a token, so `*` is none."""
        return account(self.tenant, self.period, day)


def account(tenant: str | None, period: Period, day: date) -> str:
    return f"{'*' if tenant is None else tenant}|{period.name_of(day)}"


def accounts_of(day: date, tenant: str) -> Iterator[str]:
    """Every account that a tenant's spending on that day counts in."""
    return (account(whose, period, day) for whose in (None, tenant) for period in Period)


def configured(table: catalog.Budgets, monthly_alert: float | None) -> tuple[Budget, ...]:
    """All budgets of the catalog, and the monthly one of the settings, which only raises alerts."""
    found = list(_of(None, table))
    for tenant, own in table.tenants.items():
        found += _of(tenant, own)
    if monthly_alert is not None:
        found.append(Budget(None, Period.MONTH, pico(Decimal(str(monthly_alert)))))
    return tuple(dict.fromkeys(found))


def _of(tenant: str | None, table: catalog.Budget) -> Iterator[Budget]:
    for period, usd in ((Period.MONTH, table.monthly_usd), (Period.DAY, table.daily_usd)):
        if usd is not None:
            yield Budget(tenant, period, pico(usd), table.hard)


def by_tenant(budgets: Iterable[Budget]) -> Callable[[str], Sequence[Budget]]:
    """Which budgets concern a tenant, found at once among those of thousands."""
    every: list[Budget] = []
    own: dict[str, list[Budget]] = {}
    for budget in budgets:
        (every if budget.tenant is None else own.setdefault(budget.tenant, [])).append(budget)
    found = {tenant: (*every, *theirs) for tenant, theirs in own.items()}
    return lambda tenant: found.get(tenant, every)


@dataclass(frozen=True, slots=True)
class Price:
    """Pico-dollars that one call will cost: by the model's usual answers, and at the very most."""

    expected: int
    most: int


FREE: Final = Price(0, 0)


def forecast(prices: PriceList, input_tokens: int, usual_output: int, most_output: int, on: date) -> Price:
    """What a call will cost: with the usual answer, and at most, should the estimate of its input be much too low."""
    most_input = math.ceil(input_tokens * GUESS_MARGIN)
    expected = prices.cost(Usage(input_fresh=input_tokens, output_visible=usual_output), on)
    most = max(
        prices.cost(Usage(input_fresh=most_input, output_visible=most_output), on),
        prices.cost(Usage(cache_write_5m=most_input, output_visible=most_output), on),
    )
    return Price(pico(expected), max(pico(expected), pico(most)))


@dataclass(frozen=True, slots=True)
class HeldUp:
    """There is money left, but calls under way may need it: ask again when one of them has ended."""

    budget: Budget


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The money is spent, until the next period begins."""

    budget: Budget
    now: datetime

    @property
    def begins_anew(self) -> datetime:
        return self.budget.period.next_begins(self.now.date())

    @property
    def wait_s(self) -> float:
        return (self.begins_anew - self.now).total_seconds()

    @property
    def why(self) -> str:
        return f"{self.budget.label} is spent; it begins anew at {self.begins_anew:%Y-%m-%d %H:%M} UTC"


def admit(
    budgets: Iterable[Budget],
    tenant: str,
    price: Price,
    spent: Mapping[str, int],
    held: Iterable[tuple[str, int]],
    now: datetime,
) -> HeldUp | Exceeded | None:
    """Whether a call may be made now: None, or the budget that forbids it, one that is spent before all others.

    Args:
        spent: pico-dollars by account; a budget whose account is not open yet holds everybody up.
        held: of each other call under way, its tenant and the most that it may cost.
    """
    held = list(held)
    held_up: HeldUp | None = None
    for budget in budgets:
        if not budget.hard or not budget.concerns(tenant):
            continue
        gone = spent.get(budget.account(now.date()))
        if gone is None:
            return HeldUp(budget)
        others = sum(most for whose, most in held if budget.concerns(whose))
        if budget.limit and not gone and not others:
            continue  # the first request of a budget is never refused, however little of it there is
        if gone + price.expected > budget.limit:
            return Exceeded(budget, now)
        if gone + others + price.expected > budget.limit:
            held_up = HeldUp(budget)
    return held_up


@dataclass(frozen=True, slots=True)
class Alarm:
    """To be told once. `key` ends in the name of the period, and names the budget and the threshold."""

    key: str
    severity: Severity
    kind: str
    message: str


def alarms(budgets: Sequence[Budget], spent: Mapping[str, int], today: date, saving_from: float) -> Iterator[Alarm]:
    """Every threshold that is reached now, told before or not.

    `saving_from` is the share from which on `auto` prefers cheaper models (0: never).
    """
    for budget in budgets:
        if not budget.limit:
            continue
        gone = spent.get(budget.account(today), 0)
        steps: list[tuple[Decimal, Severity, str]] = [(at, severity, "") for at, severity in THRESHOLDS]  # type: ignore[misc]
        if saving_from:
            steps.append((Decimal(str(saving_from)), "info", ": auto prefers cheaper models from here on"))
        for at, severity, then in steps:
            if gone < at * budget.limit:
                continue
            if severity == "critical" and budget.hard:
                then = ": requests that cost are refused"
            what = f"{at:.0%} of {budget.label}"
            # The limit is part of the key: one that was raised raises its own alarms.
            key = f"{budget.limit}|{severity}|{budget.account(today)}"
            message = f"{what} is spent ({budget.period.name_of(today)}: ${dollars(gone):,.2f}){then}"
            yield Alarm(key, severity, f"{what} {severity} {budget.account(today)}", message)


def used_share(budgets: Iterable[Budget], tenant: str, spent: Mapping[str, int], today: date) -> float:
    """The largest share that is spent of a budget that concerns the tenant."""
    shares = (
        spent.get(budget.account(today), 0) / budget.limit if budget.limit else 1.0
        for budget in budgets
        if budget.concerns(tenant)
    )
    return max(shares, default=0.0)
