"""A process that serves comes back by itself when nats-py has given its connection up."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from nats.aio.client import Client

from processor import running, service
from processor.bus import Bus, BusClosed
from processor.config import Settings
from providers.scripted import ScriptedProvider
from tests.acceptance.vendors import serving
from tests.chaos.vendor import Hang, ScriptedVendor
from tests.conftest import make_settings
from tests.processes import running as running_process
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body
from tests.wait import wait_until


async def test_a_connection_that_is_lost_for_good_is_built_anew_and_sigterm_still_stops(
    nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    vendors = {"anthropic": ScriptedProvider(answer())}
    monkeypatch.setattr(service, "configured_providers", lambda _: service.Configured(vendors, {}))
    watch, lives, lose = Bus.watch, 0, asyncio.Event()

    async def watch_until_lost(bus: Bus) -> None:
        nonlocal lives
        lives += 1
        if lives > 1:
            await watch(bus)
        await lose.wait()
        raise BusClosed("as if the server had complained")

    monkeypatch.setattr(Bus, "watch", watch_until_lost)
    monkeypatch.setattr(running, "START_AGAIN_S", 0.05)
    monkeypatch.setattr(running, "configure_logging", lambda _: None)  # it would last longer than this test
    serving = asyncio.create_task(running.serve(_settings(nats_url), running.processing, embedded=False))
    assert (await wait_until(lambda: _answered(nc)))["response"] == "Hello."
    assert lives == 1
    lose.set()
    await wait_until(lambda: lives == 2)
    assert (await wait_until(lambda: _answered(nc)))["response"] == "Hello."
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(serving, 10) == 0
    assert capfd.readouterr().err.count("ready on") == 2


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_of_either_kind_ends_at_once_and_what_ran_is_not_lost(
    nc: Client, nats_url: str, first: signal.Signals, second: signal.Signals
) -> None:
    async with (
        serving(ScriptedVendor(lambda call: Hang())) as vendor,
        running_process("processor", NATS_URL=nats_url, SHUTDOWN_GRACE="600", **vendor.settings()) as sidecar,
    ):
        await nc.jetstream().publish("llm.request.high.job-1", body())
        await wait_until(lambda: vendor.calls)
        sidecar.process.send_signal(first)
        await wait_until(lambda: any("stopping" in line for line in sidecar.said))
        sidecar.process.send_signal(second)
        await asyncio.wait_for(sidecar.process.wait(), 5)
    assert sidecar.process.returncode == -second
    assert "Traceback" not in "".join(sidecar.said)
    assert (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == 1


async def _answered(nc: Client) -> dict[str, object] | None:
    try:
        return await ask(nc, body(), timeout=2)
    except Exception:  # noqa: BLE001  nobody listens yet
        return None


def _settings(url: str) -> Settings:
    return make_settings(nats_url=url)
