"""Priorities under load: an alert behind ten thousand reports, and reports behind a flood of alerts."""

from __future__ import annotations

import asyncio
from time import monotonic

import pytest
from nats.aio.client import Client

from providers.base import Opened, Prompt
from providers.scripted import Pause, ScriptedProvider, Step, echo
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import slow
from tests.talk import ask, body
from tests.wait import wait_until

LOW = 10_000
SLOTS = 20
SERVICE_S = 0.2


async def low_in_queue(nc: Client) -> int:
    info = await nc.jetstream().stream_info("LLM_REQUESTS", subjects_filter="llm.request.low.*")
    return len(info.state.subjects or {})


@pytest.mark.slow
async def test_a_critical_request_behind_ten_thousand_low_ones_starts_within_one_slots_time(
    nc: Client, start: StartProcessor
) -> None:
    js = nc.jetstream()
    for first in range(0, LOW, 500):
        await asyncio.gather(*[js.publish(f"llm.request.low.job-{n}", body()) for n in range(first, first + 500)])
    started: list[float] = []

    def script(prompt: Prompt) -> list[Step]:
        started.append(monotonic())
        return [Opened(), Pause(SERVICE_S), *echo(prompt)[1:]]

    # Without the worker that is kept for critical: it has to wait for one that a low request leaves.
    await start({"anthropic": ScriptedProvider(script)}, max_workers=SLOTS, critical_workers=0, shutdown_grace=0)
    await wait_until(lambda: len(started) >= SLOTS)
    queued_ms = [(await ask(nc, body(), "critical"))["timing"]["queued_ms"] for _ in range(10)]
    assert await low_in_queue(nc) > LOW - 2000
    # SLOTS calls after a call, its slot has been taken again: what lies between is the time a slot serves one request.
    slot_s = max(again - first for first, again in zip(started, started[SLOTS:], strict=False))
    assert max(queued_ms) < slot_s * 1000


@pytest.mark.slow
async def test_a_kept_worker_serves_critical_at_once_while_low_fills_the_others(
    nc: Client, start: StartProcessor
) -> None:
    for n in range(50):
        await nc.jetstream().publish(f"llm.request.low.job-{n}", body())
    vendor = slow(30)
    await start({"anthropic": vendor}, max_workers=5, shutdown_grace=0)
    await wait_until(lambda: vendor.calls == 4)
    asking = asyncio.create_task(ask(nc, body(), "critical"))
    await wait_until(lambda: vendor.calls == 5, timeout_s=2)
    asking.cancel()


@pytest.mark.slow
async def test_while_critical_fills_every_slot_low_still_has_its_share(nc: Client, start: StartProcessor) -> None:
    vendor = slow(0.05)
    await start({"anthropic": vendor}, max_workers=10, shutdown_grace=0)
    for n in range(200):
        await nc.jetstream().publish(f"llm.request.low.job-{n}", body())
    answered = 0
    stop = asyncio.Event()

    async def flood() -> None:
        nonlocal answered
        while not stop.is_set():
            await ask(nc, body(), "critical")
            answered += 1

    flooding = [asyncio.create_task(flood()) for _ in range(40)]
    before = await low_in_queue(nc)
    await wait_until(lambda: answered > 400, timeout_s=60)
    low = before - await low_in_queue(nc)
    stop.set()
    await asyncio.gather(*flooding)
    share = low / (low + answered)
    assert 0.03 < share < 0.25, f"{low} low beside {answered} critical"
