"""Limits as the rest of the sidecar sees them: combined calls, nothing leaked, and another store when one fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from processor import limit_accounts
from processor import limits as limits_module
from processor.broker import contract_dir
from processor.bucket import Admit, Denied, Entry, Hold, Need, Op, Record, Result, Settle, State, Told
from processor.bus import Bus
from processor.catalog import Catalog, CatalogModel, load_catalog
from processor.catalog import Limits as LimitsTable
from processor.limit_accounts import Tally
from processor.limit_stores import (
    Contended,
    LimitStore,
    MemoryStore,
    NatsStore,
    RedisStore,
    StateLost,
    StoreUnavailable,
    steady_clock,
)
from processor.limits import OVERLOADED, Limits, Reservation
from processor.provision import provision
from processor.tasks import OwnedTasks
from providers.base import Quota
from tests.conftest import make_settings, nats_server, redis_server, short_folder
from tests.wait import wait_until

BASE = load_catalog()
HAIKU, SONNET, LLAMA, LOCAL = (BASE.models[alias] for alias in ("haiku", "sonnet", "llama", "local"))


def catalog(**limits: LimitsTable) -> Catalog:
    """The shipped models under these limits of their providers."""
    return replace(BASE, limits=limits)


class Store:
    """A store in memory that can be stopped, emptied, and made to lose its answers."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory = MemoryStore(steady_clock())
        self.batches: list[list[Op]] = []
        self.is_down = False
        self.loses_answers = False
        self.has_forgotten = False
        self.is_contended = False
        self.is_full = False
        self.probes = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]:
        is_probe = provider == "_"
        self.probes += is_probe
        if ops and not is_probe:
            self.batches.append(list(ops))
        await self.gate.wait()
        if self.is_down or (self.is_full and ops):
            raise StoreUnavailable(f"{self.name} is down")
        if self.is_contended:
            raise Contended(f"{self.name} is contended")
        if self.has_forgotten:
            self.memory, self.has_forgotten = MemoryStore(steady_clock()), False
            raise StateLost
        results = await self.memory.run(provider, ops)
        if self.loses_answers and ops and not is_probe:
            raise StoreUnavailable(f"{self.name} lost its answer")
        return results

    async def used(self, provider: str = "anthropic", metric: str = "rpm", scope: str = "") -> int:
        state: State = self.memory._states.get(provider, State())
        return sum(w.used for place, w in state.windows.items() if place == (scope, metric))


async def is_used(store: Store, amount: int, metric: str = "rpm") -> bool:
    return await store.used(metric=metric) == amount


@dataclass
class Desk:
    """Limits over two stores, and what they told of themselves."""

    limits: Limits
    first: Store
    second: Store
    degraded: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)


Open = Callable[..., Desk]


@pytest.fixture
async def desk() -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        def opened(buffer: float = 0.0, retry_s: float = 0.02, **tables: LimitsTable) -> Desk:
            first, second = Store("first"), Store("second")
            degraded: list[str] = []
            recovered: list[str] = []
            limits = Limits(
                catalog(**tables),
                [first, second],
                buffer=buffer,
                on_degraded=degraded.append,
                on_recovered=recovered.append,
                retry_s=retry_s,
            )
            stack.push_async_callback(limits.close)
            warm = OwnedTasks()
            warm.start(limits.keep_warm())
            stack.push_async_callback(warm.cancel)
            return Desk(limits, first, second, degraded, recovered)

        yield opened


async def reserve(
    limits: Limits, model: CatalogModel = HAIKU, need: Need | None = None, *, critical: bool = True
) -> Reservation | Denied:
    return await limits.reserve(model, need or Need(), critical=critical)


async def granted(limits: Limits, model: CatalogModel = HAIKU, need: Need | None = None) -> Reservation:
    result = await reserve(limits, model, need)
    assert isinstance(result, Reservation), result
    return result


# --- reserve, settle, refund ----------------------------------------------------------------


async def test_a_model_has_its_own_limits_and_shares_those_of_its_provider(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(rpm=3)).limits
    haiku = HAIKU.model_copy(update={"limits": LimitsTable(rpm=2)})
    for _ in range(2):
        await granted(limits, haiku)
    denied = await reserve(limits, haiku)
    assert isinstance(denied, Denied)
    assert (denied.scope, denied.why) == ("haiku", "its limit of 2 requests a minute is used up")
    assert 60 < denied.wait_s <= 61.75
    await granted(limits, SONNET)
    denied = await reserve(limits, SONNET)
    assert isinstance(denied, Denied)
    assert denied.scope == ""


async def test_the_last_of_a_limit_is_for_critical_requests(desk: Open) -> None:
    limits = desk(buffer=0.2, anthropic=LimitsTable(rpm=10)).limits
    results = [await reserve(limits, critical=False) for _ in range(10)]
    assert [isinstance(result, Reservation) for result in results] == [True] * 8 + [False] * 2
    results = [await reserve(limits, critical=True) for _ in range(4)]
    assert [isinstance(result, Reservation) for result in results] == [True] * 2 + [False] * 2


async def test_the_real_usage_takes_the_place_of_the_estimate_once(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    reservation = await granted(d.limits, need=Need(1, 400, 600))
    assert isinstance(await reserve(d.limits, need=Need(1, 10)), Denied)
    d.limits.settle(reservation, Need(1, 300, 100))
    d.limits.settle(reservation, None)
    d.limits.settle(reservation, Need(1, 1, 1))
    await granted(d.limits, need=Need(1, 600))
    assert await d.first.used(metric="tpm") == 1000


async def test_what_failed_gives_all_back_the_request_too(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=1, tpm=1000))
    for _ in range(5):
        d.limits.settle(await granted(d.limits, need=Need(1, 500, 500)), None)
    await granted(d.limits)
    assert d.limits.outstanding == 1


async def test_outstanding_counts_what_is_neither_settled_nor_expired(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(rpm=50)).limits
    first, second, third = [await granted(limits) for _ in range(3)]
    assert limits.outstanding == 3
    assert 60 < first.expires - time.monotonic() <= 61.5
    limits.settle(first, Need())
    limits.settle(first, Need())
    assert limits.outstanding == 2
    second.expires = 0.0
    assert limits.outstanding == 1
    limits.settle(third, None)
    assert limits.outstanding == 0


async def test_reservations_that_nobody_settles_do_not_pile_up(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(rpm=1000)).limits
    for _ in range(300):
        (await granted(limits)).expires = 0.0
    assert len(limits._open) < 200


# --- calls combined -------------------------------------------------------------------------


async def test_what_arrives_while_a_store_is_asked_goes_in_one_batch_in_order(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50))
    held = await granted(d.limits)
    d.first.batches.clear()
    d.first.gate.clear()
    asking = [asyncio.create_task(reserve(d.limits))]
    await wait_until(lambda: d.first.batches)
    asking += [asyncio.create_task(reserve(d.limits, need=Need(1, n))) for n in range(5)]
    await asyncio.sleep(0)
    d.limits.settle(held, None)
    d.limits.hold(HAIKU, 1, whole_provider=False, reason="wait")
    d.limits.tell(HAIKU, [Quota("itpm", 100, 7, 3.0), Quota("rpm", None, 5, 9.0)])
    d.first.gate.set()
    await asyncio.gather(*asking)
    await wait_until(lambda: len(d.first.batches) == 2)
    first, second = d.first.batches
    assert (len(first), len(second)) == (1, 9)
    assert [op.need.input_tokens for op in second[:5] if isinstance(op, Admit)] == [0, 1, 2, 3, 4]
    assert isinstance(second[5], Settle)
    assert second[6:] == [Hold("haiku", 1, "wait"), Told("haiku", "itpm", 7, 3.0, 100), Told("haiku", "rpm", 5, 9.0)]


async def test_providers_do_not_wait_for_each_other(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=5), groq=LimitsTable(rpm=5))
    d.first.gate.clear()
    asking = [asyncio.create_task(reserve(d.limits, model)) for model in (HAIKU, LLAMA)]
    await wait_until(lambda: len(d.first.batches) == 2)
    d.first.gate.set()
    await asyncio.gather(*asking)


async def test_a_caller_that_goes_before_its_turn_is_never_counted(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50))
    d.first.gate.clear()
    running = asyncio.create_task(reserve(d.limits))
    await wait_until(lambda: d.first.batches)
    waiting = asyncio.create_task(reserve(d.limits))
    await asyncio.sleep(0)
    waiting.cancel()
    d.first.gate.set()
    await running
    await asyncio.gather(waiting, return_exceptions=True)
    await d.limits.close()
    assert waiting.cancelled()
    assert sum(len(batch) for batch in d.first.batches) == 1


async def test_a_caller_that_goes_while_its_call_runs_gives_back_what_it_got(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=1))
    d.first.gate.clear()
    asking = asyncio.create_task(reserve(d.limits))
    await wait_until(lambda: d.first.batches)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    d.first.gate.set()
    await wait_until(lambda: len(d.first.batches) == 2)
    await granted(d.limits)
    assert (await d.first.used(), d.limits.outstanding) == (1, 1)


async def test_a_caller_that_goes_in_the_moment_of_the_grant_gives_it_back(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=2))

    async def ask_and_stop_the_other() -> None:
        await granted(d.limits)
        other.cancel()  # it has its grant, and has not run since

    stopping = asyncio.create_task(ask_and_stop_the_other())
    other = asyncio.create_task(reserve(d.limits))
    await asyncio.gather(stopping, other, return_exceptions=True)
    assert other.cancelled()
    assert [len(batch) for batch in d.first.batches[:1]] == [2]
    await wait_until(lambda: len(d.first.batches) == 2)
    assert (await d.first.used(), d.limits.outstanding) == (1, 1)


async def test_what_waits_for_a_store_is_bounded(desk: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "MAX_WAITING", 3)
    d = desk(anthropic=LimitsTable(rpm=50))
    d.first.gate.clear()
    asking = [asyncio.create_task(reserve(d.limits)) for _ in range(10)]
    refused = await wait_until(lambda: [task.result() for task in asking if task.done()])
    assert refused == [OVERLOADED] * 7
    d.first.gate.set()
    results = await asyncio.gather(*asking)
    assert sum(isinstance(result, Reservation) for result in results) == 3


async def test_a_fault_of_a_store_that_nobody_foresaw_is_an_error_and_no_endless_wait(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50))

    async def broken(provider: str, ops: Sequence[Op]) -> list[Result]:
        raise ZeroDivisionError

    works, d.first.run = d.first.run, broken  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await reserve(d.limits)
    d.first.run = works  # type: ignore[method-assign]
    await granted(d.limits)


async def test_a_provider_without_limits_costs_no_call_and_can_still_be_held(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50))
    for _ in range(100):
        await granted(d.limits, LOCAL)
    d.limits.hold(LOCAL, 30, whole_provider=True, reason="busy")
    denied = await reserve(d.limits, LOCAL)
    assert isinstance(denied, Denied)
    assert (denied.scope, denied.why, 29 < denied.wait_s <= 30) == ("", "busy", True)
    d.limits.tell(LLAMA, [Quota("tpm", None, 100, 20.0)])
    assert isinstance(await reserve(d.limits, LLAMA, Need(1, 101)), Denied)
    await granted(d.limits, LLAMA, Need(1, 100))
    assert d.first.batches == []


async def test_a_refund_is_given_back_to_the_vendors_word_where_we_know_no_limit_of_our_own_too(desk: Open) -> None:
    limits = desk().limits
    limits.tell(LOCAL, [Quota("tpm", 6000, 100, 50.0)])
    limits.settle(await granted(limits, LOCAL, Need(1, 100)), None)
    limits.settle(await granted(limits, LOCAL, Need(1, 100)), Need(1, 40))
    await granted(limits, LOCAL, Need(1, 60))
    denied = await reserve(limits, LOCAL, Need(1, 590))
    assert isinstance(denied, Denied)
    assert 4.9 < denied.wait_s <= 5.0


async def test_a_limit_of_one_model_makes_its_whole_provider_shared(desk: Open) -> None:
    first = Store("first")
    llama = LLAMA.model_copy(update={"limits": LimitsTable(rpm=1)})
    limits = Limits(
        replace(BASE, limits={}, models={"llama": llama}), [first], buffer=0, on_degraded=print, on_recovered=print
    )
    await granted(limits, llama)
    assert len(first.batches) == 1
    await limits.close()


async def test_close_writes_what_was_told_and_leaves_no_task(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    before = asyncio.all_tasks()
    reservation = await granted(d.limits, need=Need(1, 400, 600))
    d.limits.settle(reservation, Need(1, 5, 5))
    d.first.is_down = True
    await d.limits.close()
    assert d.degraded
    assert await d.second.used(metric="tpm") == 10
    assert asyncio.all_tasks() == before


async def test_close_does_not_wait_for_ever(desk: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "CLOSE_S", 0.05)
    d = desk(anthropic=LimitsTable(rpm=5))
    d.first.gate.clear()
    asking = asyncio.create_task(reserve(d.limits))
    await wait_until(lambda: d.first.batches)
    await d.limits.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


# --- another store --------------------------------------------------------------------------


async def test_a_store_that_fails_is_left_at_once_told_once_and_taken_again_when_it_answers(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50), groq=LimitsTable(rpm=50))
    d.first.is_down = True
    d.first.gate.clear()
    asking = asyncio.gather(*(reserve(d.limits, model) for model in (HAIKU, LLAMA) for _ in range(5)))
    await wait_until(lambda: len(d.first.batches) == 2)
    d.first.gate.set()
    results = await asking
    assert all(isinstance(result, Reservation) for result in results)
    assert d.degraded == ["limits are counted in second: first is down"]
    d.second.is_down = True
    await granted(d.limits)
    assert d.degraded[1:] == ["limits are counted in this process alone: second is down"]
    d.second.is_down = False
    await wait_until(lambda: d.recovered)
    d.first.is_down = False
    await wait_until(lambda: len(d.recovered) == 2)
    assert d.recovered == [f"limits are counted in {name} again" for name in ("second", "first")]
    calls = len(d.first.batches)
    await granted(d.limits)
    assert len(d.first.batches) == calls + 1
    assert len(d.degraded) == 2


async def test_the_window_holds_across_switches_and_nothing_is_counted_twice(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    early = await granted(d.limits, need=Need(1, 400))
    d.first.is_down = True
    assert isinstance(await reserve(d.limits, need=Need(1, 700)), Denied)
    meanwhile = await granted(d.limits, need=Need(1, 200))
    assert await d.second.used(metric="tpm") == 600
    d.limits.settle(early, Need(1, 300))
    await granted(d.limits, need=Need(1, 50))
    assert await d.second.used(metric="tpm") == 550

    d.first.is_down = False
    await wait_until(lambda: d.recovered)
    await granted(d.limits, need=Need(1, 7))
    assert await d.first.used(metric="tpm") == 557
    d.limits.settle(meanwhile, None)
    await granted(d.limits, need=Need(1, 1))
    assert await d.first.used(metric="tpm") == 358

    d.first.is_down = True
    await granted(d.limits, need=Need(1, 1))
    assert await d.second.used(metric="tpm") == 359


async def test_a_store_that_forgot_is_told_again_what_this_replica_was_granted(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=5))
    d.limits.settle(await granted(d.limits), None)
    kept = [await granted(d.limits) for _ in range(4)]
    d.limits.hold(SONNET, 30, whole_provider=False, reason="wait")
    await granted(d.limits)
    d.first.has_forgotten = True
    denied = await reserve(d.limits)
    assert isinstance(denied, Denied)
    assert denied.why == "its provider's limit of 5 requests a minute is used up"
    assert await d.first.used() == 5
    d.limits.settle(kept[0], None)
    denied = await reserve(d.limits, SONNET)
    assert isinstance(denied, Denied)
    assert denied.why == "wait"
    assert await d.first.used() == 4
    assert d.degraded == []


async def test_a_store_that_did_it_and_lost_its_answer_is_never_left_with_too_little(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    reservation = await granted(d.limits, need=Need(1, 600))
    await granted(d.limits, need=Need(1, 300))
    d.first.loses_answers = True
    d.limits.settle(reservation, Need(1, 100))
    await wait_until(lambda: d.degraded)
    await granted(d.limits, need=Need(1, 50))
    d.first.loses_answers = False
    await wait_until(lambda: d.recovered)
    await granted(d.limits, need=Need(1, 1))
    assert await d.first.used(metric="tpm") == 451


async def test_what_is_to_be_told_to_a_store_that_fails_again_gives_nothing_back_twice(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    reservation = await granted(d.limits, need=Need(1, 600))
    d.first.is_down = True
    await granted(d.limits, need=Need(1, 10))
    d.limits.settle(reservation, Need(1, 100))
    await wait_until(lambda: len(d.second.batches) == 2)
    d.first.is_down, d.first.loses_answers = False, True
    await wait_until(lambda: d.recovered)
    await granted(d.limits, need=Need(1, 300))  # the first store hears of the 500, and its answer is lost
    d.first.loses_answers = False
    await wait_until(lambda: len(d.recovered) == 2)
    await granted(d.limits, need=Need(1, 1))
    assert await d.first.used(metric="tpm") >= 411


async def test_contention_is_no_failure_who_asks_is_put_off_and_what_was_told_is_tried_again(
    desk: Open,
) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    early = await granted(d.limits, need=Need(1, 600))
    await wait_until(lambda: d.first.batches)
    d.first.is_contended = True
    d.first.gate.clear()
    first = asyncio.create_task(reserve(d.limits))
    await asyncio.sleep(0)
    d.limits.settle(early, Need(1, 100))
    d.limits.hold(SONNET, 30, whole_provider=False, reason="wait")
    second = asyncio.create_task(reserve(d.limits, need=Need(1, 200)))
    await asyncio.sleep(0)
    d.limits.tell(HAIKU, [Quota("otpm", None, 7, 30.0)])
    d.first.gate.set()
    assert [await first, await second] == [OVERLOADED, OVERLOADED]
    d.first.is_contended = False
    await granted(d.limits, need=Need(1, 5, 6))
    assert [type(op) for op in d.first.batches[-1]][:3] == [Settle, Hold, Told]
    assert await d.first.used(metric="tpm") == 111
    assert isinstance(await reserve(d.limits, SONNET), Denied)
    assert isinstance(await reserve(d.limits, need=Need(1, 5, 2)), Denied)
    assert (d.degraded, d.second.batches, d.limits.outstanding) == ([], [], 1)


async def test_what_a_store_may_have_done_before_it_failed_is_not_given_back_twice_after_contention(
    desk: Open,
) -> None:
    d = desk(anthropic=LimitsTable(tpm=1000))
    reservation = await granted(d.limits, need=Need(1, 600))
    await granted(d.limits, need=Need(1, 300))
    d.first.loses_answers, d.second.is_contended = True, True
    d.limits.settle(reservation, Need(1, 100))
    await wait_until(lambda: len(d.second.batches) > 2)
    d.first.loses_answers, d.second.is_contended = False, False
    await wait_until(lambda: d.recovered)
    await granted(d.limits, need=Need(1, 1))
    assert await d.first.used(metric="tpm") == 401


async def test_a_store_that_is_not_in_use_hears_what_was_used_and_is_right_for_others_when_it_is_needed(
    desk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "FLUSH_S", 0.02)
    d, other = desk(anthropic=LimitsTable(rpm=5)), desk(anthropic=LimitsTable(rpm=5))
    other.limits._stores[:2] = d.limits._stores[:2]
    held = [await granted(d.limits) for _ in range(5)]
    d.limits.hold(SONNET, 90, whole_provider=False, reason="wait")
    d.limits.settle(held[0], None)
    await wait_until(lambda: is_used(d.second, 4))
    d.first.is_down = True
    await granted(other.limits)
    denied = await reserve(other.limits)
    assert isinstance(denied, Denied)
    assert denied.why == "its provider's limit of 5 requests a minute is used up"
    denied = await reserve(other.limits, SONNET)
    assert isinstance(denied, Denied)
    assert denied.why == "wait"
    assert d.degraded == []


async def test_a_better_store_that_is_back_hears_of_idle_replicas_too(
    desk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "FLUSH_S", 0.02)
    d = desk(anthropic=LimitsTable(rpm=5))
    d.first.is_down = True
    for _ in range(3):
        await granted(d.limits)
    d.first.is_down = False
    await wait_until(lambda: is_used(d.first, 3))


async def test_a_store_not_in_use_that_fails_is_no_alert_and_is_told_all_of_it_once_later(
    desk: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "FLUSH_S", 0.02)
    d = desk(anthropic=LimitsTable(tpm=1000))
    d.second.is_down = True
    reservation = await granted(d.limits, need=Need(1, 600))
    await wait_until(lambda: len(d.second.batches) > 1)
    d.second.is_down, d.second.is_contended = False, True
    d.limits.settle(reservation, Need(1, 100))
    tried = len(d.second.batches)
    await wait_until(lambda: len(d.second.batches) > tried + 1)
    d.second.is_contended = False
    await wait_until(lambda: is_used(d.second, 100, "tpm"))
    d.second.loses_answers = True
    d.limits.settle(await granted(d.limits, need=Need(1, 50)), Need(1, 10))
    tried = len(d.second.batches)
    await wait_until(lambda: len(d.second.batches) > tried + 1)
    d.second.loses_answers = False
    await wait_until(lambda: not d.limits._account("anthropic").missing[1].entries())
    assert await d.second.used(metric="tpm") >= 110
    assert d.degraded == []


async def test_a_store_that_answers_but_refuses_to_write_is_not_taken_again(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=5))
    d.first.is_full = True
    await granted(d.limits)
    d.second.is_down = True
    await granted(d.limits)
    d.second.is_down = False
    await wait_until(lambda: d.recovered)
    await granted(d.limits)
    assert d.recovered == ["limits are counted in second again"]
    d.first.is_full = False
    await wait_until(lambda: len(d.recovered) == 2)


async def test_a_store_that_has_forgotten_is_taken_again(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=5))
    d.first.is_down = True
    await granted(d.limits)
    d.first.has_forgotten, d.first.is_down = True, False
    await wait_until(lambda: d.recovered)


async def test_a_hold_holds_in_the_next_store_too(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=50))
    d.limits.hold(HAIKU, 30, whole_provider=False, reason="the vendor asked to wait")
    assert isinstance(await reserve(d.limits), Denied)
    d.first.is_down = True
    denied = await reserve(d.limits)
    assert isinstance(denied, Denied)
    assert denied.why == "the vendor asked to wait"
    assert 25 < denied.wait_s <= 30
    await granted(d.limits, SONNET)


async def test_what_the_replica_remembers_for_other_stores_is_bounded() -> None:
    tally = Tally()
    for second in range(4000):
        tally.add([Entry("", "rpm", second * 1000, 1)])
    assert len(tally.amounts) < 300
    assert sum(tally.amounts.values()) >= 60


# --- room -----------------------------------------------------------------------------------


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are taken anew at each look."""
    monkeypatch.setattr(limit_accounts, "ROOM_S", 0.0)


@pytest.mark.usefixtures("now")
async def test_room_is_the_free_share_of_the_tightest_limit(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(rpm=10, tpm=1000), groq=LimitsTable(pace=5)).limits
    assert (limits.room(HAIKU), limits.room(LLAMA), limits.room(LOCAL)) == (1.0, None, None)
    reservation = await granted(limits, need=Need(1, 400, 400))
    assert limits.room(HAIKU) == limits.room(SONNET) == pytest.approx(0.2)
    limits.settle(reservation, Need(1, 100, 100))
    await wait_until(lambda: limits.room(HAIKU) == pytest.approx(0.8))
    for _ in range(4):
        await granted(limits)
    assert limits.room(HAIKU) == pytest.approx(0.5)
    limited = HAIKU.model_copy(update={"limits": LimitsTable(rpm=2)})
    await granted(limits, limited)
    await granted(limits, limited)
    assert limits.room(limited) == 0.0
    assert limits.room(SONNET) == pytest.approx(0.3)


@pytest.mark.usefixtures("now")
async def test_what_is_kept_for_critical_requests_is_no_room(desk: Open) -> None:
    limits = desk(buffer=0.2, anthropic=LimitsTable(rpm=10)).limits
    for _ in range(4):
        await granted(limits)
    assert limits.room(HAIKU) == pytest.approx(0.5)
    for _ in range(6):
        await granted(limits)
    assert limits.room(HAIKU) == 0.0


async def test_there_is_no_room_while_a_vendor_asked_to_wait_or_a_store_has_refused(desk: Open) -> None:
    d = desk(anthropic=LimitsTable(rpm=10), groq=LimitsTable(rpm=10))
    d.limits.hold(HAIKU, 30, whole_provider=False, reason="wait")
    assert (d.limits.room(HAIKU), d.limits.room(SONNET)) == (0.0, 1.0)
    d.limits.hold(SONNET, 0.05, whole_provider=True, reason="wait")
    assert d.limits.room(SONNET) == 0.0
    await wait_until(lambda: d.limits.room(SONNET) == 1.0)
    await d.first.run("groq", [Record((Entry("", "rpm", round(time.time() * 1000), 10),))])  # by another replica
    assert isinstance(await reserve(d.limits, LLAMA), Denied)
    assert d.limits.room(LLAMA) == 0.0


async def test_a_grant_ends_what_a_refusal_said(desk: Open) -> None:
    d = desk(groq=LimitsTable(rpm=10))
    of_another = Entry("", "rpm", round(time.time() * 1000), 10)
    await d.first.run("groq", [Record((of_another,))])
    assert isinstance(await reserve(d.limits, LLAMA), Denied)
    await d.first.run("groq", [Record((of_another._replace(amount=-10),))])
    await granted(d.limits, LLAMA)
    assert d.limits.room(LLAMA) == pytest.approx(0.9)


async def test_what_is_given_back_ends_what_a_refusal_said(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(tpm=1000)).limits
    first, second = [await granted(limits, need=Need(1, 100, 400)) for _ in range(2)]
    assert isinstance(await reserve(limits, need=Need(1, 100)), Denied)
    assert limits.room(HAIKU) == 0.0
    limits.settle(first, Need(1, 100, 0))
    await wait_until(lambda: limits.room(HAIKU) == pytest.approx(0.4))
    limits.settle(second, None)


async def test_one_large_request_that_does_not_fit_now_does_not_make_a_limit_full(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(tpm=1000)).limits
    await granted(limits, need=Need(1, 200))
    assert isinstance(await reserve(limits, need=Need(1, 900)), Denied)
    assert limits.room(HAIKU) == pytest.approx(0.8)


def test_a_vendors_own_word_fills_at_an_even_pace() -> None:
    word = limit_accounts.Word(0.2, 100.0, 60.0)
    assert [word.free(now) for now in (100.0, 130.0, 160.0)] == [0.2, pytest.approx(0.6), None]


async def test_a_vendors_own_word_counts_while_it_holds(desk: Open) -> None:
    limits = desk().limits
    limits.tell(HAIKU, [Quota("tpm", 1000, 50, 60), Quota("rpm", None, 5, 60)])
    assert limits.room(HAIKU) == pytest.approx(0.05, abs=0.01)
    limits.tell(HAIKU, [Quota("tpm", 1000, 50, 0.05)])
    assert limits.room(SONNET) is None
    await wait_until(lambda: limits.room(HAIKU) is None)


async def test_there_is_no_room_for_what_never_fits(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(tpm=1000)).limits
    assert (limits.room(HAIKU, 1_500), limits.room(HAIKU, 1_501)) == (1.0, 0.0)


async def test_looking_for_room_does_not_sum_up_each_time(desk: Open) -> None:
    limits = desk(anthropic=LimitsTable(rpm=10)).limits
    assert limits.room(HAIKU) == 1.0
    await granted(limits)
    assert limits.room(HAIKU) == 1.0
    await wait_until(lambda: limits.room(HAIKU) == pytest.approx(0.9))


# --- real ones ------------------------------------------------------------------------------


async def test_redis_killed_in_the_middle_costs_no_request_and_no_limit(tmp_path: Path) -> None:
    degraded: list[str] = []
    recovered: list[str] = []
    async with AsyncExitStack() as stack:
        url = stack.enter_context(nats_server(tmp_path))
        folder = stack.enter_context(short_folder())
        bus = Bus()
        await bus.connect(url, make_settings(), name="test")
        stack.push_async_callback(bus.close)
        await provision(bus.nc, contract_dir())
        redis = ExitStack()
        stack.push(redis)
        redis.enter_context(redis_server(folder))
        client = await stack.enter_async_context(Redis.from_url(f"unix://{folder}/redis"))
        stores: list[LimitStore] = [RedisStore(client), NatsStore(bus, steady_clock())]
        limits = Limits(
            catalog(anthropic=LimitsTable(rpm=1000)),
            stores,
            buffer=0,
            on_degraded=degraded.append,
            on_recovered=recovered.append,
            retry_s=0.05,
        )
        stack.push_async_callback(limits.close)
        results: list[Reservation | Denied] = []

        async def ask_often() -> None:
            while not (recovered and isinstance(results[-1], Denied)):
                results.append(await reserve(limits))

        asking = asyncio.gather(*(ask_often() for _ in range(4)))
        await wait_until(lambda: len(results) > 15)
        redis.close()
        assert isinstance(results[-1], Reservation)
        await wait_until(lambda: degraded)
        with redis_server(folder):
            await asking
        assert sum(isinstance(result, Reservation) for result in results) == 1000
        assert [text.split(":")[0] for text in degraded] == ["limits are counted in NATS"]
        assert recovered == ["limits are counted in Redis again"]


async def test_replicas_over_nats_admit_together_what_the_vendor_allows(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        url = stack.enter_context(nats_server(tmp_path))
        replicas = []
        for _ in range(3):
            bus = Bus()
            await bus.connect(url, make_settings(), name="test")
            stack.push_async_callback(bus.close)
            await provision(bus.nc, contract_dir())
            store = NatsStore(bus, steady_clock())
            limits = Limits(
                catalog(anthropic=LimitsTable(rpm=50)), [store], buffer=0, on_degraded=pytest.fail, on_recovered=print
            )
            stack.push_async_callback(limits.close)
            replicas.append(limits)

        async def use(limits: Limits) -> bool:
            result = await reserve(limits, need=Need(1, 10, 10))
            if isinstance(result, Reservation):
                limits.settle(result, Need(1, 10, 5))
            return isinstance(result, Reservation)

        admitted = await asyncio.gather(*(use(limits) for limits in replicas for _ in range(30)))
        assert sum(admitted) == 50
        assert sum(limits.outstanding for limits in replicas) == 0


async def test_a_store_that_comes_back_empty_is_used_at_the_first_look(desk: Open) -> None:
    d = desk(retry_s=0.3, anthropic=LimitsTable(rpm=5))
    await granted(d.limits)
    d.first.is_down = True
    await granted(d.limits)
    d.first.is_down, d.first.has_forgotten = False, True
    looked = d.first.probes
    await wait_until(lambda: d.recovered)
    assert d.first.probes == looked + 2
