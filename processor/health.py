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
)

Place = tuple[str, str]
"""A provider, and of its models one alias or ("") all."""

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

    def started(self, model: CatalogModel) -> None:
        self._tell(places(model), Started(), "a call begins")

    def succeeded(self, model: CatalogModel) -> None:
        self._tell(places(model), Succeeded(), "a call succeeded")

    def abandoned(self, model: CatalogModel) -> None:
        """A call ended without a verdict on the vendor: cancelled, or never sent."""
        self._tell(places(model), Abandoned(), "a call was given up")

    def failed(self, model: CatalogModel, error: ProviderError) -> None:
        """Count a failed call against the model, and what concerns the whole vendor against that too."""
        provider, own = places(model)
        if isinstance(error, CallerFault | ModelNoise):
            self.succeeded(model)  # the vendor did its part
        elif isinstance(error, RateLimited):
            self.abandoned(model)  # its limits say when to come back
        else:
            whole = isinstance(error, _WHOLE_PROVIDER)
            failed = Failed(OPEN_AT_ONCE_S.get(type(error)))
            why = f"{error.kind}: {error.message}"
            self._tell([provider], failed if whole else Succeeded(), why)
            self._tell([own], Abandoned() if whole else failed, why)

    def hinted(self, place: Place, open_s: float) -> None:
        """Another replica's breaker has opened."""
        self._tell([place], Hinted(open_s), "another replica found it broken", listeners=False)

    def states(self) -> Iterator[tuple[Place, BreakerState]]:
        return ((place, breaker.state) for place, breaker in self._breakers.items())

    def _tell(
        self, told: tuple[Place, ...] | list[Place], event: BreakerEvent, why: str, *, listeners: bool = True
    ) -> None:
        now = self.now()
        for place in told:
            before = self._breakers.get(place, Breaker(self.policy))
            after = before.on(event, now)
            self._breakers[place] = after
            if after.state is before.state:
                continue
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
