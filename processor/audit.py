"""The audit log: every step of a request as a versioned event in `LLM_AUDIT`, written once however often it is told."""

from __future__ import annotations

import asyncio

import nats.errors
import structlog

from processor import jetstream, subjects
from processor.audit_events import Attempt, AuditEntry, message_id
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.subjects import AuditEvent
from processor.tasks import OwnedTasks

WRITE_TIMEOUT_S = 20.0
"""Longer than the election of a leader takes."""
DRAIN_S = 5.0
MAX_UNWRITTEN = 1_000
"""Events waiting for their PubAck beside their requests; beyond it one is dropped, counted and logged."""

log = structlog.get_logger(__name__)


class AuditLog:
    """Writes events, sent in the order they were told. `write` waits for the PubAck, `write_soon` does not."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._writing = OwnedTasks()
        self.lost = 0

    async def write(self, entry: AuditEntry) -> None:
        """Keep `entry`. A failure is counted and logged, and does not fail the request."""
        body = entry.model_dump_json(exclude_none=True).encode()
        subject = subjects.audit(entry.event, entry.id)
        try:
            headers = {"Nats-Msg-Id": message_id(entry)}
            await jetstream.publish(self._bus, subject, body, headers, timeout_s=WRITE_TIMEOUT_S)
        except (JetStreamUnavailable, JetStreamError, MessageTooLarge, nats.errors.Error) as error:
            self._lose(entry, str(error))

    async def write_within(self, entry: AuditEntry, wait_s: float) -> None:
        """Keep `entry`, waiting at most `wait_s` for that; the writing goes on."""
        await asyncio.wait({self._writing.start(self.write(entry))}, timeout=wait_s)

    def write_soon(self, entry: AuditEntry) -> None:
        if len(self._writing) < MAX_UNWRITTEN:
            self._writing.start(self.write(entry))
        else:
            self._lose(entry, "too many are being written")

    async def drain(self) -> None:
        """Wait until everything given to `write_soon` is written, for at most `DRAIN_S`."""
        await self._writing.join(DRAIN_S)

    async def abandon(self) -> None:
        """End what still runs, at once."""
        await self._writing.cancel()

    def _lose(self, entry: AuditEntry, why: str) -> None:
        self.lost += 1
        log.error("audit event lost", id=entry.id, audit_event=str(entry.event), why=why, lost=self.lost)


async def last_attempt(bus: Bus, request_id: str) -> int:
    """The number of the last attempt that an earlier delivery recorded, or 0."""
    subject = subjects.audit(AuditEvent.ATTEMPT, request_id)
    message = await jetstream.last_message(bus.nc, subjects.AUDIT, subject)
    return Attempt.model_validate_json(message.body).attempt if message else 0
