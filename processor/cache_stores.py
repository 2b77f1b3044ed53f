"""Where answers are kept: in this process, in Redis by one script, or in Redis for as long as it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from cachetools import TTLCache

from processor.tasks import OwnedTasks

if TYPE_CHECKING:
    from redis.asyncio import Redis

TRY_S = 0.5
"""For one answer of Redis: a look-up must not cost more than it saves."""
RETRY_S = 5.0
"""How often a Redis that failed is asked again."""
MAX_CALLS = 32
"""At once, of the 100 that a client has connections for; those beyond it stand in line, which is no failure."""
_PREFIX = "sidecar:{cache}:"
_PROBE = "probe"

log = structlog.get_logger(__name__)


class CacheUnavailable(Exception):
    """Redis does not answer in time, or refuses; what it was asked may have been done or not."""


class CacheStore(Protocol):
    """Keeps the most recently used of what was put, each for a time. Getting is using.

    Raises:
        CacheUnavailable: go on without it.
    """

    @property
    def name(self) -> str: ...

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, value: bytes) -> None: ...

    async def close(self) -> None: ...


class MemoryCache:
    """This process's own. `ttl_s` and `timer` in seconds; with `max_size` 0 it keeps nothing."""

    name = "this process alone"

    def __init__(self, max_size: int, ttl_s: float, timer: Callable[[], float] = time.monotonic) -> None:
        # Its eviction is LRU: getting moves an entry to the end, and what has expired goes first.
        self._entries: TTLCache[str, bytes] = TTLCache(max_size, ttl_s, timer)

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        return self._entries.get(key)

    async def put(self, key: str, value: bytes) -> None:
        if self._entries.maxsize:
            self._entries[key] = value

    def clear(self) -> None:
        self._entries.clear()

    async def close(self) -> None:
        """Nothing to close."""


class RedisCalls:
    """Calls of Redis, `MAX_CALLS` at once and none longer than `TRY_S`, its turn included, with one error for all.

    Each is a task of its own: redis-py sends with Python 3.11's `wait_for`, which may lose a cancellation, and whoever
    waits here has to hear of its own. What nobody waits for any more ends with the client's timeout at the latest.
    """

    def __init__(self) -> None:
        # Imported by whoever has a Redis: it takes 7 MB and 0.14 s.
        from redis.exceptions import RedisError

        self._errors = (RedisError, OSError, ValueError)
        self._turns = asyncio.Semaphore(MAX_CALLS)
        self._calls = OwnedTasks()

    async def __call__(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """What it answers. Raises CacheUnavailable."""
        task = self._calls.start(self._try(call))
        try:
            await asyncio.wait({task}, timeout=TRY_S)
            answered = task.done() and not task.cancelled()
            answer = task.result() if answered else CacheUnavailable("Redis: no answer")
        finally:
            task.cancel()
        if isinstance(answer, CacheUnavailable):
            raise answer
        return answer

    async def close(self) -> None:
        await self._calls.cancel()

    async def _try(self, call: Callable[[], Awaitable[Any]]) -> Any:
        async with self._turns:
            try:
                return await call()
            except self._errors as error:
                return CacheUnavailable(f"Redis: {str(error) or 'no answer'}")


class RedisCache:
    """What all replicas share: each answer under a key of its own that expires, and two indexes, by use and by age.

    A look-up is one round trip, and so is a change, by the server's clock. Retries are as the client's owner has set
    them. `ttl_s` in seconds; with `max_size` 0 it keeps nothing.
    """

    name = "Redis"

    def __init__(self, client: Redis, max_size: int, ttl_s: float) -> None:
        self._call = RedisCalls()
        self._max_size = max_size
        self._ttl_ms = max(1, round(ttl_s * 1000))
        self._script = client.register_script(files("processor").joinpath("cache.lua").read_text("utf-8"))

    async def get(self, key: str) -> bytes | None:
        return await self._run(key, "get") if self._max_size else None

    async def put(self, key: str, value: bytes) -> None:
        if self._max_size:
            await self._run(key, "put", value, self._ttl_ms, self._max_size)

    async def check(self) -> None:
        """Raises CacheUnavailable unless it can be written, too: one that is full refuses changes only."""
        await self._run(_PROBE, "put", b"", 1, self._max_size + 1)

    async def close(self) -> None:
        await self._call.close()

    async def _run(self, key: str, *args: bytes | str | int) -> bytes | None:
        keys = [f"{_PREFIX}used", f"{_PREFIX}ends", f"{_PREFIX}answer:{key}"]
        answer = await self._call(lambda: self._script(keys, [key, f"{_PREFIX}answer:", *args]))
        return answer if isinstance(answer, bytes) else None


class FallbackCache:
    """Redis while it answers, else memory: it never raises, and waits for a silent Redis once, not once a request.

    Whether Redis is back is asked beside the requests. What memory got in the meantime is then forgotten.
    """

    def __init__(
        self,
        shared: RedisCache,
        local: MemoryCache,
        *,
        on_degraded: Callable[[str], None],
        on_recovered: Callable[[str], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._shared = shared
        self._local = local
        self._on_degraded = on_degraded
        self._on_recovered = on_recovered
        self._retry_s = retry_s
        self._is_shared = True
        self._retries = OwnedTasks()

    @property
    def name(self) -> str:
        return self._shared.name if self._is_shared else self._local.name

    @property
    def is_shared(self) -> bool:
        """Whether Redis is in use."""
        return self._is_shared

    async def get(self, key: str) -> bytes | None:
        if self._is_shared:
            try:
                return await self._shared.get(key)
            except CacheUnavailable as error:
                self.degrade(str(error))
        return await self._local.get(key)

    async def put(self, key: str, value: bytes) -> None:
        if self._is_shared:
            try:
                return await self._shared.put(key, value)
            except CacheUnavailable as error:
                self.degrade(str(error))
        return await self._local.put(key, value)

    def degrade(self, why: str) -> None:
        """Use memory until Redis answers again: for whoever else finds out first that it does not."""
        if not self._is_shared:
            return
        self._is_shared = False
        self._on_degraded(f"answers are cached in {self._local.name}: {why}")
        self._retries.start(self._look_again())

    async def close(self) -> None:
        await self._retries.cancel()
        await self._shared.close()

    async def _look_again(self) -> None:
        while not self._is_shared:
            await asyncio.sleep(self._retry_s)
            try:
                await self._shared.check()
            except CacheUnavailable as error:
                log.debug("cache: asked again later", error=str(error))
                continue
            self._is_shared = True
            self._local.clear()
            self._on_recovered(f"answers are cached in {self._shared.name} again")
