"""Which vendors work: a circuit breaker for each provider and model, told by calls and by the other replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from processor.breaker import (
    DEFAULT,
    Abandoned,
    Breaker,
    BreakerEvent,
    BreakerPolicy,
    BreakerState,
    Failed,
    Hinted,
    Started,
    Succeeded,
)
from processor.catalog import CatalogModel
from providers.errors import (
    BadCredentials,
    CallerFault,
    ConnectionFailed,
    ModelGone,
    ModelNoise,
    OutOfCredit,
    ProviderError,
    RateLimited,
    TimedOut,
    Unsupported,
)

Place = tuple[str, str]
"""A provider, and of its models one alias or ("") all."""

Ticket = tuple[int, int]
"""The generations of a call's breakers, its provider's and its own, when it began: its result counts for these."""

OPEN_AT_ONCE_S: Final[dict[type[ProviderError], float]] = {BadCredentials: 60.0, OutOfCredit: 300.0, ModelGone: 300.0}
"""What no second call can cure: for how long nobody tries."""
VERDICT_S: Final = 2.0
"""When to ask again while a probe is out: its lease is long, and its verdict mostly comes soon."""
_WHOLE_PROVIDER = (ConnectionFailed, BadCredentials, OutOfCredit)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Unwell:
    """A breaker that lets no call through for `wait_s` more seconds."""

    place: Place
    wait_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Transition:
    """A breaker changed its state; `open_s` is for how long it is open, 0 where it is not."""

    provider: str
    model: str
    before: BreakerState
    after: BreakerState
    open_s: float
    why: str


@dataclass(slots=True)
class Health:
    """The breakers of this replica. Listeners of `on_change` hear every transition that a call here has caused."""

    now: Callable[[], float] = time.monotonic
    policy: BreakerPolicy = DEFAULT
    _breakers: dict[Place, Breaker] = field(default_factory=dict)
    _on_change: list[Callable[[Transition], None]] = field(default_factory=list)
    _on_closed: list[Callable[[Place], None]] = field(default_factory=list)

    def on_change(self, listener: Callable[[Transition], None]) -> None:
        self._on_change.append(listener)

    def on_closed(self, listener: Callable[[Place], None]) -> None:
        """Hear of every breaker that lets calls through again."""
        self._on_closed.append(listener)

    def refusal(self, model: CatalogModel) -> Unwell | None:
        """Why no call may start now, or None."""
        now = self.now()
        for place in places(model):
            if (breaker := self._breakers.get(place)) is not None and (wait_s := breaker.ready_in(now)) > 0:
                whose = f"{model.provider}'s circuit" if not place[1] else "its circuit"
                if breaker.state is BreakerState.HALF_OPEN:
                    return Unwell(place, min(wait_s, VERDICT_S), f"{whose} is being tried again")
                return Unwell(place, wait_s, f"{whose} is open after failures")
        return None

    def started(self, model: CatalogModel) -> Ticket:
        """A call begins; where the breaker was open, it is the probe."""
        provider, own = places(model)
        for place in (provider, own):
            self._tell(place, Started(), "a call begins")
        return self._breaker(provider).generation, self._breaker(own).generation

    def succeeded(self, model: CatalogModel, ticket: Ticket) -> None:
        for place, generation in zip(places(model), ticket, strict=True):
            self._tell(place, Succeeded(generation), "a call succeeded")

    def abandoned(self, model: CatalogModel, ticket: Ticket) -> None:
        """A call ended without a verdict on the vendor: cancelled, or never sent."""
        for place, generation in zip(places(model), ticket, strict=True):
            self._tell(place, Abandoned(generation), "a call was given up")

    def failed(self, model: CatalogModel, error: ProviderError, ticket: Ticket) -> None:
        """Count a failed call against the model, and what concerns the whole vendor against that too."""
        provider, own = places(model)
        begun, own_begun = ticket
        if isinstance(error, RateLimited | Unsupported):
            self.abandoned(model, ticket)  # limits say when to come back; what was never asked says nothing
            return
        if isinstance(error, CallerFault | ModelNoise):
            self.succeeded(model, ticket)  # the vendor did its part
            return
        why = f"{error.kind}: {error.message}"
        open_for_s = OPEN_AT_ONCE_S.get(type(error))
        if isinstance(error, _WHOLE_PROVIDER):
            self._tell(provider, Failed(open_for_s, begun), why)
            self._tell(own, Abandoned(own_begun), why)
        else:
            reached = not isinstance(error, TimedOut)  # silence says nothing of the vendor's other models
            self._tell(provider, Succeeded(begun) if reached else Abandoned(begun), why)
            self._tell(own, Failed(open_for_s, own_begun), why)

    def hinted(self, place: Place, open_s: float) -> None:
        """Another replica's breaker has opened."""
        self._tell(place, Hinted(open_s), "another replica found it broken", listeners=False)

    def standing(self, place: Place) -> tuple[BreakerState, float]:
        """A breaker's state, and in how many seconds a call may start; it is closed where nobody was called."""
        breaker = self._breaker(place)
        return breaker.state, breaker.ready_in(self.now())

    def states(self) -> Iterator[tuple[Place, BreakerState]]:
        return ((place, breaker.state) for place, breaker in self._breakers.items())

    def _breaker(self, place: Place) -> Breaker:
        return self._breakers.get(place) or Breaker(self.policy)

    def _tell(self, place: Place, event: BreakerEvent, why: str, *, listeners: bool = True) -> None:
        now = self.now()
        before = self._breaker(place)
        after = before.on(event, now)
        self._breakers[place] = after
        if after.state is before.state:
            return
        open_s = after.ready_in(now) if after.state is BreakerState.OPEN else 0.0
        change = Transition(*place, before.state, after.state, round(open_s, 3), why)
        log.warning(
            "circuit breaker",
            provider=place[0], model=place[1] or "all", before=str(before.state), after=str(after.state),
            open_s=change.open_s, why=why,
        )  # fmt: skip
        if listeners:
            for listener in self._on_change:
                listener(change)
        if after.state is BreakerState.CLOSED:
            for closed in self._on_closed:
                closed(place)


def places(model: CatalogModel) -> tuple[Place, Place]:
    """Where a call of the model can be stopped: at its provider, and at itself."""
    return (model.provider, ""), (model.provider, model.alias)
