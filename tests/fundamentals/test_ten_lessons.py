"""Read these first: ten short lessons in what the sidecar does, each a client's view over a real broker."""

from __future__ import annotations

import asyncio

import nats.errors
import nats.js.errors
import orjson
import pytest
from nats.aio.client import Client

from providers.base import Opened, TextDelta
from providers.errors import Overloaded, StreamCut
from providers.scripted import Pause, ScriptedProvider
from tests.conftest import StartProcessor
from tests.talk import ask_stream, audit_events, body, read, stored
from tests.wait import wait_until

QUESTION = orjson.dumps({"messages": [{"role": "user", "content": "Will it rain?"}], "model": "haiku"})


async def test_1_a_request_is_json_on_a_subject_and_the_first_reply_is_the_answer(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})  # a provider that says the question back
    answer = await nc.request("llm.request.high", QUESTION, timeout=5)
    assert orjson.loads(answer.data)["response"] == "Will it rain?"


async def test_2_an_answer_says_who_gave_it_what_it_used_and_what_it_cost(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    reply = read(await nc.request("llm.request.high", QUESTION, timeout=5))
    assert (reply["model"], reply["provider"], reply["finish_reason"]) == ("haiku", "anthropic", "stop")
    assert (reply["usage"]["input_tokens"], reply["usage"]["output_tokens"]) == (3, 3)
    assert reply["cost_usd"] == (3 * 1 + 3 * 5) / 1e6  # Haiku 4.5: $1 and $5 per million tokens


async def test_3_with_stream_true_the_pieces_are_numbered_and_an_empty_message_ends_them(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    streamed = await ask_stream(nc, body("It will rain", stream=True))
    assert streamed.events() == ["delta", "delta", "delta", "final"]
    assert streamed.seqs() == [0, 1, 2, 3]
    assert streamed.text() == streamed.final["response"] == "It will rain"


async def test_4_an_enqueued_request_waits_for_a_sidecar_and_its_reply_is_kept(
    nc: Client, start: StartProcessor
) -> None:
    await nc.jetstream().publish("llm.request.low.report-7", QUESTION)  # nothing runs yet
    await start({"anthropic": ScriptedProvider()})
    reply = await wait_until(lambda: stored(nc, "report-7"))
    assert reply["response"] == "Will it rain?"


async def test_5_an_id_is_answered_once_and_paid_once(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    headers = {"Nats-Msg-Id": "report-7"}
    first = await nc.request("llm.request.high", QUESTION, timeout=5, headers=headers)
    second = await nc.request("llm.request.high", QUESTION, timeout=5, headers=headers)
    assert (first.data, vendor.calls) == (second.data, 1)


async def test_6_reply_to_sends_the_result_elsewhere_and_the_inbox_gets_the_brokers_receipt(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    place = nc.new_inbox()
    results = await nc.subscribe(place)
    receipt = await nc.jetstream().publish("llm.request.high", QUESTION, headers={"Reply-To": place})
    assert receipt.stream == "LLM_REQUESTS"
    assert read(await results.next_msg(timeout=5))["response"] == "Will it rain?"


async def test_7_another_model_steps_in_and_a_half_answer_is_declared_void(nc: Client, start: StartProcessor) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("It wi"), StreamCut("the connection broke")])
    await start({"anthropic": broken, "groq": ScriptedProvider()})
    streamed = await ask_stream(nc, body("It will rain", stream=True))
    assert streamed.events() == ["delta", "restarted", "delta", "delta", "delta", "final"]
    assert (streamed.final["provider"], streamed.final["response"]) == ("groq", "It will rain")


async def test_8_an_error_has_a_type_a_code_and_a_reason_for_every_model_tried(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider([Overloaded("busy", status=529, retry_after_s=9)])}, max_retries=0)
    answer = await nc.request("llm.request.high", body(fallback=False), timeout=5)
    error = read(answer)["error"]
    assert (error["type"], error["retry_after_s"]) == ("unavailable", 9)
    assert "haiku: busy (overloaded)" in error["message"]
    assert (answer.headers or {})["Nats-Service-Error-Code"] == "503"


async def test_9_a_cancel_stops_the_vendor(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider([Opened(), TextDelta("It"), Pause(60)])
    await start({"anthropic": vendor})
    asking = asyncio.create_task(
        nc.request("llm.request.high", QUESTION, timeout=5, headers={"Nats-Msg-Id": "report-7"})
    )
    await wait_until(lambda: vendor.calls)
    await nc.publish("llm.cancel.report-7")
    assert read(await asking)["error"]["type"] == "cancelled"
    assert vendor.cancelled == 1


async def test_10_every_step_is_in_the_audit_log_with_what_it_cost(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    await nc.request("llm.request.high", QUESTION, timeout=5, headers={"Nats-Msg-Id": "report-7"})

    async def ended() -> bool:
        return len(await audit_events(nc, "report-7")) == 4

    await wait_until(ended)
    received, routed, attempt, completed = await audit_events(nc, "report-7")
    assert [e["event"] for e in (received, routed, attempt, completed)] == [
        *("received", "routed", "attempt", "completed")
    ]
    assert routed["candidates"][0]["reason"] == "haiku was asked for"
    assert attempt["cost_usd"] == completed["cost_usd"] == pytest.approx(18e-6)
    with pytest.raises(nats.js.errors.APIError):  # and nobody can take a step back
        await nc.jetstream().purge_stream("LLM_AUDIT")
