"""How often a key may ask: one count for all bridges, one question for all that wait, and an honest time to return."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from nats.aio.client import Client

from bridge.callers import Caller
from bridge.keyring import Keyring
from bridge.line import Line, connected
from bridge.rates import KeyRates
from processor import jetstream, subjects
from processor.errors import ErrorType, RequestError
from processor.keys import Key, Keys, hashed
from processor.limit_stores import NatsStore
from tests.conftest import make_settings
from tests.wait import wait_until


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def lines(nc: Client, nats_url: str) -> AsyncIterator[list[Line]]:
    """Of two bridges."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(connected(make_settings(), nats_url)) for _ in range(2)]


def rates_of(line: Line, rpm: int, clock: Clock | None = None) -> KeyRates:
    """Of a bridge with the keys `shop` and `another`, which both may ask so often, and `free`."""
    keyring = Keyring(make_settings(sidecar_api_keys="one"))
    keys = {name: Key(sha256=hashed(name), rpm=rpm) for name in ("shop", "another")}
    keyring._keys = Keys(keys | {"free": Key(sha256=hashed("free"))})
    return KeyRates(line, keyring, clock)


async def passes(rates: KeyRates, name: str = "shop", count: int = 1) -> bool:
    try:
        await rates.count(Caller(name), count)
    except RequestError as error:
        return error.type is not ErrorType.RATE_LIMITED
    return True


async def test_all_bridges_count_together_and_each_key_for_itself(lines: list[Line]) -> None:
    one, other = (rates_of(line, 3) for line in lines)
    assert [await passes(rates) for rates in (one, other, one, other, one)] == [True, True, True, False, False]
    assert await passes(other, "another")
    assert all([await passes(other, "free", 1000) for _ in range(3)])


async def test_after_the_time_that_is_named_there_is_room_and_not_before(lines: list[Line]) -> None:
    clock = Clock()
    rates = rates_of(lines[0], 2, clock)
    await rates.count(Caller("shop"))
    clock.now += 20
    await rates.count(Caller("shop"))
    with pytest.raises(RequestError) as refused:
        await rates.count(Caller("shop"))
    assert refused.value.retry_after_s is not None
    assert 40 < refused.value.retry_after_s < 43
    clock.now += refused.value.retry_after_s - 0.1
    assert not await passes(rates)
    clock.now += 0.1
    assert await passes(rates)
    assert not await passes(rates)


async def test_many_at_once_are_asked_for_in_a_few_questions_and_none_too_many_pass(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    run = NatsStore.run

    async def counted(store: NatsStore, *args: object) -> object:
        nonlocal asked
        asked += 1
        return await run(store, *args)  # type: ignore[arg-type]  # it is passed on as it came

    monkeypatch.setattr(NatsStore, "run", counted)
    rates = rates_of(lines[0], 10)
    passed = await asyncio.gather(*(passes(rates) for _ in range(100)))
    assert (passed.count(True), asked) == (10, 2)


async def test_one_that_goes_away_while_it_waits_takes_nobody_with_it(
    lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    run = NatsStore.run

    async def slow(store: NatsStore, *args: object) -> object:
        begun.set()
        await go_on.wait()
        return await run(store, *args)  # type: ignore[arg-type]  # it is passed on as it came

    monkeypatch.setattr(NatsStore, "run", slow)
    rates = rates_of(lines[0], 5)
    first = asyncio.create_task(passes(rates))
    await begun.wait()
    others = [asyncio.create_task(passes(rates)) for _ in range(4)]
    await asyncio.sleep(0)
    first.cancel()
    others[0].cancel()
    go_on.set()
    assert await asyncio.gather(*others[1:]) == [True, True, True]
    assert (first.cancelled(), others[0].cancelled()) == (True, True)


async def test_more_at_once_than_a_minute_has_are_refused_and_not_counted(lines: list[Line]) -> None:
    rates = rates_of(lines[0], 5)
    with pytest.raises(RequestError) as refused:
        await rates.count(Caller("shop"), 6)
    assert refused.value.type is ErrorType.TOO_LARGE
    assert await passes(rates, count=5)
    assert not await passes(rates)


async def test_without_a_broker_the_bridge_counts_alone() -> None:
    rates = rates_of(Line(make_settings(), "nats://127.0.0.1:9"), 2)
    assert [await passes(rates) for _ in range(3)] == [True, True, False]


async def test_where_the_stream_is_gone_the_bridge_counts_alone(
    nc: Client, lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.limit_stores.GIVE_UP_S", 0.1)
    await jetstream.call(nc, f"STREAM.DELETE.{subjects.STATE}")
    rates = rates_of(lines[0], 2)
    assert [await passes(rates) for _ in range(3)] == [True, True, False]


async def test_a_connection_that_was_built_anew_is_used(lines: list[Line], nats_url: str) -> None:
    rates = rates_of(lines[0], 2)
    assert await passes(rates)
    keeping = asyncio.create_task(lines[0].keep())
    before = lines[0].bus
    await before.nc.close()
    await wait_until(lambda: lines[0].bus is not before and lines[0].bus.is_connected)
    assert [await passes(rates), await passes(rates_of(lines[1], 2))] == [True, False]
    keeping.cancel()
