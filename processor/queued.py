"""A request that waits in the queue: found there, and taken out of it unserved."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from processor import jetstream, subjects
from processor.audit import AuditLog
from processor.audit_events import AuditError, Ended
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import StoredMessage
from processor.messages import tenant_of
from processor.replies import Ending, Replies
from processor.subjects import AuditEvent, Priority

ENDED_AS = {ErrorType.CANCELLED: AuditEvent.CANCELLED, ErrorType.DEADLINE_EXCEEDED: AuditEvent.EXPIRED}


@dataclass(frozen=True, slots=True)
class Queued:
    """A request that has no ending, as its lane holds it."""

    id: str
    priority: Priority
    message: StoredMessage

    async def end(self, bus: Bus, why: RequestError) -> Ending | None:
        """Store its ending, as a worker does it first; None: somebody was faster, and does the rest."""
        ending = Ending.refusal(self.id, why)
        return ending if await Replies(bus).store(self.id, ending) else None

    async def take_out(self, bus: Bus, audit: AuditLog, why: RequestError, *, replica: str) -> None:
        """What comes after the ending, but for telling the client.

        Raises:
            JetStreamError, JetStreamUnavailable: it stays queued; whoever takes it up finds its ending.
        """
        place = subjects.enqueue(self.priority, self.id)
        await jetstream.call(bus.nc, f"STREAM.PURGE.{subjects.REQUESTS}", {"filter": place})
        await audit.write(
            Ended(
                id=self.id,
                at=datetime.now(UTC),
                replica=replica,
                priority=self.priority,
                tenant=tenant_of(self.message.body),
                delivery=0,
                event=ENDED_AS[why.type],
                attempts=0,
                error=AuditError(kind=why.type, message=why.message),
            )
        )


async def find_queued(bus: Bus, request_id: str) -> Queued | None:
    """The request, if it is queued (also while it is at work) and has no ending.

    Raises:
        JetStreamUnavailable: the streams do not answer.
    """
    if await Replies(bus).ending(request_id) is not None:
        return None
    for priority in Priority:
        place = subjects.enqueue(priority, request_id)
        if (message := await jetstream.last_message(bus.nc, subjects.REQUESTS, place)) is not None:
            return Queued(request_id, priority, message)
    return None
