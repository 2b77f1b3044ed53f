"""The audit log: every step of a request as a versioned event in `LLM_AUDIT`, written once however often it is told."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal

import nats.errors
import structlog
from pydantic import BaseModel, ConfigDict, Field

from processor import jetstream, subjects
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.messages import Request
from processor.reply_bodies import Usd
from processor.router import Route
from processor.subjects import AuditEvent, Priority
from processor.tasks import OwnedTasks
from processor.traits import Traits

WRITE_TIMEOUT_S = 20.0
"""Longer than the election of a leader takes."""
DRAIN_S = 5.0
MAX_UNWRITTEN = 1_000
"""Events waiting for their PubAck beside their requests; beyond it one is dropped, counted and logged."""

log = structlog.get_logger(__name__)


class AuditRecord(BaseModel):
    """What all events have. `at` is UTC; `delivery` counts the server's deliveries of the request."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    v: Literal[1] = 1
    id: str
    at: datetime
    replica: str
    priority: Priority
    tenant: str
    delivery: int


class Received(AuditRecord):
    """A worker took the request up. The text itself is not kept, only its size and fingerprint."""

    event: Literal[AuditEvent.RECEIVED] = AuditEvent.RECEIVED
    model: str | None = None
    task_type: str | None = None
    stream: bool
    messages: int
    body_bytes: int
    body_sha256: str
    metadata: dict[str, str]

    @classmethod
    def of(cls, request: Request, body: bytes, **common: Any) -> Received:
        return cls(
            model=request.model,
            task_type=request.task_type,
            stream=request.stream,
            messages=len(request.messages),
            body_bytes=len(body),
            body_sha256=hashlib.sha256(body).hexdigest(),
            metadata=request.metadata,
            **common,
        )


class RoutedModel(BaseModel):
    """A model that might have been called, with its score, or was refused, without one."""

    model_config = ConfigDict(frozen=True)

    model: str
    provider: str
    reason: str
    score: float | None = None


class Routed(AuditRecord):
    """Which models might answer, best first, and why: enough to route the request again, without its text."""

    event: Literal[AuditEvent.ROUTED] = AuditEvent.ROUTED
    traits: Traits
    rule: str
    model_class: str
    candidates: tuple[RoutedModel, ...]
    refusals: tuple[RoutedModel, ...]

    @classmethod
    def of(cls, route: Route, **common: Any) -> Routed:
        return cls(
            traits=route.traits,
            rule=route.rule,
            model_class=route.model_class,
            candidates=tuple(
                RoutedModel(model=c.name, provider=c.model.provider, reason=c.reason, score=c.score)
                for c in route.candidates
            ),
            refusals=tuple(RoutedModel(model=r.model, provider=r.provider, reason=r.reason) for r in route.refusals),
            **common,
        )


class AuditUsage(BaseModel):
    """Tokens in disjoint parts, and the vendor's own figures."""

    model_config = ConfigDict(frozen=True)

    input_fresh: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    tool_input: int
    output_visible: int
    output_thinking: int
    raw: dict[str, Any]


class AuditError(BaseModel):
    model_config = ConfigDict(frozen=True)

    kind: str
    message: str
    status: int | None = None
    retry_after_s: float | None = None


class Attempt(AuditRecord):
    """One call to a vendor, complete or not: what it used and what it cost."""

    event: Literal[AuditEvent.ATTEMPT] = AuditEvent.ATTEMPT
    attempt: int
    model: str
    provider: str
    served_by: str | None = None
    vendor_request_id: str | None = None
    started: datetime
    duration_ms: float
    first_token_ms: float | None = None
    finish_reason: str | None = None
    usage: AuditUsage
    cost_usd: Usd
    cost_estimated: bool
    error: AuditError | None = None


class Ended(AuditRecord):
    """The one terminal event: completed, failed, cancelled, expired or dead."""

    event: Literal[AuditEvent.COMPLETED, AuditEvent.FAILED, AuditEvent.CANCELLED, AuditEvent.EXPIRED, AuditEvent.DEAD]
    attempts: int
    model: str | None = None
    provider: str | None = None
    finish_reason: str | None = None
    cost_usd: Usd | None = None
    error: AuditError | None = None


Entry = Received | Routed | Attempt | Ended
AuditEntry = Annotated[Entry, Field(discriminator="event")]


def message_id(entry: Entry) -> str:
    """One per request and step: a redelivery writes nothing twice, and a request has one terminal event."""
    match entry:
        case Received():
            return f"{entry.id}:received"
        case Routed():
            return f"{entry.id}:routed"
        case Attempt():
            return f"{entry.id}:attempt:{entry.attempt}"
        case Ended():
            return f"{entry.id}:ended"


class AuditLog:
    """Writes events, sent in the order they were told. `write` waits for the PubAck, `write_soon` does not."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._writing = OwnedTasks()
        self.lost = 0

    async def write(self, entry: Entry) -> None:
        """Keep `entry`. A failure is counted and logged, and does not fail the request."""
        body = entry.model_dump_json(exclude_none=True).encode()
        subject = subjects.audit(entry.event, entry.id)
        try:
            headers = {"Nats-Msg-Id": message_id(entry)}
            await jetstream.publish(self._bus, subject, body, headers, timeout_s=WRITE_TIMEOUT_S)
        except (JetStreamUnavailable, JetStreamError, MessageTooLarge, nats.errors.Error) as error:
            self._lose(entry, str(error))

    async def write_within(self, entry: Entry, wait_s: float) -> None:
        """Keep `entry`, waiting at most `wait_s` for that; the writing goes on."""
        await asyncio.wait({self._writing.start(self.write(entry))}, timeout=wait_s)

    def write_soon(self, entry: Entry) -> None:
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

    def _lose(self, entry: Entry, why: str) -> None:
        self.lost += 1
        log.error("audit event lost", id=entry.id, audit_event=str(entry.event), why=why, lost=self.lost)


async def last_attempt(bus: Bus, request_id: str) -> int:
    """The number of the last attempt that an earlier delivery recorded, or 0."""
    subject = subjects.audit(AuditEvent.ATTEMPT, request_id)
    message = await jetstream.last_message(bus.nc, subjects.AUDIT, subject)
    return Attempt.model_validate_json(message.body).attempt if message else 0
