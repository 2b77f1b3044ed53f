"""Who waits for a vendor's limit, in which order, and who must not wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from processor import waiting
from processor.admission import Admission, Admitted, Candidature, Entrant, HandedBack
from processor.bookkeeper import Bookkeeper
from processor.bucket import Need
from processor.budgets import Budget, HeldUp, Period, Price
from processor.bus import Bus
from processor.catalog import load_catalog
from processor.health import Health
from processor.limits import Limits
from processor.outcome import Option
from processor.schedule import Schedule
from processor.slots import Slot, Slots
from processor.spending import Spending
from processor.subjects import Priority
from tests.wait import wait_until

SCHEDULE = Schedule.of((70, 15, 10, 5))
SMALL = Need(1, 10, 10)


def unlimited() -> Spending:
    """No budgets."""
    return Spending(Bookkeeper(Bus(), (), "test"), (), on_spent=lambda: None, saving_from=0)


class Gate:
    """An admission before limits in memory, with slots of its own."""

    def __init__(self, catalog: Path, slots: Slots, buffer: float) -> None:
        self.catalog = load_catalog(catalog)
        self.slots = slots
        self.limits = Limits(self.catalog, [], buffer=buffer, on_degraded=print, on_recovered=print)
        self.admission = Admission(
            self.catalog, self.limits, Health(), unlimited(), SCHEDULE, open_provider=self._open, max_parked=1000
        )
        self.entering: list[asyncio.Task[Admitted]] = []

    async def _open(self, provider: str) -> None:
        pass

    async def enter(
        self,
        priority: Priority,
        models: Sequence[str] = ("haiku",),
        need: Need = SMALL,
        *,
        not_before: float = 0.0,
        deadline_s: float | None = None,
    ) -> Admitted:
        """As a job does it: with a slot, given back when it is through."""
        slot = Slot(self.slots, priority)
        await slot.acquire()
        deadline = None if deadline_s is None else time.monotonic() + deadline_s
        entrant = Entrant(slot, "default", deadline, [Candidature(self.catalog.models[name], need) for name in models])
        options = [Option(index, not_before) for index in range(len(models))]
        try:
            return await self.admission.enter(entrant, options, _still_wanted)
        finally:
            slot.release()

    def start(self, priority: Priority, *args: Any, **named: Any) -> asyncio.Task[Admitted]:
        self.entering.append(asyncio.create_task(self.enter(priority, *args, **named)))
        return self.entering[-1]

    async def parks(self, priority: Priority, *args: Any, **named: Any) -> asyncio.Task[Admitted]:
        """Start, and return when it is parked."""
        before = self.admission.parked
        task = self.start(priority, *args, **named)
        await wait_until(lambda: task.done() or self.admission.parked > before)
        assert not task.done()
        return task


async def _still_wanted() -> None:
    pass


@asynccontextmanager
async def gate(
    tmp_path: Path, overlay: str, *, total: int = 10, kept: int = 1, buffer: float = 0.0
) -> AsyncIterator[Gate]:
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(overlay, "utf-8")
    one = Gate(catalog, Slots(total, kept, SCHEDULE), buffer)
    try:
        yield one
    finally:
        for task in one.entering:
            task.cancel()
        if one.entering:
            await asyncio.wait(one.entering)
        await one.limits.close()


async def test_a_request_that_never_fits_a_model_keeps_nobody_from_it_while_it_waits_for_another(
    tmp_path: Path,
) -> None:
    limits = "[limits.anthropic]\nrpm=1000\ntpm=5000\n[limits.groq]\nrpm=1\ntpm=1_000_000"
    async with gate(tmp_path, limits) as at:
        await at.enter(Priority.LOW, ["gpt-oss-20b"])
        await at.parks(Priority.HIGH, ["haiku", "gpt-oss-20b"], Need(1, 60_000, 10))
        for priority in (Priority.HIGH, Priority.LOW):
            async with asyncio.timeout(1):
                assert (await at.enter(priority, deadline_s=30)).index == 0


async def test_all_that_is_kept_for_critical_is_there_for_it_while_others_wait(tmp_path: Path) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=40\ntpm=1_000_000", buffer=0.5) as at:
        for _ in range(20):
            await at.enter(Priority.LOW)
        await at.parks(Priority.HIGH)
        async with asyncio.timeout(2):
            for _ in range(20):
                await at.enter(Priority.CRITICAL, deadline_s=90)


async def test_critical_does_not_wait_for_the_slot_of_one_whose_turn_it_is(tmp_path: Path) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1000\ntpm=10_000", total=2) as at:
        big = await at.enter(Priority.HIGH, need=Need(1, 9_990, 0))
        await at.parks(Priority.LOW, need=Need(1, 100, 0))
        await at.slots.acquire(Priority.HIGH)  # the one slot that low could have
        at.limits.settle(big.reservation, Need(1, 0, 0))
        async with asyncio.timeout(2):
            for _ in range(40):  # low's share is due long before
                await at.enter(Priority.CRITICAL, need=Need(1, 1, 0))


async def test_low_is_not_passed_by_for_ever_even_by_critical(tmp_path: Path) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=100_000\ntpm=2_000", buffer=0.5) as at:
        held = [await at.enter(Priority.CRITICAL, need=Need(1, 1, 0))]
        at.limits.settle(held[0].reservation, Need(1, 1_500, 0))
        low = await at.parks(Priority.LOW, need=Need(1, 1, 0))
        passed = 0
        while not low.done() and passed < 500:
            await at.enter(Priority.CRITICAL, need=Need(1, 1, 0))
            passed += 1
            await asyncio.sleep(0)
        assert waiting.PASSES <= passed < waiting.PASSES + 60


async def test_who_waits_for_a_pause_to_end_takes_no_slot_before_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.admission.LOOK_AGAIN_S", 0.01)
    returned = 0
    acquire = Slots.acquire

    async def counted(slots: Slots, priority: Priority, *, returning: bool = False) -> None:
        nonlocal returned
        await acquire(slots, priority, returning=returning)
        returned += returning

    monkeypatch.setattr(Slots, "acquire", counted)
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1000") as at:
        resting = await at.parks(Priority.LOW, not_before=time.monotonic() + 0.3)
        await resting
        assert returned == 1


async def test_those_who_come_back_keep_their_order(tmp_path: Path) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1000", total=1, kept=0) as at:
        until, order = time.monotonic() + 0.2, list[int]()
        for number in range(5):
            task = await at.parks(Priority.LOW, not_before=until + number / 100)
            task.add_done_callback(lambda _, number=number: order.append(number))  # type: ignore[misc]
        await at.slots.acquire(Priority.HIGH)
        await wait_until(lambda: time.monotonic() > until + 0.1)
        at.slots.release(Priority.HIGH)
        await wait_until(lambda: len(order) == 5)
        assert order == [0, 1, 2, 3, 4]


async def test_who_is_parked_when_the_sidecar_stops_is_handed_back_though_no_slot_is_free(tmp_path: Path) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1\ntpm=1_000_000", total=1, kept=0) as at:
        await at.enter(Priority.LOW)
        in_line = await at.parks(Priority.LOW)
        resting = await at.parks(Priority.LOW, ["gpt-oss-20b"], not_before=time.monotonic() + 100)
        await at.slots.acquire(Priority.HIGH)
        at.slots.dismiss()
        at.admission.close()
        for parked in (in_line, resting):
            with pytest.raises(HandedBack):
                async with asyncio.timeout(1):
                    await parked


@pytest.mark.parametrize("turns", range(1, 10))
async def test_a_cancel_in_the_moment_of_waking_is_heard(tmp_path: Path, turns: int) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1\ntpm=1_000_000") as at:
        only = await at.enter(Priority.HIGH)
        first, second = await at.parks(Priority.HIGH), await at.parks(Priority.HIGH)
        at.limits.settle(only.reservation, None)
        first.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        if second.cancel():
            await asyncio.wait({second})
            assert second.cancelled()
            assert at.limits.outstanding == 0


@pytest.mark.parametrize(("answers_in_s", "admitted"), [(0.15, True), (0.3, False)])
async def test_limits_that_answer_slowly_admit_what_is_still_young_enough_and_nobody_asks_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers_in_s: float, admitted: bool
) -> None:
    monkeypatch.setattr("processor.admission.FRESH_S", 0.1)
    monkeypatch.setattr("processor.admission.STALE_S", 0.2)
    reserve, asked = Limits.reserve, 0

    async def slowly(limits: Limits, *args: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        reserved = await reserve(limits, *args, **named)
        await asyncio.sleep(answers_in_s)
        return reserved

    monkeypatch.setattr(Limits, "reserve", slowly)
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1000") as at:
        task = at.start(Priority.HIGH)
        await wait_until(lambda: task.done() or at.admission.parked)
        assert (task.done(), asked) == (admitted, 2)
        assert at.limits.outstanding == int(admitted)


class Narrow(Spending):
    """A budget with room for so many calls, all the others being held up by those under way."""

    room = 0

    def limiting(self, tenant: str, price: Price) -> list[str]:
        return [NARROW.label]

    async def reserve(self, tenant: str, price: Price) -> HeldUp | None:
        await asyncio.sleep(0)
        self.room -= 1
        return None if self.room >= 0 else HeldUp(NARROW)


NARROW = Budget(None, Period.DAY, 1, hard=True)


async def test_the_most_urgent_of_those_who_wait_for_a_budget_goes_first_and_nobody_new_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with gate(tmp_path, "[limits.anthropic]\nrpm=1000\ntpm=1_000_000") as at:
        budget = Narrow(Bookkeeper(Bus(), (), "test"), (NARROW,), on_spent=lambda: None, saving_from=0)
        monkeypatch.setattr(at.admission, "_spending", budget)
        lower = [await at.parks(Priority.LOW) for _ in range(5)]
        critical = await at.parks(Priority.CRITICAL)
        budget.room = 1
        newer = at.start(Priority.LOW)
        async with asyncio.timeout(3):
            await critical
        assert not any(task.done() for task in (*lower, newer))
        budget.room = 3
        await wait_until(lambda: sum(task.done() for task in lower) == 3)
        assert [task.done() for task in (*lower, newer)] == [True, True, True, False, False, False]
