"""The clocks of a call: silence and dripping end it, a vendor that only keeps alive does too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.clocks import FLOOR_WINDOW_S, Clocks, Drip, timed
from providers.base import Event, Finished, FinishReason, Message, Opened, Prompt, Text, TextDelta, Usage, UsageSeen
from providers.errors import TimedOut
from providers.scripted import Pause, ScriptedProvider, Step
from tests.wait import wait_until

PROMPT = Prompt("m", (Message("user", (Text("hi"),)),), 100, stream=True)
END = Finished(FinishReason.STOP, Usage(), "m")


async def played(steps: Sequence[Step], clocks: Clocks) -> list[Event]:
    return await heard(ScriptedProvider(steps), clocks)


async def heard(vendor: ScriptedProvider, clocks: Clocks) -> list[Event]:
    async with aclosing(timed(vendor.stream(PROMPT), clocks)) as events:
        return [event async for event in events]


async def test_what_is_in_time_passes_unchanged() -> None:
    steps: list[Step] = [Opened(), TextDelta("a"), Pause(0.02), TextDelta("b"), END]
    assert await played(steps, Clocks(5, 5, 60, 0)) == [s for s in steps if not isinstance(s, Pause)]


async def test_a_vendor_that_is_silent_before_its_first_token_is_given_up_and_its_stream_closed() -> None:
    vendor = ScriptedProvider([Opened(), Pause(60), END])
    with pytest.raises(TimedOut, match="before its first token"):
        await heard(vendor, Clocks(0.02, 60, 60, 0))
    assert vendor.cancelled == 1


async def test_a_vendor_that_is_silent_between_two_tokens_is_given_up() -> None:
    with pytest.raises(TimedOut, match="between two tokens"):
        await played([Opened(), TextDelta("a"), Pause(60), END], Clocks(60, 0.02, 60, 0))


async def test_what_is_no_token_does_not_set_the_clock_back() -> None:
    alive: list[Step] = [Pause(0.01), UsageSeen(Usage())] * 50
    with pytest.raises(TimedOut, match="before its first token"):
        await played([Opened(), *alive, END], Clocks(0.1, 60, 60, 0))


async def test_a_cancelled_call_is_closed_and_no_timeout() -> None:
    vendor = ScriptedProvider([Opened(), Pause(60), END])
    task = asyncio.create_task(heard(vendor, Clocks(60, 60, 60, 1)))
    await wait_until(lambda: vendor.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert vendor.cancelled == 1


async def test_a_stream_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.clocks.FLOOR_WINDOW_S", 0.2)
    drops: list[Step] = [Pause(0.02), TextDelta("a")] * 100
    with pytest.raises(TimedOut, match="drips"):
        await played([Opened(), *drops, END], Clocks(5, 5, 60, 100))


async def test_an_answer_that_takes_too_long_as_a_whole_is_given_up() -> None:
    drops: list[Step] = [Pause(0.02), TextDelta("word ")] * 100
    with pytest.raises(TimedOut, match=r"not complete in 0\.2 s"):
        await played([Opened(), *drops, END], Clocks(5, 5, 0.2, 0))


def test_a_pause_that_the_other_clock_allows_is_no_drip() -> None:
    drip = Drip(floor=1.0)
    assert not any(drip.too_slow(40, tenth / 10) for tenth in range(100))
    assert not drip.too_slow(1, 10 + FLOOR_WINDOW_S + 1)  # it thought for sixteen seconds, and goes on


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 40)), max_size=200), st.floats(0.5, 5))
def test_too_slow_is_less_than_the_floor_over_a_whole_window_without_its_longest_pause(
    pieces: list[tuple[float, int]], floor: float
) -> None:
    drip, now, seen = Drip(floor), 0.0, list[tuple[float, int]]()
    for gap, chars in pieces:
        now += gap
        seen.append((now, chars))
        too_slow = drip.too_slow(chars, now)
        start = now - FLOOR_WINDOW_S
        times = [start, *(at for at, _ in seen if at > start)]
        flow_s = FLOOR_WINDOW_S - max(after - before for before, after in pairwise(times))
        late = sum(c for at, c in seen if at > start + 0.3)
        early = sum(c for at, c in seen if at > start - 0.3)
        whole = seen[0][0] <= start
        if whole and flow_s > FLOOR_WINDOW_S / 2 + 0.6 and early / 4 < floor * (flow_s - 0.6):
            assert too_slow
        if not whole or flow_s < FLOOR_WINDOW_S / 2 - 0.6 or late / 4 >= floor * (flow_s + 0.6):
            assert not too_slow


async def empty() -> AsyncGenerator[Event]:
    return
    yield


async def test_a_stream_without_events_ends() -> None:
    assert [event async for event in timed(empty(), Clocks(1, 1, 60, 1))] == []
