"""Who may work: `MAX_WORKERS` slots, each given to the most urgent who waits; a parked request holds none."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar

from processor.schedule import Schedule, slots_for
from processor.subjects import Priority

T = TypeVar("T")


class Slots:
    """`kept` of `total` slots are only for critical; the rest go by `schedule`."""

    def __init__(self, total: int, kept: int, schedule: Schedule) -> None:
        self._total = total
        self._most_of_lower = slots_for(Priority.HIGH, total, kept)
        self._schedule = schedule
        self._taken: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._waiting: dict[Priority, deque[asyncio.Future[None]]] = {p: deque() for p in Priority}

    @property
    def taken(self) -> int:
        return sum(self._taken.values())

    async def acquire(self, priority: Priority, *, first: bool = False) -> None:
        """Wait for a slot; with `first`, before all others of the lane."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._waiting[priority]
        line.appendleft(turn) if first else line.append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                line.remove(turn)
            else:  # it was granted in the same moment
                self.release(priority)
            raise

    def release(self, priority: Priority) -> None:
        self._taken[priority] -= 1
        self._grant()

    def _grant(self) -> None:
        while waiting := {p: turn for p in Priority if self._may_start(p) and (turn := self._next(p)) is not None}:
            priority, self._schedule = self._schedule.pick(waiting)
            self._taken[priority] += 1
            self._waiting[priority].remove(waiting[priority])
            waiting[priority].set_result(None)

    def _next(self, priority: Priority) -> asyncio.Future[None] | None:
        """The lane's first who still waits: one that was cancelled stands there until its task has run."""
        return next((turn for turn in self._waiting[priority] if not turn.done()), None)

    def _may_start(self, priority: Priority) -> bool:
        if self.taken >= self._total:
            return False
        return priority is Priority.CRITICAL or self.taken - self._taken[Priority.CRITICAL] < self._most_of_lower


class Slot:
    """One request's hold on a slot, taken when it starts and given up while it is parked."""

    def __init__(self, slots: Slots, priority: Priority) -> None:
        self.priority = priority
        self._slots = slots
        self._held = False

    async def acquire(self, *, first: bool = False) -> None:
        await self._slots.acquire(self.priority, first=first)
        self._held = True

    def release(self) -> None:
        """Give it back; once is enough."""
        if self._held:
            self._held = False
            self._slots.release(self.priority)

    async def parked(self, waiting: Awaitable[T]) -> T:
        """Wait without the slot, then take one again before the lane's new requests; none if it is cancelled."""
        self.release()
        result = await waiting
        await self.acquire(first=True)
        return result
