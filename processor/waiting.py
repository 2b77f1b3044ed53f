"""The line before a vendor's limit: who may try next, so that nobody overtakes who has waited longer or matters more.

No clock and no task: whoever waits sleeps by itself, and is woken when it becomes the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from processor.schedule import Schedule
from processor.subjects import Priority

PASSES: Final = 50
"""So many critical requests may go past a lower lane whose share is due: it waits for its slot or its part of a limit,
which an alert must not wait for, but not for ever."""


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
    """The lane whose share is due, where that is not the most urgent one …"""
    _passed_by: int = 0
    """… and how many critical requests went past it since."""

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
        if self._turn is not None and self._due() is None:
            self._turn, self._passed_by = None, 0
        self._wake_unless(first)

    def passed(self, priority: Priority) -> None:
        """One of that priority went through, from the line or past it: those who wait longer gain their share."""
        if not self:
            return
        first = self.first()
        if priority is Priority.CRITICAL and self._due() is not None:
            self._passed_by += 1
        else:
            lanes = [p for p in Priority if self._waiting[p] or p is priority]
            chosen, self.schedule = self.schedule.pick(lanes)
            self._turn, self._passed_by = chosen if chosen is not lanes[0] else None, 0
        self._wake_unless(first)

    def _wake_unless(self, before: Waiter | None) -> None:
        if (first := self.first()) is not None and first is not before:
            first.wake()

    def first(self) -> Waiter | None:
        lanes = [p for p in Priority if self._waiting[p]]
        if not lanes:
            return None
        due = self._due()
        if due is None or (lanes[0] is Priority.CRITICAL and not self._is_overdue):
            return self._waiting[lanes[0]][0]
        return self._waiting[due][0]

    def may_try(self, waiter: Waiter) -> bool:
        """Whether nobody stands before it: it is the first here, or would be."""
        first = self.first()
        if first is None or first is waiter:
            return True
        if waiter in self or not waiter.priority.before(first.priority):
            return False
        return self._due() is None or (waiter.priority is Priority.CRITICAL and not self._is_overdue)

    def is_overdue(self, waiter: Waiter) -> bool:
        """Whether it is the first and has been passed by so often that it may use what is kept for critical."""
        return self._is_overdue and self.first() is waiter

    @property
    def _is_overdue(self) -> bool:
        return self._passed_by >= PASSES and self._due() is not None

    def _due(self) -> Priority | None:
        return self._turn if self._turn is not None and self._waiting[self._turn] else None
