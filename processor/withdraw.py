"""Ends requests that nobody works on: cancelled while they are queued, or still queued at their deadline."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Final

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor import jetstream, subjects
from processor.accept import reply_subject
from processor.audit import AuditLog
from processor.audit_events import AuditError, Ended
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.messages import asks_for_stream, tenant_of
from processor.metrics import Metrics
from processor.replies import Ending, Probes, Replies
from processor.subjects import AuditEvent, Priority
from processor.tasks import OwnedTasks

GRACE_S: Final = 1.0
"""A worker that has the request is told too, and is faster."""
MAX_DEADLINES: Final = 10_000
"""Asks whose deadline is watched; one more is answered when its turn comes."""
MAX_WATCHED: Final = MAX_DEADLINES + 1_000
"""With those that are cancelled."""
_EVENTS: Final = {ErrorType.CANCELLED: AuditEvent.CANCELLED, ErrorType.DEADLINE_EXCEEDED: AuditEvent.EXPIRED}

log = structlog.get_logger(__name__)


class Withdrawals:
    """Takes requests out of the queue. All replicas share the cancels; each minds the deadlines of its own asks."""

    def __init__(
        self,
        bus: Bus,
        replies: Replies,
        probes: Probes,
        audit: AuditLog,
        metrics: Metrics,
        *,
        replica: str,
        prefixes: tuple[str, ...],
    ) -> None:
        self._bus = bus
        self._replies = replies
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
            if await self._replies.ending(request_id) is None:
                for priority in Priority:
                    subject = subjects.enqueue(priority, request_id)
                    queued = await jetstream.last_message(self._bus.nc, subjects.REQUESTS, subject)
                    if queued is not None:
                        await self._end(request_id, priority, queued, why)
        except (JetStreamError, JetStreamUnavailable, nats.errors.Error) as error:
            log.warning("not withdrawn; it is answered when its turn comes", id=request_id, error=repr(error))

    async def _end(self, request_id: str, priority: Priority, queued: StoredMessage, why: RequestError) -> None:
        """As a worker ends it: the ending is stored first, then the rest."""
        ending = Ending.refusal(request_id, why)
        if not await self._replies.store(request_id, ending):
            return  # somebody was faster, and does the rest
        self._metrics.withdrew(priority, _EVENTS[why.type], why.type)
        await jetstream.call(
            self._bus.nc, f"STREAM.PURGE.{subjects.REQUESTS}", {"filter": subjects.enqueue(priority, request_id)}
        )
        await self._audit.write(
            Ended(
                id=request_id,
                at=datetime.now(UTC),
                replica=self._replica,
                priority=priority,
                tenant=tenant_of(queued.body),
                delivery=0,
                event=_EVENTS[why.type],
                attempts=0,
                error=AuditError(kind=why.type, message=why.message),
            )
        )
        await self._tell(request_id, queued, ending)

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
