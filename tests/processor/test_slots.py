"""Slots: never more than there are, some only for critical, and none lost however waits end."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.schedule import Schedule
from processor.slots import Dismissed, Slot, Slots
from processor.subjects import Priority

SCHEDULE = Schedule.of((70, 15, 10, 5))


async def acquired(slots: Slots, priority: Priority) -> Slot:
    slot = Slot(slots, priority)
    async with asyncio.timeout(1):
        await slot.acquire()
    return slot


async def test_the_last_slot_is_only_for_critical() -> None:
    slots = Slots(2, 1, SCHEDULE)
    await acquired(slots, Priority.HIGH)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await Slot(slots, Priority.HIGH).acquire()
    await acquired(slots, Priority.CRITICAL)
    assert slots.taken == 2


async def test_a_parked_request_holds_no_slot_and_comes_back_before_new_ones_of_its_lane() -> None:
    slots, order = Slots(1, 0, SCHEDULE), []
    room = asyncio.Event()
    parked = await acquired(slots, Priority.LOW)

    async def wait_parked() -> None:
        await parked.parked(room.wait())
        order.append("parked")
        parked.release()

    async def come_new() -> None:
        new = Slot(slots, Priority.LOW)
        await new.acquire()
        order.append("new")
        new.release()

    waiting = asyncio.create_task(wait_parked())
    await asyncio.sleep(0)
    assert slots.taken == 0
    running = await acquired(slots, Priority.HIGH)
    coming = asyncio.create_task(come_new())
    await asyncio.sleep(0)
    room.set()
    await asyncio.sleep(0.01)
    running.release()
    await asyncio.gather(waiting, coming)
    assert (order, slots.taken) == (["parked", "new"], 0)


async def test_a_slot_granted_in_the_moment_of_cancellation_is_given_back() -> None:
    slots = Slots(1, 0, SCHEDULE)
    running = await acquired(slots, Priority.HIGH)
    waiting = asyncio.create_task(Slot(slots, Priority.HIGH).acquire())
    await asyncio.sleep(0)
    running.release()  # grants it to `waiting` …
    waiting.cancel()  # … which is cancelled before it runs
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slots.taken == 0


async def test_a_request_that_is_cancelled_while_parked_takes_no_slot() -> None:
    slots = Slots(1, 0, SCHEDULE)
    slot = await acquired(slots, Priority.HIGH)
    parked = asyncio.create_task(slot.parked(asyncio.Event().wait()))
    await asyncio.sleep(0)
    parked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await parked
    slot.release()
    assert slots.taken == 0
    await acquired(slots, Priority.HIGH)


steps = st.lists(st.tuples(st.sampled_from(["come", "go", "cancel"]), st.sampled_from(Priority), st.integers(0, 20)))


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(0, 3), steps)
def test_whatever_comes_goes_and_is_cancelled_slots_are_neither_lost_nor_doubled(
    total: int, kept: int, walk: list[tuple[str, Priority, int]]
) -> None:
    async def play() -> None:
        slots = Slots(total, kept, SCHEDULE)
        tasks: list[tuple[Slot, asyncio.Task[None]]] = []
        for step, priority, which in walk:
            if step == "come":
                slot = Slot(slots, priority)
                tasks.append((slot, asyncio.create_task(slot.acquire())))
            elif tasks and step == "go":
                slot, task = tasks[which % len(tasks)]
                if task.done():
                    slot.release()
            elif tasks:
                tasks[which % len(tasks)][1].cancel()
            assert slots.taken <= total
            if which % 2:
                await asyncio.sleep(0)
        for _ in range(2):
            for slot, task in tasks:
                task.cancel()
                await asyncio.wait({task})
                slot.release()
        assert slots.taken == 0
        await acquired(slots, Priority.LOW)

    asyncio.run(play())


@pytest.mark.parametrize("every", [0, 100, 15, 8])
async def test_a_trickle_of_critical_through_its_own_slot_takes_nothing_from_the_shares_of_others(every: int) -> None:
    slots, got, running = Slots(10, 1, SCHEDULE), Counter[Priority](), list[Priority]()
    tasks = set[asyncio.Task[None]]()

    async def come(priority: Priority) -> None:
        await slots.acquire(priority)
        got[priority] += 1
        running.append(priority)

    def comes(priority: Priority) -> None:
        tasks.add(asyncio.create_task(come(priority)))

    for priority in [Priority.HIGH] * 30 + [Priority.MEDIUM, Priority.LOW]:
        comes(priority)
    await asyncio.sleep(0)
    for pick in range(1, 1001):
        before = Counter(got)
        if every and pick % every == 0:
            comes(Priority.CRITICAL)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            running.remove(Priority.CRITICAL)
            slots.release(Priority.CRITICAL)
        slots.release(running.pop(0))
        await asyncio.sleep(0)
        for priority in (Priority.HIGH, Priority.MEDIUM, Priority.LOW):
            if got[priority] > before[priority]:
                comes(priority)
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert (got[Priority.MEDIUM] // 10, got[Priority.LOW] // 10) == (9, 4)


async def test_who_comes_back_after_the_end_is_dismissed_and_who_is_new_is_not() -> None:
    slots = Slots(1, 0, SCHEDULE)
    running = await acquired(slots, Priority.HIGH)
    coming = asyncio.create_task(Slot(slots, Priority.LOW).acquire(returning=True))
    new = asyncio.create_task(Slot(slots, Priority.LOW).acquire())
    await asyncio.sleep(0)
    slots.dismiss()
    with pytest.raises(Dismissed):
        await coming
    with pytest.raises(Dismissed):
        await slots.acquire(Priority.LOW, returning=True)
    running.release()
    await new
    assert slots.taken == 1
