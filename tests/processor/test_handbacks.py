"""Deaths of workers are told from hand-backs and from what nobody had begun, however these are mixed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from processor import handbacks
from processor.bus import Bus
from processor.handbacks import Life
from processor.lanes import Delivery
from processor.subjects import Priority
from tests.conftest import make_settings

Fate = Literal["dies", "is handed back", "is handed back unbegun", "dies unbegun"]
FATES: list[Fate] = ["dies", "is handed back", "is handed back unbegun", "dies unbegun"]


class Notes:
    """Stands for the state stream: what was last noted."""

    def __init__(self) -> None:
        self.last: Life | None = None

    def read(self, delivery: int) -> Life:
        return Life() if delivery == 1 else self.last or Life(at_work=True)


@given(st.lists(st.sampled_from(FATES), max_size=40))
def test_deaths_are_the_deliveries_that_were_begun_and_never_handed_back(fates: list[Fate]) -> None:
    notes, deaths = Notes(), 0
    for delivery, fate in enumerate(fates, start=1):
        life = notes.read(delivery)
        first_died = bool(fates) and fates[0] in {"dies", "dies unbegun"}  # of a first delivery nobody knows better
        assert life.deaths_if_it_is_dead == deaths + (first_died and delivery > 1)
        begun = fate in {"dies", "is handed back"}
        if begun and delivery > 1:
            notes.last = Life(life.deaths_if_it_is_dead, at_work=True)
        if fate == "is handed back" or (fate == "is handed back unbegun" and delivery == 1):
            notes.last = Life(life.deaths_if_it_is_dead)
        deaths += fate == "dies" and delivery > 1


@pytest.fixture
async def bus(nc: Client, nats_url: str) -> Bus:
    bus = Bus()
    bus.nc = nc  # type: ignore[assignment]  # nats-py's own will do
    return bus


def delivered(bus: Bus, count: int) -> Delivery:
    made = Delivery(bus, Priority.LOW, "job-1", b"", {}, "nobody", count, datetime.now(UTC), held=set())
    made.held.add(made)
    return made


async def test_what_one_worker_noted_the_next_one_reads(bus: Bus) -> None:
    assert await handbacks.read(bus, "job-1", 1) == Life()
    assert await handbacks.read(bus, "job-1", 2) == Life(at_work=True)
    second = delivered(bus, 2)
    await second.begin(1)
    assert await handbacks.read(bus, "job-1", 3) == Life(1, at_work=True)
    await second.hand_back()
    assert await handbacks.read(bus, "job-1", 3) == Life(1)


async def test_what_was_only_buffered_changes_nothing_that_is_known(bus: Bus) -> None:
    await delivered(bus, 2).begin(1)
    await delivered(bus, 3).hand_back()
    assert await handbacks.read(bus, "job-1", 4) == Life(1, at_work=True)


async def test_a_first_delivery_that_was_only_buffered_is_no_death(bus: Bus) -> None:
    await delivered(bus, 1).hand_back()
    assert await handbacks.read(bus, "job-1", 2) == Life()


async def test_a_note_that_cannot_be_written_is_no_error(nats_url: str) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    await bus.close()
    await handbacks.write(bus, "job-1", 1, Life())
