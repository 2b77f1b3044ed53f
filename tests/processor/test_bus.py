"""The connection: its guards, and what it says when there is no server."""

from __future__ import annotations

from pathlib import Path

import nats
import pytest
from nats.aio.client import Client

from processor import bus as bus_module
from processor.broker import contract_dir
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamUnavailable
from processor.provision import provision
from providers.base import Opened
from providers.scripted import Pause, ScriptedProvider
from tests.conftest import StartProcessor, make_settings, nats_server, running_processor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body, stored
from tests.wait import wait_until


async def test_no_server_is_an_error_soon_and_not_an_endless_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "CONNECT_WITHIN_S", 0.5)
    with pytest.raises(ConnectionError, match="Connect"):
        await Bus().connect("nats://127.0.0.1:9", make_settings(), name="test")


async def test_what_the_server_would_hang_up_for_is_refused_here(nats_url: str) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    with pytest.raises(MessageTooLarge):
        await bus.publish("some.subject", b"x" * bus.nc.max_payload)
    with pytest.raises(MessageTooLarge):
        await bus.publish("some.subject", b"x" * (bus.nc.max_payload - 5000), {"h": "y" * 2000})
    await bus.publish("some.subject", b"x" * (bus.nc.max_payload - 5000))
    await bus.nc.flush()
    assert bus.nc.is_connected
    await bus.close()


async def test_an_answer_that_does_not_fit_the_bus_ends_in_too_large(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(answer("x" * 9_000_000))})
    assert (await ask(nc, body()))["error"]["type"] == "too_large"


async def test_a_running_processor_survives_its_brokers_restart_and_loses_nothing(tmp_path: Path) -> None:
    with nats_server(tmp_path) as url:
        client = await nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=ignore)
        await provision(client, contract_dir())
        vendor = ScriptedProvider([Opened(), Pause(0.3), *answer()[1:]])
        serving = running_processor(url, {"anthropic": vendor}, max_workers=2)
        await serving.__aenter__()
        for n in range(6):
            await client.jetstream().publish(f"llm.request.low.job-{n}", body())
        await wait_until(lambda: vendor.calls)
    with nats_server(tmp_path, port=int(url.rpartition(":")[2])):
        await wait_until(lambda: client.is_connected)

        async def all_answered() -> bool:
            try:
                return None not in [await stored(client, f"job-{n}") for n in range(6)]
            except JetStreamUnavailable:
                return False

        await wait_until(all_answered, timeout_s=30)
        await serving.__aexit__(None, None, None)
        await client.close()


async def ignore(_: Exception) -> None:
    """The connection is meant to break."""
