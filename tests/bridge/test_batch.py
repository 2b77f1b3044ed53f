"""POST and GET /api/batch: all lines or none, each once, and what became of them told by any bridge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from bridge import batch, batch_lines, batch_queue, batch_standing, sse
from bridge.batch_lines import read_lines
from bridge.batch_standing import Standing
from bridge.callers import Caller
from processor import jetstream, subjects
from processor.batches import batch_id as id_of
from processor.bus import HEADER_RESERVE
from processor.errors import RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, PubAck
from processor.messages import Request
from providers.errors import InvalidPrompt
from providers.scripted import Pause, ScriptedProvider, Step, echo
from tests.bridge.edge import Edge, bridging
from tests.conftest import StartProcessor
from tests.talk import audit_events, body
from tests.wait import wait_until

PATH = "/api/batch"


def lines(*texts: str, **fields: Any) -> bytes:
    return b"\n".join(body(text, **fields) for text in texts)


def named(**texts: str) -> bytes:
    return b"\n".join(body(text, custom_id=name) for name, text in texts.items())


# --- the lines, without a bridge --------------------------------------------------------------------------------------


def as_it_is(request: Request) -> Request:
    return request


@given(st.lists(st.sampled_from([b"", b"  ", body("a"), body("b", custom_id=None), body("c", priority="low")])))
def test_empty_lines_are_no_requests_and_every_other_line_is_one(sent: list[bytes]) -> None:
    count = sum(bool(line.strip()) for line in sent)
    assert len(read_lines(b"\n".join([body("first"), *sent]), as_it_is)) == count + 1


@given(st.binary())
def test_any_bytes_that_are_no_requests_are_one_clear_error(sent: bytes) -> None:
    with pytest.raises(RequestError, match=r"^line \d+: |^the batch has no requests"):
        read_lines(sent, as_it_is)


def test_the_clients_own_names_and_the_tenants_are_kept_beside_the_requests() -> None:
    found = read_lines(body("one", custom_id="first", tenant="acme") + b"\r\n" + body("two"), as_it_is)
    assert [(one.custom_id, one.tenant) for one in found] == [("first", "acme"), (None, "default")]
    assert b"custom_id" not in found[0].body


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (b"{", "line 2: body: not JSON"),
        (b"[]", "line 2: body: it has to be a JSON object"),
        (body("x", max_tokens=0), "line 2: max_tokens: "),
        (body("x", modle="haiku"), "line 2: modle: unknown field"),
        (body("x", stream=True), "line 2: stream: "),
        (body("x", priority="high"), "line 2: priority: a batch runs in the low lane"),
        (body("x", custom_id=7), "line 2: custom_id: a text of 1 to 64 characters"),
        (body("x", custom_id="first"), "line 2: custom_id: it is that of line 1 too"),
    ],
)
def test_the_first_wrong_line_is_told_by_its_number_and_field(wrong: bytes, says: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_lines(b"\n".join([body("good", custom_id="first"), wrong, b"{}"]), as_it_is)
    assert refused.value.message.startswith(says)


def test_a_batch_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_lines, "MAX_LINES", 2)
    with pytest.raises(RequestError, match="more than 2 requests"):
        read_lines(lines("1", "2", "3"), as_it_is)


# --- in and out -------------------------------------------------------------------------------------------------------


async def test_a_batch_is_queued_without_a_sidecar_and_answered_by_the_next_one(
    nc: Client, nats_url: str, edge: Edge, start: StartProcessor
) -> None:
    status, kept = await edge.post(named(first="one", second="two"), PATH)
    assert (status, kept["count"]) == (202, 2)
    assert kept["ids"] == [f"{kept['id']}-1", f"{kept['id']}-2"]
    before = await look_up(edge, kept["id"])
    assert (before["ended"], before["states"]["queued"]) == (0, 2)
    await start({"anthropic": ScriptedProvider()})
    async with bridging(nats_url) as another:
        await wait_until(lambda: ended(another, kept["id"], 2))
        after = await look_up(another, kept["id"])
        assert after["requests"] == [
            {"id": kept["ids"][0], "custom_id": "first", "state": "completed"},
            {"id": kept["ids"][1], "custom_id": "second", "state": "completed"},
        ]
        results = await read_results(another, kept["id"])
    assert [(row["custom_id"], row["reply"]["response"]) for row in results] == [("first", "one"), ("second", "two")]
    assert {event["priority"] for event in await audit_events(nc, kept["ids"][0]) if "priority" in event} == {"low"}


async def test_a_request_of_a_batch_is_a_request_like_any_other(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    _, kept = await edge.post(lines("hello"), PATH)
    await wait_until(lambda: ended(edge, kept["id"], 1))
    async with edge.client.get(f"/api/requests/{kept['ids'][0]}") as response:
        assert orjson.loads(await response.read())["reply"]["response"] == "hello"


async def test_what_failed_and_what_was_cancelled_is_told_with_its_error(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    def script(prompt: Any) -> Sequence[Step]:
        steps: dict[str, list[Step]] = {"bad": [InvalidPrompt("not this")], "late": [Pause(60)]}
        return steps.get(prompt.messages[-1].parts[0].text) or echo(prompt)

    await start({"anthropic": ScriptedProvider(script)})
    _, kept = await edge.post(lines("good", "bad", "late"), PATH)
    await wait_until(lambda: ended(edge, kept["id"], 2))
    assert (await look_up(edge, kept["id"]))["states"]["running"] == 1
    await edge.client.delete(f"/api/requests/{kept['ids'][2]}")
    await wait_until(lambda: ended(edge, kept["id"], 3))
    results = await read_results(edge, kept["id"])
    assert [row["state"] for row in results] == ["completed", "failed", "cancelled"]
    assert ["reply" in row for row in results] == [True, False, False]
    assert [row["error"]["type"] for row in results[1:]] == ["invalid_request", "cancelled"]


async def test_one_wrong_line_and_nothing_is_queued(nc: Client, edge: Edge) -> None:
    status, fields = await edge.post(lines("one", "two") + b"\n{", PATH)
    assert (status, fields["error"]["type"]) == (400, "invalid_request")
    assert fields["error"]["message"].startswith("line 3: ")
    assert await queued(nc) == 0


# --- once -------------------------------------------------------------------------------------------------------------


async def test_the_same_key_queues_nothing_twice_and_has_the_same_ids(
    nc: Client, edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await post(edge, lines("one", "two"), key="monday")
    # The broker itself would refuse a copy, but only of what is still queued, or was within ten minutes.
    monkeypatch.setattr(batch_queue, "_enqueue", None)
    again = await post(edge, lines("one", "two"), key="monday")
    assert first == again
    assert await queued(nc) == 2
    await start({"anthropic": (vendor := ScriptedProvider())})
    await wait_until(lambda: ended(edge, first["id"], 2))
    assert await post(edge, lines("one", "two"), key="monday") == first
    assert (await queued(nc), vendor.calls) == (0, 2)


async def test_what_was_answered_is_not_paid_again_when_its_replies_are_no_longer_kept(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    """Replies are kept for a day and as long as there is room, a batch for eight days."""
    config = (await jetstream.call(nc, f"STREAM.INFO.{subjects.REQUESTS}"))["config"]
    forgets = config | {"duplicate_window": 100_000_000}
    await jetstream.call(nc, f"STREAM.UPDATE.{subjects.REQUESTS}", forgets)
    await start({"anthropic": (vendor := ScriptedProvider())})
    first = await post(edge, lines("one", "two"), key="monday")
    await wait_until(lambda: ended(edge, first["id"], 2))
    await wait_until(lambda: none_queued(nc))
    await jetstream.call(nc, f"STREAM.PURGE.{subjects.REPLIES}")
    await asyncio.sleep(0.3)  # the stage: the broker's own window for copies is over
    assert await post(edge, lines("one", "two"), key="monday") == first
    assert (await queued(nc), vendor.calls) == (0, 2)
    assert (await look_up(edge, first["id"]))["states"]["missing"] == 2


async def test_two_who_send_the_same_key_at_once_queue_it_once(nc: Client, edge: Edge) -> None:
    texts = [str(n) for n in range(50)]
    both = await asyncio.gather(*(post(edge, lines(*texts), key="monday") for _ in range(2)))
    assert both[0] == both[1]
    assert await queued(nc) == 50


async def test_of_two_who_send_other_requests_under_one_key_at_once_one_is_refused(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, together = batch_queue._check_room, asyncio.Barrier(2)

    async def when_both_have_found_no_such_batch(*args: Any) -> None:
        await real(*args)
        await together.wait()

    monkeypatch.setattr(batch_queue, "_check_room", when_both_have_found_no_such_batch)
    sent = (edge.client.post(PATH, data=lines(text), headers={"Idempotency-Key": "monday"}) for text in ("one", "two"))
    statuses = [response.status for response in await asyncio.gather(*sent)]
    assert sorted(statuses) == [202, 400]
    assert await queued(nc) == 1


async def test_the_same_key_with_other_requests_is_refused(nc: Client, edge: Edge) -> None:
    await post(edge, lines("one"), key="monday")
    refused = await post(edge, lines("another"), key="monday", status=400)
    assert "another batch" in refused["error"]["message"]
    assert await queued(nc) == 1


async def test_the_same_key_with_other_names_is_refused(edge: Edge) -> None:
    await post(edge, named(first="one"), key="monday")
    await post(edge, named(second="one"), key="monday", status=400)


async def test_a_broker_that_fills_up_in_the_middle_is_told_and_the_rest_is_queued_by_a_repetition(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = jetstream.publish, 0

    async def full_after_three(*args: Any, **kwargs: Any) -> PubAck:
        nonlocal tries
        tries += args[1].startswith("llm.request.")
        if tries > 3:
            raise JetStreamError(503, jetstream.STREAM_LIMIT_REACHED, "maximum messages exceeded")
        return await real(*args, **kwargs)

    monkeypatch.setattr(batch_queue, "AT_ONCE", 1)
    with monkeypatch.context() as at_first:
        at_first.setattr(jetstream, "publish", full_after_three)
        async with edge.client.post(PATH, data=lines(*"abcdef")) as response:
            fields, key = orjson.loads(await response.read()), response.headers["Idempotency-Key"]
            assert (response.status, response.headers["Retry-After"]) == (503, "60")
    assert "of 6 requests 3 are queued and will be answered, 3 are not" in fields["error"]["message"]
    partly = await look_up(edge, fields["error"]["request_id"])
    assert (partly["states"]["queued"], partly["states"]["missing"]) == (3, 3)
    assert (await post(edge, lines(*"abcdef"), key=key))["id"] == partly["id"]
    assert (await look_up(edge, partly["id"]))["states"]["queued"] == await queued(nc) == 6


async def test_a_batch_that_the_queue_has_no_room_for_is_refused_whole(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_queue, "FILL", {subjects.Priority.LOW: 3 / 50_000})
    await post(edge, lines("one", "two"))
    full = await post(edge, lines("three", "four"), status=503)
    assert full["error"]["type"] == "queue_full"
    assert "room for 1 more low requests now, of 2; none of them was queued" in full["error"]["message"]
    too_many = await post(edge, lines(*"abcd"), status=413)
    assert "never takes 4" in too_many["error"]["message"]
    assert await queued(nc) == 2


async def test_a_batch_whose_list_finds_no_room_queues_nothing(nc: Client, edge: Edge) -> None:
    config = (await jetstream.call(nc, f"STREAM.INFO.{subjects.BATCHES}"))["config"]
    await jetstream.call(nc, f"STREAM.UPDATE.{subjects.BATCHES}", config | {"max_bytes": 100})
    refused = await post(edge, lines("one"), status=503)
    assert refused["error"]["type"] == "queue_full"
    assert await queued(nc) == 0


async def test_what_an_operators_own_broker_does_not_take_is_told_before_anything_is_queued(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "max_payload", property(lambda _: HEADER_RESERVE + 1_000))
    refused = await post(edge, lines("one", "word " * 300), status=413)
    assert refused["error"]["message"].startswith("request 2 is too large for the broker")
    assert await queued(nc) == 0


# --- results, while something hinders -------------------------------------------------------------------------------


async def test_results_that_are_long_in_coming_are_json_lines_and_nothing_else(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await post(edge, lines("one", "two", "three"))
    real = batch_standing._page

    async def slow(*args: Any) -> list[Standing]:
        await asyncio.sleep(0.05)
        return await real(*args)

    monkeypatch.setattr(batch, "RESULTS_PAGE", 1)
    monkeypatch.setattr(batch_standing, "_page", slow)
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.01)
    assert [row["id"] for row in await read_results(edge, kept["id"])] == kept["ids"]


async def test_a_broker_that_goes_away_in_the_middle_of_the_results_is_told_in_their_last_line(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await post(edge, lines("one", "two", "three"))
    real, calls = batch_standing._page, 0

    async def away_after_two(*args: Any) -> list[Standing]:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise JetStreamUnavailable("gone")
        return await real(*args)

    monkeypatch.setattr(batch, "RESULTS_PAGE", 1)
    monkeypatch.setattr(batch_standing, "_page", away_after_two)
    *rows, last = await read_results(edge, kept["id"])
    assert [row["id"] for row in rows] == kept["ids"][:2]
    assert last["error"]["type"] == "unavailable"


# --- who may --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["nothing", "no.such.id", "%20", "a" * 200])
async def test_a_batch_that_nobody_knows_is_not_found(edge: Edge, path: str) -> None:
    async with edge.client.get(f"{PATH}/{path}") as response:
        assert response.status == 404


async def test_headers_steer_all_of_it_but_not_into_another_lane(nc: Client, edge: Edge) -> None:
    async with edge.client.post(PATH, data=lines("one"), headers={"X-Sidecar-Tenant": "acme"}) as response:
        kept = orjson.loads(await response.read())
    message = await jetstream.last_message(nc, subjects.REQUESTS, f"llm.request.low.{kept['ids'][0]}")
    assert message is not None
    assert orjson.loads(message.body)["tenant"] == "acme"
    async with edge.client.post(PATH, data=lines("one"), headers={"X-Sidecar-Priority": "high"}) as response:
        assert response.status == 400


async def test_results_is_true_or_false(edge: Edge) -> None:
    async with edge.client.get(f"{PATH}/any?results=perhaps") as response:
        assert response.status == 400


async def test_another_tenants_batch_is_as_unknown_as_one_that_never_was(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = await post(edge, b"\n".join([body("one", tenant="acme"), body("two", tenant="other")]))
    for who, status in ((Caller("acme's", tenant="acme"), 404), (Caller("an operator's", operator=True), 200)):
        monkeypatch.setattr(batch, "caller", lambda _, who=who: who)
        async with edge.client.get(f"{PATH}/{kept['id']}") as response:
            assert response.status == status


async def test_a_key_asks_for_its_own_tenant_and_only_where_it_may_use_the_low_lane(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "caller", lambda _: Caller("acme's", tenant="acme"))
    refused = await post(edge, body("one") + b"\n" + body("two", tenant="other"), status=403)
    assert refused["error"]["message"].startswith("line 2: tenant other: ")
    kept = await post(edge, lines("one"))
    message = await jetstream.last_message(nc, subjects.REQUESTS, f"llm.request.low.{kept['ids'][0]}")
    assert message is not None
    assert orjson.loads(message.body)["tenant"] == "acme"
    monkeypatch.setattr(batch, "caller", lambda _: Caller("urgent", priorities=frozenset({subjects.Priority.HIGH})))
    assert (await post(edge, lines("one"), status=403))["error"]["type"] == "forbidden"


def test_two_owners_never_share_a_batch_by_choosing_one_key() -> None:
    assert id_of("a", "key") != id_of("b", "key")
    assert subjects.is_request_id(f"{id_of('a', 'k' * 255)}-10000")


# --------------------------------------------------------------------------------------------------------------------


async def post(edge: Edge, sent: bytes, key: str | None = None, status: int = 202) -> dict[str, Any]:
    headers = {} if key is None else {"Idempotency-Key": key}
    async with edge.client.post(PATH, data=sent, headers=headers) as response:
        fields: dict[str, Any] = orjson.loads(await response.read())
        assert response.status == status, fields
        return fields


async def look_up(edge: Edge, batch_id: str) -> dict[str, Any]:
    async with edge.client.get(f"{PATH}/{batch_id}") as response:
        assert response.status == 200
        fields: dict[str, Any] = orjson.loads(await response.read())
        return fields


async def ended(edge: Edge, batch_id: str, count: int) -> bool:
    return bool((await look_up(edge, batch_id))["ended"] == count)


async def read_results(edge: Edge, batch_id: str) -> list[dict[str, Any]]:
    async with edge.client.get(f"{PATH}/{batch_id}?results=true") as response:
        assert (response.status, response.content_type) == (200, "application/x-ndjson")
        return [orjson.loads(line) for line in (await response.read()).splitlines()]


async def queued(nc: Client) -> int:
    info = await jetstream.call(nc, f"STREAM.INFO.{subjects.REQUESTS}")
    return int(info["state"]["messages"])


async def none_queued(nc: Client) -> bool:
    return await queued(nc) == 0
