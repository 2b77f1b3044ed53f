"""The line before a vendor's limit: who may try next, so that nobody overtakes who has waited longer or matters more.

No clock and no task: whoever waits sleeps by itself, and is woken when it becomes the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from processor.schedule import Schedule
from processor.subjects import Priority


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that waits, in one line for each of its candidates."""

    priority: Priority
    wake: Callable[[], None]
    """Called when it becomes the first of a line."""


@dataclass(slots=True)
class Line:
    """Those who wait for one limit, the most urgent first, each lower priority with its guaranteed share.

    `open_at` is when the limit may have room again, as the last who tried was told, in seconds of the caller's clock.
    """

    schedule: Schedule
    open_at: float = 0.0
    _waiting: dict[Priority, deque[Waiter]] = field(default_factory=lambda: {p: deque() for p in Priority})
    _turn: Priority | None = None
    """The lane whose share is due, where that is not the most urgent one."""

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._waiting[waiter.priority]

    def join(self, waiter: Waiter) -> None:
        if waiter not in self:
            self._waiting[waiter.priority].append(waiter)

    def leave(self, waiter: Waiter) -> None:
        """It goes: through the limit, or elsewhere. If it was the first, the next one is woken."""
        if waiter not in self:
            return
        first = self.first()
        self._waiting[waiter.priority].remove(waiter)
        self._wake_unless(first)

    def passed(self, priority: Priority) -> None:
        """One of that priority went through, from the line or past it: those who wait longer gain their share."""
        if not self:
            return
        first = self.first()
        lanes = [p for p in Priority if self._waiting[p] or p is priority]
        chosen, self.schedule = self.schedule.pick(lanes)
        self._turn = chosen if chosen is not lanes[0] else None
        self._wake_unless(first)

    def _wake_unless(self, before: Waiter | None) -> None:
        if (first := self.first()) is not None and first is not before:
            first.wake()

    def wake_all(self) -> None:
        for line in self._waiting.values():
            for waiter in line:
                waiter.wake()

    def first(self) -> Waiter | None:
        lanes = [p for p in Priority if self._waiting[p]]
        if not lanes:
            return None
        return self._waiting[self._due() or lanes[0]][0]

    def may_try(self, waiter: Waiter) -> bool:
        """Whether nobody stands before it: it is the first here, or would be."""
        first = self.first()
        if first is None or first is waiter:
            return True
        return waiter not in self and self._due() is None and waiter.priority.before(first.priority)

    def _due(self) -> Priority | None:
        return self._turn if self._turn is not None and self._waiting[self._turn] else None
