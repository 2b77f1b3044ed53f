"""A request through broker, ingress, lanes, worker and replies, with a scripted vendor at the end."""

import asyncio
from collections.abc import Sequence
from typing import Any

import nats
import nats.errors
import nats.js.errors
import orjson
import pytest
from nats.aio.client import Client

from processor import jetstream, subjects
from processor.traits import Traits
from providers.base import Finished, FinishReason, Opened, Prompt, TextDelta, ToolCallDelta, Usage, UsageSeen
from providers.errors import InvalidPrompt, Overloaded, StreamCut, VendorError
from providers.scripted import Pause, ScriptedProvider, Step
from tests.conftest import StartProcessor
from tests.talk import all_audit_events, ask, ask_stream, audit_events, body, read, served, stored
from tests.wait import wait_until


def answer(text: str = "Hello.", model: str = "claude-haiku-4-5-20251001") -> list[Step]:
    return [
        Opened("req_1"),
        TextDelta(text),
        Finished(FinishReason.STOP, Usage(input_fresh=10, output_visible=5), model),
    ]


def slow(seconds: float) -> ScriptedProvider:
    return ScriptedProvider([Opened(), Pause(seconds), *answer()[1:]])


# --- asks -----------------------------------------------------------------------------------


async def test_the_first_reply_to_a_plain_request_is_the_models_answer(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(answer("Blue light scatters most."))})
    reply = await ask(nc, body("Why is the sky blue?"))
    assert reply["response"] == "Blue light scatters most."
    assert (reply["model"], reply["provider"], reply["finish_reason"]) == ("haiku", "anthropic", "stop")
    assert reply["usage"] == {
        "input_tokens": 10,
        "output_tokens": 5,
        "cache_read_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert reply["cost_usd"] == 0.000035
    assert reply["attempts"] == 1
    assert set(reply["timing"]) == {"queued_ms", "first_token_ms", "total_ms"}


@pytest.mark.parametrize("priority", ["critical", "high", "medium", "low"])
async def test_every_priority_is_served(nc: Client, start: StartProcessor, priority: str) -> None:
    await start({"anthropic": ScriptedProvider()})
    assert (await ask(nc, body("ping"), priority))["response"] == "ping"


async def test_without_a_sidecar_an_ask_fails_at_once(nc: Client) -> None:
    with pytest.raises(nats.errors.NoRespondersError):
        await nc.request("llm.request.high", body(), timeout=5)


async def test_with_reply_to_the_inbox_gets_the_puback_and_the_subject_the_result(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": slow(0.05)})
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    ack = await nc.jetstream().publish("llm.request.high", body(), headers={"Reply-To": place})
    assert (ack.stream, ack.seq > 0) == ("LLM_REQUESTS", True)
    assert read(await sub.next_msg(timeout=5))["response"] == "Hello."


@pytest.mark.parametrize(
    "place", ["$JS.API.STREAM.DELETE.LLM_AUDIT", "llm.request.critical", "llm.audit.x.y", "_INBOX.>"]
)
async def test_a_reply_to_outside_the_allowed_prefixes_is_refused(
    nc: Client, start: StartProcessor, place: str
) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    error = (await ask(nc, body(), Reply_To=place))["error"]
    assert error["type"] == "forbidden"
    assert "Reply-To" in error["message"]
    assert vendor.calls == 0


async def test_an_ask_whose_inbox_is_no_inbox_is_dropped(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    heard = await nc.subscribe("llm.audit.forged.id")
    await nc.publish("llm.request.high", body(), reply="llm.audit.forged.id")
    await ask(nc, body())
    assert heard.pending_msgs == 0
    assert vendor.calls == 1


async def test_a_wrong_body_is_refused_by_name_with_the_services_headers(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    msg = await nc.request("llm.request.high", b'{"messages": [{"role": "user", "content": "x"}], "colour": 1}')
    error = read(msg)["error"]
    assert (error["type"], error["message"]) == ("invalid_request", "colour: unknown field")
    assert subjects.is_request_id(error["request_id"])
    assert msg.headers is not None
    assert msg.headers["Nats-Service-Error-Code"] == "400"
    assert msg.headers["Sidecar-Event"] == "error"


async def test_an_unknown_model_is_not_found_and_the_closest_names_are_offered(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    error = (await ask(nc, body(model="hauku")))["error"]
    assert error["type"] == "not_found"
    assert "haiku" in error["message"]


# --- enqueued requests ------------------------------------------------------------------------


async def test_a_request_enqueued_while_nothing_runs_is_answered_when_a_sidecar_starts(
    nc: Client, start: StartProcessor
) -> None:
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    ack = await nc.jetstream().publish("llm.request.low.job-1", body(), headers={"Reply-To": place})
    assert ack.stream == "LLM_REQUESTS"
    await start({"anthropic": ScriptedProvider(answer())})
    assert read(await sub.next_msg(timeout=5))["id"] == "job-1"
    assert (await stored(nc, "job-1") or {})["response"] == "Hello."


async def test_the_server_refuses_a_second_copy_of_a_queued_id(nc: Client) -> None:
    js = nc.jetstream()
    await js.publish("llm.request.low.job-1", body())
    with pytest.raises(nats.js.errors.APIError, match="per subject"):
        await js.publish("llm.request.low.job-1", body())


async def test_an_id_that_was_answered_gets_the_stored_reply_and_is_not_paid_twice(
    nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    first = await ask(nc, body(), Nats_Msg_Id="job-1")
    again = await ask(nc, body(), Nats_Msg_Id="job-1")
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    await nc.jetstream().publish("llm.request.low.job-1", body(), headers={"Reply-To": place})
    enqueued = read(await sub.next_msg(timeout=5))
    assert first == again == enqueued
    assert vendor.calls == 1


async def test_an_id_that_is_running_is_joined(nc: Client, start: StartProcessor) -> None:
    vendor = slow(0.3)
    await start({"anthropic": vendor})
    one, two = await asyncio.gather(*(ask(nc, body(), Nats_Msg_Id="job-1") for _ in range(2)))
    assert one == two
    assert vendor.calls == 1


async def test_an_enqueued_body_that_is_no_request_goes_to_the_dead_letters_with_the_reason(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    await nc.jetstream().publish("llm.request.low.bad", b"not json")
    reply = await wait_until(lambda: stored(nc, "bad"))
    assert reply["error"]["type"] == "invalid_request"
    dead = await jetstream.last_message(nc, "LLM_DEAD", "llm.dead.low.bad")
    assert dead is not None
    assert dead.body == b"not json"
    assert dead.headers["Sidecar-Reason"].startswith("invalid_request: body: not JSON")
    await wait_until(lambda: _queued(nc, 0))


async def _queued(nc: Client, count: int) -> bool:
    return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == count


# --- streams ----------------------------------------------------------------------------------


async def test_a_stream_has_no_holes_and_its_final_reply_equals_the_joined_deltas(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    text = " ".join(str(n) for n in range(60))
    streamed = await ask_stream(nc, body(text, stream=True))
    assert streamed.seqs() == list(range(61))
    assert streamed.events() == ["delta"] * 60 + ["final"]
    assert streamed.text() == streamed.final["response"] == text


async def test_tool_calls_are_streamed_and_stand_whole_in_the_final_reply(nc: Client, start: StartProcessor) -> None:
    calls: list[Step] = [
        Opened(),
        ToolCallDelta(0, "call_1", "rain", '{"place":'),
        ToolCallDelta(0, arguments='"Kitui"}'),
        Finished(FinishReason.TOOL_CALLS, Usage(input_fresh=1), "m"),
    ]
    await start({"anthropic": ScriptedProvider(calls)})
    tools = [{"name": "rain", "parameters": {"type": "object"}}]
    streamed = await ask_stream(nc, body(stream=True, tools=tools))
    assert streamed.final["tool_calls"] == [
        {"id": "call_1", "name": "rain", "arguments": '{"place":"Kitui"}', "signature": None}
    ]
    pieces = [read(m)["tool_call"]["arguments"] for m in streamed.messages[:2]]
    assert pieces == ['{"place":', '"Kitui"}']


async def test_deltas_on_the_replys_own_subject_can_be_read_again_from_any_sequence(
    nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    await nc.jetstream().publish(
        "llm.request.high.s1", body("a b c", stream=True), headers={"Reply-To": "llm.reply.s1"}
    )
    sub = await nc.jetstream().subscribe("llm.reply.s1", ordered_consumer=True)
    seen = [await sub.next_msg(timeout=5) for _ in range(5)]
    assert [m.headers and m.headers["Sidecar-Event"] for m in seen] == ["delta", "delta", "delta", "final", None]
    again = await ask(nc, body("a b c", stream=True), Nats_Msg_Id="s1")
    assert again["response"] == "a b c"
    assert vendor.calls == 1


# --- failures ---------------------------------------------------------------------------------


async def test_a_failed_vendor_is_replaced_by_the_next_candidate(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Overloaded("busy", status=529)]), "groq": ScriptedProvider()})
    reply = await ask(nc, body("hi", model="haiku"))
    assert (reply["provider"], reply["attempts"], reply["response"]) == ("groq", 2, "hi")


async def test_text_of_two_models_is_never_glued_together(nc: Client, start: StartProcessor) -> None:
    cut: list[Step] = [Opened(), TextDelta("Half an ans"), StreamCut("cut")]
    await start({"anthropic": ScriptedProvider(cut), "groq": ScriptedProvider()})
    streamed = await ask_stream(nc, body("hi there", stream=True))
    assert streamed.events() == ["delta", "restarted", "delta", "delta", "final"]
    assert streamed.seqs(1) == [0]
    assert streamed.seqs(2) == [0, 1, 2, 3]
    assert streamed.text(2) == streamed.final["response"] == "hi there"


async def test_a_provider_that_ends_without_its_terminal_event_was_cut(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Opened(), TextDelta("x")])}, max_retries=0)
    error = (await ask(nc, body(fallback=False)))["error"]
    assert error["type"] == "unavailable"
    assert "stream_cut" in error["message"]


async def test_a_request_that_the_vendor_calls_wrong_is_not_tried_elsewhere(nc: Client, start: StartProcessor) -> None:
    other = ScriptedProvider()
    await start({"anthropic": ScriptedProvider([InvalidPrompt("bad schema", status=400)]), "groq": other})
    error = (await ask(nc, body()))["error"]
    assert (error["type"], other.calls) == ("invalid_request", 0)
    assert "bad schema" in error["message"]


async def test_fallback_false_keeps_to_the_model_that_was_asked_for(nc: Client, start: StartProcessor) -> None:
    other = ScriptedProvider()
    await start({"anthropic": ScriptedProvider([VendorError("boom", status=500)]), "groq": other}, max_retries=0)
    assert (await ask(nc, body(fallback=False)))["error"]["type"] == "unavailable"
    assert other.calls == 0


async def test_the_deadline_ends_the_vendors_call(nc: Client, start: StartProcessor) -> None:
    vendor = slow(30)
    await start({"anthropic": vendor})
    error = (await ask(nc, body(deadline_ms=100)))["error"]
    assert error["type"] == "deadline_exceeded"
    assert vendor.cancelled == 1


async def test_an_ask_without_a_deadline_gets_the_request_timeout(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": slow(30)}, request_timeout=0.2)
    assert (await ask(nc, body()))["error"]["type"] == "deadline_exceeded"


async def test_an_expired_request_is_never_sent_to_a_vendor(nc: Client, start: StartProcessor) -> None:
    await nc.jetstream().publish("llm.request.low.late", body(deadline_ms=1))
    await jetstream.call(nc, "STREAM.INFO.LLM_REQUESTS")
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    reply = await wait_until(lambda: stored(nc, "late"))
    assert reply["error"]["type"] == "deadline_exceeded"
    assert vendor.calls == 0


async def test_a_cancel_closes_the_vendors_stream_and_is_told(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider([Opened(), TextDelta("x"), Pause(30)])
    await start({"anthropic": vendor})
    asking = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="stop-me"))
    await wait_until(lambda: vendor.calls)
    await nc.publish("llm.cancel.stop-me")
    assert (await asking)["error"]["type"] == "cancelled"
    assert vendor.cancelled == 1
    assert [e["event"] for e in await audit_events(nc, "stop-me")][-1] == "cancelled"


async def test_a_client_that_has_gone_stops_the_vendors_stream(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    endless: list[Step] = [Opened(), *[step for _ in range(4000) for step in (TextDelta("x"), Pause(0.001))]]
    vendor = ScriptedProvider(endless)
    await start({"anthropic": vendor})
    client = await nats.connect(nats_url)
    inbox = client.new_inbox()
    sub = await client.subscribe(inbox)
    await client.publish("llm.request.high", body(stream=True), reply=inbox)
    await sub.next_msg(timeout=5)
    await client.close()
    await wait_until(lambda: vendor.cancelled)


@pytest.mark.parametrize("fields", [{}, {"cache": "skip"}, {"stream": True}])
async def test_half_a_surrogate_pair_from_a_vendor_spoils_no_answer(
    nc: Client, start: StartProcessor, fields: dict[str, Any]
) -> None:
    vendor = ScriptedProvider([Opened(), TextDelta("Hi \ud83d\ude00\ud83d!"), *answer()[2:]])
    await start({"anthropic": vendor}, enable_cache=True)
    final = (await ask_stream(nc, body(**fields))).final if "stream" in fields else await ask(nc, body(**fields))
    assert (final["response"], vendor.calls) == ("Hi \N{GRINNING FACE}\ufffd!", 1)


# --- audit ------------------------------------------------------------------------------------


async def test_the_audit_log_has_received_attempts_and_one_terminal_event(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Overloaded("busy", status=529)]), "groq": ScriptedProvider()})
    reply = await ask(nc, body("hi"), Nats_Msg_Id="job-1")
    events = await wait_until(lambda: all_audit_events(nc, "job-1", 5))
    assert [e["event"] for e in events] == ["received", "routed", "attempt", "attempt", "completed"]
    assert events[2]["error"]["kind"] == "overloaded"
    assert events[3]["usage"]["raw"] == {"words": 1}
    assert sum(e["cost_usd"] for e in events if e["event"] == "attempt") == pytest.approx(reply["cost_usd"])
    assert b"hi" not in orjson.dumps(events[0]["body_sha256"])


async def test_the_audit_log_keeps_why_a_model_was_chosen_and_enough_to_choose_again(
    nc: Client, start: StartProcessor
) -> None:
    await start({"groq": ScriptedProvider(answer()), "gemini": ScriptedProvider()}, default_model="gpt-oss-20b")
    await ask(nc, body("a secret of the village", model="auto", max_tokens=50), Nats_Msg_Id="job-1")
    events = await wait_until(lambda: all_audit_events(nc, "job-1", 4))
    routed = next(e for e in events if e["event"] == "routed")
    assert (routed["rule"], routed["model_class"], routed["delivery"]) == ("default", "auto:default", 1)
    assert [c["model"] for c in routed["candidates"]][:2] == ["gpt-oss-20b", served("gemini")]
    assert [c["score"] for c in routed["candidates"]] == sorted(
        (c["score"] for c in routed["candidates"]), reverse=True
    )
    assert {"model": "haiku", "provider": "anthropic", "reason": "provider anthropic is not configured"} in routed[
        "refusals"
    ]
    given = Traits.model_validate(routed["traits"])
    assert (given.max_tokens, given.input_tokens, given.model) == (50, 10, None)
    assert b"secret" not in orjson.dumps(routed)


async def test_a_cancelled_attempt_is_charged_by_the_last_usage_seen(nc: Client, start: StartProcessor) -> None:
    usage = Usage(input_fresh=1000)
    vendor = ScriptedProvider([Opened(), UsageSeen(usage), TextDelta("x" * 400), Pause(30)])
    await start({"anthropic": vendor})
    await ask(nc, body(deadline_ms=150), Nats_Msg_Id="job-1")
    events = await wait_until(lambda: all_audit_events(nc, "job-1", 4))
    attempt = next(e for e in events if e["event"] == "attempt")
    assert attempt["cost_estimated"] is True
    assert attempt["cost_usd"] == pytest.approx((1000 * 1 + 100 * 5) / 1e6)


# --- lanes ------------------------------------------------------------------------------------


async def test_critical_overtakes_a_backlog(nc: Client, start: StartProcessor) -> None:
    js = nc.jetstream()
    for n in range(50):
        await js.publish(f"llm.request.low.low-{n}", body(f"low {n}"))
    order: list[str] = []

    def script(prompt: Prompt) -> Sequence[Step]:
        order.append(str(prompt.messages[0].parts[0]))
        return [Opened(), Pause(0.02), *answer()[1:]]

    await start({"anthropic": ScriptedProvider(script)}, max_workers=1)
    await wait_until(lambda: len(order) >= 2)
    await ask(nc, body("urgent"), "critical")
    position = next(i for i, text in enumerate(order) if "urgent" in text)
    assert position <= 5


async def test_stopping_finishes_what_runs_and_hands_the_rest_back(nc: Client, start: StartProcessor) -> None:
    js = nc.jetstream()
    for n in range(6):
        await js.publish(f"llm.request.low.job-{n}", body())
    vendor = slow(0.2)
    processor = await start({"anthropic": vendor}, max_workers=2)
    await wait_until(lambda: vendor.calls == 2)
    processor.stop()
    await wait_until(lambda: _queued(nc, 4))
    assert vendor.calls == 2
    # Long before ack_wait: what was only buffered came back at once.
    await start({"anthropic": ScriptedProvider(answer())})
    await wait_until(lambda: _queued(nc, 0), timeout_s=5)


async def test_a_running_request_is_handed_back_when_the_grace_time_is_over(nc: Client, start: StartProcessor) -> None:
    await nc.jetstream().publish("llm.request.low.job-1", body())
    endless = slow(60)
    first = await start({"anthropic": endless}, shutdown_grace=0)
    await wait_until(lambda: endless.calls)
    first.stop()
    await start({"anthropic": ScriptedProvider(answer())})
    reply = await wait_until(lambda: stored(nc, "job-1"))
    assert (reply["response"], endless.cancelled) == ("Hello.", 1)
    assert reply["attempts"] > 1
