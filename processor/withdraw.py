"""Ends requests that nobody works on: cancelled while they are queued, or still queued at their deadline."""

from __future__ import annotations

import asyncio
from typing import Final

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor import subjects
from processor.accept import reply_subject
from processor.audit import AuditLog
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.messages import asks_for_stream
from processor.metrics import Metrics
from processor.queued import ENDED_AS, Queued, find_queued
from processor.replies import Ending, Probes
from processor.tasks import OwnedTasks

GRACE_S: Final = 1.0
"""A worker that has the request is told too, and is faster."""
MAX_DEADLINES: Final = 10_000
"""Asks whose deadline is watched; one more is answered when its turn comes."""
MAX_WATCHED: Final = MAX_DEADLINES + 1_000
"""With those that are cancelled."""

log = structlog.get_logger(__name__)


class Withdrawals:
    """Takes requests out of the queue. All replicas share the cancels; each minds the deadlines of its own asks."""

    def __init__(
        self,
        bus: Bus,
        probes: Probes,
        audit: AuditLog,
        metrics: Metrics,
        *,
        replica: str,
        prefixes: tuple[str, ...],
    ) -> None:
        self._bus = bus
        self._probes = probes
        self._audit = audit
        self._metrics = metrics
        self._replica = replica
        self._prefixes = prefixes
        self._sub: Subscription | None = None
        self._due: dict[str, asyncio.TimerHandle] = {}
        self._ending = OwnedTasks()

    async def start(self) -> None:
        self._sub = await self._bus.nc.subscribe("llm.cancel.*", subjects.QUEUE_GROUP, cb=self._on_cancel)

    async def stop(self) -> None:
        """Watch no more. A request that is still queued is answered when its turn comes."""
        if self._sub is not None:
            await self._bus.leave(self._sub)
        await self.abandon()

    async def abandon(self) -> None:
        """End what still runs, at once."""
        while self._due:
            self._due.popitem()[1].cancel()
        await self._ending.cancel()

    async def _on_cancel(self, msg: Msg) -> None:
        request_id = msg.subject.rpartition(".")[2]
        self.forget(request_id)
        self._later(request_id, GRACE_S, RequestError(ErrorType.CANCELLED, "cancelled by the client"))

    def at_deadline(self, request_id: str, left_s: float) -> None:
        """End the request if it is still queued when its deadline has passed."""
        if len(self._due) < MAX_DEADLINES:
            expired = RequestError(ErrorType.DEADLINE_EXCEEDED, "the deadline passed while it was queued")
            self._later(request_id, left_s + GRACE_S, expired)

    def forget(self, request_id: str) -> None:
        """It has ended."""
        if (timer := self._due.pop(request_id, None)) is not None:
            timer.cancel()

    def _later(self, request_id: str, delay_s: float, why: RequestError) -> None:
        if request_id in self._due or not subjects.is_request_id(request_id):
            return
        if len(self._due) + len(self._ending) < MAX_WATCHED:
            loop = asyncio.get_running_loop()
            self._due[request_id] = loop.call_later(delay_s, self._begin, request_id, why)

    def _begin(self, request_id: str, why: RequestError) -> None:
        del self._due[request_id]
        self._ending.start(self._withdraw(request_id, why))

    async def _withdraw(self, request_id: str, why: RequestError) -> None:
        try:
            if (queued := await find_queued(self._bus, request_id)) is not None:
                await self._end(queued, why)
        except (JetStreamError, JetStreamUnavailable, nats.errors.Error) as error:
            log.warning("not withdrawn; it is answered when its turn comes", id=request_id, error=repr(error))

    async def _end(self, queued: Queued, why: RequestError) -> None:
        if (ending := await queued.end(self._bus, why)) is None:
            return
        self._metrics.withdrew(queued.priority, ENDED_AS[why.type], why.type)
        await queued.take_out(self._bus, self._audit, why, replica=self._replica)
        await self._tell(queued.id, queued.message, ending)

    async def _tell(self, request_id: str, queued: StoredMessage, ending: Ending) -> None:
        try:
            place = reply_subject(request_id, queued.headers, self._prefixes)
        except RequestError:
            return  # a worker would have refused it: there is no place to tell
        streamed = asks_for_stream(queued.body)
        if place == subjects.reply(request_id):
            if streamed:
                await self._bus.publish(place, b"")
        elif place is not None:
            await self._probes.deliver(place, ending, sentinel=streamed)
