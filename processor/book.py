"""The ledger's book: how far the audit log is counted, what is spent and held of budgets, which alarms were told. Pure.

One JSON document that all replicas change by compare and set. What is about to be added to the counters is written
down here first, with what they held before: whoever finds it unfinished can tell what was done of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

import msgspec

from processor.budgets import Budget, Exceeded, HeldUp, Price, accounts_of, admit
from processor.spend import Folded

VERSION = 1
MAX_HOLDS = 5_000
MAX_TOLD = 10_000
MAX_WRITES = 50
LEASE_S = 120.0
"""How long a hold lasts whose replica says nothing more of it."""
SETTLED_S = 3600.0
"""How long what a call did cost counts as spent without being counted: its event may be late, or lost."""
KEPT = timedelta(days=1)
"""For how long after its end a period is remembered: replicas' clocks differ, and its last alarms come late."""


@dataclass(frozen=True, slots=True)
class Change:
    """One counter: its subject, what it held before, and what is added."""

    subject: str
    before: int
    amount: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Audit events up to the sequence number `to`, on their way into the counters since `at_ms`.

    `log` says which audit log that is: the time it was made.
    """

    id: str
    to: int
    at_ms: int
    log: str
    changes: tuple[Change, ...]
    spent: Mapping[str, int]
    holds: tuple[str, ...]

    @classmethod
    def of(cls, folded: Folded, before: Mapping[str, int], *, entry_id: str, to: int, at_ms: int, log: str) -> Entry:
        spent: dict[str, int] = {}
        for (day, tenant), cost in folded.costs.items():
            for name in accounts_of(day, tenant):
                spent[name] = spent.get(name, 0) + cost
        changes = (Change(c.subject, before.get(c.subject, 0), amount) for c, amount in sorted(folded.cells.items()))
        return cls(entry_id, to, at_ms, log, tuple(changes), spent, tuple(folded.holds))


@dataclass(slots=True)
class Hold:
    """What a call may cost at most, or, when it has ended, did cost: until it is counted, or its lease ends."""

    tenant: str
    most: int
    until_ms: int
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Reserve:
    """Let a call through and hold what it may cost. The same `token` twice is one hold."""

    token: str
    tenant: str
    price: Price


@dataclass(frozen=True, slots=True)
class Settle:
    """A call has ended: it cost `actual` pico-dollars. None: it was never made."""

    token: str
    actual: int | None


@dataclass(frozen=True, slots=True)
class Renew:
    """These calls are still under way."""

    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Begin:
    """Write down what is about to be counted, unless somebody else is about to, or was faster."""

    position: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class Finish:
    """The entry is in the counters."""

    entry_id: str


@dataclass(frozen=True, slots=True)
class Open:
    """What was spent in accounts that the book does not have, as the counters said at `position`."""

    position: int
    spent: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Told:
    """These alarms are told now. Answered by those that nobody had told before."""

    keys: tuple[str, ...]


Op = Reserve | Settle | Renew | Begin | Finish | Open | Told
Result = HeldUp | Exceeded | bool | tuple[str, ...] | None


@dataclass(slots=True)
class Book:
    """`position`: the last event of the audit log `log` that is counted, -1 in a book that is new. `spent`:
    pico-dollars by account."""

    position: int = -1
    log: str = ""
    entry: Entry | None = None
    spent: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    holds: dict[str, Hold] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    """The last `MAX_WRITES`, by name: whose answer was lost finds it here, though others have written since."""

    def encode(self) -> bytes:
        # Not orjson: its whole numbers end at 64 bits, which are 18 million dollars.
        return msgspec.json.encode(_Written(VERSION, self), order="deterministic")

    @classmethod
    def decode(cls, body: bytes) -> Book:
        """Raises ValueError for what is no book."""
        written = msgspec.json.decode(body, type=_Written)
        if written.v != VERSION:
            raise ValueError(f"a book of version {written.v}")
        return written.book

    def apply(self, op: Op, budgets: Sequence[Budget], now: datetime) -> Result:
        """Change the book. Every operation may come a second time without harm: nobody knows what a lost answer did.

        Returns:
            Of Reserve None, or why not; of Begin and Open whether it was done; of Told what is new.
        """
        lease = int((now.timestamp() + LEASE_S) * 1000)
        match op:
            case Reserve():
                return self._reserve(op, budgets, now, lease)
            case Settle(token, actual):
                if (hold := self.holds.pop(token, None)) is not None and actual:
                    until_ms = int((now.timestamp() + SETTLED_S) * 1000)
                    self.holds[token] = Hold(hold.tenant, actual, until_ms, settled=True)
            case Renew(tokens):
                for token in tokens:
                    if (hold := self.holds.get(token)) is not None:
                        hold.until_ms = lease
            case Begin(position, entry):
                if self.entry is not None or self.position != position:
                    return self.entry is not None and self.entry.id == entry.id
                self.entry = entry
                return True
            case Finish(entry_id):
                if self.entry is not None and self.entry.id == entry_id:
                    self._finish(self.entry, now.date())
            case Open(position, spent):
                if self.entry is not None or self.position != position:
                    return False
                self.spent = {**spent, **self.spent}
                return True
            case Told(keys):
                new = tuple(key for key in keys if key not in self.told)
                self.told = [*self.told, *new][-MAX_TOLD:]
                return new
        return None

    def _reserve(self, op: Reserve, budgets: Sequence[Budget], now: datetime, lease: int) -> HeldUp | Exceeded | None:
        self.holds = {token: hold for token, hold in self.holds.items() if hold.until_ms > now.timestamp() * 1000}
        if op.token in self.holds:
            return None
        held, spent = [], dict(self.spent)
        for hold in self.holds.values():
            if not hold.settled:
                held.append((hold.tenant, hold.most))
                continue
            for name in accounts_of(now.date(), hold.tenant):
                if name in spent:
                    spent[name] += hold.most
        refused = admit(budgets, op.tenant, op.price, spent, held, now)
        if refused is None and len(self.holds) >= MAX_HOLDS:
            refused = HeldUp(next(budget for budget in budgets if budget.hard and budget.concerns(op.tenant)))
        if refused is None:
            self.holds[op.token] = Hold(op.tenant, op.price.most, lease)
        return refused

    def _finish(self, entry: Entry, today: date) -> None:
        """Only accounts that somebody opened are kept, and with what was told only those whose period is not over."""
        self.position, self.log, self.entry = entry.to, entry.log, None
        for name, amount in entry.spent.items():
            if name in self.spent:
                self.spent[name] += amount
        self.spent = {name: amount for name, amount in self.spent.items() if not _is_over(name, today)}
        self.told = [key for key in self.told if not _is_over(key, today)]
        for token in entry.holds:
            self.holds.pop(token, None)


@dataclass(frozen=True, slots=True)
class _Written:
    v: int
    book: Book


def _is_over(name: str, today: date) -> bool:
    """Whether the day or month in which the name of an account or alarm ends has been over for a while."""
    period = name.rpartition("|")[2]
    return period < (today - KEPT).isoformat()[: len(period)]
