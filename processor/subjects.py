"""Every subject of the contract, built and taken apart in one place."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from enum import StrEnum

QUEUE_GROUP = "sidecar"

REQUESTS = "LLM_REQUESTS"
REPLIES = "LLM_REPLIES"
AUDIT = "LLM_AUDIT"
DEAD = "LLM_DEAD"
STATE = "LLM_STATE"
SPEND = "LLM_SPEND"
LEDGER = "LLM_LEDGER"
BATCHES = "LLM_BATCHES"
STREAMS = (REQUESTS, REPLIES, AUDIT, DEAD, STATE, SPEND, LEDGER, BATCHES)

LEDGER_BOOK = "llm.ledger.book"

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_PLAIN_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*\Z")
MAX_SUBJECT_CHARS = 512


class Priority(StrEnum):
    """The four lanes, most urgent first."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"

    def before(self, other: Priority) -> bool:
        """Whether it is more urgent."""
        order = list(Priority)
        return order.index(self) < order.index(other)


class AuditEvent(StrEnum):
    """The steps of a request's life that `LLM_AUDIT` keeps."""

    RECEIVED = "received"
    ROUTED = "routed"
    ATTEMPT = "attempt"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DEAD = "dead"


def ask(priority: Priority) -> str:
    """Plain request/reply: not captured by a stream."""
    return f"llm.request.{priority}"


def enqueue(priority: Priority, request_id: str) -> str:
    """The captured form, one subject a request: the server itself refuses a second copy of a queued id."""
    return f"llm.request.{priority}.{request_id}"


def parse_enqueue(subject: str) -> tuple[Priority, str]:
    """(priority, request id) of an enqueue subject. Raises ValueError on any other."""
    parts = subject.split(".")
    if len(parts) != 4 or parts[:2] != ["llm", "request"]:
        raise ValueError(f"{subject!r} is not llm.request.<priority>.<id>")
    return Priority(parts[2]), parts[3]


def reply(request_id: str) -> str:
    return f"llm.reply.{request_id}"


def cancel(request_id: str) -> str:
    return f"llm.cancel.{request_id}"


def audit(event: AuditEvent, request_id: str) -> str:
    return f"llm.audit.{event}.{request_id}"


def dead(priority: Priority, request_id: str) -> str:
    return f"llm.dead.{priority}.{request_id}"


def alert(severity: str) -> str:
    return f"llm.alert.{severity}"


def status(replica: str) -> str:
    """Where a replica tells of itself; its name is one token."""
    return f"llm.status.{replica}"


def running(request_id: str) -> str:
    """Where a replica asks the others whether one of them is at work on a request."""
    return f"llm.running.{request_id}"


def joined(request_id: str) -> str:
    """Where whoever is at work on a request hears that another ask waits for its ending."""
    return f"llm.joined.{request_id}"


def followed(request_id: str) -> str:
    """Where bridges listen whose clients wait for one and the same request: nobody hears, nobody waits."""
    return f"llm.followed.{request_id}"


def batch(batch_id: str) -> str:
    """Where the list of a batch is kept."""
    return f"llm.batch.{batch_id}"


def limits_state(provider: str) -> str:
    """How much of a provider's limits is used: one document, which all replicas change by compare and set."""
    return f"llm.state.limits.{provider}"


def key_state(name: str) -> str:
    """How often an API key was used: one document, which all bridges change by compare and set."""
    return f"llm.state.keys.{name}"


def handed_back(request_id: str) -> str:
    """How often a request was handed back by a sidecar that lived: it tells these from deaths."""
    return f"llm.state.handback.{request_id}"


def is_request_id(text: str) -> bool:
    """Letters, digits, `_` and `-`, at most 128: safe as one token of a subject and as a message id."""
    return _ID.match(text) is not None


def new_request_id() -> str:
    """A fresh id that sorts by time: 11 hex digits of milliseconds, then 80 random bits."""
    return f"{time.time_ns() // 1_000_000:011x}{secrets.token_hex(10)}"


def is_inbox(subject: str) -> bool:
    """Whether it is a plain subject that clients receive replies on, in this account (`_INBOX*`) or another (`_R_`)."""
    plain = len(subject) <= MAX_SUBJECT_CHARS and _PLAIN_SUBJECT.match(subject) is not None
    return plain and subject.startswith(("_INBOX.", "_INBOX_", "_R_."))


def reply_to_refusal(subject: str, request_id: str, prefixes: Sequence[str] = ()) -> str | None:
    """Why the sidecar must not publish to `subject` on a client's word, or None if it may.

    The client names the reply subject and the sidecar publishes there with its own rights, so only inboxes,
    the request's own `llm.reply.<id>` and the prefixes of the settings are allowed, without wildcards. Another
    request's reply subject is refused: writing there would plant an answer.
    """
    if len(subject) > MAX_SUBJECT_CHARS or not _PLAIN_SUBJECT.match(subject):
        return "it is not a plain subject (no wildcards, no empty tokens)"
    if is_inbox(subject) or subject == reply(request_id):
        return None
    if subject.startswith("llm.reply."):
        return f"llm.reply.* is open only to the request's own id: {reply(request_id)}"
    if any(prefix and subject.startswith(prefix) for prefix in prefixes):
        return None
    return "only inboxes, llm.reply.<id> and the prefixes of REPLY_PREFIXES are allowed"
