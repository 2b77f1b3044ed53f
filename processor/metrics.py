"""What a replica counts of its requests and its calls, by lane and by model of the catalog. Pure.

Tenants are no label: their number has no bound. Money by tenant is the ledger's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from processor.audit_events import Attempt
from processor.errors import ErrorType
from processor.histogram import BOUNDS_S, RECENT_S, Histogram, Recent
from processor.reply_bodies import FinalReply
from processor.subjects import AuditEvent, Priority

OUTCOMES: Final = (
    AuditEvent.COMPLETED,
    AuditEvent.FAILED,
    AuditEvent.CANCELLED,
    AuditEvent.EXPIRED,
    AuditEvent.DEAD,
)
NO_FAULT: Final = frozenset({"cancelled", "outrun"})
"""Kinds of calls without an answer that say nothing against a vendor."""
MINUTE_S: Final = 60.0


class Source(StrEnum):
    """What a completed request was answered from."""

    CALL = "call"
    CACHED = "cached"
    COALESCED = "coalesced"

    @classmethod
    def of(cls, reply: FinalReply) -> Source:
        if reply.cached:
            return cls.CACHED
        return cls.COALESCED if reply.coalesced else cls.CALL


@dataclass(slots=True)
class _Lane:
    received: int = 0
    given_back: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, OUTCOMES), 0))
    answered_from: dict[str, int] = field(default_factory=lambda: dict.fromkeys(map(str, Source), 0))
    failed_by: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wait: Histogram = field(default_factory=Histogram)
    recent_wait: Recent[Histogram] = field(default_factory=lambda: Recent(Histogram))

    def shown(self, now: float) -> dict[str, Any]:
        return {
            "received": self.received,
            "given_back": self.given_back,
            "outcomes": self.outcomes,
            "answered_from": self.answered_from,
            "failed_by": self.failed_by,
            "refused": self.refused,
            "wait": _shown(self.wait),
            "recent_wait": _together(self.recent_wait.within(now)).counts,
        }


@dataclass(slots=True)
class _Calls:
    """A slot of the recent past."""

    calls: int = 0
    errors: int = 0
    tokens: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class _Model:
    provider: str
    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cost_usd: Decimal = Decimal(0)
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
    recent: Recent[_Calls] = field(default_factory=lambda: Recent(_Calls))

    def shown(self, now: float) -> dict[str, Any]:
        recent, minute = list(self.recent.within(now)), list(self.recent.within(now, MINUTE_S))
        return {
            "provider": self.provider,
            "calls": self.calls,
            "errors": self.errors,
            "tokens": {
                "input": self.input,
                "output": self.output,
                "cache_read": self.cache_read,
                "cache_write": self.cache_write,
            },
            "cost_usd": float(self.cost_usd),
            "first_token": _shown(self.first_token),
            "duration": _shown(self.duration),
            "recent": {
                "calls": sum(slot.calls for slot in recent),
                "errors": sum(slot.errors for slot in recent),
                "first_token": _together(slot.first_token for slot in recent).counts,
                "duration": _together(slot.duration for slot in recent).counts,
            },
            "last_minute": {
                "requests": sum(slot.calls for slot in minute),
                "tokens": sum(slot.tokens for slot in minute),
            },
        }


class Metrics:
    """Counts. Of a lane, `received` is the sum of all outcomes, of what was given back, and of what is in work.

    `now` is in seconds of the monotonic clock. Where it is not `enabled`, nothing is counted.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._lanes = {priority: _Lane() for priority in Priority}
        self._models: dict[str, _Model] = {}

    def began(self, lane: Priority, wait_s: float, now: float) -> None:
        """Work on a request begins, `wait_s` after the queue took it; one that was given back begins again."""
        if self._enabled:
            mine = self._lanes[lane]
            mine.received += 1
            mine.wait.add(wait_s)
            mine.recent_wait.at(now).add(wait_s)

    def gave_back(self, lane: Priority) -> None:
        """Work on it has ended here without an outcome: it goes on elsewhere or later, or has ended elsewhere."""
        if self._enabled:
            self._lanes[lane].given_back += 1

    def ended(self, lane: Priority, event: AuditEvent, result: FinalReply | ErrorType) -> None:
        """A request has its outcome, and nobody else counts it."""
        if not self._enabled:
            return
        mine = self._lanes[lane]
        mine.outcomes[event] += 1
        if isinstance(result, FinalReply):
            mine.answered_from[Source.of(result)] += 1
        elif event in (AuditEvent.FAILED, AuditEvent.DEAD):
            mine.failed_by[result] += 1

    def withdrew(self, lane: Priority, event: AuditEvent, error: ErrorType) -> None:
        """A request was ended while it was queued: nobody had begun with it."""
        if self._enabled:
            self._lanes[lane].received += 1
            self.ended(lane, event, error)

    def refused(self, lane: Priority, error: ErrorType) -> None:
        """An ask was not let in."""
        if self._enabled:
            self._lanes[lane].refused[error] += 1

    def called(self, call: Attempt, now: float) -> None:
        """A call to a vendor has ended: one that is in the audit log, or will be."""
        if not self._enabled or call.alias is None:
            return
        mine = self._models.get(call.alias)
        if mine is None:
            mine = self._models[call.alias] = _Model(call.provider)
        usage, recent = call.usage, mine.recent.at(now)
        mine.calls += 1
        mine.input += usage.input_tokens
        mine.output += usage.output_tokens
        mine.cache_read += usage.cache_read
        mine.cache_write += usage.cache_write_5m + usage.cache_write_1h
        mine.cost_usd += call.cost_usd
        recent.calls += 1
        recent.tokens += usage.input_tokens + usage.output_tokens
        if call.error is not None:
            mine.errors[call.error.kind] += 1
            recent.errors += call.error.kind not in NO_FAULT
        else:
            mine.duration.add(call.duration_ms / 1000)
            recent.duration.add(call.duration_ms / 1000)
        if call.first_token_ms is not None:
            mine.first_token.add(call.first_token_ms / 1000)
            recent.first_token.add(call.first_token_ms / 1000)

    def shown(self, now: float) -> dict[str, Any] | None:
        """For JSON; None where nothing is counted. `bounds_s` are the buckets' upper ends, one less than buckets."""
        if not self._enabled:
            return None
        return {
            "bounds_s": BOUNDS_S,
            "recent_s": RECENT_S,
            "lanes": {str(lane): mine.shown(now) for lane, mine in self._lanes.items()},
            "models": {alias: mine.shown(now) for alias, mine in self._models.items()},
        }


def _shown(histogram: Histogram) -> dict[str, Any]:
    return {"counts": histogram.counts, "sum_s": round(histogram.sum_s, 6)}


def _together(histograms: Iterable[Histogram]) -> Histogram:
    total = Histogram()
    for one in histograms:
        total.take_in(one)
    return total
