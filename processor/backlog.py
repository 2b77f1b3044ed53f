"""How long each lane is and how fast it drains, looked at once a second: what the ingress refuses by."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from processor import jetstream, subjects
from processor.backpressure import Drain, LaneLoad, Refusal, refusal
from processor.bus import Bus
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.subjects import Priority

LOOK_EVERY_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Lane:
    queued: int = 0
    """At the last look, and those that were let in since."""
    drain: Drain = field(default_factory=Drain)


class Backlog:
    """The queue as this replica last saw it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lanes = {priority: _Lane() for priority in Priority}
        self._held = 0
        self._capacity = 0

    async def watch(self) -> None:
        """Look, for ever."""
        while True:
            try:
                await self._look()
            except (JetStreamError, JetStreamUnavailable) as error:
                log.warning("queue not seen", error=str(error))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        stream = await jetstream.call(self._bus.nc, f"STREAM.INFO.{subjects.REQUESTS}")
        config, state = stream["config"], stream["state"]
        self._capacity = config["max_msgs"]
        # Bounded by messages and by bytes: whichever is nearer to its bound counts, as messages.
        self._held = max(state["messages"], state["bytes"] * self._capacity // config["max_bytes"])
        for priority, lane in self._lanes.items():
            info = await jetstream.call(self._bus.nc, f"CONSUMER.INFO.{subjects.REQUESTS}.{priority}")
            lane.queued = info["num_pending"]
            lane.drain = lane.drain.seen(info["delivered"]["consumer_seq"], lane.queued, time.monotonic())

    def refusal(self, priority: Priority, deadline_s: float | None) -> Refusal | None:
        """Why one more request of that lane is not taken in, or None if it is."""
        if not self._capacity:
            return None
        loads = {p: LaneLoad(lane.queued, lane.drain.per_s) for p, lane in self._lanes.items()}
        return refusal(priority, loads, held=self._held, capacity=self._capacity, deadline_s=deadline_s)

    def let_in(self, priority: Priority) -> None:
        self._lanes[priority].queued += 1
        self._held += 1
