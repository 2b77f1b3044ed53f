"""`sidecar dead`: found again, sent again without loss and without a second payment, removed."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from processor import dead_commands, jetstream, redrive, subjects
from processor.bus import Bus
from processor.config import Settings
from processor.deadletters import bury
from processor.errors import ErrorType, RequestError
from processor.exits import Exit, Fatal
from processor.lanes import Delivery
from processor.redrive import RETRY_OF, CannotRetry, DeadLetter, retry_of
from processor.subjects import Priority
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor, make_settings, running_processor
from tests.processes import SIDECAR, command
from tests.talk import body, read, stored
from tests.wait import wait_until

CAUSE = RequestError(ErrorType.INTERNAL, "gave up: 3 workers died with it")


@pytest.fixture
def settings(nc: Client, nats_url: str) -> Settings:
    return make_settings(nats_url=nats_url)


@pytest.fixture
async def bus(nc: Client, nats_url: str) -> AsyncIterator[Bus]:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    yield bus
    await bus.close()


async def dies(
    bus: Bus,
    request_id: str,
    data: bytes = b"{}",
    priority: Priority = Priority.HIGH,
    reason: RequestError = CAUSE,
    **headers: str,
) -> None:
    """Leave a dead letter as a worker does, also of an id that had one just before."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    delivery = Delivery(bus, priority, request_id, data, named, "", 4, datetime.now(UTC), set())
    await jetstream.call(bus.nc, "STREAM.UPDATE.LLM_DEAD", await _config(bus.nc, "LLM_DEAD", duplicate_window=10**8))
    before = await redrive.count(bus.nc)

    async def buried() -> bool:
        await bury(bus, delivery, reason)
        return await redrive.count(bus.nc) > before

    await wait_until(buried)


async def _config(nc: Client, stream: str, **changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = (await jetstream.call(nc, f"STREAM.INFO.{stream}"))["config"]
    return config | changes


async def ids(nc: Client) -> list[str]:
    """What LLM_DEAD holds, the newest first."""
    return [letter.id for letter in await redrive.latest(nc, 100)]


async def queued(nc: Client) -> list[str]:
    """Ids that wait in LLM_REQUESTS."""
    query = {"seq": 1, "next_by_subj": "llm.request.*.*", "batch": 100}
    return [message.subject.split(".", 3)[3] for message in (await jetstream.batch(nc, subjects.REQUESTS, query))[0]]


def letter(**fields: Any) -> DeadLetter:
    defaults: dict[str, Any] = {
        "id": "x", "priority": "high", "seq": 17, "time": datetime.now(UTC), "reason": "r", "deliveries": 1,
        "headers": {}, "body": b"{}", "body_bytes": 2,
    }  # fmt: skip
    return DeadLetter(**defaults | fields)


# --- list and show --------------------------------------------------------------------------


async def test_list_tells_the_newest_first_and_how_many_more_there_are(
    settings: Settings, bus: Bus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    every: dict[str, Any] = {"priority": None, "since": None, "limit": 50}
    assert await dead_commands.list_letters(settings, **every, as_json=False) == Exit.OK
    assert capsys.readouterr().out == "No dead letters.\n"
    assert await dead_commands.list_letters(settings, **every, as_json=True) == Exit.OK
    assert capsys.readouterr().out == "[]\n"

    await dies(bus, "first", priority=Priority.LOW)
    await bus.nc.jetstream().publish("llm.dead.high.[red]second", b"x" * 1000, headers={"Sidecar-Deliveries": "4"})
    await dies(bus, "third")
    await dead_commands.list_letters(settings, **every, as_json=False)
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert head == ["id", "lane", "age", "deliveries", "reason"]
    assert [row[:2] for row in rows] == [["third", "high"], ["[red]second", "high"], ["first", "low"]]
    assert rows[0][3:] == ["4", "internal:", "gave", "up:", "3", "workers", "died", "with", "it"]

    await dead_commands.list_letters(settings, **every | {"limit": 2}, as_json=True)
    listed = orjson.loads(capsys.readouterr().out)
    assert [(entry["id"], entry["body_bytes"], entry["deliveries"]) for entry in listed] == [
        ("third", 2, 4),
        ("[red]second", 1000, 4),
    ]
    assert 0 <= listed[0]["age_s"] < 60
    await dead_commands.list_letters(settings, **every | {"limit": 2}, as_json=False)
    assert "newest 2 of 3" in capsys.readouterr().err
    await dead_commands.list_letters(settings, **every | {"priority": Priority.LOW}, as_json=True)
    assert [entry["id"] for entry in orjson.loads(capsys.readouterr().out)] == ["first"]


async def test_the_latest_are_found_at_the_end_of_a_log_with_holes(nc: Client, bus: Bus) -> None:
    js = nc.jetstream()
    for number in range(200):
        await js.publish(f"llm.dead.{'low' if number % 3 else 'high'}.n{number}", b"b" * 500)
    for seq in (1, 2, 3, *range(50, 150), 198):
        await jetstream.call(nc, "STREAM.MSG.DELETE.LLM_DEAD", {"seq": seq})
    left = [n for n in reversed(range(200)) if n + 1 not in {1, 2, 3, *range(50, 150), 198}]
    assert await redrive.count(nc) == len(left)
    high = [n for n in left if n % 3 == 0]
    for limit in (1, 2, 7, 48, 49, 50, 95, 96, 500):
        assert [found.id for found in await redrive.latest(nc, limit)] == [f"n{n}" for n in left[:limit]]
        found = await redrive.latest(nc, limit, priority=Priority.HIGH)
        assert [one.id for one in found] == [f"n{n}" for n in high[:limit]]
        assert {one.body for one in found} == {b""}
    moment = (await redrive.latest(nc, 10))[-1].time
    assert len(await redrive.latest(nc, 50, since=moment)) == 10
    assert len(await redrive.latest(nc, 3, since=moment)) == 3
    assert await redrive.latest(nc, 3, since=datetime.now(UTC) + timedelta(hours=1)) == []


async def test_a_long_log_of_large_bodies_is_read_in_small_batches(
    nc: Client, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        await nc.jetstream().publish(f"llm.dead.high.n{number}", b"b" * 3_000_000)
    at_once: list[int] = []
    real = jetstream.batch

    async def batch(*arguments: Any) -> Any:
        messages, after = await real(*arguments)
        at_once.append(sum(len(message.body) for message in messages))
        return messages, after

    monkeypatch.setattr(jetstream, "batch", batch)
    assert len(await redrive.latest(nc, 6)) == 6
    assert max(at_once) <= 4_000_000 + 3_000_000


async def test_show_tells_everything_and_a_json_body_on_several_lines(
    settings: Settings, bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    await dies(bus, "x", body("Größe?"), traceparent="00-1", Reply_To="_INBOX.a")
    assert await dead_commands.show(settings, "x", as_json=False) == Exit.OK
    out = capsys.readouterr().out
    for line in ("lane: high", "reason: internal: gave up: 3 workers died with it", "deliveries: 4"):
        assert line in out.splitlines()
    for line in ("header traceparent: 00-1", "header Reply-To: _INBOX.a", '      "content": "Größe?"'):
        assert line in out.splitlines()
    assert "Nats-" not in out
    await dead_commands.show(settings, "x", as_json=True)
    told = orjson.loads(capsys.readouterr().out)
    assert told["body"]["messages"] == [{"role": "user", "content": "Größe?"}]
    assert told["headers"] == {"traceparent": "00-1", "Reply-To": "_INBOX.a"}


@pytest.mark.parametrize(
    ("data", "shown", "fields"),
    [
        (b"plain\ntext", "plain\ntext", {"body_text": "plain\ntext"}),
        (b"\xff\x00\x1b[2J", "\\xff\\x00\\x1b[2J", {"body_base64": base64.b64encode(b"\xff\x00\x1b[2J").decode()}),
        ('{"a": "\x9b2J‮"}'.encode(), '{\n  "a": "\\x9b2J\\u202e"\n}', {"body": {"a": "\x9b2J‮"}}),
        (b"", "", {"body_text": ""}),
    ],
    ids=["text", "bytes", "JSON with control characters", "nothing"],
)
async def test_a_body_that_is_no_text_cannot_touch_the_terminal(
    settings: Settings,
    bus: Bus,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    shown: str,
    fields: dict[str, Any],
) -> None:
    await dies(bus, "x", data)
    await dead_commands.show(settings, "x", as_json=False)
    assert capsys.readouterr().out.partition("\n\n")[2] == f"{shown}\n"
    await dead_commands.show(settings, "x", as_json=True)
    told = orjson.loads(capsys.readouterr().out)
    assert {name: value for name, value in told.items() if name.startswith("body") and name != "body_bytes"} == fields


async def test_a_long_body_is_shown_in_part_and_the_rest_is_counted(
    settings: Settings, bus: Bus, capsys: pytest.CaptureFixture[str]
) -> None:
    await dies(bus, "x", b"y" * 1_000_000)
    await dead_commands.show(settings, "x", as_json=False)
    printed = capsys.readouterr()
    assert len(printed.out) < 21_000
    assert "980,000 characters more" in printed.err


async def test_an_id_that_is_none_is_told_with_those_that_are_close(settings: Settings, bus: Bus) -> None:
    with pytest.raises(Fatal, match="dead list"):
        await dead_commands.show(settings, "abcdef", as_json=False)
    await dies(bus, "abcdeg")
    with pytest.raises(Fatal, match="did you mean abcdeg") as raised:
        await dead_commands.show(settings, "abcdef", as_json=False)
    assert raised.value.code == Exit.FAILED


# --- retry ----------------------------------------------------------------------------------


async def test_a_mended_request_is_answered_where_it_was_to_be_under_a_new_id(
    nc: Client, nats_url: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = await nc.subscribe("app.answers.1")
    vendor = {"anthropic": ScriptedProvider()}
    async with running_processor(nats_url, vendor):
        headers = {"Reply-To": "app.answers.1", "traceparent": "00-1"}
        await nc.jetstream().publish("llm.request.low.x", body("hello"), headers=headers)
        await wait_until(lambda: redrive.newest(nc, "x"))
        await wait_until(lambda: stored(nc, "x"))
    async with running_processor(nats_url, vendor, reply_prefixes=["app.answers."]):
        capsys.readouterr()
        assert await dead_commands.retry_some(settings, ["x"]) == Exit.OK
        assert capsys.readouterr().out == "x -> x-r1, answer on app.answers.1\n"
        answer = read(await answers.next_msg(timeout=5))
    assert (answer["id"], answer["response"]) == ("x-r1", "hello")
    assert await ids(nc) == []
    first, second = await stored(nc, "x"), await stored(nc, "x-r1")
    assert first is not None
    assert second is not None
    assert (first["error"]["type"], second["response"]) == ("forbidden", "hello")


async def test_an_answer_kept_on_llm_reply_is_kept_on_the_new_ids(
    nc: Client, bus: Bus, settings: Settings, start: StartProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    await start({"anthropic": ScriptedProvider()})
    await dies(bus, "x", body("hello", stream=True), Reply_To="llm.reply.x")
    capsys.readouterr()
    assert await dead_commands.retry_some(settings, ["x"]) == Exit.OK
    assert capsys.readouterr().out == "x -> x-r1, answer on llm.reply.x-r1\n"
    query = {"seq": 1, "next_by_subj": "llm.reply.*", "batch": 10}

    async def sentinel() -> bool:
        kept, _ = await jetstream.batch(nc, subjects.REPLIES, query)
        return bool(kept) and not kept[-1].body

    await wait_until(sentinel)
    kept, _ = await jetstream.batch(nc, subjects.REPLIES, query)
    assert {message.subject for message in kept} == {"llm.reply.x-r1"}
    assert [message.headers.get("Sidecar-Event") for message in kept] == ["delta", "final", None]


async def test_a_crash_between_sending_and_removing_neither_loses_nor_pays_twice(
    nc: Client, bus: Bus, settings: Settings, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = await _config(nc, "LLM_REQUESTS", duplicate_window=10**8)
    await jetstream.call(nc, "STREAM.UPDATE.LLM_REQUESTS", update)
    await dies(bus, "x", body("hello"), Sidecar_Fresh="1")

    async def crash(*_: Any) -> int:
        raise ConnectionError

    monkeypatch.setattr(redrive, "remove", crash)
    for _ in range(2):  # the second one while the stream knows the message id, or only the queued copy
        with pytest.raises(ConnectionError):
            await dead_commands.retry_some(settings, ["x"])
        assert (await ids(nc), await queued(nc)) == (["x"], ["x-r1"])
        await _forgotten(nc)
    with pytest.raises(ConnectionError):
        await dead_commands.retry_some(settings, ["x"])
    assert await queued(nc) == ["x-r1"]
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    await wait_until(lambda: stored(nc, "x-r1"))
    await _forgotten(nc)
    monkeypatch.undo()
    assert await dead_commands.retry_some(settings, ["x"]) == Exit.OK
    assert await ids(nc) == []
    await wait_until(lambda: _drained(nc))
    assert vendor.calls == 1


async def _forgotten(nc: Client) -> None:
    """Return when LLM_REQUESTS has forgotten all message ids that it knows now."""
    probe = "llm.request.none.probe"

    async def published() -> bool:
        await jetstream.call(nc, f"STREAM.PURGE.{subjects.REQUESTS}", {"filter": probe})
        return not (await nc.jetstream().publish(probe, headers={"Nats-Msg-Id": "probe"})).duplicate

    await wait_until(published)
    await wait_until(published)
    await jetstream.call(nc, f"STREAM.PURGE.{subjects.REQUESTS}", {"filter": probe})


async def _drained(nc: Client) -> bool:
    return await queued(nc) == []


async def test_a_cut_body_is_not_sent_again_and_stays(
    nc: Client, bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await dies(bus, "huge", b"x" * (nc.max_payload - 4200), Reply_To="_INBOX." + "a" * 200)
    await dies(bus, "small")
    assert await dead_commands.retry_some(settings, ["huge", "nobody", "small"]) == Exit.FAILED
    printed = capsys.readouterr()
    assert "huge cannot be sent again: only the first 4,194,304 of its 8,384,408 bytes were kept" in printed.err
    assert "no dead letter has the id nobody" in printed.err
    assert (await ids(nc), await queued(nc)) == (["huge"], ["small-r2"])
    await dead_commands.show(settings, "huge", as_json=False)
    assert "body: 8,384,408 bytes, of which 4,194,304 were kept" in capsys.readouterr().out
    assert await dead_commands.retry_all(settings, priority=None, reason=None, yes=True) == Exit.FAILED
    assert "0 sent again, 1 left" in capsys.readouterr().err


async def test_a_second_death_counts_on_from_the_first_id() -> None:
    first = retry_of(letter(headers={"traceparent": "00-1", "Reply-To": "_INBOX.a"}))
    assert (first.id, first.subject) == ("x-r17", "llm.request.high.x-r17")
    assert first.headers == {
        RETRY_OF: "x", "traceparent": "00-1", "Reply-To": "_INBOX.a", "Nats-Msg-Id": "x-r17"
    }  # fmt: skip
    second = retry_of(letter(id="x-r17", seq=42, headers=first.headers))
    assert (second.id, second.headers[RETRY_OF]) == ("x-r42", "x")
    assert retry_of(letter(id="job-r5")).id == "job-r5-r17"
    assert retry_of(letter(headers={"Reply-To": "llm.reply.x"})).headers["Reply-To"] == "llm.reply.x-r17"
    assert retry_of(letter(headers={"Reply-To": "llm.reply.y"})).headers["Reply-To"] == "llm.reply.y"
    with pytest.raises(CannotRetry, match="no lane"):
        retry_of(letter(priority="urgent"))


def test_a_header_that_cannot_be_sent_does_not_keep_its_dead_letter_back() -> None:
    again = retry_of(letter(headers={"X/Origin": "a", "traceparent": "b"}))
    assert again.headers.keys() & {"X/Origin", "traceparent"} == {"traceparent"}


@given(st.text(min_size=1, max_size=200), st.integers(1, 10**12), st.booleans())
def test_every_dead_letter_has_one_new_id_that_workers_take(name: str, seq: int, again: bool) -> None:
    dead = letter(id=name, seq=seq, headers={RETRY_OF: "x"} if again else {})
    made = retry_of(dead)
    assert subjects.is_request_id(made.id)
    assert made.id.endswith(f"-r{seq}")
    assert made == retry_of(dead)


@pytest.mark.parametrize("arguments", [["list", "--since"], ["purge", "--all", "--yes", "--older-than"]])
async def test_an_age_before_the_calendar_is_wrong_usage_and_told_with_its_bound(arguments: list[str]) -> None:
    told = await command("dead", *arguments, "999999d")
    assert (told.code, "36500d at most" in told.err) == (2, True)


async def test_all_are_sent_again_once_though_they_die_again(
    nc: Client, bus: Bus, settings: Settings, start: StartProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    await start({"anthropic": ScriptedProvider()})
    for number in range(100):
        await nc.publish(f"llm.dead.high.n{number}", b"not json", headers={"Sidecar-Reason": "invalid_request: body"})
    await wait_until(lambda: _are(nc, 100))
    capsys.readouterr()
    assert await dead_commands.retry_all(settings, priority=None, reason=None, yes=True) == Exit.OK
    printed = capsys.readouterr()
    assert next(line for line in printed.out.splitlines() if "->" in line) == "n0 -> n0-r1, answer on llm.reply.n0-r1"
    assert "100 sent again\n" in printed.err
    await wait_until(lambda: _are(nc, 100))
    await wait_until(lambda: _drained(nc))
    assert set(await ids(nc)) == {f"n{number}-r{number + 1}" for number in range(100)}


async def _are(nc: Client, number: int) -> bool:
    return await redrive.count(nc) == number


async def test_all_of_a_lane_or_a_reason_are_chosen_and_an_id_is_sent_once(
    nc: Client, bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RequestError(ErrorType.FORBIDDEN, "Reply-To: no")
    await dies(bus, "a", priority=Priority.LOW)
    await dies(bus, "b", b"old")
    await dies(bus, "c", reason=other)
    await dies(bus, "b", b"new")
    assert await dead_commands.retry_all(settings, priority=Priority.HIGH, reason="GAVE UP", yes=True) == Exit.OK
    assert capsys.readouterr().out == "b -> b-r4, answer on llm.reply.b-r4\n"
    assert (await ids(nc), await queued(nc)) == (["c", "a"], ["b-r4"])
    sent = await jetstream.last_message(nc, subjects.REQUESTS, "llm.request.high.b-r4")
    assert sent is not None
    assert sent.body == b"new"
    assert await dead_commands.retry_all(settings, priority=Priority.CRITICAL, reason=None, yes=True) == Exit.OK
    assert capsys.readouterr().out == "No dead letters.\n"


async def test_a_full_queue_stops_the_retry_and_keeps_the_rest(nc: Client, bus: Bus, settings: Settings) -> None:
    for name in "abc":
        await dies(bus, name)
    await jetstream.call(nc, "STREAM.UPDATE.LLM_REQUESTS", await _config(nc, "LLM_REQUESTS", max_msgs=2))
    with pytest.raises(Fatal, match="queue is full"):
        await dead_commands.retry_all(settings, priority=None, reason=None, yes=True)
    assert (await ids(nc), await queued(nc)) == (["c"], ["a-r1", "b-r2"])


@pytest.mark.parametrize("answer", ["n\n", ""])
async def test_what_is_not_confirmed_is_not_done(
    nc: Client, bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    await dies(bus, "x")
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    for act in (
        dead_commands.retry_all(settings, priority=None, reason=None, yes=False),
        dead_commands.purge_all(settings, older_than=None, yes=False),
        dead_commands.purge_some(settings, ["x"], yes=False),
    ):
        with pytest.raises(Fatal, match="nothing was changed"):
            await act
    assert (await ids(nc), await queued(nc)) == (["x"], [])


async def test_the_question_can_be_left_by_one_interrupt(nc: Client, bus: Bus, nats_url: str) -> None:
    await dies(bus, "x")
    arguments = (SIDECAR, "dead", "purge", "--all")
    process = await asyncio.create_subprocess_exec(
        *arguments, env={**os.environ, "NATS_URL": nats_url}, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )
    assert process.stderr is not None
    assert await process.stderr.readuntil(b"[y/N] ") == b"Remove 1 dead letters for ever? [y/N] "
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert await ids(nc) == ["x"]


# --- purge ----------------------------------------------------------------------------------


async def test_purge_removes_the_named_ones_with_all_of_their_id(
    nc: Client, bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await dies(bus, "a")
    await dies(bus, "b")
    await dies(bus, "a", priority=Priority.LOW)
    with pytest.raises(Fatal, match="no dead letter has the id q"):
        await dead_commands.purge_some(settings, ["a", "q"], yes=True)
    assert await ids(nc) == ["a", "b", "a"]
    assert await dead_commands.purge_some(settings, ["a", "a"], yes=True) == Exit.OK
    assert (capsys.readouterr().out, await ids(nc)) == ("2 removed\n", ["b"])


async def test_purge_all_takes_what_is_old_enough_and_prints_how_many(
    nc: Client, bus: Bus, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await dies(bus, "a")
    await dies(bus, "b")
    assert await dead_commands.purge_all(settings, older_than=timedelta(hours=1), yes=True) == Exit.OK
    assert (capsys.readouterr().out, len(await ids(nc))) == ("No dead letters.\n", 2)
    moment = datetime.now(UTC) + timedelta(seconds=0.3)
    await wait_until(lambda: datetime.now(UTC) > moment + timedelta(seconds=0.3))
    for name in "cde":
        await dies(bus, name)
    assert await redrive.older_than(nc, moment) == (3, 2)
    await dead_commands.purge_all(settings, older_than=datetime.now(UTC) - moment, yes=True)
    assert (capsys.readouterr().out, await ids(nc)) == ("2 removed\n", ["e", "d", "c"])
    await dead_commands.purge_all(settings, older_than=None, yes=True)
    assert (capsys.readouterr().out, await ids(nc)) == ("3 removed\n", [])


async def test_what_dies_after_the_question_is_not_removed_with_the_answer(
    nc: Client, bus: Bus, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dies(bus, "a")
    real = redrive.remove_below

    async def remove_below(nc: Client, seq: int) -> int:
        await dies(bus, "b")
        return await real(nc, seq)

    monkeypatch.setattr(redrive, "remove_below", remove_below)
    await dead_commands.purge_all(settings, older_than=None, yes=True)
    assert await ids(nc) == ["b"]


async def test_an_id_that_reads_as_a_wildcard_takes_no_other_with_it(nc: Client, bus: Bus, settings: Settings) -> None:
    await dies(bus, "a")
    await nc.jetstream().publish("llm.dead.high.*", b"{}")
    for name in ("*", ">", "a.b", ""):
        with pytest.raises(Fatal, match="no dead letter has the id"):
            await dead_commands.purge_some(settings, [name], yes=True)
    strange = (await redrive.latest(nc, 1))[0]
    assert strange.id == "*"
    assert await redrive.remove(nc, strange) == 1
    assert await ids(nc) == ["a"]


# --- the command line -----------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["list"], ["show"], ["retry"], ["purge"]])
async def test_help_teaches(arguments: list[str]) -> None:
    shown = await command("dead", *arguments, "--help")
    assert shown.code == 0
    assert "Usage: sidecar dead" in shown.out


async def test_the_command_line_lists_shows_retries_and_purges(nc: Client, bus: Bus, nats_url: str) -> None:
    for name in "abc":
        await dies(bus, name, body(name))
    listed = await command("dead", "list", "--since", "1h30m", "--json", NATS_URL=nats_url)
    assert [entry["id"] for entry in orjson.loads(listed.out)] == ["c", "b", "a"]
    shown = await command("dead", "show", "b", NATS_URL=nats_url)
    assert (shown.code, '"content": "b"' in shown.out) == (0, True)
    retried = await command("dead", "retry", "b", NATS_URL=nats_url)
    assert (retried.code, retried.out) == (0, "b -> b-r2, answer on llm.reply.b-r2\n")
    refused = await command("dead", "purge", "--all", stdin="n\n", NATS_URL=nats_url)
    assert (refused.code, "Remove 2 dead letters" in refused.err) == (1, True)
    unasked = await command("dead", "retry", "--all", NATS_URL=nats_url)
    assert (unasked.code, "--yes" in unasked.err) == (1, True)
    everything = await command("dead", "retry", "--all", stdin="y\n", NATS_URL=nats_url)
    assert [line.split(",")[0] for line in everything.out.splitlines()] == ["a -> a-r1", "c -> c-r3"]
    assert (await command("dead", "list", NATS_URL=nats_url)).out == "No dead letters.\n"


async def test_new_ids_reach_a_file_while_the_bar_is_on_the_terminal(nc: Client, bus: Bus, nats_url: str) -> None:
    await dies(bus, "x")
    terminal, its_end = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(SIDECAR, "dead", "retry", "--all", "--yes"),
        env={**os.environ, "NATS_URL": nats_url, "TERM": "xterm"},
        stdout=PIPE,
        stderr=its_end,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 30)
    os.close(its_end)
    assert out == b"x -> x-r1, answer on llm.reply.x-r1\n"
    assert b"retrying" in os.read(terminal, 10_000)
    os.close(terminal)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["show", "nobody"], 1, "no dead letter has the id nobody"),
        (["retry"], 2, "--all"),
        (["retry", "x", "--all"], 2, "--all"),
        (["retry", "x", "--priority", "low"], 2, "--all"),
        (["purge", "x", "--older-than", "7d"], 2, "--all"),
        (["purge", "--all", "--older-than", "week"], 2, "90s, 30m, 2h"),
        (["list", "--since", "5"], 2, "90s, 30m, 2h"),
        (["list", "--since", "2 h"], 2, "90s, 30m, 2h"),
        (["list", "--since", "2h+"], 2, "90s, 30m, 2h"),
    ],
)
async def test_trouble_has_a_code_and_says_what_to_do(
    nc: Client, nats_url: str, arguments: list[str], code: int, told: str
) -> None:
    ended = await command("dead", *arguments, NATS_URL=nats_url)
    assert ended.code == code
    assert told in " ".join(ended.err.split())
    assert "Traceback" not in ended.err


async def test_without_a_broker_or_its_streams_the_way_out_is_told(nc: Client, nats_url: str) -> None:
    nowhere = await command("dead", "list", NATS_URL="nats://127.0.0.1:9")
    assert (nowhere.code, "sidecar up" in nowhere.err) == (3, True)
    await jetstream.call(nc, "STREAM.DELETE.LLM_DEAD")
    missing = await command("dead", "list", NATS_URL=nats_url)
    assert (missing.code, "sidecar provision" in missing.err) == (1, True)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-5, "0s"), (0.4, "0s"), (59, "59s"), (60, "1m"), (3600, "1h"), (86_399, "23h"), (86_400, "1d")],
)
def test_ages_are_told_in_their_largest_unit(seconds: float, told: str) -> None:
    assert dead_commands.age(timedelta(seconds=seconds)) == told


@given(st.text())
def test_nothing_printable_is_lost_and_nothing_else_gets_through(text: str) -> None:
    shown = dead_commands.printable(text)
    assert shown.isprintable()
    assert [char for char in text if char.isprintable()] == [
        char for char in text if char in shown and char.isprintable()
    ]
