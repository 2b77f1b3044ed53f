"""`sidecar usage` and `llm.usage`: what the counters hold, whoever counted it, without a sidecar."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import pty
import signal
from asyncio.subprocess import PIPE
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from processor import jetstream, subjects, usage_reading
from processor.audit_events import Attempt, Ended
from processor.config import Settings
from processor.errors import RequestError
from processor.exits import Exit, Fatal
from processor.grouping import By
from processor.spend import Cell, Unit, pico
from processor.usage_command import report_usage
from processor.usage_reading import Question
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor, make_settings
from tests.processes import SIDECAR, command
from tests.processor.test_end_to_end import answer
from tests.processor.test_ledger import Books, attempt, books, count_all
from tests.processor.test_suggestions import request
from tests.talk import ask, body, listen, read
from tests.wait import wait_until

__all__ = ["books"]

NOW = datetime.now(UTC)
TODAY = NOW.date()
ALL: dict[str, Any] = {"by": By.MODEL, "since": TODAY - timedelta(days=60), "suggest": True}
Output = pytest.CaptureFixture[str]


@pytest.fixture
def settings(nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("COLUMNS", "200")
    return make_settings(nats_url=nats_url)


async def spend(books: Books, *events: Attempt | Ended) -> None:
    """Write the events into the audit log, and count them."""
    for event in events:
        await books.audit.write(event)
    await count_all(books.ledger(at=datetime.now(UTC)))


def call(number: int, cost: str = "0.5", **fields: Any) -> Attempt:
    return attempt(number, cost, **{"at": NOW} | fields)


async def as_json(settings: Settings, capsys: Output, **changes: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert await report_usage(settings, **ALL | changes, form="json") == Exit.OK
    fields: dict[str, Any] = orjson.loads(capsys.readouterr().out)
    return fields


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "bar"), [(200, 24), (80, 8)])
async def test_the_table_shows_the_dearest_first_with_a_bar_and_its_total(
    settings: Settings, books: Books, capsys: Output, monkeypatch: pytest.MonkeyPatch, columns: int, bar: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    await spend(books, call(1, "0.25"), call(2, "1", alias="sonnet"), call(3, "0.0000123456", alias="[red]llama"))
    assert await report_usage(settings, **ALL, form="table") == Exit.OK
    head, *rows, total = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert head.split()[:4] == ["model", "cost", "calls", "in"]  # nothing was saved, and nothing failed
    shown = [row.split() for row in rows]
    assert [row[:2] for row in shown] == [["sonnet", "$1.000"], ["haiku", "$0.2500"], ["[red]llama", "$0.00001235"]]
    bars = [row.count("█") for row in rows]
    assert bars == [bar, bar // 4, 0]
    assert total.split()[:2] == ["total", "$1.250"]


async def test_an_empty_ledger_says_so(settings: Settings, capsys: Output) -> None:
    assert await report_usage(settings, **ALL, form="table") == Exit.OK
    assert capsys.readouterr().out == f"Nothing was spent or saved since {ALL['since']}.\n"
    assert (await as_json(settings, capsys))["rows"] == []


async def test_json_has_rows_total_projection_and_suggestions(settings: Settings, books: Books, capsys: Output) -> None:
    await spend(books, call(1), call(2, tenant="acme", cost_estimated=True))
    found = await as_json(settings, capsys, by=By.TENANT)
    assert [(row["key"], row["cost_usd"], row["estimated_usd"]) for row in found["rows"]] == [
        ("acme", 0.5, 0.5),
        ("default", 0.5, 0.0),
    ]
    assert (found["total"]["calls"], found["total"]["cost_usd"], found["not_counted"]) == (2, 1.0, 0)
    assert found["projection_usd"] >= 1.0
    assert found["suggestions"] == []


async def test_csv_has_exact_figures_and_nothing_else(settings: Settings, books: Books, capsys: Output) -> None:
    await spend(books, call(1, "0.000000000123"))
    assert await report_usage(settings, **ALL, form="csv") == Exit.OK
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["key"], Decimal(row["cost_usd"]), row["calls"]) == ("haiku", Decimal("0.000000000123"), "1")


async def test_since_leaves_out_the_days_before(settings: Settings, books: Books, capsys: Output) -> None:
    await spend(books, call(1), call(2, at=NOW - timedelta(days=3)), call(3, at=NOW - timedelta(days=200)))
    calls = {
        days: (await as_json(settings, capsys, since=TODAY - timedelta(days=days)))["total"]["calls"]
        for days in (0, 2, 3, 199, 200)
    }
    assert calls == {0: 1, 2: 1, 3: 2, 199: 2, 200: 3}


async def test_by_itself_the_present_month_is_shown(settings: Settings, books: Books, capsys: Output) -> None:
    await spend(books, call(1), call(2, at=NOW.replace(day=1) - timedelta(days=1)))
    found = await as_json(settings, capsys, since=None)
    assert (found["since"], found["total"]["calls"]) == (str(TODAY.replace(day=1)), 1)


async def test_every_grouping_has_the_same_total(settings: Settings, books: Books, capsys: Output) -> None:
    cached = Ended(
        id="r1", at=NOW, replica="a", priority=subjects.Priority.HIGH, tenant="default", delivery=1, model="haiku",
        event=subjects.AuditEvent.COMPLETED, attempts=0, cost_usd=Decimal(0), cached=True, saved_usd=Decimal("0.25"),
    )  # fmt: skip
    calls = [call(2, task_type="chat"), call(3, "1", tenant="acme", at=NOW - timedelta(days=40), task_type="code")]
    await spend(books, cached, *calls, call(4, alias="sonnet"))
    found = {by: await as_json(settings, capsys, by=by) for by in By}
    assert all(one["total"] == found[By.DAY]["total"] for one in found.values())
    assert [row["key"] for row in found[By.TASK_TYPE]["rows"]] == ["code", "(none)", "chat"]


async def test_a_cached_reply_counts_for_the_kind_of_task_that_its_request_named(
    settings: Settings, books: Books, capsys: Output
) -> None:
    received, ended = request(1, at=NOW, cached=True)
    assert isinstance(ended, Ended)
    saved = ended.model_copy(update={"saved_usd": Decimal("0.25"), "model": "haiku"})
    for event in (received.model_copy(update={"task_type": "chat"}), saved):
        await books.audit.write(event)
    [row] = (await as_json(settings, capsys, by=By.TASK_TYPE))["rows"]
    assert (row["key"], row["saved_usd"], row["cached"]) == ("chat", 0.25, 1)


async def test_calls_that_are_not_counted_yet_are_told(settings: Settings, books: Books, capsys: Output) -> None:
    for number in range(12):
        await books.audit.write(call(number))
    await report_usage(settings, **ALL, form="table")
    assert capsys.readouterr().out.endswith("12 calls are not counted yet.\n")
    await count_all(books.ledger(at=NOW))
    await books.audit.write(call(99))
    await report_usage(settings, **ALL, form="table")
    assert "\n1 call is not counted yet.\n" in capsys.readouterr().out


async def test_of_calls_that_are_not_counted_yet_a_tenant_is_told_of_its_own_alone(nc: Client, books: Books) -> None:
    for number in range(5):
        await books.audit.write(call(number, tenant="acme" if number else "other"))
    for tenant, calls in (("acme", 4), ("other", 1), ("third", 0), (None, 5)):
        question = orjson.dumps({} if tenant is None else {"tenant": tenant})
        assert orjson.loads(await usage_reading.answer(nc, question, (), 10_000))["not_counted"] == calls


async def test_budgets_show_what_is_spent_of_them(
    nats_url: str, settings: Settings, books: Books, capsys: Output, tmp_path: Path
) -> None:
    overlay = tmp_path / "catalog.toml"
    overlay.write_text("[budgets.tenants.acme]\ndaily_usd = 2\n", "utf-8")
    own = make_settings(nats_url=nats_url, sidecar_catalog=overlay, monthly_budget_alert=4)
    await spend(books, call(1, "0.5"), call(2, "0.5", tenant="acme"))
    await report_usage(own, **ALL, form="table")
    out = capsys.readouterr().out
    assert "25% of tenant acme's daily budget of $2.00 is spent ($0.5000)" in out
    assert "25% of the monthly budget of $4.00 is spent ($1.000)" in out


async def test_suggestions_are_computed_from_the_audit_log_of_those_days(
    settings: Settings, books: Books, capsys: Output
) -> None:
    for number in range(4):
        for event in request(number, at=NOW):
            await books.audit.write(event)
    await count_all(books.ledger(at=NOW))
    await report_usage(settings, **ALL, form="table")
    out = capsys.readouterr().out
    assert "- 100% of sonnet's requests (4 of 4) were simple: haiku would have saved $0.04800" in out
    assert (await as_json(settings, capsys))["suggestions"][0]["instead"] == "haiku"
    assert (await as_json(settings, capsys, suggest=False))["suggestions"] == []


async def test_an_event_that_cannot_be_read_is_told_and_does_no_harm(
    settings: Settings, books: Books, capsys: Output
) -> None:
    await spend(books, call(1))
    await books.bus.nc.jetstream().publish("llm.audit.attempt.new", b'{"v": 2}')
    assert await report_usage(settings, **ALL, form="json") == Exit.OK
    shown = capsys.readouterr()
    assert orjson.loads(shown.out)["total"]["calls"] == 1
    assert shown.err == "1 events of the audit log are of another version: not looked at.\n"


# --- as users run it --------------------------------------------------------------------------------------------------


async def test_the_command_ends_with_a_code_and_one_line_for_each_kind_of_trouble(nc: Client, nats_url: str) -> None:
    wrong = [
        ("--json", "--csv"),
        ("--by", "week"),
        ("--since", "yesterday"),
        ("--since", "2026-02-30"),
        ("--since", str(TODAY + timedelta(days=2))),
    ]
    for arguments in wrong:
        ended = await command("usage", *arguments, NATS_URL=nats_url)
        assert (ended.code, "Traceback" in ended.err) == (Exit.USAGE, False), arguments
    nowhere = await command("usage", NATS_URL="nats://127.0.0.1:9")
    assert (nowhere.code, len(nowhere.err.strip().splitlines())) == (Exit.UNREACHABLE, 1)
    assert "sidecar up" in nowhere.err


async def test_without_its_streams_the_command_says_how_to_make_them(settings: Settings, nc: Client) -> None:
    await jetstream.call(nc, f"STREAM.DELETE.{subjects.SPEND}")
    with pytest.raises(Fatal, match="sidecar provision"):
        await report_usage(settings, **ALL | {"suggest": False}, form="table")


async def test_help_teaches() -> None:
    shown = await command("usage", "--help")
    assert all(word in shown.out for word in ("--by", "--since", "task_type", "Examples", "Exit codes"))


async def test_json_on_stdout_is_json_whatever_is_odd_in_the_streams(nc: Client, nats_url: str) -> None:
    await nc.jetstream().publish(f"llm.spend.{TODAY}.default.haiku.nonsense", b"", headers={"Nats-Incr": "+1"})
    shown = await command("usage", "--json", "--since", "7d", NATS_URL=nats_url)
    assert (shown.code, orjson.loads(shown.out)["rows"]) == (Exit.OK, [])


async def test_ctrl_c_ends_it_at_once_and_without_a_traceback(nc: Client, nats_url: str) -> None:
    """A terminal shows how far the reading is, on stderr, and Ctrl-C ends it."""
    # Nobody answers for the audit log: the command waits.
    await jetstream.call(nc, f"STREAM.DELETE.{subjects.AUDIT}")
    asked = asyncio.Event()

    async def keep_waiting(_: object) -> None:
        asked.set()

    await listen(nc, f"$JS.API.DIRECT.GET.{subjects.AUDIT}", keep_waiting)
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            SIDECAR, "usage", "--json", stdin=theirs, stdout=PIPE, stderr=theirs,
            env={**os.environ, "NATS_URL": nats_url, "TERM": "xterm", "COLUMNS": "100"},
        )  # fmt: skip
        await asyncio.wait_for(asked.wait(), 20)
        process.send_signal(signal.SIGINT)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        told = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, out) == (Exit.INTERRUPTED, b"")
    assert "reading the audit log" in told
    assert "Traceback" not in told


# --- llm.usage --------------------------------------------------------------------------------------------------------


async def test_the_endpoint_answers_as_the_command_but_without_suggestions(
    nc: Client, start: StartProcessor, settings: Settings, capsys: Output
) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    await ask(nc, body(), Nats_Msg_Id="job-1")

    async def counted() -> dict[str, Any] | None:
        found = read(await nc.request("llm.usage", orjson.dumps({"by": "tenant"}), timeout=5))
        return found if found["rows"] and not found["not_counted"] else None

    found = await wait_until(counted)
    shown = await as_json(settings, capsys, by=By.TENANT, since=None, suggest=False)
    assert [row["key"] for row in found["rows"]] == ["default"]
    assert found["rows"] == shown["rows"]
    assert found.keys() == shown.keys() - {"suggestions"}
    assert read(await nc.request("llm.usage", b"", timeout=5))["by"] == "model"


@pytest.mark.parametrize(
    ("question", "word"),
    [
        (b'{"by": "week"}', "by"),
        (b'{"since": "soon"}', "since"),
        (b'{"since": 5}', "since"),
        (b'{"until": "2026-11-01"}', "until: unknown field"),
        (b'{"by": "task_type"}', "sidecar usage --by task_type"),
        (b"[]", ""),
        (b"\xff", ""),
    ],
)
async def test_a_wrong_question_is_refused_in_the_services_apis_form(
    question: bytes, word: str, nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    refused = await nc.request("llm.usage", question, timeout=5)
    error, headers = read(refused)["error"], refused.headers or {}
    assert (error["type"], headers["Nats-Service-Error-Code"]) == ("invalid_request", "400")
    assert word in error["message"]


async def test_a_question_about_more_counters_than_may_be_read_is_refused(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch, books: Books
) -> None:
    for unit in (Unit.COST, Unit.CALLS):
        cell = Cell(TODAY, "default", "haiku", unit)
        headers = {"Nats-Incr": f"+{pico(Decimal(1))}"}
        await nc.jetstream().publish(cell.subject, b"", headers=headers)
    await start({"anthropic": ScriptedProvider(answer())})
    monkeypatch.setattr(usage_reading, "MAX_ANSWERED", 1)
    assert read(await nc.request("llm.usage", b"", timeout=5))["error"]["type"] == "too_large"
    monkeypatch.setattr(usage_reading, "MAX_ANSWERED", 2)
    assert read(await nc.request("llm.usage", b"", timeout=5))["total"]["cost_usd"] == 1.0


async def test_an_answer_that_no_message_holds_is_refused(nc: Client, settings: Settings, books: Books) -> None:
    await spend(books, call(1))
    assert orjson.loads(await usage_reading.answer(nc, b"", (), 10_000))
    with pytest.raises(RequestError, match="do not fit"):
        await usage_reading.answer(nc, b"", (), 100)


def test_an_empty_question_asks_for_models_of_this_month() -> None:
    assert Question.decode(b"") == Question(by=By.MODEL, since=None)
    assert Question.decode(b'{"since": "2026-11-01"}').since == date(2026, 11, 1)
