"""Answers without a call: from the cache, or from the call of an identical request that is under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from processor.alerts import Alerts
from processor.audit_events import Attempt
from processor.cache_stores import CacheStore, FallbackCache, MemoryCache, RedisCache
from processor.config import Settings
from processor.fingerprint import (
    CacheFigures,
    cache_use,
    decode_entry,
    encode_entry,
    fingerprint,
    may_enter,
)
from processor.flights import Flight, Flights
from processor.leases import Leases, RedisLeases
from processor.messages import Request
from processor.reply_bodies import FinalReply
from processor.subjects import Priority
from processor.tasks import OwnedTasks

if TYPE_CHECKING:
    from redis.asyncio import Redis

CRITICAL = ":critical"


@dataclass(frozen=True, slots=True)
class Answered:
    """A complete answer, and its attempt for the audit log: to be written where no cancellation can lose it.

    `stands_in`: by a model that only stood in for the one that was meant.
    """

    reply: FinalReply
    attempt: Attempt | None
    stands_in: bool = False


@dataclass(frozen=True, slots=True)
class Reused:
    """What another request was answered; `coalesced`: both were under way at once."""

    reply: FinalReply
    coalesced: bool


class Reuse:
    """Looks an answer up, or lets one of many identical requests make the call. One per processor."""

    def __init__(
        self,
        cache: CacheStore,
        leases: Leases | None,
        *,
        enabled: bool,
        sampled: bool,
    ) -> None:
        self._cache = cache
        self._leases = leases
        self._flights: Flights[FinalReply] = Flights(self._look, leases)
        self._enabled = enabled
        self._sampled = sampled
        self._keeping = OwnedTasks()
        self._leads: dict[str, Flight[FinalReply]] = {}
        self.figures = CacheFigures()

    @property
    def under_way(self) -> int:
        """Requests that make a call for others or wait for one, leases held, and answers that are being kept."""
        return len(self._flights) + self._flights.open_leases + len(self._keeping)

    async def answer(
        self,
        request_id: str,
        request: Request,
        model_class: str,
        priority: Priority,
        call: Callable[[], Awaitable[Answered]],
        rest: Callable[[Awaitable[FinalReply | None]], Awaitable[FinalReply | None]],
    ) -> Answered | Reused:
        """What answers `request`: `call`, unless an answer is there or on its way.

        Args:
            rest: waits for what it is given without holding a worker's slot.
        """
        use = cache_use(request, enabled=self._enabled, sampled=self._sampled)
        if use == "skip":
            return await call()
        key = fingerprint(request, model_class)
        if use == "refresh":
            return await self._kept(key, await call())
        if (hit := await self._look(key)) is not None:
            return self._reused(hit, coalesced=False)
        # A critical request waits for no call that may itself wait in a lower lane's line.
        async with self._flights.join(f"{key}{CRITICAL if priority is Priority.CRITICAL else ''}") as flight:
            if not flight.leads and (landed := await rest(flight.outcome())) is not None:
                return self._reused(landed, coalesced=True)
            self.figures.misses += 1
            self._leads[request_id] = flight
            try:
                answered = await self._kept(key, await call())
            finally:
                del self._leads[request_id]
            flight.land(answered.reply)
            return answered

    def is_waited_for(self, request_id: str) -> bool:
        """Whether others wait for the call that this request makes."""
        flight = self._leads.get(request_id)
        return flight is not None and flight.is_waited_for

    async def _kept(self, key: str, answered: Answered) -> Answered:
        if not answered.stands_in and may_enter(answered.reply):
            keeping = self._keeping.start(self._cache.put(key, encode_entry(answered.reply)))
            # Whoever is cancelled here has its answer all the same: it is complete, and its attempt, which is paid
            # for, is not yet in the audit log.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({keeping})
        return answered

    async def _look(self, key: str) -> FinalReply | None:
        entry = await self._cache.get(key.removesuffix(CRITICAL))
        return None if entry is None else decode_entry(entry)

    def _reused(self, reply: FinalReply, *, coalesced: bool) -> Reused:
        if coalesced:
            self.figures.coalesced += 1
        else:
            self.figures.hits += 1
        self.figures.saved_usd += reply.cost_usd
        return Reused(reply, coalesced)

    async def close(self) -> None:
        """Give all leases back, and end what is asked of Redis."""
        await self._flights.close()
        await self._keeping.cancel()
        if self._leases is not None:
            await self._leases.close()
        await self._cache.close()


def configured_reuse(settings: Settings, redis: Redis | None, alerts: Alerts) -> Reuse:
    """As the settings mean it: answers are kept in Redis where there is one, else in this process."""
    most, ttl_s = settings.cache_max_size, settings.cache_ttl
    cache: CacheStore = MemoryCache(most, ttl_s)
    leases: Leases | None = None
    if redis is not None:
        shared = FallbackCache(
            RedisCache(redis, most, ttl_s),
            MemoryCache(most, ttl_s),
            on_degraded=lambda why: alerts.tell("warning", "cache", why),
            on_recovered=lambda what: alerts.tell("info", "cache recovered", what),
        )
        cache = shared
        if most:  # else no other replica could have the answer it has waited for
            leases = RedisLeases(redis, is_shared=lambda: shared.is_shared)
    return Reuse(cache, leases, enabled=settings.enable_cache, sampled=settings.cache_sampled)
