"""Ended requests as a list shows them, gathered out of audit events that come newest first. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from processor.audit_events import Ended, decode_event
from processor.subjects import AuditEvent

TERMINAL: Final = frozenset(
    {AuditEvent.COMPLETED, AuditEvent.FAILED, AuditEvent.CANCELLED, AuditEvent.EXPIRED, AuditEvent.DEAD}
)


@dataclass(frozen=True, slots=True)
class Row:
    """One ended request. `seq` is the number of its terminal event in the log."""

    seq: int
    ended: Ended
    received_at: datetime | None = None
    """When a worker took it up; None where none did, or the log no longer has it."""

    def document(self) -> dict[str, Any]:
        """For JSON: dollars as numbers, `took_ms` from a worker's beginning to the end."""
        ended = self.ended
        took = None if self.received_at is None else (ended.at - self.received_at).total_seconds() * 1000
        return {
            "id": ended.id,
            "ended_at": ended.at,
            "outcome": ended.event,
            "priority": ended.priority,
            "tenant": ended.tenant,
            "model": ended.model,
            "provider": ended.provider,
            "attempts": ended.attempts,
            "finish_reason": ended.finish_reason,
            "cost_usd": None if ended.cost_usd is None else float(ended.cost_usd),
            "cached": ended.cached,
            "coalesced": ended.coalesced,
            "took_ms": took,
            "error": None if ended.error is None else {"kind": ended.error.kind, "message": ended.error.message},
        }


@dataclass(slots=True)
class Gathering:
    """Takes the events of the log one by one, the newest first, and keeps the rows that are wanted."""

    search: str
    """Words that all have to be in a row somewhere; case does not matter."""
    limit: int
    may_see: Callable[[str], bool]
    """Whether the rows of a tenant are the caller's business."""
    rows: list[Row] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= self.limit

    def take(self, subject: str, seq: int, body: bytes) -> None:
        """Look at one event of the log. What is of a version that is not ours is passed over."""
        if self.is_full or subject.split(".")[2] not in TERMINAL:
            return
        try:
            ended = decode_event(body)
        except ValidationError:
            return
        if isinstance(ended, Ended) and self.may_see(ended.tenant) and _has_all(ended, self.search):
            self.rows.append(Row(seq, ended))

    def timed(self, received: dict[str, datetime]) -> list[Row]:
        """The rows, with the moments at which workers took them up, by id."""
        return [replace(row, received_at=received.get(row.ended.id)) for row in self.rows]


def _has_all(ended: Ended, search: str) -> bool:
    words = search.lower().split()
    if not words:
        return True
    error = (ended.error.kind, ended.error.message) if ended.error else ()
    said = (ended.id, ended.tenant, ended.priority, ended.event, ended.model, ended.provider, ended.finish_reason)
    kinds = ("cached" if ended.cached else None, "coalesced" if ended.coalesced else None)
    text = "\n".join(part.lower() for part in (*said, *kinds, *error) if part)
    return all(word in text for word in words)
