"""The terminal audit event of a request, read from its ending alone: the same whichever delivery writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from processor.attempt import Tally
from processor.audit_events import AuditError, Ended
from processor.errors import ErrorType
from processor.replies import Ending
from processor.reply_bodies import ErrorReply, FinalReply, ReplyEvent
from processor.subjects import AuditEvent

_EVENTS = {ErrorType.CANCELLED: AuditEvent.CANCELLED, ErrorType.DEADLINE_EXCEEDED: AuditEvent.EXPIRED}


def terminal_event(ending: Ending, event: AuditEvent | None, tally: Tally, common: Mapping[str, Any]) -> Ended:
    """The event of `ending`; `event` is its kind where that is known, and `common` what all events have."""
    if ending.event is ReplyEvent.FINAL:
        final = FinalReply.model_validate_json(ending.body)
        return Ended(
            **common,
            event=AuditEvent.COMPLETED,
            attempts=final.attempts,
            model=final.model,
            provider=final.provider,
            finish_reason=final.finish_reason,
            cost_usd=final.cost_usd,
            cached=final.cached,
            coalesced=final.coalesced,
            saved_usd=final.saved_usd or None,
        )
    error = ErrorReply.model_validate_json(ending.body).error
    return Ended(
        **common,
        event=event if event is not None else _EVENTS.get(error.type, AuditEvent.FAILED),
        attempts=tally.attempts,
        cost_usd=tally.cost_usd,
        error=AuditError(kind=error.type, message=error.message, retry_after_s=error.retry_after_s),
    )
