"""A circuit breaker as a value: closed, open or half-open, and what each event makes of it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a breaker opens, and for how long. Times in seconds."""

    consecutive: int = 5
    """It opens after so many failures in a row …"""
    error_rate: float = 0.5
    """… or when this share failed of the calls of the last `window_s`, of which there were `min_calls`."""
    window_s: float = 30.0
    min_calls: int = 10
    open_s: float = 5.0
    """Doubled each time that the probe fails, up to `open_cap_s`."""
    open_cap_s: float = 60.0
    probe_lease_s: float = 120.0
    """A probe that has not come back by then is taken for lost."""
    remembered: int = 100
    """Calls of the window, at most."""


@dataclass(frozen=True, slots=True)
class Started:
    """A call begins; in half-open it is the probe."""


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A call came back as it should. `generation` is the breaker's when the call began, None for the present one."""

    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed; with `open_for_s` in a way that no second call can cure: open at once, for so long."""

    open_for_s: float | None = None
    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A call ended without a verdict: cancelled, or never sent."""

    generation: int | None = None


@dataclass(frozen=True, slots=True)
class Hinted:
    """Another replica's breaker opened for `open_for_s`."""

    open_for_s: float


BreakerEvent = Started | Succeeded | Failed | Abandoned | Hinted

DEFAULT: Final = BreakerPolicy()


@dataclass(frozen=True, slots=True)
class Breaker:
    """`on` gives the breaker after an event; `ready_in` says when a call may start. Open ends by time alone.

    What comes back while it is open began before it opened, and changes nothing; nor does it later, beside a probe.
    """

    policy: BreakerPolicy = DEFAULT
    state: BreakerState = BreakerState.CLOSED
    open_until: float = 0.0
    openings: int = 0
    """In a row, without a success between them."""
    in_a_row: int = 0
    calls: tuple[tuple[float, bool], ...] = field(default=())
    """(when it came back, whether it failed), oldest first."""
    probe_until: float | None = None
    """The lease of the probe that is out."""
    generation: int = field(default=0, compare=False)
    """Each opening, probe and closing begins a new one."""

    def ready_in(self, now: float) -> float:
        """Seconds until a call may start; 0 if it may now."""
        match self.state:
            case BreakerState.CLOSED:
                return 0.0
            case BreakerState.OPEN:
                return max(0.0, self.open_until - now)
            case BreakerState.HALF_OPEN:
                return 0.0 if self.probe_until is None else max(0.0, self.probe_until - now)

    def on(self, event: BreakerEvent, now: float) -> Breaker:
        """The breaker after `event` at `now`."""
        if isinstance(event, Succeeded | Failed | Abandoned) and event.generation not in {None, self.generation}:
            return self
        action = _TABLE.get((self.state, type(event)))
        return self if action is None else action(self, event, now)

    def _opened(self, now: float, open_s: float | None = None) -> Breaker:
        doubled = min(self.policy.open_cap_s, self.policy.open_s * 2.0 ** min(self.openings, 20))
        for_s = doubled if open_s is None else open_s
        return Breaker(self.policy, BreakerState.OPEN, now + for_s, self.openings + 1, generation=self.generation + 1)

    def _counted(self, now: float, *, failed: bool) -> Breaker:
        recent = [call for call in self.calls if call[0] > now - self.policy.window_s]
        calls = (*recent, (now, failed))[-self.policy.remembered :]
        return replace(self, calls=calls, in_a_row=self.in_a_row + 1 if failed else 0)

    @property
    def _is_too_bad(self) -> bool:
        failures = sum(failed for _, failed in self.calls)
        enough = len(self.calls) >= self.policy.min_calls
        rate_reached = enough and failures >= self.policy.error_rate * len(self.calls)
        return self.in_a_row >= self.policy.consecutive or rate_reached


def _count_success(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    del event
    return replace(breaker._counted(now, failed=False), openings=0)


def _count_failure(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    assert isinstance(event, Failed)
    after = breaker._counted(now, failed=True)
    if event.open_for_s is not None or after._is_too_bad:
        return after._opened(now, event.open_for_s)
    return after


def _open_on_hint(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    assert isinstance(event, Hinted)
    return replace(breaker, openings=0)._opened(now, event.open_for_s)


def _begin_probe(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    del event
    if breaker.ready_in(now) > 0:
        return breaker
    return replace(
        breaker,
        state=BreakerState.HALF_OPEN,
        probe_until=now + breaker.policy.probe_lease_s,
        generation=breaker.generation + 1,
    )


def _give_probe_back(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    del event, now
    return replace(breaker, probe_until=None)


def _close(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    del event, now
    return Breaker(breaker.policy, generation=breaker.generation + 1)


def _open_again(breaker: Breaker, event: BreakerEvent, now: float) -> Breaker:
    assert isinstance(event, Failed)
    return breaker._opened(now, event.open_for_s)


_TABLE: Final[dict[tuple[BreakerState, type[BreakerEvent]], Callable[[Breaker, BreakerEvent, float], Breaker]]] = {
    (BreakerState.CLOSED, Succeeded): _count_success,
    (BreakerState.CLOSED, Failed): _count_failure,
    (BreakerState.CLOSED, Hinted): _open_on_hint,
    (BreakerState.OPEN, Started): _begin_probe,
    (BreakerState.HALF_OPEN, Started): _begin_probe,
    (BreakerState.HALF_OPEN, Succeeded): _close,
    (BreakerState.HALF_OPEN, Failed): _open_again,
    (BreakerState.HALF_OPEN, Abandoned): _give_probe_back,
}
"""What is not here changes nothing."""
