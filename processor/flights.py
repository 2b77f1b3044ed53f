"""One call for all who ask the same at once: the first makes it, the others wait for what comes of it."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

import structlog

from processor.cache_stores import CacheUnavailable
from processor.errors import ErrorType, RequestError
from processor.leases import Leases
from processor.tasks import OwnedTasks, happens

MAX_FLIGHTS = 10_000
"""Requests that lead or wait; beyond it everyone calls for itself."""
RENEW_S = 3.0
"""How often a lease is renewed: it outlives two renewals that fail."""
LOOK_S = (0.05, 0.5)
"""The first and the longest pause between two looks at what another replica does."""
CLOSE_S = 1.0
_FOR_ALL = {ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE}
"""Verdicts on what was asked: the same request would only be refused again."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Claim(Enum):
    OURS = auto()
    ANOTHERS = auto()
    UNKNOWN = auto()
    """Redis does not answer: each replica leads for itself."""


@dataclass(eq=False, slots=True)
class _Lease:
    """`claim` is set once, by the task that takes the lease, renews it, and gives it back when it is `over`."""

    claim: asyncio.Future[_Claim]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    is_lost: bool = False


@dataclass(eq=False, slots=True)
class _Line(Generic[T]):
    """Those who ask for one key in this replica, in the order in which they came; the first may lead."""

    key: str
    waiting: dict[Flight[T], None] = field(default_factory=dict)
    lease: _Lease | None = None
    landed: T | RequestError | None = None

    def first(self) -> Flight[T] | None:
        return next(iter(self.waiting), None)


class Flight(Generic[T]):
    """One request's place in the line of its key."""

    def __init__(self, flights: Flights[T], line: _Line[T]) -> None:
        self._flights = flights
        self._line = line
        self._woken = asyncio.Event()
        self._leads = False

    @property
    def leads(self) -> bool:
        """Whether this one has to call."""
        return self._leads

    @property
    def is_waited_for(self) -> bool:
        """Whether others stand behind it."""
        return len(self._line.waiting) > 1

    async def outcome(self) -> T | None:
        """Wait for the leader's answer, or for the lead: then it is None. To be awaited where one does not lead.

        Whoever is cancelled here may just leave; if the lead was its own, the next one has it.

        Raises:
            RequestError: the leader's, where it is a verdict on the request itself.
        """
        pause_s = LOOK_S[0]
        while not self._leads:
            match self._line.landed:
                case RequestError() as error:
                    raise RequestError(error.type, error.message, retry_after_s=error.retry_after_s)
                case None:
                    pass
                case landed:
                    return landed
            if self._line.first() is not self:
                await self._woken.wait()
                self._woken.clear()
            elif not await self._flights._clear(self._line, self):
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s = min(2 * pause_s, LOOK_S[1])
        return None

    def land(self, answer: T) -> None:
        """What all who wait get. An answer that may be cached has to be there already: who comes now looks there."""
        if not self._leads:
            raise RuntimeError("only the leader lands")
        self._flights._land(self._line, answer)


class Flights(Generic[T]):
    """Single flight by key, in this replica by order of arrival, across replicas by a lease.

    Args:
        look: the answer to a key as the cache has it; asked before each lead, since one may have landed meanwhile, and
            while another replica leads.
        leases: None where replicas share nothing.
    """

    def __init__(
        self,
        look: Callable[[str], Awaitable[T | None]],
        leases: Leases | None = None,
        *,
        max_flights: int = MAX_FLIGHTS,
        renew_s: float = RENEW_S,
    ) -> None:
        self._look = look
        self._leases = leases
        self._max_flights = max_flights
        self._renew_s = renew_s
        self._lines: dict[str, _Line[T]] = {}
        self._joined = 0
        self._held: set[_Lease] = set()
        self._keeping = OwnedTasks()

    def __len__(self) -> int:
        """Requests that lead or wait."""
        return self._joined

    @property
    def open_leases(self) -> int:
        """Leases that are being taken, are held, or are being given back."""
        return len(self._keeping)

    @asynccontextmanager
    async def join(self, key: str) -> AsyncIterator[Flight[T]]:
        """A place in the key's line until the block ends.

        In the block, await `outcome` unless the flight `leads`; then, if it does, call and `land`. A leader that
        leaves without landing hands over to the next in line, unless it leaves by a verdict that holds for all.
        """
        if self._joined >= self._max_flights:
            alone = Flight(self, _Line[T](key))
            alone._leads = True
            yield alone
            return
        line = self._lines.setdefault(key, _Line(key))
        flight = Flight(self, line)
        line.waiting[flight] = None
        self._joined += 1
        try:
            if line.first() is flight:
                await self._clear(line, flight)
            yield flight
        except RequestError as error:
            if flight.leads and error.type in _FOR_ALL:
                self._land(line, error)
            raise
        finally:
            self._leave(line, flight)

    async def close(self) -> None:
        """Give all leases back, for at most `CLOSE_S` seconds, and take no more."""
        self._leases = None
        for lease in self._held:
            lease.over.set()
        await self._keeping.join(CLOSE_S)
        await self._keeping.cancel()

    async def _clear(self, line: _Line[T], first: Flight[T]) -> bool:
        """Whether the line's first need not wait: it leads, or the answer has just been found."""
        claim = await self._claim(line)
        if (found := await self._look(line.key)) is not None:
            self._land(line, found)
        elif claim is not _Claim.ANOTHERS:
            first._leads = True
        else:
            return False
        return True

    async def _claim(self, line: _Line[T]) -> _Claim:
        if self._leases is None:
            return _Claim.UNKNOWN
        if line.lease is None or line.lease.is_lost:
            line.lease = _Lease(asyncio.get_running_loop().create_future())
            self._held.add(line.lease)
            self._keeping.start(self._keep(self._leases, line.key, line.lease))
        # Shielded: who is cancelled here leaves the lease to the next in line, or to the task to give back.
        claim = await asyncio.shield(line.lease.claim)
        if claim is not _Claim.OURS:
            line.lease = None
        return claim

    async def _keep(self, leases: Leases, key: str, lease: _Lease) -> None:
        token = secrets.token_hex(16)
        try:
            try:
                claim = _Claim.OURS if await leases.take(key, token) else _Claim.ANOTHERS
            except CacheUnavailable as error:
                log.debug("flights: no lease", error=str(error))
                claim = _Claim.UNKNOWN
            lease.claim.set_result(claim)
            if claim is not _Claim.OURS:
                return
            while not await happens(lease.over, self._renew_s):
                try:
                    lease.is_lost = not await leases.renew(key, token)
                except CacheUnavailable as error:
                    log.debug("flights: a lease is renewed later", error=str(error))
                if lease.is_lost:
                    log.debug("flights: a lease has ended meanwhile", key=key)
                    return
            try:
                await leases.give_back(key, token)
            except CacheUnavailable as error:
                log.debug("flights: a lease ends by itself", error=str(error))
        finally:
            lease.is_lost = True
            self._held.discard(lease)
            if not lease.claim.done():
                lease.claim.set_result(_Claim.UNKNOWN)

    def _land(self, line: _Line[T], outcome: T | RequestError) -> None:
        if line.landed is not None:
            return
        line.landed = outcome
        self._end(line)
        for flight in line.waiting:
            flight._woken.set()

    def _leave(self, line: _Line[T], flight: Flight[T]) -> None:
        self._joined -= 1
        was_first = line.first() is flight
        del line.waiting[flight]
        if line.landed is not None:
            return
        if (following := line.first()) is None:
            self._end(line)
        elif was_first:
            following._woken.set()

    def _end(self, line: _Line[T]) -> None:
        """Who comes from now on begins a line of its own."""
        if self._lines.get(line.key) is line:
            del self._lines[line.key]
        if line.lease is not None:
            line.lease.over.set()
