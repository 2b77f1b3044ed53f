"""The audit log read in its order, batch by batch, up to what it held when the reading began."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from nats.aio.client import Client
from pydantic import ValidationError

from processor import jetstream, subjects
from processor.audit_events import AuditEntry, decode_event
from processor.jetstream import StoredMessage

_ALL: Final = "llm.audit.*.*"
_ATTEMPTS: Final = "llm.audit.attempt.*"
_BATCH: Final = {"batch": 500, "max_bytes": 4 * 1024 * 1024}


@dataclass(slots=True)
class Progress:
    """How far a reading has come, in events."""

    total: int = 0
    read: int = 0
    unreadable: int = 0
    """Events of a version that is not ours."""


async def read(nc: Client, since: datetime, progress: Progress) -> AsyncGenerator[list[AuditEntry]]:
    """The events stored since then, in batches, while `progress` goes along.

    Raises:
        JetStreamError, JetStreamUnavailable: they cannot be read.
    """
    start = {"start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    first, after = await jetstream.batch(nc, subjects.AUDIT, {**start, "next_by_subj": _ALL, "batch": 1})
    progress.total = len(first) + after
    last = int((await jetstream.call(nc, f"STREAM.INFO.{subjects.AUDIT}"))["state"]["last_seq"])
    seq = first[0].seq if first else last + 1
    while seq <= last:
        found, _ = await jetstream.batch(nc, subjects.AUDIT, {**_BATCH, "seq": seq, "next_by_subj": _ALL})
        seq = found[-1].seq + 1 if found else last + 1
        kept = [message for message in found if message.seq <= last]
        progress.read += len(kept)
        yield _entries(kept, progress)


def _entries(messages: list[StoredMessage], progress: Progress) -> list[AuditEntry]:
    entries = []
    for message in messages:
        try:
            entries.append(decode_event(message.body))
        except ValidationError:
            progress.unreadable += 1
    return entries


async def calls_after(nc: Client, seq: int, tenant: str | None = None) -> int:
    """How many calls to vendors the log has after that place; of one `tenant`, among the first of them.

    Raises:
        JetStreamError, JetStreamUnavailable: they cannot be read.
    """
    query = {"seq": seq + 1, "next_by_subj": _ATTEMPTS}
    if tenant is None:
        first, after = await jetstream.batch(nc, subjects.AUDIT, {**query, "batch": 1})
        return len(first) + after
    found, _ = await jetstream.batch(nc, subjects.AUDIT, {**query, **_BATCH})
    return sum(entry.tenant == tenant for entry in _entries(found, Progress()))
