"""Asks at the door: what is full, what is foreign, what is told to whom."""

from __future__ import annotations

import asyncio

import nats
import orjson
import pytest
from nats.aio.client import Client

from processor import ingress, jetstream
from providers.base import Opened, TextDelta
from providers.scripted import Pause, ScriptedProvider, Step
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer, slow
from tests.talk import all_audit_events, ask, ask_stream, body, read, stored
from tests.wait import wait_until


async def test_a_full_queue_refuses_at_once_and_drops_nothing(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": slow(0.3)}, max_workers=1)
    found = (await jetstream.call(nc, "STREAM.INFO.LLM_REQUESTS"))["config"]
    await jetstream.call(nc, "STREAM.UPDATE.LLM_REQUESTS", found | {"max_msgs": 2})
    for n in range(2):
        await nc.jetstream().publish(f"llm.request.low.job-{n}", body())
    error = (await ask(nc, body()))["error"]
    assert (error["type"], error["retry_after_s"] > 0) == ("queue_full", True)

    async def both_answered() -> bool:
        return None not in [await stored(nc, "job-0"), await stored(nc, "job-1")]

    await wait_until(both_answered)


async def test_too_many_asks_at_once_are_refused_and_not_kept_in_memory(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingress, "MAX_OPEN_ASKS", 3)
    await start({"anthropic": slow(0.5)})
    # One id: those that join its run stay open until it ends.
    replies = await asyncio.gather(*(ask(nc, body(), Nats_Msg_Id="one-run") for _ in range(12)))
    refused = [reply for reply in replies if reply.get("error", {}).get("type") == "queue_full"]
    assert 0 < len(refused) < 12
    assert all(reply in refused or reply["response"] == "Hello." for reply in replies)


@pytest.mark.parametrize("named", ["with.dot", "with space", "x" * 129, "wild*"])
async def test_an_id_that_is_none_is_refused(nc: Client, start: StartProcessor, named: str) -> None:
    await start({"anthropic": ScriptedProvider()})
    error = (await ask(nc, body(), Nats_Msg_Id=named))["error"]
    assert (error["type"], "request id" in error["message"]) == ("invalid_request", True)


async def test_an_ask_cannot_plant_the_ending_of_an_id(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    await nc.publish("llm.request.high", b"no request", reply="llm.reply.job-1", headers={"Nats-Msg-Id": "job-1"})
    assert (await ask(nc, body("mine"), Nats_Msg_Id="job-1"))["response"] == "mine"


async def test_an_ask_that_is_told_twice_is_answered_once(nc: Client, start: StartProcessor) -> None:
    vendor = slow(0.2)
    await start({"anthropic": vendor})
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    for _ in range(2):
        await nc.publish("llm.request.high", body(), reply=inbox, headers={"Nats-Msg-Id": "job-1"})
    assert read(await sub.next_msg(timeout=5))["id"] == "job-1"
    await nc.publish("llm.request.high", body(), reply=inbox, headers={"Nats-Msg-Id": "job-2"})
    assert read(await sub.next_msg(timeout=5))["id"] == "job-2"
    assert vendor.calls == 2


async def test_who_joins_a_run_that_does_not_end_in_time_is_told_where_the_result_was_to_go(
    nc: Client, start: StartProcessor
) -> None:
    vendor = slow(30)
    await start({"anthropic": vendor}, shutdown_grace=0)
    await nc.publish("llm.request.high", body(), reply=nc.new_inbox(), headers={"Nats-Msg-Id": "job-1"})
    await wait_until(lambda: vendor.calls)
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    ack = await ask(nc, body(deadline_ms=100), Nats_Msg_Id="job-1", Reply_To=place)
    assert ack["duplicate"] is True
    assert read(await sub.next_msg(timeout=5))["error"]["type"] == "deadline_exceeded"


async def test_a_refused_stream_ends_like_any_other(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    assert (await ask_stream(nc, body(stream=True, temperature=9))).events() == ["error"]


async def test_the_text_of_a_request_is_not_in_the_audit_log(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    await ask(nc, body("a secret of the village", metadata={"origin": "form-7"}, tenant="kitui"), Nats_Msg_Id="job-1")
    events = await wait_until(lambda: all_audit_events(nc, "job-1", 4))
    assert b"secret" not in orjson.dumps(events)
    assert {event["tenant"] for event in events} == {"kitui"}
    assert events[0]["metadata"] == {"origin": "form-7"}


async def test_two_replicas_share_the_asks(nc: Client, start: StartProcessor) -> None:
    one, two = slow(0.1), slow(0.1)
    await start({"anthropic": one}, max_workers=2)
    await start({"anthropic": two}, max_workers=2)
    replies = await asyncio.gather(*(ask(nc, body()) for _ in range(12)))
    assert [reply["response"] for reply in replies] == ["Hello."] * 12
    assert one.calls + two.calls == 12
    assert min(one.calls, two.calls) > 0


async def test_replicas_are_found_by_the_services_api_and_tell_their_models(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    ping = read(await nc.request("$SRV.PING.sidecar", b"", timeout=2))
    assert (ping["name"], ping["metadata"]["replica"]) == ("sidecar", "test")
    models = {row["model"]: row for row in read(await nc.request("llm.models", b"", timeout=2))["models"]}
    assert (models["haiku"]["available"], models["gemini"]["available"]) == (True, False)
    assert (models["llama"]["available"], models["llama"]["answered_by"]) == (False, "gpt-oss-120b")


async def test_a_replica_tells_what_it_has_on_its_hands_and_at_rest_that_is_nothing(
    nc: Client, start: StartProcessor
) -> None:
    async def on_its_hands(count: int) -> bool:
        stats = read(await nc.request("$SRV.STATS.sidecar", b"", timeout=2))
        load: dict[str, int] = stats["endpoints"][0]["data"]
        assert load["tasks"] > 0
        expected = {"running": count, "parked": 0, "held": count, "reservations": count, "holds": 0, "sharing": 0}
        return {what: load[what] for what in expected} == expected

    await start({"anthropic": slow(0.3)})
    asking = asyncio.create_task(ask(nc, body()))
    await wait_until(lambda: on_its_hands(1))
    await asking
    await wait_until(lambda: on_its_hands(0))


async def test_asks_that_arrive_while_one_of_two_sidecars_stops_are_all_answered(
    nc: Client, start: StartProcessor
) -> None:
    replicas = [await start({"anthropic": ScriptedProvider(answer())}, replica=f"r{n}") for n in range(2)]
    asking = []
    for n in range(300):
        asking.append(asyncio.create_task(ask(nc, body(), timeout=10)))  # less than ack_wait
        if n == 150:
            replicas[0].stop()
        if n % 10 == 0:
            await asyncio.sleep(0)
    replies = await asyncio.gather(*asking)
    assert {reply.get("response") for reply in replies} == {"Hello."}


async def test_who_comes_back_and_asks_again_is_not_cancelled_by_the_inbox_he_left(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    pieces: list[Step] = [step for n in range(60) for step in (TextDelta(f"{n} "), Pause(0.02))]
    vendor = ScriptedProvider([Opened(), Pause(0.5), *pieces, *answer()[-1:]])
    await start({"anthropic": vendor})
    gone = await nats.connect(nats_url)
    await gone.publish("llm.request.high", body(stream=True), reply=gone.new_inbox(), headers={"Nats-Msg-Id": "job-1"})
    await wait_until(lambda: vendor.calls)
    await gone.close()
    back = await ask(nc, body(stream=True), Nats_Msg_Id="job-1")
    assert (back.get("finish_reason"), vendor.calls) == ("stop", 1)


async def test_an_ask_that_a_lane_holds_for_a_worker_is_told_when_its_deadline_passes(
    nc: Client, start: StartProcessor
) -> None:
    endless = slow(60)
    processor = await start({"anthropic": endless}, max_workers=1, shutdown_grace=0)
    running = asyncio.create_task(ask(nc, body(), "low"))
    await wait_until(lambda: endless.calls)
    error = (await ask(nc, body(deadline_ms=300), "low", timeout=5))["error"]
    assert (error["type"], endless.calls) == ("deadline_exceeded", 1)
    assert len(processor._worker.running) == 1
    running.cancel()


async def test_the_deadline_of_an_ask_that_has_ended_is_watched_no_more(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": slow(0.2)})
    await asyncio.gather(*[ask(nc, body(deadline_ms=600_000)) for _ in range(5)])
    await wait_until(lambda: not processor._withdrawals._due)


async def test_who_has_joined_a_run_is_told_when_the_sidecar_stops(nc: Client, start: StartProcessor) -> None:
    endless = slow(60)
    one = await start({"anthropic": endless}, replica="one", shutdown_grace=0)
    first = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await wait_until(lambda: endless.calls)
    joined = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await wait_until(lambda: one._worker.running["job-1"].joined)
    one.stop()
    error = (await joined)["error"]
    assert (error["type"], error["retry_after_s"]) == ("unavailable", 1.0)
    first.cancel()
