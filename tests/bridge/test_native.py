"""The app's own HTTP surface: ask, stream, re-attach, look up, cancel, over a whole sidecar with a scripted vendor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import nats
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge import follow, sse
from bridge.sequence import Piece
from processor import jetstream, subjects
from processor.broker import contract_dir
from processor.jetstream import JetStreamUnavailable
from processor.nats_client import Client as PatchedClient
from processor.provision import provision
from processor.subjects import Priority
from providers.base import Finished, FinishReason, Opened, TextDelta, Usage
from providers.errors import InvalidPrompt, Overloaded
from providers.scripted import Pause, ScriptedProvider
from tests.bridge.edge import Edge, Event, bridging, events, leave_when, our_broker
from tests.conftest import StartProcessor, nats_server, running_processor
from tests.talk import all_audit_events, body, listen, stored
from tests.wait import wait_until

WORDS = "one two three four five six"


async def test_an_answer_comes_whole_with_its_text_in_response(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with edge.client.post("/api/chat", data=body(WORDS)) as response:
        reply = orjson.loads(await response.read())
        assert (response.status, response.content_type) == (200, "application/json")
    assert reply["response"] == WORDS
    shown = {name: response.headers[f"X-Sidecar-{name}"] for name in ("Request-Id", "Model", "Cost-Usd", "Attempts")}
    assert shown["Request-Id"] == reply["id"]
    assert (shown["Model"], shown["Attempts"]) == (reply["model"], "1")
    assert float(shown["Cost-Usd"]) == reply["cost_usd"] > 0


async def test_a_stream_comes_as_events_numbered_without_holes(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    seen = await streamed(edge, body(WORDS, stream=True))
    assert [event.id for event in seen] == [f"1.{n}" for n in range(7)]
    assert [event.name for event in seen] == ["delta"] * 6 + ["final"]
    assert "".join(event.data["text"] for event in seen[:-1]) == seen[-1].data["response"] == WORDS


async def test_another_model_that_goes_on_is_told_of(edge: Edge, start: StartProcessor) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("lost "), Overloaded("it broke")])
    await start({"anthropic": broken, "groq": ScriptedProvider()})
    seen = await streamed(edge, body(WORDS, stream=True))
    at = [event.name for event in seen].index("restarted")
    assert seen[at - 1].data["text"] == "lost "
    assert seen[at].id == f"{seen[-1].id.split('.')[0] if seen[-1].id else ''}.0"
    assert "".join(event.data["text"] for event in seen[at + 1 : -1]) == seen[-1].data["response"] == WORDS


# --- how it is steered ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "headers", "lane"),
    [
        ({}, {}, "medium"),
        ({"priority": "critical"}, {}, "critical"),
        ({"priority": "critical"}, {"X-Sidecar-Priority": "low"}, "low"),
    ],
)
async def test_the_priority_comes_in_the_body_or_in_a_header(
    nc: Client, edge: Edge, start: StartProcessor, fields: dict[str, str], headers: dict[str, str], lane: str
) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with edge.client.post("/api/chat", data=body(**fields), headers=headers) as response:
        request_id = orjson.loads(await response.read())["id"]
    received = (await wait_until(lambda: all_audit_events(nc, request_id, 4)))[0]
    assert (received["event"], received["priority"]) == ("received", lane)


async def test_headers_win_over_the_body(nc: Client, edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    headers = {"X-Sidecar-Tenant": "water-board", "X-Sidecar-Deadline-Ms": "9000", "X-Sidecar-Cache": "skip"}
    async with edge.client.post("/api/chat", data=body(tenant="other"), headers=headers) as response:
        request_id = orjson.loads(await response.read())["id"]
    assert (await wait_until(lambda: all_audit_events(nc, request_id, 4)))[0]["tenant"] == "water-board"


@pytest.mark.parametrize(
    ("fields", "headers", "says"),
    [
        ({"priority": "urgent"}, {}, "priority: one of critical, high, medium, low"),
        ({"priority": 3}, {}, "priority: one of"),
        ({}, {"X-Sidecar-Priority": "urgent"}, "X-Sidecar-Priority: "),
        ({}, {"X-Sidecar-Tenant": "a b"}, "X-Sidecar-Tenant: "),
        ({}, {"X-Sidecar-Deadline-Ms": "soon"}, "X-Sidecar-Deadline-Ms: "),
        ({}, {"X-Sidecar-Deadline-Ms": "0"}, "X-Sidecar-Deadline-Ms: "),
        ({}, {"X-Sidecar-Cache": "never"}, "X-Sidecar-Cache: "),
        ({}, {"X-Sidecar-Detach": "perhaps"}, "X-Sidecar-Detach: "),
        ({}, {"Idempotency-Key": "k" * 256}, "Idempotency-Key: "),
    ],
)
async def test_what_steers_wrongly_is_refused_by_name(
    edge: Edge, fields: dict[str, Any], headers: dict[str, str], says: str
) -> None:
    async with edge.client.post("/api/chat", data=body(**fields), headers=headers) as response:
        error = orjson.loads(await response.read())["error"]
    assert (response.status, error["type"]) == (400, "invalid_request")
    assert error["message"].startswith(says)


async def test_an_idempotency_key_is_paid_once_and_belongs_to_its_tenant(edge: Edge, start: StartProcessor) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})

    async def asked(tenant: str) -> str:
        headers = {"Idempotency-Key": "order 66/a", "X-Sidecar-Tenant": tenant}
        async with edge.client.post("/api/chat", data=body(), headers=headers) as response:
            assert response.status == 200
            return str(orjson.loads(await response.read())["id"])

    first = await asked("one")
    assert await asked("one") == first
    assert vendor.calls == 1
    assert await asked("two") != first
    assert vendor.calls == 2


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [252, 400])
@pytest.mark.parametrize("path", ["/api/chat", "/api/batch", "/v1/messages/count_tokens"])
async def test_what_is_nested_too_deeply_is_the_clients_fault(edge: Edge, path: str, depth: int) -> None:
    """More can be read than can be written, or than the model of a request reads."""
    deep = '{"a":' * depth + "1" + "}" * depth
    tool = f'{{"name":"f","{"input_schema" if "count" in path else "parameters"}":{deep}}}'
    beside = {"/api/chat": '"priority":"high",', "/api/batch": '"custom_id":"a",'}.get(path, "")
    sent = f'{{{beside}"model":"haiku","messages":[{{"role":"user","content":"hi"}}],"tools":[{tool}]}}'
    status, _ = await edge.post(sent.encode(), path)
    assert status == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refusal_is_an_http_error_even_where_a_stream_was_asked_for(
    edge: Edge, start: StartProcessor, stream: bool
) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with edge.client.post("/api/chat", data=body(model="no-such-model", stream=stream)) as response:
        error = orjson.loads(await response.read())["error"]
    assert (response.status, response.content_type, error["type"]) == (404, "application/json", "not_found")
    assert error["request_id"] == response.headers["X-Sidecar-Request-Id"]


async def test_without_a_sidecar_it_says_how_to_start_one(edge: Edge) -> None:
    async with edge.client.post("/api/chat", data=body()) as response:
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert b"sidecar processor" in await response.read()


async def test_a_sidecar_that_vanishes_with_a_request_does_not_hang_its_client(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes it, says that it is kept, and is never heard of again."""
    monkeypatch.setattr("bridge.asking.GRACE_S", 0.1)

    async def take(msg: Msg) -> None:
        await msg.respond(b'{"stream":"LLM_REQUESTS","seq":1}')

    await listen(nc, "llm.request.medium", take)
    async with edge.client.post("/api/chat", data=body(deadline_ms=200)) as response:
        assert response.status == 504


# --- who goes away --------------------------------------------------------------------------


def slow(words: int = 200) -> ScriptedProvider:
    steps = [step for n in range(words) for step in (TextDelta(f"{n} "), Pause(0.05))]
    return ScriptedProvider([Opened(), *steps, Finished(FinishReason.STOP, Usage(output_visible=words), "m")])


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(
    nc: Client, edge: Edge, start: StartProcessor, stream: bool
) -> None:
    vendor = slow()
    await start({"anthropic": vendor})
    await leave_when(edge, vendor, body(stream=stream))
    await wait_until(lambda: vendor.cancelled == 1, timeout_s=2)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_is_detached_goes_on_without_its_client(
    nc: Client, edge: Edge, start: StartProcessor, stream: bool
) -> None:
    vendor = slow(words=20)
    await start({"anthropic": vendor})
    key = {"Idempotency-Key": "mine", "X-Sidecar-Detach": "true"}
    await leave_when(edge, vendor, body(stream=stream), **key)
    async with edge.client.post("/api/chat", data=body(), headers=key) as response:
        assert orjson.loads(await response.read())["response"].split() == [str(n) for n in range(20)]
    assert (vendor.calls, vendor.cancelled) == (1, 0)


async def test_who_joined_anothers_request_does_not_cancel_it_by_going_away(edge: Edge, start: StartProcessor) -> None:
    vendor = slow(words=30)
    await start({"anthropic": vendor})
    key = {"Idempotency-Key": "shared"}

    async def ask() -> int:
        async with edge.client.post("/api/chat", data=body(), headers=key) as response:
            await response.read()
            return response.status

    first = asyncio.create_task(ask())
    await wait_until(lambda: vendor.calls == 1)
    second = asyncio.create_task(ask())
    await asyncio.sleep(0.3)  # the stage: it is joined by now, and a cancel would have half a second to arrive
    second.cancel()
    assert await first == 200


async def test_a_client_whose_lost_connection_is_noticed_after_it_asked_again_keeps_its_request(
    nats_url: str, edge: Edge, start: StartProcessor
) -> None:
    vendor = slow(words=30)
    await start({"anthropic": vendor})
    key = {"Idempotency-Key": "again"}
    async with bridging(nats_url) as other, aiohttp.ClientSession(edge.url) as lost:
        first = asyncio.create_task(lost.post("/api/chat", data=body(), headers=key))
        await wait_until(lambda: vendor.calls == 1)

        async def again() -> int:
            async with other.client.post("/api/chat", data=body(), headers=key) as response:
                await response.read()
                return response.status

        second = asyncio.create_task(again())
        await asyncio.sleep(0.3)  # the stage: it is joined by now
        first.cancel()
        assert await second == 200
    assert (vendor.calls, vendor.cancelled) == (1, 0)


async def test_a_client_that_alone_sent_its_key_cancels_its_request_by_going_away(
    edge: Edge, start: StartProcessor
) -> None:
    vendor = slow()
    await start({"anthropic": vendor})
    await leave_when(edge, vendor, body(), **{"Idempotency-Key": "once"})
    await wait_until(lambda: vendor.cancelled == 1, timeout_s=2)


async def test_a_client_that_goes_away_while_the_broker_is_away_cancels_its_request(tmp_path: Path) -> None:
    vendor = slow()
    with ExitStack() as brokers:
        url = brokers.enter_context(nats_server(tmp_path))
        client = await nats.connect(url)
        await provision(client, contract_dir())
        await client.close()
        async with running_processor(url, {"anthropic": vendor}), bridging(url) as edge:
            async with edge.client.post("/api/chat", data=body(stream=True)) as response:
                await anext(events(response))
                broker = our_broker()
                broker.kill()
                broker.wait()
            brokers.enter_context(nats_server(tmp_path, int(url.rpartition(":")[2])))
            await wait_until(lambda: vendor.cancelled == 1)


@pytest.mark.parametrize("acceptance", ["duplicate", "none"])
async def test_a_request_of_ones_own_is_cancelled_however_it_was_accepted(
    nc: Client, edge: Edge, acceptance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that had to ask the queue twice calls it a copy; a broker that hangs for a moment hides the answer."""
    cancelled = await listen(nc, "llm.cancel.*")

    async def take(msg: Msg) -> None:
        if acceptance == "duplicate":
            await msg.respond(b'{"stream":"LLM_REQUESTS","seq":0,"duplicate":true}')
        else:
            monkeypatch.setattr(PatchedClient, "round_trip", hangs)

    async def hangs(*_: Any) -> None:
        monkeypatch.undo()
        raise nats.errors.TimeoutError

    await listen(nc, "llm.request.medium", take)
    with suppress(TimeoutError):
        async with edge.client.post("/api/chat", data=body(), timeout=aiohttp.ClientTimeout(1.8)) as response:
            assert response.status == 503
    assert (await cancelled.next_msg(timeout=2)).subject.startswith("llm.cancel.")


async def test_a_reader_that_takes_nothing_is_given_up(
    edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "SEND_WITHIN_S", 0.3)
    vendor = ScriptedProvider([Opened(), *[TextDelta("x" * 60_000) for _ in range(400)], Pause(30)])
    await start({"anthropic": vendor})
    host, port = edge.url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), limit=1024)
    sent = body(stream=True)
    writer.write(b"POST /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(sent), sent))
    await wait_until(lambda: vendor.cancelled == 1)
    writer.close()


async def test_a_silent_stream_is_kept_warm(edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    await start({"anthropic": ScriptedProvider([Opened(), Pause(30)])})
    async with edge.client.post("/api/chat", data=body(stream=True)) as response:
        assert response.status == 200
        assert await response.content.readline() == b": \n"


async def test_a_bridge_that_stops_leaves_requests_running(nats_url: str, edge: Edge, start: StartProcessor) -> None:
    vendor = slow(words=30)
    await start({"anthropic": vendor})
    async with (
        bridging(nats_url, shutdown_grace=0) as stopped,
        stopped.client.post("/api/chat", data=body(stream=True)) as response,
    ):
        request_id = (await anext(events(response))).data["id"]
        stopped.stopping.set()
        await wait_until(stopped.serving.done)
    assert (await attached(edge, request_id))[-1].name == "final"
    assert (vendor.calls, vendor.cancelled) == (1, 0)


async def test_a_stream_outlives_its_broker(tmp_path: Path) -> None:
    vendor = slow(words=60)
    with ExitStack() as brokers:
        url = brokers.enter_context(nats_server(tmp_path))
        client = await nats.connect(url)
        await provision(client, contract_dir())
        await client.close()
        async with (
            running_processor(url, {"anthropic": vendor}),
            bridging(url) as edge,
            edge.client.post("/api/chat", data=body(stream=True)) as response,
        ):
            seen = events(response)
            await anext(seen)
            broker = our_broker()
            broker.kill()
            broker.wait()
            brokers.enter_context(nats_server(tmp_path, int(url.rpartition(":")[2])))
            last = [event async for event in seen][-1]
            assert last.name == "final"
            assert last.data["response"].split() == [str(n) for n in range(60)]


async def test_a_long_answer_that_was_heard_live_outlives_a_stream_that_fails_to_answer_once(
    edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long the broker is away counts from when it was last heard, not from when it was last asked."""
    monkeypatch.setattr(follow, "AWAY_S", 0.5)
    real, failed = follow.Following._stored, list[int]()

    async def fails_once(self: follow.Following) -> AsyncGenerator[Piece]:
        if self.seen.seq >= 39 and not failed:
            failed.append(self.seen.seq)
            raise JetStreamUnavailable("an election")
        async with aclosing(real(self)) as pieces:
            async for piece in pieces:
                yield piece

    monkeypatch.setattr(follow.Following, "_stored", fails_once)
    live = [step for n in range(40) for step in (TextDelta(f"{n} "), Pause(0.02))]
    ended = Finished(FinishReason.STOP, Usage(output_visible=40), "m")
    await start({"anthropic": ScriptedProvider([Opened(), *live, Pause(0.5), ended])})
    assert (await streamed(edge, body(stream=True)))[-1].name == "final"
    assert failed


async def test_a_request_that_fails_late_says_so_in_its_stream(
    edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat has begun the answer before there is an error: it is too late for a status."""
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    await start({"anthropic": ScriptedProvider([Pause(0.3), InvalidPrompt("no")])})
    last = (await streamed(edge, body(stream=True)))[-1]
    assert (last.name, last.data["error"]["type"]) == ("error", "invalid_request")


# --- re-attaching ---------------------------------------------------------------------------


async def test_who_lost_the_connection_goes_on_where_it_stopped_through_another_bridge(
    nats_url: str, edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": slow(words=40)})
    async with (
        edge.client.post("/api/chat", data=body(stream=True), headers={"X-Sidecar-Detach": "true"}) as response,
        aclosing(events(response)) as first,
    ):
        seen = [await anext(first) for _ in range(5)]
        request_id = response.headers["X-Sidecar-Request-Id"]
    async with bridging(nats_url) as other:
        seen += await attached(other, request_id, after=seen[-1].id)
    assert [event.id for event in seen] == [f"1.{n}" for n in range(41)]
    assert "".join(event.data["text"] for event in seen[:-1]) == seen[-1].data["response"]


async def test_an_answer_that_has_ended_can_be_read_again_from_any_place(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    seen = await streamed(edge, body(WORDS, stream=True))
    request_id = seen[-1].data["id"]
    assert await attached(edge, request_id) == seen
    assert await attached(edge, request_id, after="1.3") == seen[4:]


async def test_an_event_source_that_has_all_is_told_to_stay_away(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    last = (await streamed(edge, body(WORDS, stream=True)))[-1]
    headers = {"Last-Event-ID": str(last.id)}
    async with edge.client.get(f"/api/requests/{last.data['id']}/events", headers=headers) as response:
        assert response.status == 204


async def test_what_was_not_heard_is_read_from_the_stream(
    edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that can keep only two heard messages misses most of a burst."""
    monkeypatch.setattr(follow, "MAX_HEARD", 2)
    await start({"anthropic": ScriptedProvider()})
    words = " ".join(map(str, range(300)))
    seen = await streamed(edge, body(words, stream=True))
    assert [event.id for event in seen] == [f"1.{n}" for n in range(301)]


async def test_where_a_delta_was_never_stored_the_ending_still_comes(nc: Client, edge: Edge) -> None:
    """After a hole nothing is glued together: the final reply has the whole text."""
    request_id = subjects.new_request_id()
    for seq, name, fields in [
        (0, "delta", {"text": "a"}),
        (2, "delta", {"text": "c"}),
        (3, "final", {"response": "abc"}),
    ]:
        await nc.publish(
            subjects.reply(request_id),
            orjson.dumps({"id": request_id} | fields),
            headers={"Sidecar-Event": name, "Sidecar-Attempt": "1", "Sidecar-Seq": str(seq)},
        )
    await wait_until(lambda: stored(nc, request_id))
    assert [event.id for event in await attached(edge, request_id)] == ["1.0", "1.3"]


async def test_an_answer_that_is_no_longer_kept_is_not_waited_for(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    """Replies are kept for a day, the audit log for months."""
    await start({"anthropic": ScriptedProvider()})
    request_id = (await streamed(edge, body(WORDS, stream=True)))[-1].data["id"]
    await wait_until(lambda: all_audit_events(nc, request_id, 4))
    await jetstream.call(nc, f"STREAM.PURGE.{subjects.REPLIES}")
    async with edge.client.get(f"/api/requests/{request_id}/events") as response:
        assert (response.status, orjson.loads(await response.read())["error"]["type"]) == (404, "not_found")
    async with edge.client.delete(f"/api/requests/{request_id}") as again:
        assert (again.status, orjson.loads(await again.read())["state"]) == (200, "completed")


async def test_a_reader_whose_answer_is_lost_while_it_waits_is_told(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.native.LOOK_AFTER_S", 0.1)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    await nc.jetstream().publish(subjects.enqueue(Priority.LOW, "lost"), body())
    async with edge.client.get("/api/requests/lost/events") as response:
        await jetstream.call(nc, f"STREAM.PURGE.{subjects.REQUESTS}")
        assert b"no longer kept" in await response.read()


@pytest.mark.parametrize("path", ["/api/requests/nobody", "/api/requests/nobody/events", "/api/requests/a%20b"])
async def test_a_request_that_nobody_knows_is_not_found(edge: Edge, path: str) -> None:
    async with edge.client.get(path) as response:
        assert (response.status, orjson.loads(await response.read())["error"]["type"]) == (404, "not_found")


async def test_a_place_that_is_none_is_refused(edge: Edge) -> None:
    async with edge.client.get("/api/requests/nobody/events", headers={"Last-Event-ID": "17"}) as response:
        assert response.status == 400
        assert b"Last-Event-ID" in await response.read()


# --- where a request stands -----------------------------------------------------------------


async def test_a_request_can_be_looked_up_from_its_queue_to_its_answer(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    request_id = "look-me-up"
    await nc.jetstream().publish(subjects.enqueue(Priority.LOW, request_id), body(WORDS, tenant="farm"))
    found = await look_up(edge, request_id)
    assert (found["state"], found["tenant"], found["priority"]) == ("queued", "farm", "low")
    assert found["reply"] is None
    vendor = slow(words=10)
    await start({"anthropic": vendor})

    async def in_state(state: str) -> dict[str, Any] | None:
        found = await look_up(edge, request_id)
        return found if found["state"] == state else None

    await wait_until(lambda: in_state("running"))
    done = await wait_until(lambda: in_state("completed"))
    assert done["reply"]["response"].split() == [str(n) for n in range(10)]
    assert (done["tenant"], done["priority"], done["error"]) == ("farm", "low", None)


async def test_a_request_can_be_cancelled(edge: Edge, start: StartProcessor) -> None:
    vendor = slow()
    await start({"anthropic": vendor})
    async with edge.client.post("/api/chat", data=body(stream=True)) as response, aclosing(events(response)) as seen:
        request_id = (await anext(seen)).data["id"]
        async with edge.client.delete(f"/api/requests/{request_id}") as cancelled:
            assert cancelled.status == 202
        last = [event async for event in seen][-1]
    assert (last.name, last.data["error"]["type"]) == ("error", "cancelled")
    assert (await look_up(edge, request_id))["state"] == "cancelled"
    assert vendor.cancelled == 1
    async with edge.client.delete(f"/api/requests/{request_id}") as again:
        assert (again.status, orjson.loads(await again.read())["state"]) == (200, "cancelled")


async def test_a_request_that_no_sidecar_has_seen_is_cancelled_for_good(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    await nc.jetstream().publish(subjects.enqueue(Priority.LOW, "early"), body(tenant="farm"))
    async with edge.client.delete("/api/requests/early") as cancelled:
        assert cancelled.status == 202
    found = await look_up(edge, "early")
    assert (found["state"], found["tenant"], found["error"]["type"]) == ("cancelled", "farm", "cancelled")
    assert await jetstream.last_message(nc, subjects.REQUESTS, subjects.enqueue(Priority.LOW, "early")) is None
    await start({"anthropic": (vendor := ScriptedProvider())})
    async with edge.client.post("/api/chat", data=body(), headers={"X-Sidecar-Priority": "low"}) as response:
        assert response.status == 200
    assert vendor.calls == 1


async def test_who_listens_for_an_answer_is_told_that_it_was_cancelled_while_no_sidecar_ran(
    nc: Client, edge: Edge
) -> None:
    inbox = await listen(nc, place := nc.new_inbox())
    headers = {"Reply-To": place}
    await nc.jetstream().publish(subjects.enqueue(Priority.HIGH, "early"), body(stream=True), headers=headers)
    async with edge.client.delete("/api/requests/early") as cancelled:
        assert cancelled.status == 202
    told, end = await inbox.next_msg(timeout=2), await inbox.next_msg(timeout=2)
    assert orjson.loads(told.data)["error"]["type"] == "cancelled"
    assert (end.data, end.headers) == (b"", None)


# --- what the tests do ----------------------------------------------------------------------


async def streamed(edge: Edge, sent: bytes, **headers: str) -> list[Event]:
    async with edge.client.post("/api/chat", data=sent, headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        return [event async for event in events(response)]


async def attached(edge: Edge, request_id: str, after: str | None = None) -> list[Event]:
    headers = {"Last-Event-ID": after} if after else {}
    async with edge.client.get(f"/api/requests/{request_id}/events", headers=headers) as response:
        assert response.status == 200
        return [event async for event in events(response)]


async def look_up(edge: Edge, request_id: str) -> dict[str, Any]:
    async with edge.client.get(f"/api/requests/{request_id}") as response:
        assert response.status == 200
        found: dict[str, Any] = orjson.loads(await response.read())
        return found
