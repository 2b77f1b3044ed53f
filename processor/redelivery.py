"""Whether a delivery is the first: a request that was delivered again may have ended, or be in work elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Container
from datetime import UTC, datetime

import nats.errors
from nats.aio.msg import Msg

from processor import handbacks, subjects
from processor.accept import FRESH_HEADER
from processor.bus import Bus
from processor.handbacks import Life
from processor.lanes import Delivery
from processor.replies import Ending, Replies

YOUNG_S = 1.0
"""A first delivery within this time of its acceptance is the first: no election of a leader is so fast."""
AMNESIA_S = 30.0
"""For how long after a start or a reconnection what was accepted before it may come a second time."""
BACK_WITHIN_S = 2.0
"""How long another replica may take to find the broker, after this one has. Until then its silence says nothing."""
ANSWERS_WITHIN_S = 0.25


class Redelivery:
    """Asks `LLM_REPLIES` and the other replicas. `running` has the ids that this one is at work on."""

    def __init__(self, bus: Bus, replies: Replies, replica: str, running: Container[str]) -> None:
        self._bus = bus
        self._replies = replies
        self._replica = replica
        self._running = running
        self._started_at = datetime.now(UTC)

    async def on_asked(self, msg: Msg) -> None:
        """A replica asks on `llm.running.<id>`, naming itself, whether another one is at work on the request."""
        asked_by_another = subjects.is_inbox(msg.reply) and msg.data.decode(errors="replace") != self._replica
        if asked_by_another and msg.subject.rpartition(".")[2] in self._running:
            await self._bus.publish(msg.reply, self._replica.encode())

    async def history(self, delivery: Delivery) -> Ending | Life | None:
        """How the request ended before, or what is known of its life; None: another replica is at work on it now.

        Raises:
            JetStreamUnavailable: the broker does not answer.
        """
        if (ending := await self._earlier_ending(delivery)) is not None:
            return ending
        life = await handbacks.read(self._bus, delivery.request_id, delivery.count)
        if not (life.at_work or self._may_be_forgotten(delivery)):
            return life
        if await self._runs_elsewhere(delivery.request_id):
            return None
        # It may have ended just before the others were asked.
        return await self._earlier_ending(delivery) or life

    def _may_be_forgotten(self, delivery: Delivery) -> bool:
        """Whether a broker that was killed may have delivered it before, and forgotten that."""
        return delivery.accepted < self._back and _age_s(self._back) < AMNESIA_S

    async def _runs_elsewhere(self, request_id: str) -> bool:
        """Whether another replica says that it is at work on it."""
        question = subjects.running(request_id), self._replica.encode()
        while True:
            all_are_back = self._bus.reconnected_at is None or _age_s(self._bus.reconnected_at) > BACK_WITHIN_S
            with contextlib.suppress(nats.errors.TimeoutError, nats.errors.NoRespondersError):
                await self._bus.nc.request(*question, timeout=ANSWERS_WITHIN_S)
                return True
            if all_are_back:
                return False

    async def _earlier_ending(self, delivery: Delivery) -> Ending | None:
        """How the request has ended before, looked for unless it is certain that nobody has had it yet.

        A broker that was killed may have forgotten what it delivered: then a second delivery looks like the first.
        """
        young = _age_s(delivery.accepted) < YOUNG_S and self._back < delivery.accepted
        if delivery.count == 1 and young and FRESH_HEADER in delivery.headers:
            return None
        return await self._replies.ending(delivery.request_id)

    @property
    def _back(self) -> datetime:
        """When the broker was last found: it may have been killed just before."""
        return self._bus.reconnected_at or self._started_at


def _age_s(then: datetime) -> float:
    return (datetime.now(UTC) - then).total_seconds()
