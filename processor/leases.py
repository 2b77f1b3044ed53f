"""Which replica calls a vendor for a key: a lease in Redis that ends by itself when its holder dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Protocol

from processor.cache_stores import RETRY_S, CacheUnavailable, RedisCalls

if TYPE_CHECKING:
    from redis.asyncio import Redis

LEASE_S = 10.0
"""A dead replica's call is taken over within that time."""


class Leases(Protocol):
    """At most one `token` at a time holds a key, for `LEASE_S` seconds from its last renewal.

    Raises:
        CacheUnavailable: nobody can say who holds it; go on without.
    """

    async def take(self, key: str, token: str) -> bool: ...

    async def renew(self, key: str, token: str) -> bool:
        """Whether it still holds it."""
        ...

    async def give_back(self, key: str, token: str) -> None: ...

    async def close(self) -> None: ...


class RedisLeases:
    """`SET NX PX`, then compare and set, compare and delete (redis.io, "Distributed locks", with a single instance).

    A lease whose taking got no answer may be held by nobody's renewal: it then ends after `LEASE_S`.

    Args:
        is_shared: False while Redis is known not to answer: it is then not asked for leases.
    """

    def __init__(
        self, client: Redis, *, is_shared: Callable[[], bool] = lambda: True, lease_s: float = LEASE_S
    ) -> None:
        self._call = RedisCalls()
        self._client = client
        self._is_shared = is_shared
        self._lease_ms = max(1, round(lease_s * 1000))
        self._script = client.register_script(files("processor").joinpath("lease.lua").read_text("utf-8"))
        self._rests_until = 0.0

    async def take(self, key: str, token: str) -> bool:
        if not self._is_shared() or time.monotonic() < self._rests_until:
            raise CacheUnavailable("Redis: it did not answer a moment ago")
        try:
            return bool(await self._call(lambda: self._client.set(_lease(key), token, nx=True, px=self._lease_ms)))
        except CacheUnavailable:
            self._rests_until = time.monotonic() + RETRY_S
            raise

    async def renew(self, key: str, token: str) -> bool:
        return bool(await self._call(lambda: self._script([_lease(key)], [token, self._lease_ms])))

    async def give_back(self, key: str, token: str) -> None:
        await self._call(lambda: self._script([_lease(key)], [token, ""]))

    async def close(self) -> None:
        await self._call.close()


def _lease(key: str) -> str:
    return f"sidecar:lease:{key}"
