"""The clocks of a call: silence and dripping end it, a vendor that only keeps alive does too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

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
    assert await played(steps, Clocks(5, 5, 0)) == [s for s in steps if not isinstance(s, Pause)]


async def test_a_vendor_that_is_silent_before_its_first_token_is_given_up_and_its_stream_closed() -> None:
    vendor = ScriptedProvider([Opened(), Pause(60), END])
    with pytest.raises(TimedOut, match="before its first token"):
        await heard(vendor, Clocks(0.02, 60, 0))
    assert vendor.cancelled == 1


async def test_a_vendor_that_is_silent_between_two_tokens_is_given_up() -> None:
    with pytest.raises(TimedOut, match="between two tokens"):
        await played([Opened(), TextDelta("a"), Pause(60), END], Clocks(60, 0.02, 0))


async def test_what_is_no_token_does_not_set_the_clock_back() -> None:
    alive: list[Step] = [Pause(0.01), UsageSeen(Usage())] * 50
    with pytest.raises(TimedOut, match="before its first token"):
        await played([Opened(), *alive, END], Clocks(0.1, 60, 0))


async def test_a_cancelled_call_is_closed_and_no_timeout() -> None:
    vendor = ScriptedProvider([Opened(), Pause(60), END])
    task = asyncio.create_task(heard(vendor, Clocks(60, 60, 1)))
    await wait_until(lambda: vendor.calls)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert vendor.cancelled == 1


async def test_a_stream_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.clocks.FLOOR_WINDOW_S", 0.2)
    drops: list[Step] = [Pause(0.02), TextDelta("a")] * 100
    with pytest.raises(TimedOut, match="drips"):
        await played([Opened(), *drops, END], Clocks(5, 5, 100))


@given(st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 40)), max_size=200), st.floats(0.5, 5))
def test_too_slow_is_less_than_the_floor_over_a_whole_window(pieces: list[tuple[float, int]], floor: float) -> None:
    drip, now, seen = Drip(floor), 0.0, list[tuple[float, int]]()
    for gap, chars in pieces:
        now += gap
        seen.append((now, chars))
        too_slow = drip.too_slow(chars, now)
        late = sum(c for at, c in seen if at > now - FLOOR_WINDOW_S * 0.98)
        early = sum(c for at, c in seen if at > now - FLOOR_WINDOW_S * 1.02)
        if early / 4 < floor * FLOOR_WINDOW_S and seen[0][0] <= now - FLOOR_WINDOW_S * 1.02:
            assert too_slow
        if late / 4 >= floor * FLOOR_WINDOW_S or seen[0][0] > now - FLOOR_WINDOW_S:
            assert not too_slow


async def empty() -> AsyncGenerator[Event]:
    return
    yield


async def test_a_stream_without_events_ends() -> None:
    assert [event async for event in timed(empty(), Clocks(1, 1, 1))] == []
