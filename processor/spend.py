"""What an audit event adds to the counters of `LLM_SPEND`: by day, tenant, model and unit. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Final
from urllib.parse import quote, unquote

from processor.audit_events import Attempt, AuditEntry, Ended
from processor.subjects import AuditEvent

PICO_PER_USD: Final = 10**12
"""Counters hold whole pico-dollars: the cost of one token is a whole number of them wherever a price a million tokens
has at most six decimals, so nothing is lost by adding up."""


def pico(usd: Decimal) -> int:
    """Dollars in whole pico-dollars."""
    return int((usd * PICO_PER_USD).to_integral_value())


def dollars(amount: int) -> Decimal:
    """Pico-dollars in dollars."""
    return Decimal(amount) / PICO_PER_USD


class Unit(StrEnum):
    """What is counted. Money is in pico-dollars, the rest in calls, replies or tokens."""

    COST = "cost"
    ESTIMATED = "estimated"
    """The part of `cost` that is an estimate: calls that were cut, models whose price nobody knows."""
    SAVED = "saved"
    """What replies would have cost that needed no call."""
    CALLS = "calls"
    FAILED = "failed"
    """Calls without a complete answer."""
    CACHED = "cached"
    """Replies that needed no call."""
    INPUT = "input"
    OUTPUT = "output"
    CACHE_READ = "cache_read"
    CACHE_WRITE = "cache_write"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One counter. `day` is UTC, and the one on which the call began."""

    day: date
    tenant: str
    model: str
    unit: Unit

    @property
    def subject(self) -> str:
        return f"llm.spend.{self.day}.{_token(self.tenant)}.{_token(self.model)}.{self.unit}"

    @classmethod
    def of(cls, subject: str) -> Cell:
        """The counter on `subject`. Raises ValueError for what is none."""
        parts = subject.split(".")
        if len(parts) != 6 or parts[:2] != ["llm", "spend"]:
            raise ValueError(f"{subject!r} is not llm.spend.<day>.<tenant>.<model>.<unit>")
        return cls(date.fromisoformat(parts[2]), unquote(parts[3]), unquote(parts[4]), Unit(parts[5]))


def _token(text: str) -> str:
    """One token of a subject: model ids hold dots and slashes."""
    return quote(text, safe="").replace(".", "%2E").replace("~", "%7E")


@dataclass(slots=True)
class Folded:
    """What some events add. `costs`: pico-dollars by day and tenant. `holds`: the budget's holds that they settle."""

    cells: Counter[Cell] = field(default_factory=Counter)
    costs: Counter[tuple[date, str]] = field(default_factory=Counter)
    holds: list[str] = field(default_factory=list)


def fold(entries: Iterable[AuditEntry]) -> Folded:
    """Add up what the events spent and saved."""
    folded = Folded()
    for entry in entries:
        for cell, amount in _amounts(entry):
            if amount:
                folded.cells[cell] += amount
        if isinstance(entry, Attempt):
            folded.costs[entry.started.date(), entry.tenant] += pico(entry.cost_usd)
            if entry.hold is not None:
                folded.holds.append(entry.hold)
    return folded


def _amounts(entry: AuditEntry) -> Iterator[tuple[Cell, int]]:
    match entry:
        case Attempt():
            cost = pico(entry.cost_usd)
            usage = entry.usage
            cache_write = usage.cache_write_5m + usage.cache_write_1h
            amounts = {
                Unit.COST: cost,
                Unit.ESTIMATED: cost if entry.cost_estimated else 0,
                Unit.CALLS: 1,
                Unit.FAILED: int(entry.error is not None),
                Unit.INPUT: usage.input_tokens,
                Unit.OUTPUT: usage.output_tokens,
                Unit.CACHE_READ: usage.cache_read,
                Unit.CACHE_WRITE: cache_write,
            }
            for unit, amount in amounts.items():
                yield Cell(entry.started.date(), entry.tenant, entry.alias or entry.model, unit), amount
        case Ended(event=AuditEvent.COMPLETED) if entry.cached or entry.coalesced:
            for unit, amount in {Unit.SAVED: pico(entry.saved_usd or Decimal(0)), Unit.CACHED: 1}.items():
                yield Cell(entry.at.date(), entry.tenant, entry.model or "unknown", unit), amount
