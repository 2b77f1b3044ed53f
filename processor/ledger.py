"""The ledger: counts what the audit log says was spent into `LLM_SPEND`, each event once whatever crashes meanwhile.

Nothing is counted where it happens. Some replica reads the audit log on from where the book stands, writes into the
book what it is about to add and what the counters hold, adds it, and moves the book on. Whoever finds such an entry
unfinished compares: a counter that holds what it held before has yet to be added to, one that holds the sum has been.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, TypeVar

import nats.errors
import orjson
import structlog
from nats.aio.client import Client
from pydantic import ValidationError

from processor import jetstream, subjects
from processor.alerts import Alerts
from processor.audit_events import AuditEntry, decode_event
from processor.book import Begin, Book, Change, Entry, Finish, Open, Told
from processor.bookkeeper import Bookkeeper, BookTooLarge, BookUnavailable
from processor.budgets import Alarm, Budget, accounts_of, alarms
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.spend import Cell, Folded, Unit, fold
from processor.tasks import happens

LOOK_EVERY_S: Final = 1.0
IDLE_EVERY_S: Final = 5.0
"""How often a replica looks that has spent nothing itself: another one may have died meanwhile."""
BATCH: Final = 500
BATCH_BYTES: Final = 4 * 1024 * 1024
TAKE_OVER_S: Final = 15.0
"""An entry that is unfinished for so long is left: whoever began it adds nothing more, and another one finishes it."""
TRY_S: Final = 2.0
AT_ONCE: Final = 50
"""Counters that are read or added to at the same time."""
PAUSE_S: Final = 0.25
LATE: Final = timedelta(hours=1)
"""For how long after its end a period's alarms are told: `KEPT`, for which they are remembered, is longer."""
OPEN_BEFORE: Final = timedelta(hours=1)
"""How long before a day begins its accounts are opened: a hard budget without an account lets nobody through."""
_COUNTED: Final = tuple(f"llm.audit.{event}." for event in (subjects.AuditEvent.ATTEMPT, subjects.AuditEvent.COMPLETED))
_TROUBLE = (BookUnavailable, JetStreamError, JetStreamUnavailable, MessageTooLarge, nats.errors.Error, OSError)

log = structlog.get_logger(__name__)


class Ledger:
    """Keeps the counters and the budgets' accounts up with the audit log, and raises the budgets' alarms."""

    def __init__(
        self,
        bus: Bus,
        bookkeeper: Bookkeeper,
        budgets: Sequence[Budget],
        alerts: Alerts,
        *,
        saving_from: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._keeper = bookkeeper
        self._budgets = budgets
        self._alerts = alerts
        self._saving_from = saving_from
        self._now = now
        self._spent_here = asyncio.Event()
        self._batch = BATCH
        """Fewer where an entry of so many events was too large for the broker."""
        self._is_bare = False
        """The audit log was read, and there is nothing in it for the counters to hold."""
        self._unfinished = ("", 0.0)
        """The entry that was last seen unfinished, and since when, in seconds of the monotonic clock."""

    def spent(self) -> None:
        """This replica has spent something: look soon."""
        self._spent_here.set()

    async def run(self) -> None:
        """Count for ever."""
        while True:
            behind = False
            try:
                behind = await self.count()
            except _TROUBLE as error:
                log.warning("ledger: counted later", error=str(error) or repr(error))
            if not behind:
                await self._rest()

    async def _rest(self) -> None:
        await asyncio.sleep(LOOK_EVERY_S * random.uniform(0.5, 1.5))
        await happens(self._spent_here, IDLE_EVERY_S)
        self._spent_here.clear()

    async def count(self) -> bool:
        """Count the next events; whether there are more.

        Raises:
            BookUnavailable, JetStreamError, JetStreamUnavailable: the broker is in trouble; try again later.
        """
        book = await self._keeper.look()
        if book.entry is not None:
            if not self._is_left(book.entry):
                return False
            log.warning("ledger: finishing what another replica began", entry=book.entry.id)
            await self._finish(book.entry, resumed=True)
            return True
        audit = await self._info(subjects.AUDIT)
        if await self._begins_elsewhere(book, audit):
            return True
        await self._open_accounts(book)
        await self._tell_alarms()
        events, pending = await self._events(book.position, self._batch)
        if not events:
            return False
        folded = fold(_read(event for event in events if event.subject.startswith(_COUNTED)))
        before = await self._totals(cell.subject for cell in folded.cells)
        try:
            await self._enter(book, Entry.of(folded, before, to=events[-1].seq, **self._stamp(audit)))
        except BookTooLarge:
            self._batch = max(1, len(events) // 2)
            raise
        self._batch = min(BATCH, 2 * self._batch)
        await self._tell_alarms()
        return pending > 0

    async def _enter(self, book: Book, entry: Entry) -> None:
        if await self._keeper.do(Begin(book.position, entry)):
            await self._finish(entry, resumed=False)

    async def _info(self, stream: str) -> Any:
        return await jetstream.call(self._bus.nc, f"STREAM.INFO.{stream}")

    def _stamp(self, audit: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "entry_id": secrets.token_hex(8),
            "at_ms": int(self._now().timestamp() * 1000),
            "log": audit["created"],
        }

    def _is_left(self, entry: Entry) -> bool:
        """Whether whoever began the entry has had its time: by the clock or, should one be wrong, since it was seen."""
        if self._unfinished[0] != entry.id:
            self._unfinished = (entry.id, time.monotonic())
        age_s = self._now().timestamp() - entry.at_ms / 1000
        return age_s >= TAKE_OVER_S or time.monotonic() - self._unfinished[1] >= TAKE_OVER_S

    async def _begins_elsewhere(self, book: Book, audit: Mapping[str, Any]) -> bool:
        """Set right what was lost: the book, the counters, or the audit log, all of it or its end."""
        has_counters = (await self._info(subjects.SPEND))["state"]["messages"] > 0
        last = audit["state"]["last_seq"]
        if book.position < 0 and has_counters:
            log.warning("ledger: the book is lost; the counters are compared with the audit log")
            await self._recount(book, audit, to=last)
        elif book.position >= 0 and book.log != audit["created"]:
            log.warning("ledger: the audit log is a new one; it is counted from its beginning", was=book.position)
            await self._enter(book, Entry.of(Folded(), {}, to=0, **self._stamp(audit)))
        elif book.position > last:
            log.error("ledger: the audit log has lost its end, which was counted before", lost=book.position - last)
            await self._enter(book, Entry.of(Folded(), {}, to=last, **self._stamp(audit)))
        elif book.position > 0 and not has_counters and not self._is_bare:
            await self._recount(book, audit, to=book.position)
            self._is_bare = True  # should nothing in it have cost anything, it is not read again and again
        else:
            self._is_bare = self._is_bare and not has_counters
            return False
        return True

    async def _recount(self, book: Book, audit: Mapping[str, Any], *, to: int) -> None:
        """Set the counters to what the audit log says up to event `to`, each by what it is off.

        Where the log is not whole, the days it has lost events of, its first one too, are left as they are.
        """
        cells, position, pending = Counter[Cell](), 0, 1
        first_day, whole = date.min, audit["state"]["first_seq"] <= 1
        while pending and position < to:
            events, pending = await self._events(position)
            events = [event for event in events if event.seq <= to]
            if not events:
                break
            if not whole and position == 0:
                first_day = events[0].time.date() + timedelta(days=1)
            position = events[-1].seq
            cells.update(fold(_read(event for event in events if event.subject.startswith(_COUNTED))).cells)
        before = await self._totals(cell.subject for cell in cells)
        off = {c: amount - before.get(c.subject, 0) for c, amount in cells.items() if c.day >= first_day}
        folded = Folded(Counter({cell: amount for cell, amount in off.items() if amount}))
        if folded.cells:
            log.warning("ledger: counters are set to what the audit log says", counters=len(folded.cells))
        await self._enter(book, Entry.of(folded, before, to=to, **self._stamp(audit)))

    async def _events(self, position: int, most: int = BATCH) -> tuple[list[StoredMessage], int]:
        query = {"seq": max(0, position) + 1, "next_by_subj": "llm.audit.*.*", "batch": most, "max_bytes": BATCH_BYTES}
        return await jetstream.batch(self._bus.nc, subjects.AUDIT, query)

    async def _finish(self, entry: Entry, *, resumed: bool) -> None:
        """Add what is in the entry, for as long as it is certain that nobody else does."""
        begun = self._now().timestamp() if resumed else entry.at_ms / 1000

        async def add(numbered: tuple[int, Change]) -> None:
            await self._add(entry, *numbered, until=begun + TAKE_OVER_S, resumed=resumed)

        await _each(add, enumerate(entry.changes))
        await self._keeper.do(Finish(entry.id))

    async def _add(self, entry: Entry, number: int, change: Change, *, until: float, resumed: bool) -> None:
        if resumed:
            now = (await self._totals([change.subject])).get(change.subject, 0)
            if now == change.before + change.amount:
                return
            if now != change.before:  # somebody else writes here; the message id decides while the server remembers it
                log.error("ledger: a counter was changed by another hand", counter=change.subject, value=now)
        headers = {"Nats-Incr": f"{change.amount:+d}", "Nats-Msg-Id": f"{entry.id}:{number}"}
        while self._now().timestamp() < until:  # who was suspended may wake when its message ids are long forgotten
            try:
                await jetstream.publish(self._bus, change.subject, b"", headers, timeout_s=TRY_S)
            except JetStreamUnavailable:
                await asyncio.sleep(PAUSE_S)
            else:
                return
        raise JetStreamUnavailable(f"entry {entry.id} is not added in time, and left")

    async def _totals(self, counters: Iterable[str]) -> dict[str, int]:
        """What the counters hold; one that does not exist yet is left out."""
        found: dict[str, int] = {}

        async def read(subject: str) -> None:
            query = {"last_by_subj": subject}
            if (message := await jetstream.leaders_message(self._bus.nc, subjects.SPEND, query)) is not None:
                found[subject] = value(message)

        await _each(read, counters)
        return found

    async def _open_accounts(self, book: Book) -> None:
        """Give every budget its account, with what the counters say was spent in its period before."""
        now = self._now()
        for day in {now.date(), (now + OPEN_BEFORE).date()}:
            missing = {b.account(day): b for b in self._budgets if b.account(day) not in book.spent}
            if not missing:
                continue
            spent = dict.fromkeys(missing, 0)
            first = min(budget.period.first_day(day) for budget in missing.values())
            async for cell, amount in cells(self._bus.nc, _days(first, day)):
                if cell.unit is Unit.COST:
                    for name in accounts_of(cell.day, cell.tenant):
                        if name in spent:
                            spent[name] += amount
            await self._keeper.do(Open(book.position, spent))

    async def _tell_alarms(self) -> None:
        """Tell what nobody has told, no more at once than can be sent; of the last period too: it is counted late."""
        book, now = self._keeper.seen, self._now()
        due: dict[str, Alarm] = {}
        for day in {now.date(), (now - LATE).date()}:
            due |= {alarm.key: alarm for alarm in alarms(self._budgets, book.spent, day, self._saving_from)}
        told = set(book.told)
        if untold := [key for key in due if key not in told][: self._alerts.room]:
            new = await self._keeper.do(Told(tuple(untold)))
            assert isinstance(new, tuple)
            for alarm in map(due.__getitem__, new):
                self._alerts.tell(alarm.severity, alarm.kind, alarm.message)


T = TypeVar("T")


async def _each(do: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """`AT_ONCE` at a time; raises the first error once the others of its time have ended."""
    left = iter(items)
    while some := list(itertools.islice(left, AT_ONCE)):
        for error in await asyncio.gather(*map(do, some), return_exceptions=True):
            if error is not None:
                raise error


def value(message: StoredMessage) -> int:
    """What a counter's message says. Raises ValueError for what is no counter."""
    return int(orjson.loads(message.body)["val"])


def _read(events: Iterable[StoredMessage]) -> Iterable[AuditEntry]:
    """The events that can be read. One of a version that is not ours counts nothing, and is told."""
    for event in events:
        try:
            yield decode_event(event.body)
        except ValidationError as error:
            log.error(
                "ledger: an audit event that cannot be read is not counted", seq=event.seq, error=str(error)[:500]
            )


def _days(first: date, last: date) -> list[date]:
    return [first + timedelta(days=n) for n in range((last - first).days + 1)]


async def cells(nc: Client, days: Sequence[date] | None = None) -> AsyncIterator[tuple[Cell, int]]:
    """The counters of these days, or all, and what they hold.

    Raises:
        JetStreamError, JetStreamUnavailable: they cannot be read.
    """
    for day in ("*",) if days is None else map(str, days):
        query: Mapping[str, object] = {"next_by_subj": f"llm.spend.{day}.*.*.*", "batch": 1000}
        seq, pending = 1, 1
        while pending:
            found, pending = await jetstream.batch(nc, subjects.SPEND, {**query, "seq": seq})
            for message in found:
                try:
                    cell = Cell.of(message.subject)
                except ValueError as error:
                    log.warning("a counter that is none of ours", error=str(error))
                    continue
                yield cell, value(message)
            if not found:
                break
            seq = found[-1].seq + 1
