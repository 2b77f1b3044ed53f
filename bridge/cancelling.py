"""A request stopped wherever it is: by the sidecars, and in the queue while none of them runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import nats.errors

from bridge.line import BrokerAway, Line
from processor import subjects
from processor.audit import AuditLog
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.messages import asks_for_stream
from processor.queued import Queued, find_queued
from processor.replies import Ending, Replies

BACK_WITHIN_S = 2.0
"""How long a sidecar may take to find the broker again, after this bridge has."""
_NAME = "bridge"
"""Who has ended it, in the audit log."""
_WHY = RequestError(ErrorType.CANCELLED, "cancelled by the client")


async def cancel(line: Line, request_id: str) -> None:
    """Stop a request wherever it is; one that has ended stays as it is.

    The sidecars do it. Where none runs to hear of it, the next one would answer the request all the same: so it is
    taken out of the queue here, as they do it.

    Raises:
        BrokerAway: it goes on, or nobody knows.
    """
    if await _is_heard(line, subjects.cancel(request_id)):
        return
    bus = line.bus
    try:
        if (queued := await find_queued(bus, request_id)) is None:
            return
        if (ending := await queued.end(bus, _WHY)) is not None:
            await queued.take_out(bus, AuditLog(bus), _WHY, replica=_NAME)
            await _tell_who_asked(bus, queued, ending)
    except (JetStreamError, JetStreamUnavailable, nats.errors.Error, OSError):
        raise BrokerAway from None


async def _is_heard(line: Line, subject: str) -> bool:
    if await line.tell(subject):
        return True
    back = line.bus.reconnected_at
    if back is None or (datetime.now(UTC) - back).total_seconds() > BACK_WITHIN_S:
        return False
    await asyncio.sleep(BACK_WITHIN_S)
    return await line.tell(subject)


async def _tell_who_asked(bus: Bus, queued: Queued, ending: Ending) -> None:
    """Who listens on an inbox is told here; who reads the stream finds the ending there."""
    place, streamed = queued.message.headers.get("Reply-To", ""), asks_for_stream(queued.message.body)
    if subjects.is_inbox(place):
        await bus.publish(place, ending.body, ending.headers)
        if streamed:
            await bus.publish(place, b"")
    elif streamed:
        await Replies(bus).end_stream(queued.id)
