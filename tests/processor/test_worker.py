"""What a worker does when the broker, the clock or a client gets in its way: nothing is lost, or paid twice."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from processor import jetstream, worker
from processor.audit import AuditLog, last_attempt
from processor.audit_events import Attempt
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamUnavailable
from processor.lanes import Lanes
from processor.replies import Ending, Replies
from processor.service import Processor
from processor.subjects import Priority
from providers.base import Opened, TextDelta, Usage, UsageSeen
from providers.errors import RateLimited
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor, make_settings
from tests.processor.test_end_to_end import answer, slow
from tests.talk import all_audit_events, ask, ask_stream, body, read, stored
from tests.wait import wait_until


async def none_queued(nc: Client) -> bool:
    return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == 0


async def test_an_answer_that_cannot_be_stored_yet_is_kept_and_not_bought_again(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_STORE_AGAIN_S", 0.01)
    store, tries = Replies.store, 0

    async def in_trouble(*args: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise JetStreamUnavailable("no leader")
        return await store(*args)

    monkeypatch.setattr(Replies, "store", in_trouble)
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    assert (await ask(nc, body()))["response"] == "Hello."
    assert (vendor.calls, tries) == (1, 4)


async def test_a_cancel_that_comes_after_the_answer_is_too_late(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, writing, go_on = AuditLog.write, asyncio.Event(), asyncio.Event()

    async def slow_write(log: AuditLog, entry: Any) -> None:
        if isinstance(entry, Attempt):
            writing.set()
            await go_on.wait()
        await write(log, entry)

    monkeypatch.setattr(AuditLog, "write", slow_write)
    processor = await start({"anthropic": ScriptedProvider(answer())})
    asking = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await writing.wait()
    processor._worker.cancel("job-1")
    go_on.set()
    assert (await asking)["response"] == "Hello."


async def test_a_cancel_between_pull_and_call_is_heard(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nc.jetstream().publish("llm.request.low.job-1", body())
    endless = slow(60)
    first = await start({"anthropic": endless}, shutdown_grace=0)
    await wait_until(lambda: endless.calls)
    first.stop()

    replicas: list[Processor] = []

    async def cancelled_meanwhile(bus: Bus, request_id: str) -> int:
        running = (await wait_until(lambda: replicas))[0]._worker.running
        await nc.publish(f"llm.cancel.{request_id}")
        await wait_until(lambda: running[request_id].stopped)
        return 1

    monkeypatch.setattr(worker, "last_attempt", cancelled_meanwhile)
    vendor = ScriptedProvider(answer())
    replicas.append(await start({"anthropic": vendor}))
    reply = await wait_until(lambda: stored(nc, "job-1"))
    assert (reply.get("error", {}).get("type"), vendor.calls) == ("cancelled", 0)


async def test_one_id_on_two_lanes_is_one_request(nc: Client, start: StartProcessor) -> None:
    vendor = slow(0.3)
    await start({"anthropic": vendor})
    places = [nc.new_inbox(), nc.new_inbox()]
    subs = [await nc.subscribe(place) for place in places]
    for priority, place in zip(("high", "low"), places, strict=True):
        await nc.publish(f"llm.request.{priority}.job-1", body(), headers={"Reply-To": place})
    assert [read(await sub.next_msg(timeout=5))["response"] for sub in subs] == ["Hello."] * 2
    await wait_until(lambda: none_queued(nc), timeout_s=3)
    assert vendor.calls == 1


async def test_a_copy_that_comes_while_another_is_served_has_its_turn_too(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = slow(0.3)
    processor = await start({"anthropic": vendor})
    await nc.publish("llm.request.high.job-1", body())
    await wait_until(lambda: vendor.calls)
    running = processor._worker.running
    await nc.publish("llm.request.medium.job-1", body())
    await wait_until(lambda: running["job-1"].copies)
    look = Replies.ending

    async def meanwhile(replies: Replies, request_id: str) -> Ending | None:
        if running[request_id].delivery.priority == "medium":
            await nc.publish("llm.request.low.job-1", body())
            await wait_until(lambda: running[request_id].copies)
        return await look(replies, request_id)

    monkeypatch.setattr(Replies, "ending", meanwhile)
    await wait_until(lambda: vendor.calls and not running)
    await wait_until(lambda: none_queued(nc), timeout_s=3)
    assert vendor.calls == 1


async def test_an_attempt_that_the_bus_ends_is_charged_like_any_other(nc: Client, start: StartProcessor) -> None:
    usage = Usage(input_fresh=1000)
    await start({"anthropic": ScriptedProvider([Opened(), UsageSeen(usage), TextDelta("x" * nc.max_payload)])})
    reply = (await ask_stream(nc, body(stream=True))).final
    assert reply["error"]["type"] == "too_large"
    events = await wait_until(lambda: all_audit_events(nc, reply["error"]["request_id"], 4))
    attempt = next(event for event in events if event["event"] == "attempt")
    assert (attempt["error"]["kind"], attempt["cost_usd"] > 0) == ("internal", True)


async def test_a_message_as_large_as_the_broker_takes_is_buried_and_not_served_for_ever(
    nc: Client, start: StartProcessor
) -> None:
    huge = b"x" * (nc.max_payload - 100)
    await nc.publish("llm.request.low.huge", huge)
    await start({"anthropic": ScriptedProvider()})
    assert (await wait_until(lambda: stored(nc, "huge")))["error"]["type"] == "too_large"
    await wait_until(lambda: none_queued(nc))
    dead = await jetstream.last_message(nc, "LLM_DEAD", "llm.dead.low.huge")
    assert dead is not None
    assert dead.headers["Sidecar-Body-Bytes"] == str(len(huge))
    assert huge.startswith(dead.body)


async def test_a_full_send_buffer_ends_neither_the_pull_nor_the_delivery(
    nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    lanes = Lanes(bus, 1)
    await lanes.start()
    await nc.jetstream().publish("llm.request.low.job-1", body())
    await wait_until(lambda: lanes.held)

    async def full(*_: Any, **__: Any) -> None:
        raise nats.errors.OutboundBufferLimitError

    with monkeypatch.context() as offline:
        offline.setattr(bus, "publish", full)
        lane = lanes[Priority.LOW]
        await lane.ready()
        delivery = lane.take()
        assert delivery is not None
        await lane.refill()
        await delivery.ack()
    assert (delivery.request_id, delivery.done, lanes.held) == ("job-1", True, set())
    await lanes.stop()
    await bus.close()


async def test_a_request_that_another_worker_answered_while_this_one_waited_is_not_paid_for_again(
    nc: Client, start: StartProcessor
) -> None:
    throttled = RateLimited("slow down", retry_after_s=1)
    vendor = ScriptedProvider([throttled])
    processor = await start({"anthropic": vendor})
    await nc.jetstream().publish("llm.request.low.job-1", body(fallback=False))
    await wait_until(lambda: processor._admission.parked)
    other = Ending.refusal("job-1", RequestError(ErrorType.INTERNAL, "as another worker ended it"))
    assert await Replies(processor._bus).store("job-1", other)
    await wait_until(lambda: none_queued(nc))
    assert (vendor.calls, processor.limits.outstanding) == (1, 0)


async def test_after_a_brokers_restart_even_a_first_delivery_looks_for_an_earlier_reply(
    nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(answer())
    processor = await start({"anthropic": vendor})
    processor._bus.reconnected_at = datetime.now(UTC) + timedelta(seconds=60)
    other = Ending.refusal("job-1", RequestError(ErrorType.INTERNAL, "as it ended before"))
    assert await Replies(processor._bus).store("job-1", other)
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    headers = {"Reply-To": place, "Sidecar-Fresh": "1"}
    await nc.jetstream().publish("llm.request.low.job-1", body(), headers=headers)
    reply = read(await sub.next_msg(timeout=5))
    assert (reply["error"]["message"], vendor.calls) == ("as it ended before", 0)


async def test_what_the_broker_forgot_to_have_delivered_is_not_run_twice_at_once(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RUNS_ELSEWHERE_S", 0.3)
    first, second = slow(0.5), ScriptedProvider(answer())
    owner = await start({"anthropic": first}, replica="owner")
    await nc.jetstream().publish("llm.request.high.job-1", body())
    await wait_until(lambda: first.calls)
    other = await start({"anthropic": second}, replica="other")
    other._bus.reconnected_at = datetime.now(UTC)
    await owner._lanes[Priority.HIGH].stop()
    # Handing it back behind its owner's back is what a broker's amnesia looks like.
    await owner._worker.running["job-1"].delivery._tell(b"-NAK")
    reply = await wait_until(lambda: stored(nc, "job-1"))
    await wait_until(lambda: none_queued(nc))
    assert (reply["response"], first.calls, second.calls) == ("Hello.", 1, 0)


async def test_a_deadline_that_passes_while_earlier_attempts_are_looked_up_is_kept(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = last_attempt

    async def slowly(bus: Bus, request_id: str) -> int:
        found = await look(bus, request_id)
        await asyncio.sleep(1.5)
        return found

    monkeypatch.setattr(worker, "last_attempt", slowly)
    await nc.jetstream().publish("llm.request.low.job-1", body(deadline_ms=1_500))
    endless = slow(60)
    first = await start({"anthropic": endless}, shutdown_grace=0)
    await wait_until(lambda: endless.calls)
    first.stop()
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor}, replica="second")
    reply = await wait_until(lambda: stored(nc, "job-1"))
    assert (reply["error"]["type"], vendor.calls) == ("deadline_exceeded", 0)


async def test_an_audit_log_that_does_not_answer_keeps_no_reply_back(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "AUDIT_FIRST_S", 0.1)
    write, told = AuditLog.write, asyncio.Event()

    async def in_vain(log: AuditLog, entry: Any) -> None:
        await told.wait()
        await write(log, entry)

    monkeypatch.setattr(AuditLog, "write", in_vain)
    await start({"anthropic": ScriptedProvider(answer())})
    reply = await ask(nc, body(), timeout=5)
    told.set()
    assert reply["response"] == "Hello."
    await wait_until(lambda: all_audit_events(nc, reply["id"], 4))
