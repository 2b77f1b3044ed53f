"""What the ledger does about lost streams, wrong clocks, late sleepers and absurd numbers."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import nats.errors
import pytest
from nats.aio.client import Client

from processor import jetstream, ledger, subjects
from processor.alerts import MAX_SENDING, Alerts
from processor.book import Begin, Entry, Finish, Told
from processor.bookkeeper import GIVE_UP_S, TRY_S, Bookkeeper, BookUnavailable
from processor.budgets import Budget, Period
from processor.bus import HEADER_RESERVE
from processor.jetstream import JetStreamUnavailable
from processor.ledger import TAKE_OVER_S, Ledger
from processor.spend import Folded, Unit, pico
from tests.processor.test_ledger import (
    NOW,
    PLAIN,
    TODAY,
    Books,
    Heard,
    attempt,
    books,
    count_all,
    die_counting,
    monthly,
)
from tests.talk import listen
from tests.wait import wait_until

__all__ = ["books"]

DAILY = Budget(None, Period.DAY, pico(Decimal(1)))
BEFORE_MIDNIGHT = datetime(2026, 11, 25, 23, 59, 59, tzinfo=UTC)


async def make_anew(nc: Client, stream: str) -> None:
    config = (await jetstream.call(nc, f"STREAM.INFO.{stream}"))["config"]
    await jetstream.call(nc, f"STREAM.DELETE.{stream}")
    await jetstream.call(nc, f"STREAM.CREATE.{stream}", config)


# --- streams that are lost ----------------------------------------------------------------------


async def test_an_audit_log_that_is_made_anew_while_replicas_run_is_counted_from_its_beginning(
    books: Books, nc: Client
) -> None:
    """Though it is shorter, and later as long as the old one."""
    running = books.ledger()
    for _ in range(2):
        for number in range(3):
            await books.audit.write(attempt(number, "0.1"))
        await count_all(running)
        await make_anew(nc, subjects.AUDIT)
    await books.audit.write(attempt(1, "0.2"))
    await count_all(running)
    await count_all(running)
    assert await books.cost() == Decimal("0.8")


async def test_an_audit_log_that_has_lost_its_end_is_not_counted_a_second_time(books: Books) -> None:
    """As after a power cut on a broker that does not write each message through."""
    await books.audit.write(attempt(1, "0.1"))
    await count_all(books.ledger())
    keeper = Bookkeeper(books.bus, (), "a", now=lambda: NOW)
    book = await keeper.look()
    ahead = Entry.of(Folded(), {}, entry_id="e", to=book.position + 5, at_ms=0, log=book.log)
    await keeper.do(Begin(book.position, ahead))
    await keeper.do(Finish("e"))
    await count_all(books.ledger(replica="b"))
    await books.audit.write(attempt(2, "0.2"))
    await count_all(books.ledger(replica="b"))
    assert await books.cost() == Decimal("0.3")


@pytest.mark.parametrize("is_running", [True, False])
async def test_counters_that_are_lost_are_made_anew_from_the_audit_log(
    books: Books, nc: Client, is_running: bool
) -> None:
    for number in range(5):
        await books.audit.write(attempt(number, "0.1"))
    one = books.ledger(monthly("10"))
    await count_all(one)
    await make_anew(nc, subjects.SPEND)
    await books.audit.write(attempt(7, "0.2"))
    keeper = Bookkeeper(books.bus, (), "b", now=lambda: NOW)
    await count_all(one if is_running else books.ledger(monthly("10"), replica="b"))
    assert await books.cost() == Decimal("0.7")
    assert (await keeper.look()).spent == {monthly("10").account(TODAY): pico(Decimal("0.7"))}


async def test_an_audit_log_without_any_cost_is_not_read_again_and_again(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.audit.write(attempt(1, "0.1"))
    one = books.ledger()
    await count_all(one)
    monkeypatch.setattr(ledger, "_COUNTED", ())
    await jetstream.call(books.bus.nc, f"STREAM.PURGE.{subjects.SPEND}", {})
    assert [await one.count() for _ in range(3)] == [True, False, False]


# --- clocks and sleepers ------------------------------------------------------------------------


async def test_an_entry_from_a_replica_whose_clock_was_ahead_is_taken_over_like_any_other(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.audit.write(attempt(1, "0.1"))
    await die_counting(books.ledger(at=NOW + timedelta(hours=2)), monkeypatch)
    monkeypatch.setattr(ledger, "TAKE_OVER_S", 0.2)
    other = books.ledger(replica="b")
    assert not await other.count()

    async def counts() -> bool:
        return await other.count()

    await wait_until(counts)
    assert await books.cost() == Decimal("0.1")


async def test_a_replica_that_was_suspended_in_the_middle_of_its_entry_adds_nothing_when_it_wakes(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one has finished it, and the server has forgotten the message ids."""
    await books.audit.write(attempt(1, "0.1"))
    clock = [NOW]
    keeper = Bookkeeper(books.bus, (), "a", now=lambda: clock[0])
    sleeper = Ledger(books.bus, keeper, (), Alerts(books.bus, "a"), saving_from=0, now=lambda: clock[0])
    written, tries = jetstream.publish, itertools.count()

    async def suspended(bus: Any, subject: str, body: bytes, headers: dict[str, str], **named: Any) -> Any:
        if next(tries) == 0:
            clock[0] = NOW + timedelta(minutes=11)
            with monkeypatch.context() as patched:
                patched.setattr(jetstream, "publish", written)
                await count_all(books.ledger(replica="b", at=clock[0]))
            raise JetStreamUnavailable("its connection is lost")
        return await written(bus, subject, body, headers | {"Nats-Msg-Id": "forgotten"}, **named)

    monkeypatch.setattr(jetstream, "publish", suspended)
    monkeypatch.setattr(ledger, "AT_ONCE", 1)
    with pytest.raises(JetStreamUnavailable):
        await count_all(sleeper)
    assert {cell.unit: value for cell, value in (await books.counters()).items()} == {
        Unit.COST: pico(Decimal("0.1")), Unit.CALLS: 1, Unit.INPUT: 132, Unit.OUTPUT: 40,
        Unit.CACHE_READ: 20, Unit.CACHE_WRITE: 7,
    }  # fmt: skip
    assert TAKE_OVER_S < 600


# --- much, and absurd ---------------------------------------------------------------------------


async def test_two_calls_that_were_given_the_same_number_both_count(books: Books) -> None:
    """Of one request that was delivered to two replicas, or twice to one."""
    await books.audit.write(attempt(1, "0.1", replica="a"))
    await books.audit.write(attempt(1, "0.2", replica="b"))
    await books.audit.write(attempt(1, "0.4", replica="a", started=NOW + timedelta(seconds=1)))
    await count_all(books.ledger())
    assert await books.cost() == Decimal("0.7")


async def test_numbers_of_any_size_are_counted(books: Books) -> None:
    """One answer of a broken server must not end every replica that reads of it."""
    absurd = PLAIN.model_copy(update={"input_fresh": 10**20})
    await books.audit.write(attempt(1, "90000000", usage=absurd))
    await books.audit.write(attempt(2, "90000000.1"))
    await count_all(books.ledger(monthly("1")))
    assert await books.cost() == Decimal("180000000.1")


async def test_where_an_entry_is_too_large_for_the_broker_fewer_events_are_counted_at_once(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        await books.audit.write(attempt(number, "0.1", tenant=f"t{number}"))
    monkeypatch.setattr(books.bus.nc, "_max_payload", HEADER_RESERVE + 8_000)
    one = books.ledger()

    async def all_is_counted() -> bool:
        try:
            await one.count()
        except BookUnavailable:
            return False
        return await books.cost() == 2

    await wait_until(all_is_counted)


async def test_a_book_that_the_broker_does_not_take_is_given_up_in_time(books: Books, nc: Client) -> None:
    """A stream that can be read and not be written: it has other subjects, or no majority."""
    config = (await jetstream.call(nc, f"STREAM.INFO.{subjects.LEDGER}"))["config"]
    await jetstream.call(nc, f"STREAM.UPDATE.{subjects.LEDGER}", config | {"subjects": ["llm.elsewhere"]})
    keeper = Bookkeeper(books.bus, (), "a", now=lambda: NOW)
    async with asyncio.timeout(GIVE_UP_S + 2 * TRY_S):
        with pytest.raises(BookUnavailable):
            await keeper.do(Told(("x|2026-11",)))
    await keeper.close()


# --- alarms -------------------------------------------------------------------------------------


async def test_an_alarm_whose_writing_down_was_not_answered_is_told_though_others_have_written_since(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper, other = (Bookkeeper(books.bus, (), name, now=lambda: NOW) for name in "ab")
    ask, answers = books.bus.nc.request, itertools.count()

    async def loses_the_first_answer(subject: str, *args: Any, **named: Any) -> Any:
        answer = await ask(subject, *args, **named)
        if subject == subjects.LEDGER_BOOK and next(answers) == 0:
            await other.do(Told(("another|2026-11",)))
            raise nats.errors.TimeoutError
        return answer

    monkeypatch.setattr(books.bus.nc, "request", loses_the_first_answer)
    assert await keeper.do(Told(("x|2026-11",))) == ("x|2026-11",)
    assert keeper.seen.told == ["x|2026-11", "another|2026-11"]


async def test_more_alarms_than_can_be_sent_at_once_are_all_told(books: Books, nc: Client) -> None:
    sub = await listen(nc, "llm.alert.critical")
    alerts = Alerts(books.bus, "a")
    tenants = [f"t{number}" for number in range(MAX_SENDING + 20)]
    await asyncio.gather(*(books.audit.write(attempt(n, "2", tenant=name)) for n, name in enumerate(tenants)))
    one = books.ledger(*(monthly("1", name) for name in tenants), alerts=alerts)

    async def all_are_told() -> bool:
        await one.count()
        await alerts.drain()
        return sub.pending_msgs == len(tenants)

    await wait_until(all_are_told)


async def test_a_budget_that_is_spent_around_midnight_is_told_of_both_days(books: Books, nc: Client) -> None:
    """Though both alerts are of the same budget, and within the time in which none is repeated."""
    sub = await listen(nc, "llm.alert.critical")
    alerts = Alerts(books.bus, "a")
    for number, at in enumerate((BEFORE_MIDNIGHT, BEFORE_MIDNIGHT + timedelta(minutes=2))):
        await books.audit.write(attempt(number, "2", at=at))
        await count_all(books.ledger(DAILY, alerts=alerts, at=at))
    await alerts.drain()
    await wait_until(lambda: sub.pending_msgs == 2)


async def test_a_threshold_that_is_reached_in_the_last_second_of_a_day_is_told_in_the_next(books: Books) -> None:
    heard = Heard()
    await count_all(books.ledger(DAILY, alerts=heard, at=BEFORE_MIDNIGHT))
    await books.audit.write(attempt(1, "2", at=BEFORE_MIDNIGHT))
    await count_all(books.ledger(DAILY, alerts=heard, at=BEFORE_MIDNIGHT + timedelta(seconds=2)))
    assert [severity for severity, _ in heard.told] == ["warning", "critical"]
