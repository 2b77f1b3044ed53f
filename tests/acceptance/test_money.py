"""Money: a hard budget holds under a crowd, and the ledger equals the audit log whatever dies in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from processor import jetstream, subjects
from processor.book import Book
from processor.ledger import cells
from processor.spend import Unit, dollars
from providers.base import Finished, FinishReason, Opened, TextDelta, Usage
from providers.errors import InvalidPrompt
from providers.scripted import Pause, ScriptedProvider, Step
from tests.acceptance.vendors import serving_vendors
from tests.conftest import StartProcessor
from tests.processes import running
from tests.talk import ask, body, read
from tests.wait import wait_until

USAGE = Usage(input_fresh=100, output_visible=180)
COST = Decimal("0.001")  # of one request on haiku: 100 tokens in, 180 out


def vendor() -> ScriptedProvider:
    finished = Finished(FinishReason.STOP, USAGE, "claude-haiku-4-5-20251001")
    return ScriptedProvider([Opened(), Pause(0.02), TextDelta("Hello."), finished])


def with_budgets(tmp_path: Path, budgets: str) -> Path:
    overlay = tmp_path / "catalog.toml"
    overlay.write_text(f"[budgets]\n{budgets}\n[limits.anthropic]\nrpm = 100_000\ntpm = 100_000_000\n")
    return overlay


async def counted(nc: Client, unit: Unit = Unit.COST) -> int:
    return sum([value async for cell, value in cells(nc) if cell.unit is unit])


async def audited(nc: Client) -> Decimal:
    """The sum of all costs in the audit log, to the last digit."""
    total, seq, pending = Decimal(0), 1, 1
    while pending:
        query = {"seq": seq, "next_by_subj": "llm.audit.attempt.*", "batch": 500}
        found, pending = await jetstream.batch(nc, subjects.AUDIT, query)
        for message in found:
            total += Decimal(str(orjson.loads(message.body)["cost_usd"]))
            seq = message.seq + 1
    return total


@pytest.mark.parametrize("replicas", [1, 2])
async def test_two_hundred_at_once_spend_no_more_than_a_hard_budget_with_room_for_fifty_and_one_request(
    nc: Client, start: StartProcessor, tmp_path: Path, replicas: int
) -> None:
    catalog = with_budgets(tmp_path, f"daily_usd = {COST * 50}\nhard = true")
    for number in range(replicas):
        await start({"anthropic": vendor()}, sidecar_catalog=catalog, max_workers=20, replica=f"r{number}")
    asked = [ask(nc, body(f"question {n}", max_tokens=400, fallback=False), timeout=30) for n in range(200)]
    replies = await asyncio.gather(*asked)
    errors = Counter(reply["error"]["type"] for reply in replies if "error" in reply)
    answered = sum("response" in reply for reply in replies)
    assert errors == {"budget_exceeded": 200 - answered}
    assert 50 <= answered <= 51
    assert await audited(nc) <= COST * 51

    async def all_are_counted() -> bool:
        return await counted(nc, Unit.CALLS) == answered

    await wait_until(all_are_counted)


async def test_a_refusal_names_the_budget_and_says_when_to_come_back(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    catalog = with_budgets(tmp_path, "[budgets.tenants.acme]\nmonthly_usd = 0.0005\nhard = true")
    await start({"anthropic": vendor()}, sidecar_catalog=catalog)
    assert "response" in await ask(nc, body("first", tenant="acme"))  # of an unspent budget, whatever it costs
    error = (await ask(nc, body("second", tenant="acme", fallback=False)))["error"]
    assert error["type"] == "budget_exceeded"
    assert "tenant acme's monthly budget of $0.00 is spent" in error["message"]
    assert 0 < error["retry_after_s"] <= 31 * 86_400
    assert "response" in await ask(nc, body("third", tenant="another"))


async def test_a_free_model_still_answers_when_the_money_is_spent(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    catalog = with_budgets(tmp_path, "daily_usd = 0.0005\nhard = true")
    local = ScriptedProvider([Opened(), TextDelta("For free."), Finished(FinishReason.STOP, USAGE, "smollm2-135m")])
    await start({"anthropic": vendor(), "local": local}, sidecar_catalog=catalog)
    await ask(nc, body("first"))
    assert (await ask(nc, body("second", model="local")))["response"] == "For free."
    assert (await ask(nc, body("third", fallback=False)))["error"]["type"] == "budget_exceeded"


async def test_a_budget_is_remembered_by_the_next_sidecar(nc: Client, start: StartProcessor, tmp_path: Path) -> None:
    catalog = with_budgets(tmp_path, "daily_usd = 0.0005\nhard = true")
    first = await start({"anthropic": vendor()}, sidecar_catalog=catalog, replica="first")
    await ask(nc, body("first"))
    first.stop()
    await start({"anthropic": vendor()}, sidecar_catalog=catalog, replica="second")
    assert (await ask(nc, body("second", fallback=False)))["error"]["type"] == "budget_exceeded"


async def test_after_a_cancel_a_refusal_and_a_failure_no_budget_holds_anything(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    catalog = with_budgets(tmp_path, "daily_usd = 10\nhard = true\n[budgets.tenants.broke]\ndaily_usd = 0\nhard = true")
    scripts: Iterator[Sequence[Step]] = iter([[Opened(), Pause(60)], [InvalidPrompt("no")]])
    broken = ScriptedProvider(lambda _: next(scripts))
    processor = await start({"anthropic": broken}, sidecar_catalog=catalog)
    asked = asyncio.create_task(ask(nc, body("slow"), Nats_Msg_Id="slow"))
    await wait_until(lambda: broken.calls == 1)
    assert processor.spending.outstanding == 1
    await nc.publish("llm.cancel.slow")
    assert (await asked)["error"]["type"] == "cancelled"
    assert (await ask(nc, body("wrong", fallback=False)))["error"]["type"] == "invalid_request"
    assert (await ask(nc, body("poor", tenant="broke", fallback=False)))["error"]["type"] == "budget_exceeded"

    async def nothing_is_held() -> bool:
        book = await jetstream.leaders_message(nc, subjects.LEDGER, {"last_by_subj": subjects.LEDGER_BOOK})
        return book is not None and Book.decode(book.body).holds == {}

    await wait_until(nothing_is_held)
    assert processor.spending.outstanding == 0


@pytest.mark.slow
async def test_killed_between_reply_and_count_again_and_again_the_counters_equal_the_audit_log(
    nc: Client, nats_url: str
) -> None:
    async with serving_vendors() as vendors:
        settings = {"NATS_URL": nats_url, "MAX_WORKERS": "10", **vendors.settings()}
        for life in range(4):
            async with running("processor", **settings) as sidecar:
                asks = [ask(nc, body(f"{life}-{n}"), Nats_Msg_Id=f"{life}-{n}", timeout=30) for n in range(20)]
                await asyncio.gather(*asks)
                sidecar.process.kill()  # the ledger is counted once a second: this is before, in or after it
                await sidecar.process.wait()
        async with running("processor", **settings):

            async def equal() -> bool:
                spent = await audited(nc)
                return spent > 0 and dollars(await counted(nc)) == spent and await counted(nc, Unit.CALLS) == 80

            await wait_until(equal, timeout_s=40)


async def test_when_a_budget_is_nearly_used_auto_prefers_cheaper_models_and_says_so(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    catalog = with_budgets(tmp_path, f"daily_usd = {COST}")
    await start({"anthropic": vendor()}, sidecar_catalog=catalog, enable_cache=False)
    before = await ask(nc, body("first", model="auto", task_type="code"))

    async def saves() -> dict[str, Any] | None:
        reply = await ask(nc, body("next", model="auto", task_type="code"))
        return reply if "the budget is nearly used" in reply["route"]["reason"] else None

    after = await wait_until(saves)
    assert before["model"].startswith("sonnet")
    assert after["model"].startswith("haiku")


async def test_the_statistics_tell_what_is_spent_of_each_budget(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    await start({"anthropic": vendor()}, sidecar_catalog=with_budgets(tmp_path, "daily_usd = 2"))
    await ask(nc, body("first"))

    async def told() -> bool:
        stats = read(await nc.request("$SRV.STATS.sidecar", b"", timeout=5))
        budgets = stats["endpoints"][0]["data"]["budgets"]
        return bool(budgets == {"the daily budget of $2.00": {"limit_usd": 2.0, "spent_usd": 0.001}})

    await wait_until(told)
