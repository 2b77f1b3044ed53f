"""Between a reservation and its call there is nothing to wait for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from processor import admission
from processor.bucket import Denied
from processor.budgets import Budget, HeldUp, Period
from processor.limits import Limits
from processor.spending import Spending
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body


class LateToOpen(ScriptedProvider):
    """Takes its time to be ready, as an SDK that is imported does."""

    opened = False

    async def open(self) -> None:
        await asyncio.sleep(0.3)
        self.opened = True


async def test_a_provider_is_ready_before_room_is_reserved_for_its_first_call(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = LateToOpen(answer())
    reserve, early = Limits.reserve, list[bool]()

    async def seen(limits: Limits, *args: Any, **named: Any) -> Any:
        early.append(not vendor.opened)
        return await reserve(limits, *args, **named)

    monkeypatch.setattr(Limits, "reserve", seen)
    await start({"anthropic": vendor})
    assert (await ask(nc, body()))["response"] == "Hello."
    assert early == [False]


async def test_a_reservation_that_was_long_in_coming_is_given_back_and_made_anew(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "FRESH_S", 0.1)
    reserve, times = Limits.reserve, 0

    async def late_at_first(limits: Limits, *args: Any, **named: Any) -> Any:
        nonlocal times
        times += 1
        reserved = await reserve(limits, *args, **named)
        await asyncio.sleep(0.2 if times == 1 else 0)
        return reserved

    monkeypatch.setattr(Limits, "reserve", late_at_first)
    processor = await start({"anthropic": ScriptedProvider(answer())})
    assert (await ask(nc, body()))["response"] == "Hello."
    assert (times, processor.limits.outstanding) == (2, 0)


async def test_who_waits_for_its_budget_uses_up_no_limit_and_reserves_when_it_may_spend(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    limits, budget = Limits.reserve, Spending.reserve

    async def of_limits(self: Limits, *args: Any, **named: Any) -> Any:
        asked.append("limits")
        return await limits(self, *args, **named)

    async def of_budget(self: Spending, *args: Any) -> Any:
        asked.append("budget")
        return HeldUp(Budget(None, Period.DAY, 5, hard=True)) if len(asked) < 4 else await budget(self, *args)

    monkeypatch.setattr(Limits, "reserve", of_limits)
    monkeypatch.setattr(Spending, "reserve", of_budget)
    await start({"anthropic": ScriptedProvider(answer())})
    assert (await ask(nc, body(fallback=False)))["response"] == "Hello."
    assert asked == ["budget"] * 4 + ["limits"]


async def test_who_may_spend_and_has_no_room_holds_nothing_of_its_budget_meanwhile(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overlay = tmp_path / "catalog.toml"
    overlay.write_text("[budgets]\ndaily_usd = 10\nhard = true\n")
    refusals = 2
    reserve = Limits.reserve

    async def refused_at_first(limits: Limits, *args: Any, **named: Any) -> Any:
        nonlocal refusals
        refusals -= 1
        return Denied(0.05, "", "no room") if refusals >= 0 else await reserve(limits, *args, **named)

    monkeypatch.setattr(Limits, "reserve", refused_at_first)
    processor = await start({"anthropic": ScriptedProvider(answer())}, sidecar_catalog=overlay)
    assert (await ask(nc, body()))["response"] == "Hello."
    assert (refusals < 0, processor.spending.outstanding) == (True, 0)
