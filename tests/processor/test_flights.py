"""Single flight: one call for all who ask the same at once, whoever fails, leaves or dies meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from processor import leases as leases_module
from processor.cache_stores import CacheUnavailable, RedisCache
from processor.errors import ErrorType, RequestError
from processor.flights import Flights
from processor.leases import RedisLeases
from processor.schedule import Schedule
from processor.slots import Slot, Slots
from processor.subjects import Priority
from tests.conftest import redis_server, short_folder
from tests.wait import wait_until

KEY = "a-key"


@dataclass
class Vendor:
    """Answers when the gate is open; what is cached of its answers; who asked, in order."""

    cached: dict[str, str] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    callers: list[object] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def look(self, key: str) -> str | None:
        await asyncio.sleep(0)
        return self.cached.get(key)

    async def call(self, who: object = None) -> str:
        self.callers.append(who)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            return f"answer {len(self.callers)}"
        finally:
            self.at_once -= 1


async def ask(
    flights: Flights[str], vendor: Vendor, call: Callable[[], Awaitable[str]], *, key: str = KEY, caches: bool = True
) -> str:
    """What a worker does."""
    async with asyncio.timeout(20), flights.join(key) as flight:
        if not flight.leads and (shared := await flight.outcome()) is not None:
            return shared
        answer = await call()
        if caches:
            vendor.cached[key] = answer
        flight.land(answer)
        return answer


def asking(flights: Flights[str], vendor: Vendor, who: object, **more: object) -> asyncio.Task[str]:
    return asyncio.create_task(ask(flights, vendor, lambda: vendor.call(who), **more))  # type: ignore[arg-type]


def waiting(flights: Flights[str], count: int) -> Callable[[], bool]:
    return lambda: len(flights) == count


# --- in one replica -------------------------------------------------------------------------


async def test_a_hundred_who_ask_the_same_at_once_are_answered_by_one_call() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    tasks = [asking(flights, vendor, n) for n in range(100)]
    await wait_until(waiting(flights, 100))
    vendor.gate.set()
    assert await asyncio.gather(*tasks) == ["answer 1"] * 100
    assert (vendor.callers, len(flights)) == ([0], 0)


async def test_who_ask_different_things_do_not_wait_for_each_other() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    tasks = [asking(flights, vendor, n, key=str(n)) for n in range(5)]
    await wait_until(lambda: vendor.at_once == 5)
    vendor.gate.set()
    await asyncio.gather(*tasks)


async def test_who_comes_while_an_answer_lands_finds_it_in_the_cache() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    vendor.cached[KEY] = "landed since it was last looked for"
    async with flights.join(KEY) as flight:
        assert not flight.leads
        assert await flight.outcome() == "landed since it was last looked for"
    assert (vendor.callers, len(flights)) == ([], 0)


async def test_after_a_landing_a_new_flight_begins() -> None:
    vendor = Vendor()
    vendor.gate.set()
    flights = Flights(vendor.look)
    assert await asking(flights, vendor, 1, caches=False) == "answer 1"
    assert await asking(flights, vendor, 2, caches=False) == "answer 2"


async def test_when_the_leader_fails_the_next_in_order_of_arrival_calls_and_the_others_wait_for_it() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)

    async def fails(who: int) -> str:
        await vendor.call(who)
        raise RequestError(ErrorType.UNAVAILABLE, f"no luck {who}")

    losers = [asyncio.create_task(ask(flights, vendor, lambda n=n: fails(n))) for n in range(2)]  # type: ignore[misc]
    tasks = [asking(flights, vendor, n) for n in range(2, 10)]
    await wait_until(waiting(flights, 10))
    vendor.gate.set()
    for n, loser in enumerate(losers):
        with pytest.raises(RequestError, match=f"no luck {n}"):
            await loser
    assert await asyncio.gather(*tasks) == ["answer 3"] * 8
    assert (vendor.callers, vendor.most_at_once, len(flights)) == ([0, 1, 2], 1, 0)


async def test_when_the_leader_is_cancelled_the_next_calls() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    first, second, third = (asking(flights, vendor, n) for n in range(3))
    await wait_until(lambda: vendor.at_once == 1 and len(flights) == 3)
    first.cancel()
    await wait_until(lambda: vendor.callers == [0, 1])
    vendor.gate.set()
    assert [await second, await third] == ["answer 2"] * 2


async def test_one_that_waits_and_is_cancelled_does_no_harm() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    tasks = [asking(flights, vendor, n) for n in range(4)]
    await wait_until(waiting(flights, 4))
    tasks[1].cancel()
    await wait_until(waiting(flights, 3))
    tasks[0].cancel()
    await wait_until(lambda: vendor.callers == [0, 2])
    vendor.gate.set()
    assert await tasks[3] == "answer 2"


async def test_one_that_is_cancelled_in_the_moment_it_gets_the_lead_passes_it_on() -> None:
    vendor = Vendor()
    vendor.gate.set()
    flights = Flights(vendor.look)
    leader = flights.join(KEY)
    assert (await leader.__aenter__()).leads
    second, third = asking(flights, vendor, 2), asking(flights, vendor, 3)
    await wait_until(waiting(flights, 3))
    await leader.__aexit__(None, None, None)  # without landing
    second.cancel()
    assert await third == "answer 1"
    assert (vendor.callers, len(flights)) == ([3], 0)


async def test_a_leader_that_leaves_without_a_word_has_failed() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    async with flights.join(KEY) as flight:
        assert flight.leads
        second = asking(flights, vendor, 2)
        await wait_until(waiting(flights, 2))
    vendor.gate.set()
    assert await second == "answer 1"


@pytest.mark.parametrize("kind", [ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE])
async def test_a_verdict_on_the_request_itself_holds_for_all(kind: ErrorType) -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)

    async def refused() -> str:
        await vendor.call()
        raise RequestError(kind, "no vendor takes that", retry_after_s=3)

    tasks = [asyncio.create_task(ask(flights, vendor, refused)) for _ in range(10)]
    await wait_until(waiting(flights, 10))
    vendor.gate.set()
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(e.type, e.message, e.retry_after_s) for e in errors if isinstance(e, RequestError)] == [
        (kind, "no vendor takes that", 3)
    ] * 10
    assert len(set(map(id, errors))) == 10  # each its own: a traceback grows with every raise
    assert (len(vendor.callers), len(flights)) == (1, 0)


@pytest.mark.parametrize("kind", [k for k in ErrorType if k not in {ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE}])
async def test_any_other_error_is_its_own_callers_alone(kind: ErrorType) -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)

    async def fails() -> str:
        await vendor.call()
        raise RequestError(kind, "not now")

    tasks = [asyncio.create_task(ask(flights, vendor, fails)) for _ in range(3)]
    await wait_until(waiting(flights, 3))
    vendor.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(vendor.callers) == 3


async def test_a_verdict_of_one_that_only_waited_is_nobody_elses() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look)
    leader, other = asking(flights, vendor, 0), asking(flights, vendor, 1)
    await wait_until(waiting(flights, 2))
    mine = flights.join(KEY)
    assert not (await mine.__aenter__()).leads
    refusal = RequestError(ErrorType.TOO_LARGE, "for me")
    assert not await mine.__aexit__(type(refusal), refusal, None)
    vendor.gate.set()
    assert [await leader, await other] == ["answer 1"] * 2


async def test_beyond_the_bound_everyone_calls_for_itself() -> None:
    vendor = Vendor()
    flights = Flights(vendor.look, max_flights=3)
    tasks = [asking(flights, vendor, n) for n in range(5)]
    await wait_until(lambda: vendor.at_once == 3)
    assert len(flights) == 3
    vendor.gate.set()
    assert len(await asyncio.gather(*tasks)) == 5
    assert (sorted(map(str, vendor.callers)), len(flights)) == (["0", "3", "4"], 0)


async def test_only_the_leader_lands() -> None:
    flights = Flights(Vendor().look)
    async with flights.join(KEY), flights.join(KEY) as second:
        with pytest.raises(RuntimeError):
            second.land("no")


async def test_who_waits_holds_no_slot_and_the_new_leader_has_one() -> None:
    vendor, slots, used = Vendor(), Slots(1, 0, Schedule.of((70, 15, 10, 5))), []
    flights = Flights(vendor.look)
    leader = flights.join(KEY)
    await leader.__aenter__()

    async def work() -> None:
        slot = Slot(slots, Priority.HIGH)
        await slot.acquire()
        try:
            async with flights.join(KEY) as flight:
                shared = await slot.parked(flight.outcome())
                used.append((shared, flight.leads, slots.taken))
                if flight.leads:
                    flight.land("landed")
        finally:
            slot.release()

    tasks = [asyncio.create_task(work()) for _ in range(3)]
    await wait_until(lambda: len(flights) == 4 and slots.taken == 0)
    await leader.__aexit__(None, None, None)
    await asyncio.gather(*tasks)
    assert used == [(None, True, 1), ("landed", False, 1), ("landed", False, 1)]
    assert slots.taken == 0


class Storm:
    """Callers of a few keys that come, are cancelled, fail and land in any order."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.leading: dict[str, int] = {}
        self.most = 0

    async def ask(self, flights: Flights[str], key: str) -> str:
        async with flights.join(key) as flight:
            if not flight.leads and (shared := await flight.outcome()) is not None:
                return shared
            self.leading[key] = self.leading.get(key, 0) + 1
            self.most = max(self.most, self.leading[key])
            try:
                for _ in range(self.chance.randrange(4)):
                    await asyncio.sleep(0)
                if self.chance.random() < 0.4:
                    raise RequestError(self.chance.choice([ErrorType.UNAVAILABLE, ErrorType.TOO_LARGE]), "no")
                flight.land(key)
                return key
            finally:
                self.leading[key] -= 1

    async def blow(self, replicas: list[Flights[str]], steps: int) -> None:
        tasks: list[tuple[str, asyncio.Task[str]]] = []
        for _ in range(steps):
            if self.chance.random() < 0.6:
                key = self.chance.choice("ab")
                tasks.append((key, asyncio.create_task(self.ask(self.chance.choice(replicas), key))))
            elif tasks:
                self.chance.choice(tasks)[1].cancel()
            if self.chance.random() < 0.5:
                await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await asyncio.wait([task for _, task in tasks] or [asyncio.create_task(asyncio.sleep(0))])
        for key, task in tasks:
            assert task.cancelled() or isinstance(task.exception(), RequestError) or task.result() == key


@given(st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_a_storm_of_cancellations_and_failures_leaves_nobody_waiting_and_nothing_behind(seed: int) -> None:
    async def run() -> None:
        storm, flights = Storm(seed), Flights(Vendor().look)
        await storm.blow([flights], 60)
        assert (len(flights), flights._lines, storm.most <= 1) == (0, {}, True)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


# --- across replicas ------------------------------------------------------------------------


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        if left := await client.keys("sidecar:lease:*"):
            await client.delete(*left)
        yield client
        assert await client.keys("sidecar:lease:*") == []


MakeFlights = Callable[..., Flights[str]]


@pytest.fixture
async def replica(client: Redis) -> AsyncIterator[MakeFlights]:
    """Makes a replica; at the end each has to be at rest."""
    made: list[Flights[str]] = []

    def make(vendor: Vendor, *, lease_s: float = 10.0, renew_s: float = 3.0) -> Flights[str]:
        made.append(Flights(vendor.look, RedisLeases(client, lease_s=lease_s), renew_s=renew_s))
        return made[-1]

    async with AsyncExitStack() as stack:
        yield make
        for flights in made:
            stack.push_async_callback(flights.close)
        await wait_until(lambda: not any(len(flights) or flights.open_leases for flights in made))


async def test_who_ask_two_replicas_the_same_at_once_are_answered_by_one_call(replica: MakeFlights) -> None:
    vendor = Vendor()
    mine, other = replica(vendor), replica(vendor)
    tasks = [asking(flights, vendor, n) for n in range(50) for flights in (mine, other)]
    await wait_until(lambda: len(mine) + len(other) == 100 and vendor.at_once)
    vendor.gate.set()
    assert await asyncio.gather(*tasks) == ["answer 1"] * 100
    assert len(vendor.callers) == 1


async def test_the_answer_of_another_replica_is_found_in_the_cache_that_they_share(client: Redis) -> None:
    caches, vendor = [RedisCache(client, 10, 60), RedisCache(client, 10, 60)], Vendor()

    async def work(flights: Flights[bytes], cache: RedisCache) -> tuple[bytes | None, bool]:
        async with flights.join(KEY) as flight:
            if not flight.leads and (shared := await flight.outcome()) is not None:
                return shared, flight.leads
            answer = (await vendor.call()).encode()
            await cache.put(KEY, answer)
            flight.land(answer)
            return answer, flight.leads

    replicas = [Flights(cache.get, RedisLeases(client)) for cache in caches]
    tasks = [asyncio.create_task(work(*pair)) for _ in range(20) for pair in zip(replicas, caches, strict=True)]
    await wait_until(lambda: sum(map(len, replicas)) == 40 and vendor.at_once)
    vendor.gate.set()
    assert sorted(await asyncio.gather(*tasks)) == [(b"answer 1", False)] * 39 + [(b"answer 1", True)]
    await wait_until(lambda: not any(len(flights) or flights.open_leases for flights in replicas))
    await client.delete(*await client.keys("sidecar:{cache}:*"))


async def test_when_a_replicas_only_caller_fails_another_replica_takes_over(replica: MakeFlights) -> None:
    vendor = Vendor()
    mine, other = replica(vendor), replica(vendor)
    first = asking(mine, vendor, "mine")
    await wait_until(lambda: vendor.at_once == 1)
    second = asking(other, vendor, "other")
    await wait_until(waiting(other, 1))
    first.cancel()
    await wait_until(lambda: vendor.callers == ["mine", "other"])
    vendor.gate.set()
    assert await second == "answer 2"


async def test_in_its_replica_the_lead_is_passed_on_together_with_the_lease(
    client: Redis, replica: MakeFlights
) -> None:
    vendor = Vendor()
    mine, other = replica(vendor), replica(vendor)
    first, second = asking(mine, vendor, 1), asking(mine, vendor, 2)
    await wait_until(lambda: vendor.at_once == 1 and len(mine) == 2)
    third = asking(other, vendor, 3)
    token = await client.get(f"sidecar:lease:{KEY}")
    first.cancel()
    await wait_until(lambda: vendor.callers == [1, 2])
    assert token
    assert await client.get(f"sidecar:lease:{KEY}") == token
    vendor.gate.set()
    assert [await second, await third] == ["answer 2"] * 2


async def test_a_long_call_keeps_its_lease(client: Redis, replica: MakeFlights) -> None:
    vendor = Vendor()
    mine, other = replica(vendor, lease_s=0.4, renew_s=0.1), replica(vendor, lease_s=0.4)
    first = asking(mine, vendor, "mine")
    await wait_until(lambda: vendor.at_once == 1)
    second = asking(other, vendor, "other")
    calls = "cmdstat_evalsha"
    before = (await client.info("commandstats")).get(calls, {"calls": 0})["calls"]

    async def renewed_often() -> bool:
        return bool((await client.info("commandstats")).get(calls, {"calls": 0})["calls"] >= before + 10)

    await wait_until(renewed_often)
    assert vendor.callers == ["mine"]
    vendor.gate.set()
    assert [await first, await second] == ["answer 1"] * 2


async def test_a_replica_that_died_is_followed_when_its_lease_has_ended(client: Redis, replica: MakeFlights) -> None:
    vendor = Vendor()
    vendor.gate.set()
    assert await RedisLeases(client, lease_s=0.3).take(KEY, "of one that renews it no more")
    flights = replica(vendor, lease_s=0.3)
    async with flights.join(KEY) as flight:
        assert not flight.leads
        assert await flight.outcome() is None
        assert flight.leads
        assert await client.get(f"sidecar:lease:{KEY}") != b"of one that renews it no more"


async def test_an_answer_that_the_cache_does_not_take_is_shared_in_its_replica_alone(replica: MakeFlights) -> None:
    vendor = Vendor()
    vendor.gate.set()
    mine, other = replica(vendor), replica(vendor)
    async with mine.join(KEY) as leader:
        same, elsewhere = asking(mine, vendor, "same"), asking(other, vendor, "elsewhere")
        await wait_until(lambda: len(mine) == 2 and len(other) == 1)
        leader.land("too large to keep")
    assert await same == "too large to keep"
    assert await elsewhere == "answer 1"


async def test_a_lease_that_was_lost_is_neither_renewed_nor_given_back_but_taken_anew(
    client: Redis, replica: MakeFlights
) -> None:
    vendor = Vendor()
    flights = replica(vendor, renew_s=0.05)
    async with flights.join(KEY):
        second = asking(flights, vendor, 2)
        await wait_until(waiting(flights, 2))
        await client.set(f"sidecar:lease:{KEY}", "another's", px=10_000)
        await wait_until(lambda: flights.open_leases == 0)
    assert await client.get(f"sidecar:lease:{KEY}") == b"another's"
    assert vendor.callers == []
    await client.delete(f"sidecar:lease:{KEY}")
    vendor.gate.set()
    assert await second == "answer 1"


async def test_one_that_is_cancelled_while_it_takes_a_lease_leaves_none(client: Redis, replica: MakeFlights) -> None:
    vendor = Vendor()
    flights = replica(vendor)
    for ticks in range(30):
        task = asking(flights, vendor, ticks)
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await wait_until(lambda: flights.open_leases == 0)
        assert await client.exists(f"sidecar:lease:{KEY}") == 0


async def test_to_close_gives_the_leases_back(client: Redis, replica: MakeFlights) -> None:
    vendor = Vendor()
    flights = replica(vendor)
    async with flights.join(KEY) as flight:
        assert flight.leads
        assert await client.exists(f"sidecar:lease:{KEY}") == 1
        await flights.close()
        assert (flights.open_leases, await client.exists(f"sidecar:lease:{KEY}")) == (0, 0)
        async with flights.join("another") as alone:
            assert alone.leads
        assert await client.exists("sidecar:lease:another") == 0


@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_over_two_replicas_leaves_no_lease(replica: MakeFlights, seed: int) -> None:
    vendor, storm = Vendor(), Storm(seed)
    replicas = [replica(vendor), replica(vendor)]
    await storm.blow(replicas, 60)
    assert storm.most <= 1
    await wait_until(lambda: not any(flights.open_leases for flights in replicas))
    assert [flights._lines for flights in replicas] == [{}, {}]


async def test_without_redis_each_replica_calls_once(tmp_path: Path) -> None:
    vendor = Vendor()
    async with Redis.from_url(f"unix://{tmp_path}/nobody") as nobody:
        replicas = [Flights(vendor.look, RedisLeases(nobody)) for _ in range(2)]
        tasks = [asking(flights, vendor, n) for n in range(10) for flights in replicas]
        await wait_until(lambda: vendor.at_once == 2 and sum(map(len, replicas)) == 20)
        vendor.gate.set()
        await asyncio.gather(*tasks)
        assert len(vendor.callers) == 2
        await wait_until(lambda: not any(flights.open_leases for flights in replicas))


async def test_a_redis_that_goes_during_a_call_changes_nothing_for_those_who_wait() -> None:
    vendor = Vendor()
    with short_folder() as folder:
        with redis_server(folder) as url:
            client = Redis.from_url(url)
            flights = Flights(vendor.look, RedisLeases(client), renew_s=0.05)
            tasks = [asking(flights, vendor, n) for n in range(5)]
            await wait_until(lambda: vendor.at_once == 1 and flights.open_leases == 1)
        tasks[0].cancel()
        await wait_until(lambda: vendor.callers == [0, 1])
        vendor.gate.set()
        assert [await task for task in tasks[1:]] == ["answer 2"] * 4
        await wait_until(lambda: flights.open_leases == 0)
        await client.aclose()


async def test_more_leases_than_a_client_has_connections_are_taken_in_turn(client: Redis) -> None:
    leases = RedisLeases(client)
    assert all(await asyncio.gather(*(leases.take(str(n), "mine") for n in range(300))))
    await asyncio.gather(*(leases.give_back(str(n), "mine") for n in range(300)))


async def test_a_redis_that_did_not_answer_is_not_asked_for_leases_for_a_while(
    tmp_path: Path, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Redis.from_url(f"unix://{tmp_path}/nobody") as nobody:
        leases = RedisLeases(nobody)
        with pytest.raises(CacheUnavailable, match="Redis: "):
            await leases.take(KEY, "a")
        with pytest.raises(CacheUnavailable, match="a moment ago"):
            await leases.take(KEY, "a")
        monkeypatch.setattr(leases_module, "RETRY_S", 0.0)
        leases = RedisLeases(nobody)
        for _ in range(2):
            with pytest.raises(CacheUnavailable) as raised:
                await leases.take(KEY, "a")
            assert "a moment ago" not in str(raised.value)
    with pytest.raises(CacheUnavailable, match="a moment ago"):
        await RedisLeases(client, is_shared=lambda: False).take(KEY, "a")


async def test_a_lease_is_its_holders_alone(client: Redis) -> None:
    leases = RedisLeases(client)
    assert await leases.take(KEY, "mine")
    assert not await leases.take(KEY, "other")
    assert not await leases.renew(KEY, "other")
    await leases.give_back(KEY, "other")
    await client.pexpire(f"sidecar:lease:{KEY}", 5000)
    assert await leases.renew(KEY, "mine")
    assert await client.pttl(f"sidecar:lease:{KEY}") > 9000
    await leases.give_back(KEY, "mine")
    assert await leases.take(KEY, "other")
    await leases.give_back(KEY, "other")
