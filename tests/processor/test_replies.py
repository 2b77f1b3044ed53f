"""Replies reach clients that come late, and are kept once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from nats.aio.client import Client

from processor import replies
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.replies import PROBE_EVERY, Ending, Outbox, Probes, Replies
from processor.reply_bodies import ReplyEvent
from providers.base import Opened, TextDelta
from providers.scripted import Pause, ScriptedProvider
from tests.chaos.load import client
from tests.chaos.servers import one_server
from tests.conftest import StartProcessor, make_settings
from tests.processor.test_end_to_end import answer
from tests.talk import ask, ask_stream, body, listen, read
from tests.wait import wait_until


@pytest.fixture
async def bus(nc: Client, nats_url: str) -> AsyncIterator[Bus]:
    made = Bus()
    await made.connect(nats_url, make_settings(), name="test")
    yield made
    await made.close()


def ending(bus: Bus, text: str = "too late") -> Ending:
    outbox = Outbox(bus, Probes(bus), "job-1", reply_to=None, stream=False)
    return Ending.of(outbox, RequestError(ErrorType.UNAVAILABLE, text, retry_after_s=2))


async def test_a_client_that_reconnects_within_seconds_still_gets_its_final_reply(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    place = nc.new_inbox()
    await nc.jetstream().publish("llm.request.high.job-1", body(), headers={"Reply-To": place})

    async def is_done() -> bool:
        return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == 0

    await wait_until(is_done)  # answered and acknowledged, and nobody has heard it
    late = await nc.subscribe(place)
    assert read(await late.next_msg(timeout=5))["response"] == "Hello."


async def test_an_ending_that_was_on_its_way_when_the_broker_was_killed_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replies, "_RETRY_S", 1.0)
    async with one_server(tmp_path) as server, client(server.url) as nc:
        bus = Bus()
        await bus.connect(server.url, make_settings(), name="test")
        probes = Probes(bus)
        await probes.start()
        place = nc.new_inbox()
        sub = await listen(nc, place)
        server.freeze()
        delivering = asyncio.create_task(probes.deliver(place, ending(bus), sentinel=False))
        await wait_until(lambda: probes._waiting)
        await bus.nc._flush_pending()  # in the socket of a server that will never read it
        await server.kill()
        await server.start()
        assert read(await sub.next_msg(timeout=10))["error"]["message"] == "too late"
        assert await delivering
        await bus.close()


async def test_the_first_ending_counts(bus: Bus) -> None:
    kept = Replies(bus)
    assert await kept.ending("job-1") is None
    first, second = ending(bus, "first"), ending(bus, "second")
    assert [await kept.store("job-1", first), await kept.store("job-1", second)] == [True, False]
    assert await kept.ending("job-1") == first


async def test_an_ending_is_waited_for_and_found_whether_it_came_before_or_after(bus: Bus) -> None:
    kept = Replies(bus)
    assert await kept.wait_for_ending("job-1", 0.05) is None
    waiting = asyncio.create_task(kept.wait_for_ending("job-1", 5))
    await kept.store("job-1", ending(bus))
    assert await waiting == await kept.wait_for_ending("job-1", 5) == ending(bus)


async def test_what_nobody_hears_is_given_up_after_a_while(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.replies._DELIVER_S", 0.3)
    probes = Probes(bus)
    await probes.start()
    assert await probes.deliver("_INBOX.nobody", ending(bus), sentinel=True) is False


async def test_an_error_carries_the_services_headers(bus: Bus) -> None:
    made = ending(bus, "a\nlong\tstöry")
    assert made.event is ReplyEvent.ERROR
    assert made.headers["Nats-Service-Error-Code"] == "503"
    assert made.headers["Nats-Service-Error"] == "a long st?ry"
    assert orjson.loads(made.body)["error"] == {
        "type": "unavailable",
        "message": "a\nlong\tstöry",
        "request_id": "job-1",
        "retry_after_s": 2,
    }


async def test_a_stream_that_fails_still_ends_with_the_empty_message(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Opened(), TextDelta("x"), Pause(30)])})
    streamed = await ask_stream(nc, body(stream=True, deadline_ms=100))
    assert streamed.events() == ["delta", "error"]
    assert streamed.seqs() == [0, 1]


async def test_a_request_without_stream_gets_exactly_one_message(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    await nc.publish("llm.request.high", body("first"), reply=inbox)
    assert read(await sub.next_msg(timeout=5))["response"] == "first"
    # The second answer comes later than anything the first could still send.
    await nc.publish("llm.request.high", body("second"), reply=inbox)
    assert read(await sub.next_msg(timeout=5))["response"] == "second"


async def test_streaming_can_be_switched_off(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()}, enable_streaming=False)
    streamed = await ask_stream(nc, body("a b c", stream=True))
    assert (streamed.events(), streamed.final["response"]) == (["final"], "a b c")


async def test_a_stored_reply_ends_a_stream_like_a_new_one(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    await ask(nc, body(), Nats_Msg_Id="job-1")
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    await nc.jetstream().publish("llm.request.low.job-1", body(stream=True), headers={"Reply-To": place})
    assert read(await sub.next_msg(timeout=5))["response"] == "Hello."
    assert (await sub.next_msg(timeout=5)).data == b""


async def test_an_enqueued_stream_that_is_no_request_ends_like_any_other(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    await nc.jetstream().publish("llm.request.low.bad", b'{"stream": true}', headers={"Reply-To": place})
    assert read(await sub.next_msg(timeout=5))["error"]["type"] == "invalid_request"
    assert (await sub.next_msg(timeout=5)).data == b""


async def test_a_stream_that_is_kept_counts_as_heard(nc: Client, bus: Bus, start: StartProcessor) -> None:
    many = [TextDelta("x")] * (5 * PROBE_EVERY)
    vendor = ScriptedProvider([Opened(), *many, Pause(0.2), *answer()[1:]])
    await start({"anthropic": vendor})
    await nc.jetstream().publish("llm.request.high.s1", body(stream=True), headers={"Reply-To": "llm.reply.s1"})
    assert (await wait_until(lambda: Replies(bus).ending("s1"))).event is ReplyEvent.FINAL
    assert vendor.cancelled == 0


async def test_a_client_has_gone_when_two_probes_in_a_row_are_unheard(nc: Client, bus: Bus) -> None:
    probes = Probes(bus)
    await probes.start()
    await bus.settle()
    for request_id, number in [("blinked", 1), ("blinked", 3), ("gone", 1), ("gone", 2)]:
        await nc.publish(probes.subject(request_id, number), b"", headers={"Status": "503"})
    await nc.publish(probes.subject("heard", 1), b'{"stream":"S","seq":1}')
    await nc.publish(probes.subject("heard", 2), b'{"stream":"S","seq":2}')
    assert await asyncio.wait_for(probes.gone.get(), 5) == "gone"
    assert probes.gone.empty()
