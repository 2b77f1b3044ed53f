"""Where a request stands, from what NATS keeps of it: its ending, its audit trail, its place in the queue."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import orjson

from bridge.line import BrokerAway, Line
from processor import jetstream, subjects
from processor.errors import ErrorType
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.messages import tenant_of
from processor.nats_client import Client
from processor.replies import Ending, Replies
from processor.reply_bodies import ReplyEvent
from processor.subjects import AuditEvent

_MAX_EVENTS = 16


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ENDINGS = {
    AuditEvent.COMPLETED: State.COMPLETED,
    AuditEvent.FAILED: State.FAILED,
    AuditEvent.CANCELLED: State.CANCELLED,
    AuditEvent.EXPIRED: State.EXPIRED,
    AuditEvent.DEAD: State.FAILED,
}


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a request stands. `ending` is kept for a day, the rest for as long as the audit log."""

    state: State
    tenant: str | None
    """None: only its ending is known, and not whose it is."""
    priority: str | None
    received_at: datetime | None
    ending: Ending | None

    @property
    def has_ended(self) -> bool:
        """Also where its ending is no longer kept."""
        return self.state not in {State.QUEUED, State.RUNNING}


async def standing(line: Line, request_id: str) -> Standing | None:
    """Where it stands, or None for one that nobody has heard of.

    Raises:
        RequestError: `unavailable`, where the broker is away or does not answer.
    """
    bus = line.bus
    if not bus.is_connected:
        raise BrokerAway
    try:
        ending, queued, events = await asyncio.gather(
            Replies(bus).ending(request_id), _queued(bus.nc, request_id), _events(bus.nc, request_id)
        )
        if ending is None and queued is None:  # it may have ended between the looks: the ending is stored before
            ending = await Replies(bus).ending(request_id)
    except (JetStreamUnavailable, JetStreamError):
        raise BrokerAway from None
    return _standing(ending, queued, events)


async def _queued(nc: Client, request_id: str) -> StoredMessage | None:
    query = {"next_by_subj": f"llm.request.*.{request_id}", "seq": 1, "batch": 1}
    found, _ = await jetstream.batch(nc, subjects.REQUESTS, query, timeout_s=2.0)
    return found[0] if found else None


async def _events(nc: Client, request_id: str) -> dict[AuditEvent, StoredMessage]:
    """The newest audit event of each kind."""
    query = {"multi_last": [f"llm.audit.*.{request_id}"], "batch": _MAX_EVENTS}
    found, _ = await jetstream.batch(nc, subjects.AUDIT, query, timeout_s=2.0)
    return {AuditEvent(message.subject.split(".")[2]): message for message in found}


def _standing(
    ending: Ending | None, queued: StoredMessage | None, events: dict[AuditEvent, StoredMessage]
) -> Standing | None:
    if ending is None and queued is None and not events:
        return None
    said = orjson.loads(min(events.values(), key=lambda m: m.seq).body) if events else {}
    tenant, priority, since = said.get("tenant"), said.get("priority"), None
    if queued is not None:
        tenant = tenant or tenant_of(queued.body)
        priority = priority or queued.subject.split(".")[2]
        since = queued.time
    if AuditEvent.RECEIVED in events:
        since = since or events[AuditEvent.RECEIVED].time
    return Standing(_state(ending, queued, events), tenant, priority, since, ending)


def _state(ending: Ending | None, queued: StoredMessage | None, events: dict[AuditEvent, StoredMessage]) -> State:
    if ending is not None:
        return ended_as(ending)
    if (ended := next((state for event, state in ENDINGS.items() if event in events), None)) is not None:
        return ended
    return State.QUEUED if queued is not None and not events else State.RUNNING


def ended_as(ending: Ending) -> State:
    """How a request ended."""
    if ending.event is ReplyEvent.FINAL:
        return State.COMPLETED
    kind = orjson.loads(ending.body)["error"]["type"]
    return {ErrorType.CANCELLED: State.CANCELLED, ErrorType.DEADLINE_EXCEEDED: State.EXPIRED}.get(kind, State.FAILED)
