"""One suite for every store of limits, then what only NATS and only Redis can do wrong."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats.errors
import orjson
import pytest
from nats.aio.msg import Msg
from redis.asyncio import Redis

from processor import jetstream, limit_documents, limit_stores, subjects
from processor.broker import contract_dir
from processor.bucket import (
    METRICS,
    Admit,
    Denied,
    Entry,
    Granted,
    Hold,
    Metric,
    Need,
    Op,
    Record,
    Result,
    Scope,
    Settle,
    State,
    Told,
    apply,
)
from processor.bus import Bus
from processor.limit_documents import (
    MAX_WRITERS,
    OPENING_AFTER_S,
    OPENING_S,
    SHARED_S,
    Document,
    Turns,
    decode_state,
    encode_state,
    joined,
)
from processor.limit_stores import (
    Contended,
    LimitStore,
    MemoryStore,
    NatsStore,
    RedisStore,
    StateLost,
    StoreUnavailable,
    steady_clock,
)
from processor.provision import provision
from tests.conftest import make_settings, nats_server, redis_server, short_folder
from tests.wait import wait_until

START = 1_795_478_400.0
RPM: dict[Scope, dict[Metric, int]] = {"": {"rpm": 50}}
_names = itertools.count()


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Kit:
    """`store()` makes another client of the same data."""

    clock: Clock
    provider: str
    store: Callable[[], LimitStore]


@pytest.fixture
def provider() -> str:
    return f"vendor-{next(_names)}-{time.time_ns()}"


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    await provision(bus.nc, contract_dir())
    yield bus
    await bus.close()


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(params=["memory", "nats", "redis"])
async def kit(request: pytest.FixtureRequest, provider: str) -> AsyncIterator[Kit]:
    clock = Clock()
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            memory = MemoryStore(clock)
            yield Kit(clock, provider, lambda: memory)
        elif request.param == "nats":
            bus = Bus()
            await bus.connect(request.getfixturevalue("nats_url"), make_settings(), name="test")
            await provision(bus.nc, contract_dir())
            stack.push_async_callback(bus.close)
            yield Kit(clock, provider, lambda: NatsStore(bus, clock))
        else:
            client = await stack.enter_async_context(Redis.from_url(request.getfixturevalue("redis_url")))
            yield Kit(clock, provider, lambda: RedisStore(client, clock=clock))


async def one(store: LimitStore, provider: str, op: Op) -> Result:
    [result] = await store.run(provider, [op])
    return result


# --- every store ----------------------------------------------------------------------------


@dataclass
class Script:
    """Random operations, with settlements of what was granted before."""

    random: random.Random
    granted: list[Granted]

    def op(self, now: float) -> Op:
        chance = self.random
        scope = chance.choice(["", "haiku", "sonnet 4.5 é"])
        metric = chance.choice(METRICS)
        match chance.choice(["admit"] * 6 + ["settle"] * 3 + ["record", "hold", "told"]):
            case "settle" if self.granted:
                granted = self.granted.pop(chance.randrange(len(self.granted)))
                actual = Need(1, chance.randint(0, 600), chance.randint(0, 600))
                return Settle(granted, chance.choice([None, actual]))
            case "record":
                at_ms = round(now * 1000) + chance.randint(-90_000, 90_000)
                return Record((Entry(scope, metric, at_ms, chance.randint(-300, 300)),))
            case "hold":
                return Hold(scope, chance.choice([-1, 0, 0.5, 3, 10]), "please wait, “vendor” says")
            case "told":
                limit = chance.choice([None, 700, 1500, 10**12])
                return Told(scope, metric, chance.randint(-1, 900), chance.choice([-1, 0, 0.25, 5, 50, 100]), limit)
            case _:
                of_model: list[dict[Metric, int]] = [{}, {"itpm": 900, "otpm": 700, "tpd": 9000}]
                limits: dict[Scope, dict[Metric, int]] = {"": {"rpm": 9, "tpm": 2000, "rpd": 60}}
                limits[chance.choice(["haiku", "sonnet 4.5 é"])] = chance.choice(of_model)
                need = Need(1, chance.randint(0, 1600), chance.randint(0, 1500))
                return Admit(limits, need, chance.choice([1.0, 0.9, 0.5]))


@pytest.mark.parametrize("seed", range(8))
async def test_every_store_decides_as_the_pure_bucket_does(kit: Kit, seed: int) -> None:
    script, state, stores = Script(random.Random(seed), []), State(), [kit.store(), kit.store()]
    compared = 0
    for step in range(60):
        kit.clock.now = round(kit.clock.now + script.random.choice([0, 0.001, 0.3, 2, 9, 40, 0.7]), 3)
        ops = [script.op(kit.clock.now) for _ in range(script.random.randint(1, 6))]
        expected = [apply(state, op, kit.clock.now) for op in ops]
        assert await stores[step % 2].run(kit.provider, ops) == expected
        script.granted += [result for result in expected if isinstance(result, Granted)]
        compared += sum(result is not None for result in expected)
    assert compared > 60


async def test_clients_that_share_a_provider_never_admit_more_than_the_limit_and_all_of_it(kit: Kit) -> None:
    stores = [kit.store() for _ in range(3)]

    async def ask(store: LimitStore) -> list[Result]:
        return [await one(store, kit.provider, Admit(RPM, Need())) for _ in range(5)]

    results = await asyncio.gather(*(ask(store) for store in stores for _ in range(5)))
    granted = [result for of_one in results for result in of_one if isinstance(result, Granted)]
    assert len(granted) == 50


async def test_what_one_client_gives_back_another_may_take(kit: Kit) -> None:
    mine, other = kit.store(), kit.store()
    admit = Admit({"": {"rpm": 1}}, Need())
    granted = await one(mine, kit.provider, admit)
    assert isinstance(granted, Granted)
    denied = await one(other, kit.provider, admit)
    assert denied == Denied(61.75, "", "its provider's limit of 1 requests a minute is used up")
    await mine.run(kit.provider, [Settle(granted, None)])
    assert isinstance(await one(other, kit.provider, admit), Granted)
    assert isinstance(await one(mine, kit.provider, admit), Denied)


async def test_a_refusal_that_others_have_made_untrue_is_not_given(kit: Kit) -> None:
    mine, other = kit.store(), kit.store()
    admit = Admit({"": {"rpm": 1}}, Need())
    granted = await one(mine, kit.provider, admit)
    assert isinstance(granted, Granted)
    assert isinstance(await one(mine, kit.provider, admit), Denied)
    await other.run(kit.provider, [Settle(granted, None)])
    assert isinstance(await one(mine, kit.provider, admit), Granted)


async def test_all_clients_keep_to_a_hold_and_to_the_vendors_word(kit: Kit) -> None:
    mine, other = kit.store(), kit.store()
    admit = Admit({"": {}, "haiku": {}}, Need())
    await mine.run(kit.provider, [Hold("haiku", 10), Told("", "rpm", 1, 20)])
    assert await one(other, kit.provider, admit) == Denied(10.0, "haiku", "the vendor asked to wait")
    kit.clock.now += 10
    assert isinstance(await one(other, kit.provider, admit), Granted)
    assert await one(mine, kit.provider, admit) == Denied(
        10.0, "", "the vendor says that its provider's requests a minute are used up"
    )


async def test_what_the_vendor_told_fills_evenly_and_gets_back_what_was_not_used(kit: Kit) -> None:
    mine, other = kit.store(), kit.store()
    admit = Admit({"": {}, "gpt": {"otpm": 900}}, Need(1, 0, 150))
    await mine.run(kit.provider, [Told("gpt", "otpm", 100, 30, 200)])
    why = "the vendor says that its output tokens a minute are used up"
    assert await one(other, kit.provider, admit) == Denied(15.0, "gpt", why)
    kit.clock.now += 15
    granted = await one(other, kit.provider, admit)
    assert isinstance(granted, Granted)
    assert await one(mine, kit.provider, admit) == Denied(45.0, "gpt", why)
    await other.run(kit.provider, [Settle(granted, Need(1, 0, 50))])
    assert await one(mine, kit.provider, admit) == Denied(15.0, "gpt", why)
    kit.clock.now += 15
    assert isinstance(await one(mine, kit.provider, admit), Granted)


async def test_what_never_fits_is_refused_between_others_that_do(kit: Kit) -> None:
    small, large = Admit({"": {"tpm": 100}}, Need(1, 10)), Admit({"": {"tpm": 100}}, Need(1, 151))
    results = await kit.store().run(kit.provider, [large, small, large, small])
    assert [type(result) for result in results] == [Denied, Granted, Denied, Granted]
    assert isinstance(results[0], Denied)
    assert math.isinf(results[0].wait_s)


async def test_no_operations_show_that_the_store_answers_and_change_nothing(kit: Kit) -> None:
    store = kit.store()
    assert await store.run(kit.provider, []) == []
    await store.run(kit.provider, [Record((Entry("", "rpm", round(START * 1000), 50),))])
    assert await store.run(kit.provider, []) == []
    assert isinstance(await one(store, kit.provider, Admit(RPM, Need())), Denied)


async def test_a_clock_that_was_set_back_does_not_stop_time(kit: Kit) -> None:
    store = kit.store()
    admit = Admit({"": {"rpm": 1}}, Need())
    assert isinstance(await one(store, kit.provider, admit), Granted)
    kit.clock.now -= 3600
    denied = await one(store, kit.provider, admit)
    assert isinstance(denied, Denied)
    assert denied.wait_s == pytest.approx(61.75, abs=0.001)
    kit.clock.now += 30
    denied = await one(store, kit.provider, admit)
    assert isinstance(denied, Denied)
    assert denied.wait_s == pytest.approx(31.75, abs=0.001)
    kit.clock.now += 31.76
    assert isinstance(await one(store, kit.provider, admit), Granted)


async def test_replicas_whose_clocks_differ_use_a_saturated_limit_to_95_percent_and_never_more(
    bus: Bus, provider: str
) -> None:
    skews, true, minutes = (-0.4, 0.0, 0.5), Clock(), 4
    stores = [NatsStore(bus, lambda skew=skew: true() + skew) for skew in skews]  # type: ignore[misc]
    next_try, seen = [START] * 3, []
    late = random.Random(3)
    while (replica := next_try.index(min(next_try))) is not None and next_try[replica] < START + 60 * minutes:
        true.now = next_try[replica]
        result = await one(stores[replica], provider, Admit({"": {"rpm": 20}}, Need()))
        if isinstance(result, Granted):
            seen.append(true.now + late.random() * 0.5)
        else:
            assert isinstance(result, Denied)
            next_try[replica] += result.wait_s + 0.001
    seen.sort()
    assert all(after - before > 60 for before, after in zip(seen, seen[20:], strict=False))
    assert len(seen) >= 0.95 * 20 * minutes


def test_the_steady_clock_tells_unix_time() -> None:
    assert abs(steady_clock()() - time.time()) < 1


# --- NATS -----------------------------------------------------------------------------------


class Lossy:
    """A NATS client that may be far away, and whose next changes lose their answer, a race, or are lost themselves."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.nc = self
        self.is_connected = True
        self.asked: list[str] = []
        self.lose: list[str] = []
        self.meanwhile: Callable[[], Any] | None = None
        self.away_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus.nc, name)

    def check_size(self, body: bytes, headers: Any) -> None:
        self._bus.check_size(body, headers)

    async def request(self, subject: str, body: bytes, **more: Any) -> Msg:
        self.asked.append(subject)
        await asyncio.sleep(self.away_s / 2)
        loses = self.lose.pop(0) if self.lose and not subject.startswith("$JS") else ""
        if loses == "request":
            raise nats.errors.TimeoutError
        if loses == "race" and self.meanwhile is not None:
            await self.meanwhile()
        answer = await self._bus.nc.request(subject, body, **more)
        await asyncio.sleep(self.away_s / 2)
        if loses == "answer":
            if self.meanwhile is not None:
                await self.meanwhile()
            raise nats.errors.TimeoutError
        return answer


def lossy(bus: Bus) -> tuple[Lossy, NatsStore]:
    wire = Lossy(bus)
    return wire, NatsStore(wire, Clock())  # type: ignore[arg-type]


async def used(bus: Bus, provider: str, metric: Metric = "rpm", scope: Scope = "") -> int:
    message = await jetstream.last_message(bus.nc, subjects.STATE, subjects.limits_state(provider))
    assert message is not None
    window = Document.decode(message.body).state.windows.get((scope, metric))
    return window.used if window is not None else 0


async def test_a_call_that_nobody_contends_is_one_round_trip(bus: Bus, provider: str) -> None:
    wire, store = lossy(bus)
    await one(store, provider, Admit(RPM, Need()))
    wire.asked.clear()
    for _ in range(5):
        assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert wire.asked == [subjects.limits_state(provider)] * 5


async def test_a_refusal_writes_nothing(bus: Bus, provider: str) -> None:
    wire, store = lossy(bus)
    await one(store, provider, Admit({"": {"rpm": 1}}, Need()))
    wire.asked.clear()
    assert isinstance(await one(store, provider, Admit({"": {"rpm": 1}}, Need())), Denied)
    assert wire.asked == [f"$JS.API.DIRECT.GET.LLM_STATE.{subjects.limits_state(provider)}"]


async def test_a_change_whose_answer_was_lost_is_done_once(bus: Bus, provider: str) -> None:
    wire, store = lossy(bus)
    granted = await one(store, provider, Admit({"": {"tpm": 1000}}, Need(1, 100, 100)))
    assert isinstance(granted, Granted)
    wire.lose = ["answer"]
    await store.run(provider, [Settle(granted, Need(1, 50, 50)), Admit({"": {"tpm": 1000}}, Need(1, 300))])
    assert await used(bus, provider, "tpm") == 400
    assert wire.lose == []


async def test_nor_twice_where_another_replica_has_written_before_it_was_looked_for(bus: Bus, provider: str) -> None:
    wire, store = lossy(bus)
    other = NatsStore(bus, Clock())
    granted = await one(store, provider, Admit({"": {"tpm": 1000}}, Need(1, 900)))
    assert isinstance(granted, Granted)

    async def meanwhile() -> None:
        assert isinstance(await one(other, provider, Admit({"": {"tpm": 1000}}, Need(1, 70))), Granted)

    wire.lose, wire.meanwhile = ["answer"], meanwhile
    assert await store.run(provider, [Settle(granted, Need(1, 400))]) == [None]
    assert await used(bus, provider, "tpm") == 470


async def test_a_change_that_was_lost_itself_is_sent_again(bus: Bus, provider: str) -> None:
    wire, store = lossy(bus)
    await one(store, provider, Admit(RPM, Need()))
    wire.lose = ["request", "request"]
    assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 2


async def test_without_an_answer_it_gives_up_and_the_next_call_finds_its_way(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_stores, "GIVE_UP_S", 0.2)
    wire, store = lossy(bus)
    await one(store, provider, Admit(RPM, Need()))
    wire.lose = ["request"] * 100
    with pytest.raises(StoreUnavailable, match="NATS: no answer"):
        await one(store, provider, Admit(RPM, Need()))
    wire.lose = []
    assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 2


async def test_two_that_write_at_once_both_count(bus: Bus, provider: str) -> None:
    mine, other = NatsStore(bus, Clock()), NatsStore(bus, Clock())
    for store in (mine, other, mine, mine, other):
        assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 5


async def test_who_loses_every_race_is_told_that_others_were_faster_and_nothing_is_done(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_stores, "GIVE_UP_S", 0.05)
    wire, store = lossy(bus)

    async def meanwhile() -> None:
        await NatsStore(bus, Clock()).run(provider, [Record((Entry("haiku", "rpm", round(START * 1000), 1),))])

    wire.lose, wire.meanwhile = ["race"] * 1000, meanwhile
    with pytest.raises(Contended, match="other replicas were faster"):
        await one(store, provider, Admit(RPM, Need()))
    assert await used(bus, provider) == 0
    assert await used(bus, provider, scope="haiku") == 1000 - len(wire.lose) > 0
    wire.lose = []
    assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 1


async def test_a_replica_far_away_gets_its_turn_though_another_writes_all_the_time(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_documents, "OPENING_AFTER_S", 0.3)
    near, (wire, far) = NatsStore(bus, Clock()), lossy(bus)
    wire.away_s = 0.015
    admit, written = Admit({"": {"rpm": 10**6}}, Need()), 0

    async def write_on() -> None:
        nonlocal written
        while True:
            await one(near, provider, admit)
            written += 1

    writing = asyncio.create_task(write_on())
    await wait_until(lambda: written > 10)
    begun = time.monotonic()
    for _ in range(5):
        assert isinstance(await one(far, provider, admit), Granted)
    assert time.monotonic() - begun < 2.5
    at_last = written
    await wait_until(lambda: written > at_last)  # nor does the far one keep the near one out
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert written <= await used(bus, provider) - 5 <= written + 1


async def test_a_gap_is_left_after_a_write_only_where_others_write_too(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_stores, "GAP_S", (30.0, 30.0))
    mine, other = NatsStore(bus, Clock()), NatsStore(bus, Clock())
    for _ in range(5):
        await one(mine, provider, Admit(RPM, Need()))
    await one(other, provider, Admit(RPM, Need()))
    await one(mine, provider, Admit(RPM, Need()))  # it hears of the other
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(one(mine, provider, Admit(RPM, Need())), 0.1)
    await one(mine, f"{provider}-2", Admit(RPM, Need()))


def test_turns_are_left_while_others_are_seen_and_once_in_a_while_by_who_hears_of_none() -> None:
    turns = Turns()
    for ms in range(0, round(OPENING_AFTER_S * 1000), 10):
        turns.wrote(ms / 1000, 0.03)
        assert turns.next_s < ms / 1000
    turns.wrote(OPENING_AFTER_S, 0.03)
    assert turns.next_s == OPENING_AFTER_S + OPENING_S
    turns.wrote(turns.next_s, 0.03)
    assert turns.next_s < turns.wrote_s + 0.001

    turns.beaten(10.0)
    assert turns.looks_first(10.5)
    assert not turns.looks_first(12.0)
    turns.wrote(10.5, 0.03)
    assert turns.next_s == 10.53
    turns.wrote(10.0 + SHARED_S, 0.03)
    assert turns.next_s == 10.53


async def test_a_stream_that_came_back_empty_goes_on_from_what_each_replica_knows(bus: Bus, provider: str) -> None:
    mine, other = NatsStore(bus, Clock()), NatsStore(bus, Clock())
    for store in (mine, mine, other):
        await one(store, provider, Admit(RPM, Need()))
    await jetstream.call(bus.nc, "STREAM.PURGE.LLM_STATE", {"filter": subjects.limits_state(provider)})
    # It has not heard of the third; the other has, and both know of the first two.
    assert isinstance(await one(mine, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 3
    later = Clock(START + 1)
    assert isinstance(await one(NatsStore(bus, later), provider, Admit(RPM, Need())), Granted)
    assert isinstance(await one(other, provider, Admit({"": {"rpm": 50}, "haiku": {"rpm": 5}}, Need())), Granted)
    assert await used(bus, provider) == 5
    assert await used(bus, provider, scope="haiku") == 1


async def test_what_a_lost_document_knew_is_not_forgotten_when_the_first_try_to_write_it_fails(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, store = lossy(bus)
    for _ in range(4):
        await one(store, provider, Admit(RPM, Need()))
    await jetstream.call(bus.nc, "STREAM.PURGE.LLM_STATE", {"filter": subjects.limits_state(provider)})
    other = NatsStore(bus, Clock(START + 30))
    await one(other, provider, Admit(RPM, Need()))
    monkeypatch.setattr(limit_stores, "GIVE_UP_S", 0.2)
    wire.lose = ["", *["request"] * 100]
    with pytest.raises(StoreUnavailable):
        await one(store, provider, Admit(RPM, Need()))
    wire.lose = []
    await one(other, provider, Admit(RPM, Need()))
    await one(store, provider, Admit(RPM, Need()))
    assert await used(bus, provider) == 7


async def test_a_stream_that_came_back_with_an_older_copy_goes_on_from_what_is_known(bus: Bus, provider: str) -> None:
    subject = subjects.limits_state(provider)
    mine, other = NatsStore(bus, Clock()), NatsStore(bus, Clock())
    for store in (mine, other):
        await one(store, provider, Admit(RPM, Need()))
    snapshot = await jetstream.last_message(bus.nc, subjects.STATE, subject)
    assert snapshot is not None
    for store in (other, mine):
        await one(store, provider, Admit(RPM, Need()))
    await bus.nc.jetstream().publish(subject, snapshot.body)
    assert isinstance(await one(mine, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 5
    assert isinstance(await one(other, provider, Admit(RPM, Need())), Granted)
    assert await used(bus, provider) == 6


async def test_what_was_brought_back_can_be_given_back(bus: Bus, provider: str) -> None:
    store, other = NatsStore(bus, Clock()), NatsStore(bus, Clock())
    granted = await one(store, provider, Admit(RPM, Need()))
    assert isinstance(granted, Granted)
    await jetstream.call(bus.nc, "STREAM.PURGE.LLM_STATE", {"filter": subjects.limits_state(provider)})
    await one(other, provider, Hold("", 1))
    await one(store, provider, Hold("", 2))
    assert await used(bus, provider) == 1
    await one(other, provider, Settle(granted, None))
    await one(store, provider, Hold("", 3))
    assert await used(bus, provider) == 0


async def test_without_a_connection_nothing_is_sent_that_would_arrive_later(
    bus: Bus, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_stores, "GIVE_UP_S", 0.1)
    wire, store = lossy(bus)
    await one(store, provider, Admit(RPM, Need()))
    wire.asked.clear()
    wire.is_connected = False
    with pytest.raises(StoreUnavailable, match="not connected"):
        await one(store, provider, Admit(RPM, Need()))
    assert wire.asked == []


async def test_a_document_that_cannot_be_read_is_replaced(bus: Bus, provider: str) -> None:
    for body in (b"nonsense", b"{}", orjson.dumps({"birth": "x", "writers": {}, "state": {"t": 0, "w": 5}})):
        await bus.nc.jetstream().publish(subjects.limits_state(provider), body)
        assert isinstance(await one(NatsStore(bus, Clock()), provider, Admit(RPM, Need())), Granted)
        assert await used(bus, provider) == 1


async def test_a_document_remembers_a_bounded_number_of_writers_the_last_ones() -> None:
    document = Document("x")
    for number in range(3 * MAX_WRITERS):
        document = document.changed_by(f"replica-{number % (2 * MAX_WRITERS)}", number)
    assert len(document.writers) == MAX_WRITERS
    assert document.writers[f"replica-{MAX_WRITERS - 1}"] == 3 * MAX_WRITERS - 1


def test_joining_states_takes_the_greater_of_each_slot_and_the_longer_hold() -> None:
    one_state, other = State(), State()
    for state, amount, for_s in ((one_state, 3, 5), (other, 2, 9)):
        apply(state, Record((Entry("", "rpm", round(START * 1000), amount),)), START)
        apply(state, Hold("", for_s), START)
    apply(
        other,
        Record((Entry("", "rpm", round(START * 1000) - 5000, 1), Entry("x", "tpm", round(START * 1000), 7))),
        START,
    )
    both = joined(one_state, other)
    assert (both.windows["", "rpm"].used, both.windows["x", "tpm"].used) == (4, 7)
    assert list(both.windows["", "rpm"].slots.values()) == [1, 3]
    assert both.holds[""][0] == round(START * 1000) + 9000
    assert one_state.windows["", "rpm"].used == 3
    assert decode_state(encode_state(both)) == both


async def test_without_a_server_or_a_stream_the_store_is_unavailable(
    tmp_path: Path, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_stores, "GIVE_UP_S", 0.3)
    bus = Bus()
    with nats_server(tmp_path) as url:
        await bus.connect(url, make_settings(), name="test")
        store = NatsStore(bus, Clock())
        with pytest.raises(StoreUnavailable, match="LLM_STATE does not answer"):
            await one(store, provider, Admit(RPM, Need()))
        await provision(bus.nc, contract_dir())
        assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    with pytest.raises(StoreUnavailable, match="NATS"):
        await one(store, provider, Admit(RPM, Need()))
    await bus.close()
    with pytest.raises(StoreUnavailable, match="NATS"):
        await one(store, provider, Admit(RPM, Need()))


# --- Redis ----------------------------------------------------------------------------------


async def test_redis_counts_by_its_servers_clock(client: Redis, provider: str) -> None:
    granted = await one(RedisStore(client), provider, Admit(RPM, Need()))
    assert isinstance(granted, Granted)
    assert abs(granted.at_ms / 1000 - time.time()) < 60


async def test_a_document_in_redis_goes_when_its_windows_have_passed(client: Redis, provider: str) -> None:
    store = RedisStore(client)
    await one(store, provider, Admit(RPM, Need()))
    assert 60_000 <= await client.pttl(f"sidecar:limits:{provider}") <= 61_750
    await one(store, provider, Admit({"": {"rpd": 9}}, Need()))
    assert 86_000_000 <= await client.pttl(f"sidecar:limits:{provider}") <= 86_400_000 + 361_500


async def test_a_server_whose_clock_was_set_back_admits_no_more(client: Redis, provider: str) -> None:
    clock = Clock()
    store = RedisStore(client, clock=clock)
    admit = Admit({"": {"rpm": 1}}, Need())
    assert isinstance(await one(store, provider, admit), Granted)
    clock.now -= 30
    denied = await one(store, provider, admit)
    assert isinstance(denied, Denied)
    assert denied.wait_s == 61.75
    await store.run(provider, [Hold("haiku", 5)])
    clock.now = START + 4
    held = await one(store, provider, Admit({"haiku": {}}, Need()))
    assert isinstance(held, Denied)
    assert held.wait_s == 1.0


async def test_to_see_whether_redis_answers_leaves_nothing_there(client: Redis, provider: str) -> None:
    assert await RedisStore(client).run(provider, []) == []
    assert await client.exists(f"sidecar:limits:{provider}") == 0


async def test_redis_is_asked_once_for_a_whole_batch(client: Redis, provider: str) -> None:
    store = RedisStore(client)
    await one(store, provider, Admit(RPM, Need()))
    before = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert len(await store.run(provider, [Admit(RPM, Need())] * 20)) == 20
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] == before + 1


async def test_a_redis_that_forgot_says_so_once_to_each_who_knew(client: Redis, provider: str) -> None:
    mine, other, later = RedisStore(client), RedisStore(client), RedisStore(client)
    for store in (mine, other):
        await one(store, provider, Admit(RPM, Need()))
    await client.delete(f"sidecar:limits:{provider}")
    for store in (mine, other):
        with pytest.raises(StateLost):
            await one(store, provider, Admit(RPM, Need()))
        assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
    assert isinstance(await one(later, provider, Admit(RPM, Need())), Granted)
    assert isinstance(await one(mine, provider, Admit(RPM, Need())), Granted)


async def test_a_redis_that_came_back_with_an_older_copy_has_all_tell_again_what_they_were_granted(
    client: Redis, provider: str
) -> None:
    key = f"sidecar:limits:{provider}"
    mine, other, fresh = RedisStore(client), RedisStore(client), RedisStore(client)
    for store in (mine, other):
        await store.run(provider, [Admit(RPM, Need())] * 3)
    snapshot = await client.get(key)
    assert snapshot is not None
    for store in (mine, other, mine, other):
        await one(store, provider, Admit(RPM, Need()))
    await client.set(key, snapshot, px=60_000)
    assert isinstance(await one(fresh, provider, Admit(RPM, Need())), Granted)
    for store in (mine, other, fresh):
        with pytest.raises(StateLost):
            await one(store, provider, Admit(RPM, Need()))
    assert 0 < await client.pttl(key) <= 61_750
    assert [type(result) for result in await mine.run(provider, [Admit(RPM, Need())] * 51)] == [Granted] * 50 + [Denied]
    assert isinstance(await one(other, provider, Admit(RPM, Need())), Denied)


async def test_a_redis_that_lost_its_scripts_gets_them_again(client: Redis, provider: str) -> None:
    store = RedisStore(client)
    await one(store, provider, Admit(RPM, Need()))
    await client.script_flush()
    assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)


async def test_a_redis_that_is_gone_is_unavailable_and_serves_again_when_it_is_back(provider: str) -> None:
    with short_folder() as folder:
        with redis_server(folder) as url:
            client = Redis.from_url(url)
            store = RedisStore(client)
            await one(store, provider, Admit(RPM, Need()))
        with pytest.raises(StoreUnavailable, match="Redis"):
            await one(store, provider, Admit(RPM, Need()))
        with redis_server(folder):
            with pytest.raises(StateLost):
                await one(store, provider, Admit(RPM, Need()))
            assert isinstance(await one(store, provider, Admit(RPM, Need())), Granted)
            await client.aclose()


async def test_a_redis_that_is_silent_is_given_up_soon(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_stores, "TRY_S", 0.2)
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "redis"))
        silent.listen()
        async with Redis.from_url(f"unix://{folder}/redis") as client:
            begun = time.monotonic()
            with pytest.raises(StoreUnavailable, match="Redis: no answer"):
                await one(RedisStore(client), provider, Admit(RPM, Need()))
            assert time.monotonic() - begun < 2


async def test_a_lost_connection_never_sends_a_script_twice(provider: str) -> None:
    asked: list[bytes] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            asked.append(data)
            if b"EVALSHA" in data:
                break
            writer.write(b"+OK\r\n" * data.count(b"*"))
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Redis(port=port, protocol=2) as client:
        with pytest.raises(StoreUnavailable):
            await one(RedisStore(client), provider, Admit(RPM, Need()))
    server.close()
    await server.wait_closed()
    assert b"".join(asked).count(b"EVALSHA") == 1


async def test_a_redis_that_refuses_scripts_is_unavailable(client: Redis, provider: str) -> None:
    await client.set(f"sidecar:limits:{provider}", b"not a document")
    with pytest.raises(StoreUnavailable, match="Redis"):
        await one(RedisStore(client), provider, Admit(RPM, Need()))
