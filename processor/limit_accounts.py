"""What a replica knows of one provider's limits: what waits, what was used, and what each store has yet to hear."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from processor.bucket import (
    Admit,
    Denied,
    Entry,
    Granted,
    Hold,
    Metric,
    Op,
    Record,
    Result,
    Scope,
    Settle,
    kept_ms,
    slot_ms,
)

MODEST = 0.1
"""Of a limit: where a request that wants no more is refused, there is next to nothing."""
ROOM_S = 0.25
"""How old the sums may be by which models are compared."""


@dataclass(slots=True)
class Tally:
    """Amounts by slot, positive or negative, that this replica has to tell a store; bounded, as windows pass."""

    amounts: dict[tuple[Scope, Metric, int], int] = field(default_factory=dict)
    _look_at: int = 64

    def add(self, entries: Sequence[Entry]) -> None:
        for scope, metric, at_ms, amount in entries:
            place = (scope, metric, at_ms - at_ms % slot_ms(metric))
            self.amounts[place] = self.amounts.get(place, 0) + amount
        if entries and len(self.amounts) > self._look_at:
            now_ms = max(entry.at_ms for entry in entries)
            self.amounts = {
                (scope, metric, at): amount
                for (scope, metric, at), amount in self.amounts.items()
                if at + slot_ms(metric) + kept_ms(metric) > now_ms and amount
            }
            self._look_at = 2 * len(self.amounts) + 64

    def entries(self) -> tuple[Entry, ...]:
        return tuple(Entry(*place, amount) for place, amount in self.amounts.items() if amount)

    def sums(self, now_ms: int) -> dict[tuple[Scope, Metric], int]:
        """By scope and metric, what counts at `now_ms`."""
        sums: dict[tuple[Scope, Metric], int] = {}
        for (scope, metric, at_ms), amount in self.amounts.items():
            if at_ms + slot_ms(metric) + kept_ms(metric) > now_ms:
                sums[scope, metric] = sums.get((scope, metric), 0) + amount
        return sums

    def copy(self) -> Tally:
        return Tally(dict(self.amounts))


class Word(NamedTuple):
    """A vendor's own: the share that was free at `at`, by the monotonic clock, and in how many seconds all will be."""

    share: float
    at: float
    reset_s: float

    def free(self, now: float) -> float | None:
        """It fills at an even pace, as `Told` takes it to; None when it is full again, and says nothing more."""
        past_s = now - self.at
        return None if past_s >= self.reset_s else self.share + (1 - self.share) * past_s / self.reset_s


@dataclass(eq=False, slots=True)
class Account:
    """One provider's operations that wait, and what each store has yet to hear of those done elsewhere."""

    provider: str
    missing: list[Tally]
    waiting: deque[tuple[Op, asyncio.Future[Result] | None]] = field(default_factory=deque)
    running: bool = False
    own: Tally = field(default_factory=Tally)
    """All that this replica was granted in the last windows, as it was settled."""
    holds: dict[Scope, tuple[float, Hold]] = field(default_factory=dict)
    """Until when, by the monotonic clock."""
    used: int = -1
    """The store that was used last."""
    limited: bool = True
    unsure: set[int] = field(default_factory=set)
    """Stores that may have done what waits next, before they failed."""
    told: dict[Scope, dict[Metric, Word]] = field(default_factory=dict)
    """What a vendor said is free."""
    full: dict[Scope, float] = field(default_factory=dict)
    """Until when, by the monotonic clock, the store has nothing to give, as far as nothing was given back since."""
    _sums: dict[tuple[Scope, Metric], int] = field(default_factory=dict)
    _summed: float = -math.inf

    def before(self, index: int, entries: tuple[Entry, ...]) -> list[Op]:
        """What store `index` has to hear first, `entries` and holds."""
        ops: list[Op] = [Record(entries)] if entries else []
        if index != self.used:
            now = time.monotonic()
            self.holds = {scope: held for scope, held in self.holds.items() if held[0] > now}
            ops += [Hold(hold.scope, until - now, hold.reason) for until, hold in self.holds.values()]
        return ops

    def once(self, index: int, op: Op) -> Op:
        """What store `index` is asked: one that may have done `op` before gives nothing back a second time."""
        if isinstance(op, Settle) and index in self.unsure:
            return Record(tuple(entry for entry in op.entries() if entry.amount > 0))
        return op

    def done(self, index: int, ops: Sequence[Op], results: Sequence[Result]) -> None:
        """Store `index` did `ops`."""
        entries: list[Entry] = []
        for op, result in zip(ops, results, strict=True):
            if isinstance(op, Settle):
                given_back = op.entries()
                entries += given_back
                for entry in given_back:
                    if entry.amount < 0:
                        self.full.pop(entry.scope, None)
            elif isinstance(result, Granted):
                entries += result.entries()
                for scope, _ in result.asked:
                    self.full.pop(scope, None)
            elif isinstance(op, Admit) and isinstance(result, Denied) and _means_full(op, result):
                self.full[result.scope] = time.monotonic() + result.wait_s
        self.used = index
        self.own.add(entries)
        for other, tally in enumerate(self.missing):
            if other != index:
                tally.add([e for e in entries if e.amount > 0] if other in self.unsure else entries)
        self.unsure.clear()

    def recent_sums(self, now_ms: int) -> Mapping[tuple[Scope, Metric], int]:
        """What this replica took of each limit in its window, at most `ROOM_S` old: there are thousands of slots."""
        now = time.monotonic()
        if now - self._summed >= ROOM_S:
            self._sums, self._summed = self.own.sums(now_ms), now
        return self._sums

    def room(self, scope: Scope, limits: Mapping[Metric, int], share: float, now_ms: int) -> float:
        """The free share of the tightest of `limits`, of which `share` may be used, and of what the vendor told.

        0 while nobody is let through; infinite where there is no limit.
        """
        now, free = time.monotonic(), math.inf
        held = self.holds.get(scope)
        if (held is not None and held[0] > now) or self.full.get(scope, 0.0) > now:
            return 0.0
        if limits:
            sums = self.recent_sums(now_ms)
            for metric, limit in limits.items():
                free = min(free, 1 - sums.get((scope, metric), 0) / max(1.0, limit * share))
        for word in self.told.get(scope, {}).values():
            if (told := word.free(now)) is not None:
                free = min(free, told)
        return free


def _means_full(op: Admit, denied: Denied) -> bool:
    wanted = ((demand.amount, demand.limit) for demand in op.demands() if demand.scope == denied.scope)
    modest = all(amount <= max(1, limit * MODEST) for amount, limit in wanted if limit is not None)
    return modest and math.isfinite(denied.wait_s)
