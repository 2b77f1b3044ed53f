"""The promise that matters most: a sidecar that dies takes no request with it, and pays none twice."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from tests.acceptance.vendors import ANSWER, serving_vendors
from tests.processes import running
from tests.talk import ask, audit_events, body, stored
from tests.wait import wait_until

IN_FLIGHT = 20


@pytest.mark.slow
async def test_kill_9_with_twenty_in_flight_then_a_restart_answers_each_exactly_once(nc: Client, nats_url: str) -> None:
    ids = [f"job-{n}" for n in range(IN_FLIGHT)]
    async with serving_vendors() as vendors:
        settings = {"NATS_URL": nats_url, "MAX_WORKERS": "25", **vendors.settings()}
        async with running("processor", **settings) as first:
            before = await ask(nc, body("before"), Nats_Msg_Id="before", timeout=20)
            vendors.delay_s = 60
            for request_id in ids:
                await nc.jetstream().publish(f"llm.request.medium.{request_id}", body(request_id))
            await wait_until(lambda: all(vendors.asked[request_id] for request_id in ids))
            first.process.kill()
            await first.process.wait()
        vendors.delay_s = 0
        assert [await stored(nc, request_id) for request_id in ids] == [None] * IN_FLIGHT
        async with running("processor", **settings):
            again = await ask(nc, body("before"), Nats_Msg_Id="before", timeout=20)

            async def all_answered() -> bool:
                return None not in [await stored(nc, request_id) for request_id in ids]

            await wait_until(all_answered, timeout_s=30)

            async def queue_is_empty() -> bool:
                return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == 0

            await wait_until(queue_is_empty)
    replies = [await stored(nc, request_id) or {} for request_id in ids]
    assert [reply["response"] for reply in replies] == [ANSWER] * IN_FLIGHT
    assert (await nc.jetstream().stream_info("LLM_REPLIES")).state.messages == IN_FLIGHT + 1
    for request_id in ids:
        events = [event["event"] for event in await audit_events(nc, request_id)]
        assert (events.count("received"), events.count("completed")) == (1, 1)
    assert (before, vendors.asked["before"]) == (again, 1)
    assert {vendors.asked[request_id] for request_id in ids} == {2}


@pytest.mark.slow
async def test_sigterm_hands_back_what_cannot_be_finished_and_another_sidecar_takes_it_at_once(
    nc: Client, nats_url: str
) -> None:
    async with serving_vendors() as vendors:
        settings = {"NATS_URL": nats_url, "SHUTDOWN_GRACE": "0", **vendors.settings()}
        async with running("processor", **settings) as first:
            vendors.delay_s = 60
            await nc.jetstream().publish("llm.request.high.job", body("job"))
            await wait_until(lambda: vendors.asked["job"])
            vendors.delay_s = 0
            async with running("processor", **settings):
                first.process.terminate()
                async with asyncio.timeout(10):  # less than ack_wait
                    assert await first.process.wait() == 0
                    reply = await wait_until(lambda: stored(nc, "job"))
    assert reply["response"] == ANSWER
