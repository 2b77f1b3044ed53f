"""One suite for every store of answers, then what only Redis can do wrong, and what is used without it."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cachetools import LRUCache
from redis.asyncio import Redis

from processor.cache_stores import (
    TRY_S,
    CacheStore,
    CacheUnavailable,
    FallbackCache,
    MemoryCache,
    RedisCache,
    RedisCalls,
)
from tests.conftest import redis_server, short_folder
from tests.wait import wait_until

HOUR_S = 3600.0
MakeStore = Callable[..., CacheStore]


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        if left := await client.keys("sidecar:{cache}:*"):
            await client.delete(*left)
        yield client


@pytest.fixture(params=["memory", "redis"])
def make(request: pytest.FixtureRequest) -> MakeStore:
    if request.param == "memory":
        return lambda size=1000, ttl_s=HOUR_S: MemoryCache(size, ttl_s)
    client = request.getfixturevalue("client")
    return lambda size=1000, ttl_s=HOUR_S: RedisCache(client, size, ttl_s)


# --- every store ----------------------------------------------------------------------------


async def test_what_was_put_is_got_and_nothing_else(make: MakeStore) -> None:
    store = make()
    assert await store.get("a") is None
    await store.put("a", b"\0\xff bytes")
    assert await store.get("a") == b"\0\xff bytes"
    assert await store.get("b") is None
    await store.put("a", b"")
    assert await store.get("a") == b""


async def test_the_least_recently_used_goes_first_and_getting_is_using(make: MakeStore) -> None:
    store = make(3)
    for key in "abc":
        await store.put(key, key.encode())
    await store.get("a")
    await store.put("b", b"again")
    await store.put("d", b"d")
    assert [await store.get(key) for key in "abcd"] == [b"a", b"again", None, b"d"]


@pytest.mark.parametrize("seed", range(4))
async def test_every_store_keeps_what_an_lru_keeps(make: MakeStore, seed: int) -> None:
    chance, store = random.Random(seed), make(5)
    expected: LRUCache[str, bytes] = LRUCache(5)
    for step in range(200):
        key = chance.choice("abcdefgh")
        if chance.random() < 0.4:
            expected[key] = value = str(step).encode()
            await store.put(key, value)
        else:
            assert await store.get(key) == expected.get(key)


async def test_an_answer_goes_after_its_time_however_often_it_is_used(make: MakeStore) -> None:
    store = make(ttl_s=0.3)
    began = time.monotonic()
    await store.put("a", b"a")

    async def gone() -> bool:
        return await store.get("a") is None

    await wait_until(gone)
    assert 0.29 < time.monotonic() - began < 2


async def test_putting_it_again_begins_its_time_anew(make: MakeStore) -> None:
    store = make(ttl_s=0.4)
    await store.put("first", b"")
    await store.put("again", b"")

    async def is_going() -> bool:
        await store.put("again", b"")
        return await store.get("first") is None

    await wait_until(is_going)
    assert await store.get("again") == b""


async def test_a_store_without_room_keeps_nothing(make: MakeStore) -> None:
    store = make(0)
    await store.put("a", b"a")
    assert await store.get("a") is None


async def test_many_at_once_keep_no_more_than_there_is_room_for(make: MakeStore) -> None:
    store = make(10)
    await asyncio.gather(*(store.put(str(n), b"x") for n in range(50)))
    assert sum([await store.get(str(n)) is not None for n in range(50)]) == 10


# --- memory ---------------------------------------------------------------------------------


async def test_what_has_expired_in_memory_goes_before_what_was_used_least_recently() -> None:
    now = 0.0
    store = MemoryCache(2, 10, lambda: now)
    await store.put("old", b"")
    now = 5
    await store.put("new", b"")
    now = 9
    await store.get("old")
    now = 10
    await store.put("newest", b"")
    assert [await store.get(key) for key in ("old", "new", "newest")] == [None, b"", b""]
    assert len(store) == 2


# --- Redis ----------------------------------------------------------------------------------


async def counts(client: Redis) -> tuple[int, int, int]:
    """Answers, and entries of the two indexes."""
    answers = await client.keys("sidecar:{cache}:answer:*")
    return len(answers), await client.zcard("sidecar:{cache}:used"), await client.zcard("sidecar:{cache}:ends")


async def test_two_replicas_share_what_one_has_put(client: Redis) -> None:
    await RedisCache(client, 10, HOUR_S).put("a", b"a")
    assert await RedisCache(client, 10, HOUR_S).get("a") == b"a"


async def test_the_indexes_name_what_is_there_and_nothing_else(client: Redis) -> None:
    store = RedisCache(client, 3, HOUR_S)
    for key in "abcde":
        await store.put(key, b"x")
    assert await counts(client) == (3, 3, 3)
    await client.delete("sidecar:{cache}:answer:d")  # as a Redis that is full may do by itself
    assert await store.get("d") is None
    assert await counts(client) == (2, 2, 2)


async def test_what_has_expired_leaves_the_indexes(client: Redis) -> None:
    short, store = RedisCache(client, 100, 0.05), RedisCache(client, 100, HOUR_S)
    for key in "abc":
        await short.put(key, b"x")

    async def gone() -> bool:
        return (await counts(client))[0] == 0

    await wait_until(gone)
    await store.put("d", b"x")
    assert await counts(client) == (1, 1, 1)


async def test_what_has_expired_takes_nobodys_place(client: Redis) -> None:
    short, store = RedisCache(client, 3, 0.1), RedisCache(client, 3, HOUR_S)
    await store.put("a", b"a")
    await short.put("b", b"b")
    await short.put("c", b"c")

    async def gone() -> bool:
        return (await counts(client))[0] == 1

    await wait_until(gone)
    for key in "de":
        await store.put(key, b"new")
    assert await store.get("a") == b"a"


async def test_nothing_is_left_in_redis_when_the_last_answer_has_expired(client: Redis) -> None:
    store = RedisCache(client, 100, 0.1)
    await store.put("a", b"x")
    await RedisCache(client, 100, 0.05).put("b", b"x")

    async def empty() -> bool:
        return await client.keys("sidecar:{cache}:*") == []

    await wait_until(empty)


async def test_a_server_whose_clock_was_set_back_still_drops_the_least_recently_used(client: Redis) -> None:
    store = RedisCache(client, 2, HOUR_S)
    await store.put("a", b"a")
    await store.put("b", b"b")
    later = (time.time() + 3600) * 1e6
    await client.zadd("sidecar:{cache}:used", {"a": later, "b": later + 1})
    await store.put("c", b"c")
    await store.put("d", b"d")
    assert [await store.get(key) for key in "abcd"] == [None, None, b"c", b"d"]


async def test_all_keys_have_one_hash_tag(client: Redis) -> None:
    before = set(await client.keys("*"))
    await RedisCache(client, 2, HOUR_S).put("a", b"a")
    new = set(await client.keys("*")) - before
    assert new == set(await client.keys("sidecar:{cache}:*"))
    assert len(new) == 3


async def test_a_look_up_is_one_round_trip(client: Redis) -> None:
    store = RedisCache(client, 2, HOUR_S)
    await store.put("a", b"a")
    calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert await store.get("a") == b"a"
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 1


async def test_a_redis_that_lost_its_scripts_gets_them_again(client: Redis) -> None:
    store = RedisCache(client, 2, HOUR_S)
    await store.put("a", b"a")
    await client.script_flush()
    assert await store.get("a") == b"a"


async def test_more_callers_than_a_client_has_connections_stand_in_line(client: Redis) -> None:
    store = RedisCache(client, 1000, HOUR_S)
    await asyncio.gather(*(store.put(str(n), str(n).encode()) for n in range(300)))
    assert await asyncio.gather(*(store.get(str(n)) for n in range(300))) == [str(n).encode() for n in range(300)]


async def test_callers_that_are_cancelled_leave_nobody_anothers_answer(redis_url: str, client: Redis) -> None:
    async with Redis.from_url(redis_url, max_connections=4) as few:
        store, chance = RedisCache(few, 100, HOUR_S), random.Random(1)
        for n in range(20):
            await store.put(str(n), str(n).encode())

        async def ask(n: int) -> None:
            try:
                assert await store.get(str(n)) == str(n).encode()
            except CacheUnavailable:  # more than its four connections
                return

        for _ in range(100):
            asking = [asyncio.create_task(ask(chance.randrange(20))) for _ in range(4)]
            await asyncio.sleep(chance.choice([0, 0, 0.0002, 0.0005]))
            for task in chance.sample(asking, 2):
                task.cancel()
            for result in await asyncio.gather(*asking, return_exceptions=True):
                assert result is None or isinstance(result, asyncio.CancelledError), result
        assert [await store.get(str(n)) for n in range(20)] == [str(n).encode() for n in range(20)]


async def test_one_that_is_cancelled_ends_at_once_whatever_the_client_makes_of_it() -> None:
    begun = asyncio.Event()

    async def deaf() -> None:
        begun.set()
        while not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError:  # as redis-py loses one, in Python 3.11
                continue

    calls, ended = RedisCalls(), asyncio.Event()
    task = asyncio.create_task(calls(deaf))
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(TRY_S / 2):
        await asyncio.wait({task})
    assert task.cancelled()
    with pytest.raises(CacheUnavailable, match="no answer"):
        await calls(deaf)
    ended.set()
    await calls.close()


async def test_a_call_that_nobody_waits_for_any_more_is_ended() -> None:
    calls, ended = RedisCalls(), []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    with pytest.raises(CacheUnavailable, match="no answer"):
        await calls(slow)
    await wait_until(lambda: ended)


async def test_a_redis_that_is_gone_is_unavailable_and_serves_again_when_it_is_back() -> None:
    with short_folder() as folder:
        with redis_server(folder) as url:
            client = Redis.from_url(url)
            store = RedisCache(client, 10, HOUR_S)
            await store.put("a", b"a")
        for call in (store.get("a"), store.put("a", b"a"), store.check()):
            with pytest.raises(CacheUnavailable, match="Redis"):
                await call
        with redis_server(folder):
            assert await store.get("a") is None
            await store.put("a", b"a")
            assert await store.get("a") == b"a"
            await client.aclose()


async def test_a_redis_that_is_full_says_no_to_the_check() -> None:
    with short_folder() as folder, redis_server(folder) as url:
        async with Redis.from_url(url) as client:
            store = RedisCache(client, 10, HOUR_S)
            await store.check()
            await store.put("a", b"a")
            await client.config_set("maxmemory", "1")
            await client.config_set("maxmemory-policy", "noeviction")
            with pytest.raises(CacheUnavailable, match="memory"):
                await store.check()
            assert await store.get("b") is None  # so that a look-up alone would not show it


async def test_to_check_takes_no_answers_place(client: Redis) -> None:
    store = RedisCache(client, 2, HOUR_S)
    await store.put("a", b"a")
    await store.put("b", b"b")
    await store.check()
    assert [await store.get(key) for key in "ab"] == [b"a", b"b"]
    assert 3_590_000 < await client.pttl("sidecar:{cache}:used") <= 3_600_000
    await wait_until(lambda: _is_gone(client, "sidecar:{cache}:answer:probe"))
    await store.put("b", b"b")
    assert await counts(client) == (2, 2, 2)


async def _is_gone(client: Redis, key: str) -> bool:
    return not await client.exists(key)


# --- Redis while it answers, else memory ----------------------------------------------------


@dataclass
class Told:
    degraded: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)


def fallback(client: Redis, told: Told, retry_s: float = 0.1, size: int = 10) -> FallbackCache:
    return FallbackCache(
        RedisCache(client, size, HOUR_S),
        MemoryCache(size, HOUR_S),
        on_degraded=told.degraded.append,
        on_recovered=told.recovered.append,
        retry_s=retry_s,
    )


async def test_without_redis_memory_serves_and_redis_again_once_it_is_back() -> None:
    told = Told()
    with short_folder() as folder:
        with redis_server(folder) as url:
            client = Redis.from_url(url)
            cache = fallback(client, told)
            await cache.put("a", b"a")
            assert (cache.name, cache.is_shared) == ("Redis", True)
        assert await cache.get("a") is None
        assert (cache.name, cache.is_shared) == ("this process alone", False)
        await cache.put("a", b"in memory")
        assert await cache.get("a") == b"in memory"
        with redis_server(folder):
            await wait_until(lambda: cache.is_shared)
            assert await cache.get("a") is None
            await cache.put("a", b"a")
            assert await client.get("sidecar:{cache}:answer:a") == b"a"
            await client.aclose()
    assert len(told.degraded) == len(told.recovered) == 1
    assert told.degraded[0].startswith("answers are cached in this process alone: Redis: ")
    assert told.recovered == ["answers are cached in Redis again"]
    await cache.close()


async def test_what_memory_got_in_one_outage_is_not_served_in_the_next(client: Redis) -> None:
    told = Told()
    cache = fallback(client, told, retry_s=0.01)
    cache.degrade("somebody found out")
    await cache.put("a", b"old")
    await wait_until(lambda: cache.is_shared)
    await cache.put("a", b"new")
    cache.degrade("again")
    assert await cache.get("a") is None
    assert len(told.degraded) == 2
    await cache.close()


async def test_a_redis_that_is_silent_costs_half_a_second_once() -> None:
    told = Told()
    with short_folder() as folder, redis_server(folder) as url:
        pid = int((await info(url))["process_id"])
        async with Redis.from_url(url) as client:
            cache = fallback(client, told, retry_s=0.05)
            await cache.put("a", b"a")
            with stopped(pid):
                began = time.monotonic()
                assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [None] * 100
                assert [await cache.get("a") for _ in range(20)] == [None] * 20
                await cache.put("b", b"b")
                assert TRY_S <= time.monotonic() - began < 2 * TRY_S
                assert len(told.degraded) == 1
                assert not cache.is_shared
            await wait_until(lambda: cache.is_shared)
            assert await cache.get("a") == b"a"
            await cache.close()


async def test_a_redis_that_takes_no_changes_is_not_called_back_until_it_does() -> None:
    told = Told()
    with short_folder() as folder, redis_server(folder) as url:
        async with Redis.from_url(url) as client:
            cache = fallback(client, told, retry_s=0.01)
            await client.config_set("maxmemory", "1")
            await cache.put("a", b"a")
            assert await cache.get("a") == b"a"
            scripts = "cmdstat_evalsha"
            asked = (await client.info("commandstats"))[scripts]["calls"]

            async def asked_again() -> bool:
                return bool((await client.info("commandstats"))[scripts]["calls"] > asked + 3)

            await wait_until(asked_again)
            assert (len(told.degraded), told.recovered) == (1, [])
            await client.config_set("maxmemory", "0")
            await wait_until(lambda: cache.is_shared)
            await cache.close()


async def test_closing_ends_the_wait_for_redis(tmp_path: Path) -> None:
    async with Redis.from_url(f"unix://{tmp_path}/nobody") as client:
        cache = fallback(client, Told(), retry_s=60)
        assert await cache.get("a") is None
        before = asyncio.all_tasks()
        await cache.close()
        assert len(asyncio.all_tasks()) == len(before) - 1


async def info(url: str) -> dict[str, str]:
    async with Redis.from_url(url) as client:
        found: dict[str, str] = await client.info("server")
        return found


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
