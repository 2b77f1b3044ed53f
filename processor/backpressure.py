"""Whether one more request is taken in: by how full the queue is, and by how long it would wait. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from processor.subjects import Priority

FILL: Final[Mapping[Priority, float]] = {
    Priority.CRITICAL: 1.0,
    Priority.HIGH: 0.95,
    Priority.MEDIUM: 0.90,
    Priority.LOW: 0.80,
}
"""How full the queue may be for each: so an alert always finds room."""
UNKNOWN_RETRY_S: Final = 5.0
LONGEST_RETRY_S: Final = 300.0
DRAIN_WINDOW_S: Final = 10.0
"""The rate is weighted: what is so old counts a third."""
KNOWN_AFTER_S: Final = 2.0
"""Of a queue that was never empty, before its rate is believed."""


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """Requests that nobody has taken up, and how many were lately taken up a second (None: not known yet)."""

    queued: int
    per_s: float | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Not now; in `retry_after_s` it may be taken in."""

    why: str
    retry_after_s: float


def refusal(
    priority: Priority,
    loads: Mapping[Priority, LaneLoad],
    *,
    held: int,
    capacity: int,
    deadline_s: float | None,
) -> Refusal | None:
    """Why one more request of that priority is not taken in, or None if it is.

    Args:
        held: messages in the queue, of `capacity`, those in work included.
        deadline_s: seconds that the request has.
    """
    allowed = math.floor(FILL[priority] * capacity)
    if held >= allowed:
        rates = [load.per_s for load in loads.values() if load.per_s is not None]
        return Refusal(
            f"the queue is full for {priority} requests: {held:,} of {allowed:,}",
            _retry_s(held - allowed + 1, sum(rates)),
        )
    load = loads[priority]
    if deadline_s is None or load.per_s is None or not load.queued:
        return None
    wait_s = load.queued / load.per_s if load.per_s > 0 else math.inf
    if wait_s <= deadline_s:
        return None
    said = f"about {wait_s:.0f} s" if math.isfinite(wait_s) else "too long"
    too_many = load.queued - math.floor(deadline_s * load.per_s)
    return Refusal(
        f"{load.queued:,} {priority} requests wait already: {said}, and the deadline is {deadline_s:g} s",
        _retry_s(too_many, load.per_s),
    )


def _retry_s(requests: int, per_s: float) -> float:
    """How long `requests` take to go; bounded, for nobody knows the rate of five minutes from now."""
    if per_s <= 0:
        return UNKNOWN_RETRY_S
    return max(1.0, math.ceil(min(LONGEST_RETRY_S, requests / per_s)))


@dataclass(frozen=True, slots=True)
class Drain:
    """How fast a lane's queue goes down, from looks at its consumer; only while something was queued."""

    taken: float = 0.0
    """Deliveries, weighted …"""
    over_s: float = 0.0
    """… and the time they took."""
    last_total: int | None = None
    last_queued: int = 0
    last_at: float = 0.0

    @property
    def per_s(self) -> float | None:
        """Deliveries a second; the next one counts as taken, so that a lane which was just slow never stands still."""
        return (self.taken + 1) / self.over_s if self.over_s >= KNOWN_AFTER_S else None

    def seen(self, delivered_total: int, queued: int, now: float) -> Drain:
        """Look again at `now`: the consumer has delivered so many since it was made, and so many wait."""
        looked = replace(self, last_total=delivered_total, last_queued=queued, last_at=now)
        if self.last_total is None:
            return looked
        if delivered_total < self.last_total:  # another consumer of the same name
            return Drain(0.0, 0.0, delivered_total, queued, now)
        gap_s = now - self.last_at
        if gap_s <= 0 or not self.last_queued:
            return looked
        kept = math.exp(-gap_s / DRAIN_WINDOW_S)
        return replace(
            looked, taken=self.taken * kept + delivered_total - self.last_total, over_s=self.over_s * kept + gap_s
        )
