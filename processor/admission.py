"""From candidates to the one that may be called now: breakers, pace and limits asked in order, else parked in line."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from aiolimiter import AsyncLimiter

from processor.bookkeeper import BookUnavailable
from processor.bucket import Denied, Need
from processor.budgets import FREE, Exceeded, HeldUp, Price
from processor.catalog import Catalog, CatalogModel
from processor.errors import RequestError
from processor.health import Health, Place, Ticket, places
from processor.limits import Limits, Reservation
from processor.outcome import LONGEST_PARK_S, HandBack, Option, Wait, standstill
from processor.schedule import Schedule
from processor.slots import Dismissed, Slot
from processor.spending import Spending
from processor.subjects import Priority
from processor.tasks import happens
from processor.waiting import Line, Waiter

T = TypeVar("T")

FRESH_S = 0.5
"""How old a reservation should be at most when its call begins …"""
STALE_S = 1.0
"""… and may be where the limits answer slowly: the bucket's guard allows for half as much again."""
HELD_UP_S = 0.25
"""How often a request looks again that waits for what calls under way hold of a budget."""
BUDGET = ""
"""In place of a provider, where a line stands before a budget."""
RESTING = 5
"""How many times as many requests may wait for another's call as for a vendor: one call ends the wait of them all."""
LOOK_AGAIN_S = 1.0
"""How often the first in line asks again: requests that end early, here or on another replica, give room back."""


@dataclass(frozen=True, slots=True)
class Candidature:
    """A model with what this request needs of it. `price` is asked at each try: while it waits, more is learned."""

    model: CatalogModel
    need: Need
    price: Callable[[], Price] = lambda: FREE


@dataclass(slots=True)
class Entrant:
    """A request that wants to call a vendor: its slot, its deadline, and what was said to it so far."""

    slot: Slot
    tenant: str
    deadline: float | None
    """In seconds of the monotonic clock."""
    candidates: Sequence[Candidature]
    passed_over: dict[int, str] = field(default_factory=dict)
    """Why a candidate was last passed over, for `route.considered`."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Candidate `index` may be called, now: what it holds of limits, breakers and (None: of none) of hard budgets."""

    index: int
    reservation: Reservation
    ticket: Ticket
    hold: str | None


@dataclass(frozen=True, slots=True)
class _Blocked:
    """Why an option cannot be called, where the line for it stands (None: it waits by itself), and until when."""

    place: Place | None
    until: float
    why: str
    limited: bool = True
    exceeded: Exceeded | None = None


class HandedBack(Exception):
    """No candidate is free soon, and the request has time: into the queue for `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"handed back for {wait_s:g} s")
        self.wait_s = wait_s


class Parked:
    """How many requests of each lane wait without a slot, and a wait for room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._room: dict[Priority, asyncio.Event] = {p: asyncio.Event() for p in Priority}
        for event in self._room.values():
            event.set()

    @property
    def total(self) -> int:
        return sum(self._count.values())

    async def room(self, priority: Priority) -> None:
        """Return once the lane may take another request: a lane of which enough wait pulls no more."""
        await self._room[priority].wait()

    def change(self, priority: Priority, by: int) -> None:
        self._count[priority] += by
        if self._count[priority] < self._most:
            self._room[priority].set()
        else:
            self._room[priority].clear()


class Admission:
    """Lets requests through to vendors. One per processor.

    `open_provider` makes a provider ready: the first call of one imports its SDK, which takes seconds that must not lie
    between a reservation and its call.
    """

    def __init__(
        self,
        catalog: Catalog,
        limits: Limits,
        health: Health,
        spending: Spending,
        schedule: Schedule,
        *,
        open_provider: Callable[[str], Awaitable[None]],
        max_parked: int,
    ) -> None:
        self._open = open_provider
        self._parked = Parked(max_parked)
        self._resting = Parked(RESTING * max_parked)
        self._limits = limits
        self._health = health
        self._spending = spending
        self._schedule = schedule
        self._lines: dict[Place, Line] = {}
        self._pacers = _pacers(catalog)
        self._inside: set[Waiter] = set()
        self._closed = asyncio.Event()
        health.on_closed(self._reopen)

    @property
    def parked(self) -> int:
        """How many requests wait without a slot."""
        return self._parked.total + self._resting.total

    async def room(self, priority: Priority) -> None:
        """Return once the lane may take another request: a lane of which enough wait pulls no more."""
        await self._parked.room(priority)
        await self._resting.room(priority)

    def close(self) -> None:
        """Park nobody any more: who is parked, or would be, is handed back at once.

        Who wakes now wants a slot again: they are to be dismissed.
        """
        self._closed.set()
        for waiter in self._inside:
            waiter.wake()

    async def enter(
        self, entrant: Entrant, options: Sequence[Option], still_wanted: Callable[[], Awaitable[None]]
    ) -> Admitted:
        """The first option that may be called, parked without a slot until there is one.

        `still_wanted` is asked after each wait, before anything is reserved, and raises where it is not.

        Raises:
            RequestError: `rate_limited` or `unavailable` where none is free before the deadline, `too_large` where the
                request is larger than every limit, `budget_exceeded` where there is no money for any.
            HandedBack: none is free soon, and there is no deadline.
        """
        woken = asyncio.Event()
        waiter = Waiter(entrant.slot.priority, woken.set)
        self._inside.add(waiter)
        try:
            while True:
                woken.clear()
                blocked: dict[Option, _Blocked] = {}
                for option in options:
                    tried = await self._try(entrant, option, waiter)
                    if isinstance(tried, Admitted):
                        return tried
                    blocked[option] = tried
                    entrant.passed_over[option.index] = tried.why
                self._stand_in_line(waiter, blocked.values())
                await self._park(entrant, waiter, blocked, woken)
                await still_wanted()
        finally:
            self._inside.discard(waiter)
            self._leave(waiter)

    async def try_now(self, entrant: Entrant, options: Sequence[Option]) -> Admitted | None:
        """The first option that may be called at this moment, without waiting."""
        passer_by = Waiter(entrant.slot.priority, lambda: None)
        for option in options:
            if isinstance(tried := await self._try(entrant, option, passer_by), Admitted):
                return tried
        return None

    async def rest(self, slot: Slot, waiting: Awaitable[T]) -> T:
        """Wait for what is none of a vendor's business without holding the slot.

        Raises:
            HandedBack: the processor stops.
        """
        waits = asyncio.ensure_future(waiting)
        closes = asyncio.create_task(self._closed.wait())
        self._resting.change(slot.priority, +1)
        try:
            await slot.parked(asyncio.wait({waits, closes}, return_when=asyncio.FIRST_COMPLETED))
            if not waits.done():
                raise HandedBack(0)
            return waits.result()
        except Dismissed:
            raise HandedBack(0) from None
        finally:
            self._resting.change(slot.priority, -1)
            for task in (waits, closes):
                task.cancel()
            await asyncio.wait({waits, closes})

    def drop(self, model: CatalogModel, admitted: Admitted) -> None:
        """Give back what a call holds that is not made."""
        self._limits.settle(admitted.reservation, None)
        self._health.abandoned(model, admitted.ticket)
        self._spending.settle(admitted.hold, None)

    async def _try(self, entrant: Entrant, option: Option, waiter: Waiter) -> Admitted | _Blocked:
        now = time.monotonic()
        model, need = entrant.candidates[option.index].model, entrant.candidates[option.index].need
        if option.not_before > now:
            return _Blocked(None, option.not_before, "it failed, and is tried again later", option.limited)
        critical = waiter.priority is Priority.CRITICAL
        price = entrant.candidates[option.index].price()
        stops = (*places(model), *((BUDGET, label) for label in self._spending.limiting(entrant.tenant, price)))
        for place in stops:
            if (line := self._lines.get(place)) is None:
                continue
            if not line.may_try(waiter):
                return _Blocked(place, max(now, line.open_at), "others wait for it before")
            critical = critical or line.is_overdue(waiter)
        if (unwell := self._unwell(model)) is not None:
            return unwell
        await self._open(model.provider)
        hold = await self._hold(entrant.tenant, price)
        if isinstance(hold, _Blocked):
            return hold
        try:
            reserved = await self._paced(model, need, critical=critical)
        except BaseException:
            self._spending.settle(hold, None)
            raise
        if isinstance(reserved, _Blocked):
            self._spending.settle(hold, None)
            return reserved
        reservation, ticket = reserved
        entrant.passed_over.pop(option.index, None)
        for place in stops:
            if (line := self._lines.get(place)) is not None:
                line.passed(waiter.priority)
        return Admitted(option.index, reservation, ticket, hold)

    async def _hold(self, tenant: str, price: Price) -> str | _Blocked | None:
        """What hard budgets hold for the call.

        They are asked before pace and limits, which belong to all tenants: who waits for its own budget uses up none.
        """
        try:
            held = await self._spending.reserve(tenant, price)
        except BookUnavailable:
            return _Blocked(None, time.monotonic() + LOOK_AGAIN_S, "what its budget has left cannot be read")
        match held:
            case Exceeded():
                return _Blocked(None, math.inf, held.why, exceeded=held)
            case HeldUp(budget):
                until = time.monotonic() + HELD_UP_S
                return _Blocked((BUDGET, budget.label), until, f"calls under way may use up {budget.label}")
            case _:
                return held

    async def _paced(self, model: CatalogModel, need: Need, *, critical: bool) -> tuple[Reservation, Ticket] | _Blocked:
        if (unwell := self._unwell(model)) is not None:  # it may have become so while its budget was asked
            return unwell
        now = time.monotonic()
        if (pacer := self._pacers.get(model.provider)) is not None:
            if not pacer.has_capacity():
                return _Blocked((model.provider, ""), now + pacer.time_period, "its requests are spaced")
            await pacer.acquire()
        reserved = await self._reserve(model, need, critical=critical)
        if isinstance(reserved, Denied):
            return _Blocked((model.provider, reserved.scope), now + reserved.wait_s, reserved.why)
        return reserved

    def _unwell(self, model: CatalogModel) -> _Blocked | None:
        if (unwell := self._health.refusal(model)) is None:
            return None
        return _Blocked(unwell.place, time.monotonic() + unwell.wait_s, unwell.why, limited=False)

    async def _reserve(self, model: CatalogModel, need: Need, *, critical: bool) -> tuple[Reservation, Ticket] | Denied:
        """A reservation of this moment: one that was long in coming is given back, for its window began long ago."""
        ticket = self._health.started(model)
        try:
            for oldest_s in (FRESH_S, STALE_S):
                asked = time.monotonic()
                reserved = await self._limits.reserve(model, need, critical=critical)
                if isinstance(reserved, Denied):
                    self._health.abandoned(model, ticket)
                    return reserved
                if time.monotonic() - asked < oldest_s:
                    return reserved, ticket
                self._limits.settle(reserved, None)
        except BaseException:
            self._health.abandoned(model, ticket)
            raise
        self._health.abandoned(model, ticket)
        return Denied(LOOK_AGAIN_S, "", "its limits are slow to answer")

    def _stand_in_line(self, waiter: Waiter, blocked: Collection[_Blocked]) -> None:
        """In the line of each place that stopped it and will be free soon, and in no other."""
        soon = time.monotonic() + LONGEST_PARK_S
        places = {b.place: b.until for b in blocked if b.place is not None and b.until <= soon}
        for place, until in places.items():
            line = self._lines.setdefault(place, Line(self._schedule))
            line.join(waiter)
            line.open_at = until
        self._leave(waiter, all_but=places)

    def _leave(self, waiter: Waiter, *, all_but: Collection[Place] = ()) -> None:
        for place in [place for place, line in self._lines.items() if waiter in line and place not in all_but]:
            self._lines[place].leave(waiter)
            if not self._lines[place]:
                del self._lines[place]

    async def _park(
        self, entrant: Entrant, waiter: Waiter, blocked: Mapping[Option, _Blocked], woken: asyncio.Event
    ) -> None:
        """Give the slot up until one of the options may be free; then take one again."""
        if self._closed.is_set():
            raise HandedBack(0)
        now = time.monotonic()
        waits = [
            Wait(
                option.index,
                b.until - now,
                f"{entrant.candidates[option.index].model.alias}: {b.why}",
                b.limited,
                b.exceeded,
            )
            for option, b in blocked.items()
        ]
        left_s = None if entrant.deadline is None else entrant.deadline - now
        decision = standstill(waits, left_s)
        match decision:
            case RequestError():
                raise decision
            case HandBack(wait_s):
                raise HandedBack(wait_s)
        priority = entrant.slot.priority
        self._parked.change(priority, +1)
        try:
            await entrant.slot.parked(happens(woken, self._sleep_s(waiter, blocked.values(), now)))
        except Dismissed:
            raise HandedBack(0) from None
        finally:
            self._parked.change(priority, -1)

    def _sleep_s(self, waiter: Waiter, blocked: Collection[_Blocked], now: float) -> float:
        """Until it may try again, unless it is woken: who stands behind others in a line is, when it is the first."""
        until = now + LONGEST_PARK_S
        for one in blocked:
            line = self._lines.get(one.place) if one.place is not None else None
            if line is None or waiter not in line:
                until = min(until, one.until)
            elif line.first() is waiter:
                until = min(until, one.until, now + LOOK_AGAIN_S)
        return max(0.0, until - now)

    def _reopen(self, place: Place) -> None:
        """A breaker closed: whoever waits for it need not wait longer."""
        if (line := self._lines.get(place)) is not None and (first := line.first()) is not None:
            line.open_at = 0.0
            first.wake()


def _pacers(catalog: Catalog) -> Mapping[str, AsyncLimiter]:
    return {provider: AsyncLimiter(1, 1 / limits.pace) for provider, limits in catalog.limits.items() if limits.pace}
