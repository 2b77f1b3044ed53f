"""The list of ended requests and the trail of one, read from the audit log."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from bridge import recent
from bridge.callers import Caller
from bridge.ended import Gathering
from processor import subjects
from processor.audit_events import AuditError, Ended
from processor.errors import ErrorType
from processor.subjects import AuditEvent, Priority
from providers.errors import Overloaded
from providers.scripted import ScriptedProvider
from tests.bridge.edge import Edge
from tests.conftest import StartProcessor
from tests.talk import all_audit_events, body
from tests.wait import wait_until

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def ended(request_id: str, *, outcome: AuditEvent = AuditEvent.COMPLETED, **fields: Any) -> Ended:
    common: dict[str, Any] = {"at": NOW, "replica": "r", "priority": Priority.HIGH, "tenant": "default", "delivery": 1}
    made = {"event": outcome, "attempts": 1, "model": "haiku", "provider": "anthropic", "cost_usd": Decimal("0.25")}
    return Ended.model_validate(common | made | {"id": request_id} | fields)


async def write(nc: Client, *events: Ended) -> None:
    for event in events:
        await nc.publish(subjects.audit(event.event, event.id), event.model_dump_json().encode())
    await nc.flush()

    async def kept() -> bool:
        info = await nc.jetstream().stream_info(subjects.AUDIT)
        return info.state.messages >= len(events)

    await wait_until(kept)


async def get(edge: Edge, path: str, **query: Any) -> tuple[int, dict[str, Any]]:
    async with edge.client.get(path, params={name: str(value) for name, value in query.items()}) as response:
        return response.status, await response.json()


async def listed(edge: Edge, **query: Any) -> list[str]:
    status, page = await get(edge, "/api/requests", **query)
    assert status == 200, page
    return [row["id"] for row in page["requests"]]


# --- the list -------------------------------------------------------------------------------


async def test_what_has_ended_is_listed_newest_first_with_what_it_cost_and_how_long_it_took(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    ids = []
    for text in ("first", "second"):
        _, reply = await edge.post(body(text), "/api/chat")
        ids.append(reply["id"])
        await wait_until(lambda: all_audit_events(nc, ids[-1], 4))
    status, page = await get(edge, "/api/requests")
    assert (status, [row["id"] for row in page["requests"]], page["next_before"]) == (200, ids[::-1], None)
    row = page["requests"][0]
    assert (row["outcome"], row["model"], row["provider"], row["attempts"]) == ("completed", "haiku", "anthropic", 1)
    assert row["cost_usd"] == reply["cost_usd"]
    assert 0 < row["took_ms"] <= reply["timing"]["total_ms"] + 1_000
    assert row["error"] is None


async def test_a_failure_is_listed_with_its_reason(nc: Client, edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Overloaded("too busy")])}, max_retries=0)
    await edge.post(body(fallback=False), "/api/chat")
    _, page = await wait_until(lambda: _one_row(edge))
    assert page["requests"][0]["outcome"] == "failed"
    assert page["requests"][0]["error"]["kind"] == "unavailable"


async def _one_row(edge: Edge) -> tuple[int, dict[str, Any]] | None:
    status, page = await get(edge, "/api/requests")
    return (status, page) if page["requests"] else None


async def test_all_words_of_a_search_have_to_be_in_a_row(nc: Client, edge: Edge) -> None:
    error = AuditError(kind="rate_limited", message="there is no room before the deadline")
    await write(
        nc,
        ended("a", cached=True),
        ended("b", model="kimi", provider="groq"),
        ended("c", outcome=AuditEvent.FAILED, tenant="shop", error=error),
        ended("d", priority=Priority.CRITICAL),
    )
    for search, found in {
        "": ["d", "c", "b", "a"],
        "KIMI": ["b"],
        "shop failed": ["c"],
        "rate_limited": ["c"],
        "no room": ["c"],
        "critical": ["d"],
        "cached": ["a"],
        "shop haiku completed": [],
    }.items():
        assert await listed(edge, search=search) == found, search


async def test_pages_follow_each_other_without_gap_or_repetition_whatever_windows_are_read(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "WINDOW", 7)
    ids = [f"r{number}" for number in range(40)]
    await write(nc, *(ended(name, tenant="even" if number % 2 == 0 else "odd") for number, name in enumerate(ids)))
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 6, "search": "odd"}
    while True:
        _, page = await get(edge, "/api/requests", **query)
        seen += [row["id"] for row in page["requests"]]
        if page["next_before"] is None:
            break
        query["before"] = page["next_before"]
    assert seen == [name for number, name in reversed(list(enumerate(ids))) if number % 2]


async def test_one_question_reads_a_bounded_part_of_the_log_and_says_where_to_go_on(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "WINDOW", 10)
    monkeypatch.setattr(recent, "MAX_READ", 20)
    await write(nc, ended("old", model="kimi"), *(ended(f"r{number}") for number in range(50)))
    _, page = await get(edge, "/api/requests", search="kimi")
    assert (page["requests"], page["events_read"]) == ([], 20)
    _, page = await get(edge, "/api/requests", search="kimi", before=page["next_before"])
    _, page = await get(edge, "/api/requests", search="kimi", before=page["next_before"])
    assert ([row["id"] for row in page["requests"]], page["next_before"]) == (["old"], None)


async def test_an_event_of_another_version_hides_no_other(nc: Client, edge: Edge) -> None:
    await nc.publish("llm.audit.completed.new", b'{"v": 2}')
    await nc.publish("llm.audit.completed.odd", b"\xff\x00")
    await write(nc, ended("a"))
    assert await listed(edge) == ["a"]


async def test_an_empty_log_is_an_empty_list(edge: Edge) -> None:
    assert await listed(edge) == []


async def test_a_wrong_question_is_refused_by_name(edge: Edge) -> None:
    for name, value in (
        *(("limit", "0"), ("limit", "201"), ("limit", "٣"), ("limit", "9" * 5_000)),
        *(("before", "-1"), ("before", ""), ("search", "x" * 201)),
    ):
        status, answer = await get(edge, "/api/requests", **{name: value})
        assert (status, answer["error"]["type"]) == (400, "invalid_request")
        assert answer["error"]["message"].startswith(f"{name}: ")


async def test_questions_beyond_the_bound_wait_and_none_is_lost(nc: Client, edge: Edge) -> None:
    await write(nc, ended("a"))
    assert await asyncio.gather(*(listed(edge) for _ in range(20))) == [["a"]] * 20


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(AuditEvent)), max_size=30), st.integers(1, 5))
def test_no_row_of_another_tenant_is_gathered_and_never_too_many(
    events: list[tuple[str, AuditEvent]], limit: int
) -> None:
    gathering = Gathering("", limit, lambda tenant: tenant == "a")
    for seq, (tenant, event) in enumerate(events):
        entry = (
            ended(f"id{seq}", tenant=tenant)
            .model_dump_json()
            .encode()
            .replace(b'"completed"', b'"%s"' % event.encode())
        )
        gathering.take(f"llm.audit.{event}.id{seq}", seq, entry)
    terminal = {AuditEvent.COMPLETED, AuditEvent.FAILED, AuditEvent.CANCELLED, AuditEvent.EXPIRED, AuditEvent.DEAD}
    wanted = [f"id{seq}" for seq, (tenant, event) in enumerate(events) if tenant == "a" and event in terminal]
    assert [row.ended.id for row in gathering.rows] == wanted[:limit]


# --- the trail ------------------------------------------------------------------------------


async def test_the_trail_of_a_request_is_all_its_events_in_order(nc: Client, edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([Overloaded("busy")]), "groq": ScriptedProvider()})
    _, reply = await edge.post(body(), "/api/chat")
    kept = await wait_until(lambda: all_audit_events(nc, reply["id"], 5))
    status, trail = await get(edge, f"/api/requests/{reply['id']}/trail")
    assert (status, trail["id"], trail["more"], trail["events"]) == (200, reply["id"], False, kept)
    assert [event["event"] for event in kept][:2] == ["received", "routed"]
    assert kept[-1]["event"] == "completed"


async def test_a_request_that_the_log_does_not_know_is_not_found(edge: Edge) -> None:
    for request_id in ("nobody", "a.b", "*", "%3E", "x" * 129):
        status, answer = await get(edge, f"/api/requests/{request_id}/trail")
        assert (status, answer["error"]["type"]) == (404, ErrorType.NOT_FOUND)


async def test_a_trail_that_is_too_long_says_that_there_is_more(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.trail.MAX_EVENTS", 2)
    await write(
        nc,
        *(
            ended("a", at=NOW + timedelta(seconds=number), outcome=outcome)
            for number, outcome in enumerate((AuditEvent.FAILED, AuditEvent.DEAD, AuditEvent.EXPIRED))
        ),
    )
    _, trail = await get(edge, "/api/requests/a/trail")
    assert ([event["event"] for event in trail["events"]], trail["more"]) == (["failed", "dead"], True)


# --- whose it is ----------------------------------------------------------------------------


async def test_a_caller_that_is_no_operator_sees_its_own_tenants_requests_alone(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(nc, ended("mine", tenant="shop"), ended("theirs", tenant="bank"))
    for module in ("recent", "trail"):
        monkeypatch.setattr(f"bridge.{module}.caller", lambda _: Caller("a shop", tenant="shop"))
    assert await listed(edge) == ["mine"]
    assert await listed(edge, search="theirs") == []
    assert (await get(edge, "/api/requests/mine/trail"))[0] == 200
    status, answer = await get(edge, "/api/requests/theirs/trail")
    assert (status, answer["error"]["message"]) == (404, "the audit log has no request theirs")


async def test_a_key_of_no_tenant_that_is_no_operators_lists_nothing(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.recent.caller", lambda _: Caller("a job"))
    status, answer = await get(edge, "/api/requests")
    assert (status, answer["error"]["type"]) == (403, "forbidden")
