"""The JetStream calls: every trouble of the connection is one exception, and none ends a processor."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from processor import jetstream
from processor.broker import contract_dir
from processor.bus import Bus
from processor.jetstream import JetStreamUnavailable
from processor.provision import provision
from providers.scripted import ScriptedProvider
from tests.chaos.servers import one_server
from tests.conftest import make_settings, running_processor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body, listen
from tests.wait import wait_until

CALLS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "call": lambda nc: jetstream.call(nc, "INFO", timeout_s=0.3),
    "last message": lambda nc: jetstream.last_message(nc, "S", "s", timeout_s=0.3),
    "batch": lambda nc: jetstream.batch(nc, "S", {"seq": 1, "batch": 1}, timeout_s=0.3),
}


async def fill_the_send_buffer(nc: Client) -> None:
    """With what nats-py keeps back for a server that is away."""
    for size in (100_000, 100, 0):
        with suppress(nats.errors.OutboundBufferLimitError):
            while True:
                await nc.publish("some.subject", b"x" * size)


@pytest.mark.parametrize("name", CALLS)
async def test_a_full_send_buffer_means_unavailable(name: str, tmp_path: Path) -> None:
    async with one_server(tmp_path) as server:
        bus = Bus()
        await bus.connect(server.url, make_settings(), name="test")
        await server.kill()
        await wait_until(lambda: not bus.is_connected)
        await fill_the_send_buffer(bus.nc)
        with pytest.raises(JetStreamUnavailable):
            await CALLS[name](bus.nc)
        await server.start()
        await wait_until(lambda: bus.is_connected)
        await bus.close()


async def test_a_closed_connection_means_unavailable_at_once(nats_url: str) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    await bus.close()
    for call in CALLS.values():
        with pytest.raises(JetStreamUnavailable, match="closed"):
            await call(bus.nc)
    with pytest.raises(JetStreamUnavailable, match="closed"):
        await jetstream.publish(bus, "some.subject", b"", {"Nats-Msg-Id": "1"})


async def test_what_waits_for_its_puback_is_not_sent_again_and_again_when_the_broker_is_back(tmp_path: Path) -> None:
    async with one_server(tmp_path) as server:
        bus = Bus()
        await bus.connect(server.url, make_settings(), name="test")
        await jetstream.call(bus.nc, "STREAM.CREATE.S", {"name": "S", "subjects": ["s"]})
        await server.kill()
        await wait_until(lambda: not bus.is_connected)
        with pytest.raises(JetStreamUnavailable):
            await jetstream.publish(bus, "s", b"too early", {"Nats-Msg-Id": "1"}, timeout_s=0.3)
        waiting = asyncio.create_task(jetstream.publish(bus, "s", b"in time", {"Nats-Msg-Id": "2"}, timeout_s=20))
        await server.start()
        assert (await waiting).seq == 1
        await bus.close()


async def test_a_processor_outlives_an_outage_with_more_unsent_than_nats_py_keeps(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(one_server(tmp_path))
        client = await nats.connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=ignore)
        stack.push_async_callback(client.close)
        await provision(client, contract_dir())
        vendors = {"anthropic": ScriptedProvider(answer())}
        processor = await stack.enter_async_context(running_processor(server.url, vendors))
        nc = processor._bus.nc
        await server.kill()
        await wait_until(lambda: not nc.is_connected)
        await fill_the_send_buffer(nc)
        looked = asyncio.create_task(processor._backlog._look())
        with pytest.raises(JetStreamUnavailable):
            await looked
        await server.start()
        await wait_until(lambda: nc.is_connected and client.is_connected)
        assert (await wait_until(lambda: answered(client), timeout_s=10))["response"] == "Hello."


async def answered(client: Client) -> dict[str, Any] | None:
    """The answer, once the processor has subscribed again."""
    try:
        return await ask(client, body(), timeout=5)
    except nats.errors.NoRespondersError:
        return None


async def ignore(_: Exception) -> None:
    """The connection is meant to break."""


async def test_a_cancellation_that_comes_together_with_a_batch_is_not_lost(nc: Client, nats_url: str) -> None:
    """Whoever reads streams in the background for ever could not be stopped otherwise."""
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    silent = "SILENT"  # nobody answers in its name but this test
    asked = await listen(nc, f"$JS.API.DIRECT.GET.{silent}")
    reading = asyncio.create_task(jetstream.batch(bus.nc, silent, {"seq": 1, "batch": 1}))
    query = await asked.next_msg(timeout=5)
    (inbox,) = [sub for sub in bus.nc._subs.values() if sub.subject == query.reply]
    end = Msg(bus.nc, headers={"Status": "204", "Nats-Num-Pending": "0"})
    inbox._pending_queue.put_nowait(end)
    await asyncio.sleep(0)  # the reader's wait has its message, and has not run yet
    reading.cancel()
    await asyncio.wait({reading}, timeout=5)
    assert reading.cancelled()
    await bus.close()
