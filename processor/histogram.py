"""Durations counted in fixed buckets, over all time and over the last minutes: mergeable, and of bounded size. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

BOUNDS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 1800.0),
)
"""Upper ends of the buckets, included, in seconds; one more bucket holds what is longer."""
SLOT_S: Final = 10.0
RECENT_S: Final = 300.0

T = TypeVar("T")


@dataclass(slots=True)
class Histogram:
    """How many durations fell into each bucket of `BOUNDS_S` and beyond, and their sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one; a negative one, as clocks that differ give, counts as 0."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def take_in(self, other: Histogram) -> None:
        self.counts = [mine + others for mine, others in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s


class Recent(Generic[T]):
    """What was counted in the last `RECENT_S`, in slots of `SLOT_S`, each of which holds what `make` gives.

    `now` is in seconds of any one clock that does not go back.
    """

    __slots__ = ("_make", "_slots")

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._slots: deque[tuple[float, T]] = deque(maxlen=round(RECENT_S / SLOT_S))

    def at(self, now: float) -> T:
        """The slot to count in at this moment."""
        if not self._slots or now - self._slots[-1][0] >= SLOT_S:
            self._slots.append((now - now % SLOT_S, self._make()))
        return self._slots[-1][1]

    def within(self, now: float, seconds: float = RECENT_S) -> Iterator[T]:
        """The slots that hold something of the last `seconds`; the oldest may hold up to `SLOT_S` more."""
        return (slot for begun, slot in self._slots if begun + SLOT_S > now - seconds)
