"""Deaths of workers are told from hand-backs, however the two are mixed."""

from __future__ import annotations

import nats
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from processor import handbacks
from processor.bus import Bus
from processor.handbacks import HandedBackAt
from tests.conftest import make_settings


@given(st.lists(st.booleans(), max_size=40))
def test_deaths_are_the_deliveries_that_nobody_handed_back(died: list[bool]) -> None:
    note = HandedBackAt()
    for delivery, death in enumerate(died, start=1):
        assert note.deaths_before(delivery) == sum(died[: delivery - 1])
        if not death:
            note = HandedBackAt(delivery, note.deaths_before(delivery))


async def test_hand_backs_are_remembered_by_whoever_comes_next(nc: Client, nats_url: str) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")

    async def deaths_before(delivery: int) -> int:
        return (await handbacks.noted(bus, "job-1", delivery)).deaths_before(delivery)

    assert [await deaths_before(1), await deaths_before(3)] == [0, 2]
    await handbacks.note(bus, "job-1", 3)
    assert [await deaths_before(4), await deaths_before(5)] == [2, 3]
    await handbacks.note(bus, "job-1", 5, owner_lives=True)  # the owner of delivery 4, not this one
    assert [await deaths_before(6), await deaths_before(7)] == [2, 3]
    await bus.close()


async def test_a_note_that_cannot_be_written_is_no_error(nats_url: str) -> None:
    bus = Bus()
    bus.nc = await nats.connect(nats_url)
    await bus.nc.close()
    await handbacks.note(bus, "job-1", 1)
