"""Who may work: `MAX_WORKERS` slots, each given to the most urgent who waits; a parked request holds none."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import TypeVar

from processor.schedule import Schedule, slots_for
from processor.subjects import Priority

T = TypeVar("T")


class Dismissed(Exception):
    """No slot for those who come back: this processor stops."""


class Slots:
    """`kept` of `total` slots are only for critical; the rest go by `schedule`.

    In a lane, who comes back from a wait goes before who is new.
    """

    def __init__(self, total: int, kept: int, schedule: Schedule) -> None:
        self._total = total
        self._most_of_lower = slots_for(Priority.HIGH, total, kept)
        self._schedule = schedule
        self._taken: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self._returning: dict[Priority, deque[asyncio.Future[None]]] = {p: deque() for p in Priority}
        self._new: dict[Priority, deque[asyncio.Future[None]]] = {p: deque() for p in Priority}
        self._dismissed = False

    @property
    def taken(self) -> int:
        return sum(self._taken.values())

    async def acquire(self, priority: Priority, *, returning: bool = False) -> None:
        """Wait for a slot. Raises Dismissed, where one returns, after `dismiss`."""
        if returning and self._dismissed:
            raise Dismissed
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = (self._returning if returning else self._new)[priority]
        line.append(turn)
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                line.remove(turn)
            elif turn.exception() is None:  # it was granted in the same moment
                self.release(priority)
            raise

    def release(self, priority: Priority) -> None:
        self._taken[priority] -= 1
        self._grant()

    def dismiss(self) -> None:
        """From now on, who comes back from a wait gets no slot."""
        self._dismissed = True
        for line in self._returning.values():
            while line:
                if not (turn := line.popleft()).done():
                    turn.set_exception(Dismissed())

    def _grant(self) -> None:
        while True:
            waiting = {p: found for p in Priority if (found := self._next(p)) is not None}
            startable = [p for p in waiting if self._may_start(p)]
            if not startable:
                return
            priority, self._schedule = self._schedule.pick(startable, held_up=waiting)
            line, turn = waiting[priority]
            self._taken[priority] += 1
            line.remove(turn)
            turn.set_result(None)

    def _next(self, priority: Priority) -> tuple[deque[asyncio.Future[None]], asyncio.Future[None]] | None:
        """The lane's first who still waits: one that was cancelled stands there until its task has run."""
        for line in (self._returning[priority], self._new[priority]):
            for turn in line:
                if not turn.done():
                    return line, turn
        return None

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

    async def acquire(self, *, returning: bool = False) -> None:
        await self._slots.acquire(self.priority, returning=returning)
        self._held = True

    def release(self) -> None:
        """Give it back; once is enough."""
        if self._held:
            self._held = False
            self._slots.release(self.priority)

    async def parked(self, waiting: Awaitable[T]) -> T:
        """Wait without the slot, then take one again before the lane's new requests; none if it is cancelled.

        Raises:
            Dismissed: the processor stops.
        """
        self.release()
        result = await waiting
        await self.acquire(returning=True)
        return result
