"""The ledger: what the audit log says was spent stands in the counters, each event once whatever crashes meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from nats.aio.client import Client

from processor import jetstream, subjects
from processor.alerts import Alerts
from processor.audit import AuditLog
from processor.audit_events import Attempt, AuditUsage, Ended
from processor.bookkeeper import Bookkeeper
from processor.budgets import Budget, Period
from processor.bus import Bus
from processor.ledger import Ledger, cells
from processor.spend import Cell, Unit, dollars, pico
from processor.subjects import AuditEvent, Priority
from tests.conftest import make_settings
from tests.talk import listen, read

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
TODAY = NOW.date()
PLAIN = AuditUsage(
    input_fresh=100, cache_read=20, cache_write_5m=3, cache_write_1h=4, tool_input=5, output_visible=30,
    output_thinking=10, raw={},
)  # fmt: skip


def attempt(number: int, cost: str = "0.000123", *, at: datetime = NOW, **fields: Any) -> Attempt:
    given: dict[str, Any] = {
        "id": f"r{number}", "at": at, "replica": "test", "priority": Priority.HIGH, "tenant": "default", "delivery": 1,
        "attempt": 1, "model": "haiku", "alias": "haiku", "provider": "anthropic", "started": at, "duration_ms": 1.0,
        "usage": PLAIN, "cost_usd": Decimal(cost), "cost_estimated": False,
    }  # fmt: skip
    return Attempt(**given | fields)


class Books:
    """Ledgers of several replicas on one broker."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.audit = AuditLog(bus)

    def ledger(
        self, *budgets: Budget, replica: str = "a", at: datetime = NOW, saving_from: float = 0, alerts: Any = None
    ) -> Ledger:
        keeper = Bookkeeper(self.bus, budgets, replica, now=lambda: at)
        alerts = alerts or Alerts(self.bus, replica)
        return Ledger(self.bus, keeper, budgets, alerts, saving_from=saving_from, now=lambda: at)

    async def counters(self) -> dict[Cell, int]:
        return {cell: value async for cell, value in cells(self.bus.nc)}

    async def cost(self) -> Decimal:
        return dollars(sum(value for cell, value in (await self.counters()).items() if cell.unit is Unit.COST))


@pytest.fixture
async def books(nc: Client, nats_url: str) -> AsyncIterator[Books]:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    yield Books(bus)
    await bus.close()


async def count_all(books_ledger: Ledger) -> None:
    while await books_ledger.count():
        pass


async def test_every_call_counts_by_day_tenant_model_and_unit(books: Books) -> None:
    await books.audit.write(attempt(1))
    await books.audit.write(attempt(2, "0.5", cost_estimated=True, alias="gpt-oss-120b", model="llama", tenant="acme"))
    await count_all(books.ledger())
    found = await books.counters()
    assert found[Cell(TODAY, "default", "haiku", Unit.COST)] == pico(Decimal("0.000123"))
    assert found[Cell(TODAY, "acme", "gpt-oss-120b", Unit.ESTIMATED)] == pico(Decimal("0.5"))
    by_unit = {cell.unit: value for cell, value in found.items() if cell.tenant == "default"}
    assert (by_unit[Unit.INPUT], by_unit[Unit.OUTPUT], by_unit[Unit.CALLS]) == (132, 40, 1)
    assert (by_unit[Unit.CACHE_READ], by_unit[Unit.CACHE_WRITE]) == (20, 7)
    assert Unit.FAILED not in by_unit


@pytest.mark.parametrize(("saved", "counted"), [("0.25", {Unit.SAVED: pico(Decimal("0.25"))}), (None, {})])
async def test_what_a_cached_answer_saved_is_counted_beside_what_was_spent(
    books: Books, saved: str | None, counted: dict[Unit, int]
) -> None:
    hit = Ended(
        id="r1", at=NOW, replica="test", priority=Priority.HIGH, tenant="default", delivery=1, model="haiku",
        event=AuditEvent.COMPLETED, attempts=0, cost_usd=Decimal(0), cached=True,
        saved_usd=Decimal(saved) if saved else None,
    )  # fmt: skip
    await books.audit.write(hit)
    await count_all(books.ledger())
    found = {cell.unit: value for cell, value in (await books.counters()).items()}
    assert found == counted | {Unit.CACHED: 1}


@pytest.mark.parametrize("name", ["haiku-5.5", "openai/gpt-oss-120b", "a b*c>d", "Ünïcode", "100%"])
def test_a_models_name_is_one_token_of_the_subject_and_comes_back_whole(name: str) -> None:
    cell = Cell(TODAY, "default", name, Unit.COST)
    assert cell.subject.count(".") == 5
    assert not set(cell.subject) & set("*> ")
    assert Cell.of(cell.subject) == cell


async def test_the_call_of_yesterday_counts_for_yesterday(books: Books) -> None:
    await books.audit.write(attempt(1, at=NOW - timedelta(days=1)))
    await count_all(books.ledger())
    assert {cell.day for cell in await books.counters()} == {TODAY - timedelta(days=1)}


async def test_counting_again_counts_nothing_twice(books: Books) -> None:
    await books.audit.write(attempt(1, "0.1"))
    await count_all(books.ledger())
    await count_all(books.ledger(replica="b"))
    await books.audit.write(attempt(2, "0.2"))
    await count_all(books.ledger(replica="b"))
    await count_all(books.ledger())
    assert await books.cost() == Decimal("0.3")


async def test_replicas_that_count_at_once_count_each_event_once(books: Books) -> None:
    for number in range(30):
        await books.audit.write(attempt(number, "0.001"))
    replicas = [books.ledger(replica=name) for name in "abc"]

    async def count_until_done(one: Ledger) -> None:
        for _ in range(20):
            await one.count()

    await asyncio.gather(*map(count_until_done, replicas))
    assert await books.cost() == Decimal("0.03")


class Died(Exception):
    """The replica is gone, in the middle of something."""


async def die_counting(one: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be counted is in the book, and nothing of it in the counters."""

    async def dies(*_: Any, **__: Any) -> Any:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(jetstream, "publish", dies)
        with pytest.raises(Died):
            await count_all(one)


@pytest.mark.parametrize("later", [timedelta(minutes=1), timedelta(days=3)])
@pytest.mark.parametrize("step", range(12))
async def test_a_replica_that_dies_at_any_point_leaves_nothing_uncounted_or_counted_twice(
    books: Books, monkeypatch: pytest.MonkeyPatch, step: int, later: timedelta
) -> None:
    """Three days later the server has long forgotten the message ids of what was added."""
    await books.audit.write(attempt(1, "0.1"))
    await books.audit.write(attempt(2, "0.2", alias="sonnet"))
    written, steps = jetstream.publish, itertools.count()

    async def dies(bus: Bus, subject: str, body: bytes, headers: dict[str, str], **named: Any) -> Any:
        if (at := next(steps)) > step or (at == step and at % 2 == 0):
            raise Died
        if later > timedelta(days=1):  # so that no message id helps
            headers = headers | {"Nats-Msg-Id": f"{headers['Nats-Msg-Id']}:{at}"}
        result = await written(bus, subject, body, headers, **named)
        if at == step:
            raise Died  # after it was done, before anybody knew
        return result

    with monkeypatch.context() as patched:
        patched.setattr(jetstream, "publish", dies)
        with pytest.raises(Died):
            await count_all(books.ledger())
    await count_all(books.ledger(replica="b", at=NOW + later))
    assert await books.cost() == Decimal("0.3")
    found = await books.counters()
    assert sum(value for cell, value in found.items() if cell.unit is Unit.CALLS) == 2


async def test_what_another_replica_is_counting_is_left_to_it_for_a_while(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.audit.write(attempt(1, "0.1"))
    await die_counting(books.ledger(), monkeypatch)
    assert await books.ledger(replica="b").count() is False
    assert await books.cost() == 0


@pytest.mark.parametrize("how", ["lost", "unreadable", "of another version"])
async def test_a_book_that_is_of_no_use_is_made_anew_from_the_audit_log(books: Books, how: str) -> None:
    for number in range(3):
        await books.audit.write(attempt(number, "0.1"))
    running = books.ledger()
    await count_all(running)
    if how == "lost":
        await jetstream.call(books.bus.nc, f"STREAM.PURGE.{subjects.LEDGER}", {})
    else:
        body = b"not JSON" if how == "unreadable" else b'{"v": 999}'
        await books.bus.nc.jetstream().publish(subjects.LEDGER_BOOK, body)
    await books.audit.write(attempt(3, "0.1"))
    await count_all(running)
    await count_all(books.ledger(replica="b"))
    assert await books.cost() == Decimal("0.4")


async def test_an_audit_log_that_is_a_new_one_is_counted_from_its_beginning(books: Books, nc: Client) -> None:
    await books.audit.write(attempt(1, "0.1"))
    await count_all(books.ledger())
    config = (await jetstream.call(nc, f"STREAM.INFO.{subjects.AUDIT}"))["config"]
    await jetstream.call(nc, f"STREAM.DELETE.{subjects.AUDIT}")
    await jetstream.call(nc, f"STREAM.CREATE.{subjects.AUDIT}", config | {"name": subjects.AUDIT})
    ended = books.ledger(replica="b")
    await count_all(ended)
    await books.audit.write(attempt(1, "0.2"))
    await count_all(ended)
    assert await books.cost() == Decimal("0.3")


# --- budgets ----------------------------------------------------------------------------------


def monthly(usd: str, tenant: str | None = None, *, hard: bool = False) -> Budget:
    return Budget(tenant, Period.MONTH, pico(Decimal(usd)), hard)


class Heard:
    """In place of the alerts."""

    room = 100

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def tell(self, severity: str, kind: str, message: str) -> None:
        self.told.append((severity, message))


async def test_a_budget_knows_what_was_spent_in_its_period_before_it_was_configured(books: Books) -> None:
    await books.audit.write(attempt(1, "3", at=NOW - timedelta(days=20)))
    await books.audit.write(attempt(2, "2", tenant="acme"))
    await books.audit.write(attempt(3, "7", at=NOW - timedelta(days=26)))  # in October
    await count_all(books.ledger())
    keeper = Bookkeeper(books.bus, (), "b", now=lambda: NOW)
    budgets = (monthly("100"), monthly("10", "acme"), Budget(None, Period.DAY, pico(Decimal(9))))
    await count_all(Ledger(books.bus, keeper, budgets, Alerts(books.bus, "b"), saving_from=0, now=lambda: NOW))
    spent = (await keeper.look()).spent
    assert [dollars(spent[budget.account(TODAY)]) for budget in budgets] == [5, 2, 2]


async def test_each_threshold_of_a_budget_is_told_once_by_whichever_replica_comes_to_it(books: Books) -> None:
    heard = Heard()
    replicas = [books.ledger(monthly("10"), replica=name, alerts=heard) for name in "ab"]
    for number in range(12):
        await books.audit.write(attempt(number, "1"))
        for one in replicas:
            await count_all(one)
    assert [(severity, message[:4]) for severity, message in heard.told] == [("warning", "80% "), ("critical", "100%")]


async def test_a_limit_that_is_raised_raises_its_own_alarms(books: Books) -> None:
    heard = Heard()
    await books.audit.write(attempt(1, "9"))
    await count_all(books.ledger(monthly("10"), alerts=heard))
    await count_all(books.ledger(monthly("11"), alerts=heard))
    assert len(heard.told) == 2


async def test_from_ninety_percent_on_it_is_told_that_auto_saves(books: Books) -> None:
    heard = Heard()
    await books.audit.write(attempt(1, "9.5"))
    await count_all(books.ledger(monthly("10"), alerts=heard, saving_from=0.9))
    assert {severity for severity, _ in heard.told} == {"warning", "info"}


async def test_an_alarm_is_an_alert_on_the_bus(books: Books, nc: Client) -> None:
    sub = await listen(nc, "llm.alert.critical")
    await books.audit.write(attempt(1, "12"))
    await count_all(books.ledger(monthly("10")))
    told = read(await sub.next_msg(timeout=5))
    assert "the monthly budget of $10.00" in told["message"]


def test_the_sum_of_the_counters_is_exact_where_floats_are_not() -> None:
    amounts = [Decimal("0.1")] * 3 + [Decimal("0.000000000001")]
    assert dollars(sum(map(pico, amounts))) == Decimal("0.300000000001")
