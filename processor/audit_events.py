"""The events of the audit log: every step of a request, versioned. Pure."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from processor.messages import Request
from processor.reply_bodies import Usd
from processor.router import Route
from processor.subjects import AuditEvent, Priority
from processor.traits import Traits


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

    @property
    def input_tokens(self) -> int:
        return self.input_fresh + self.cache_read + self.cache_write_5m + self.cache_write_1h + self.tool_input

    @property
    def output_tokens(self) -> int:
        return self.output_visible + self.output_thinking


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
    """What the request was told: an alias, or the name that was asked for."""
    alias: str | None = None
    """The catalog's name of the model that was called."""
    provider: str
    served_by: str | None = None
    task_type: str | None = None
    vendor_request_id: str | None = None
    started: datetime
    duration_ms: float
    first_token_ms: float | None = None
    finish_reason: str | None = None
    usage: AuditUsage
    cost_usd: Usd
    cost_estimated: bool
    hold: str | None = None
    """What a hard budget held for it."""
    error: AuditError | None = None


class Ended(AuditRecord):
    """The one terminal event: completed, failed, cancelled, expired or dead."""

    event: Literal[AuditEvent.COMPLETED, AuditEvent.FAILED, AuditEvent.CANCELLED, AuditEvent.EXPIRED, AuditEvent.DEAD]
    attempts: int
    model: str | None = None
    provider: str | None = None
    finish_reason: str | None = None
    cost_usd: Usd | None = None
    cached: bool = False
    coalesced: bool = False
    saved_usd: Usd | None = None
    error: AuditError | None = None


AuditEntry = Annotated[Received | Routed | Attempt | Ended, Field(discriminator="event")]


_ENTRY: TypeAdapter[AuditEntry] = TypeAdapter(AuditEntry)


def decode_event(body: bytes) -> AuditEntry:
    """The event that was written. Raises ValidationError for one of a version that is not ours."""
    return _ENTRY.validate_json(body)


def message_id(entry: AuditEntry) -> str:
    """One per request and step: a redelivery writes nothing twice, and a request has one terminal event.

    An attempt has one per call: two deliveries may give theirs the same number, and each has cost what it cost.
    """
    match entry:
        case Received():
            return f"{entry.id}:received"
        case Routed():
            return f"{entry.id}:routed"
        case Attempt():
            return f"{entry.id}:attempt:{entry.attempt}:{entry.replica}:{entry.started:%Y%m%dT%H%M%S.%f}"
        case Ended():
            return f"{entry.id}:ended"
