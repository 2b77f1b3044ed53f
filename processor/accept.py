"""A delivery's headers and body as work to do: who gets the answer, until when, and what is asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from processor import subjects
from processor.errors import ErrorType, RequestError
from processor.messages import Request, decode_request

TIMEOUT_HEADER = "Sidecar-Timeout-Ms"
"""Set by the ingress: the default deadline of an ask, counted from acceptance. An enqueued request has none."""
FRESH_HEADER = "Sidecar-Fresh"
"""Set by the ingress: the id was minted there, so that no earlier reply can exist."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A checked request and the moment after which nobody wants its answer (None: it may take as long as it takes)."""

    request: Request
    deadline: datetime | None

    def left_s(self, now: datetime) -> float | None:
        """Seconds to the deadline, None without one."""
        return None if self.deadline is None else (self.deadline - now).total_seconds()

    def is_expired(self, now: datetime) -> bool:
        return self.deadline is not None and now >= self.deadline


def reply_subject(request_id: str, headers: Mapping[str, str], prefixes: tuple[str, ...]) -> str | None:
    """Where the client wants the answer beside `LLM_REPLIES`, or None.

    Raises:
        RequestError: `invalid_request` for an id that is not one, `forbidden` for a subject that is not allowed.
    """
    if not subjects.is_request_id(request_id):
        raise RequestError(ErrorType.INVALID_REQUEST, "the request id: 1 to 128 letters, digits, _ or -")
    named = headers.get("Reply-To")
    if named is not None and (refusal := subjects.reply_to_refusal(named, request_id, prefixes)):
        raise RequestError(ErrorType.FORBIDDEN, f"Reply-To: {refusal}")
    return named


def accept(body: bytes, headers: Mapping[str, str], accepted: datetime) -> Accepted:
    """Check what was asked for at `accepted`.

    Raises:
        RequestError: naming the wrong field.
    """
    request = decode_request(body)
    timeout_ms = request.deadline_ms
    if timeout_ms is None and (default := headers.get(TIMEOUT_HEADER, "")).isdigit():
        timeout_ms = int(default)
    deadline = None if timeout_ms is None else accepted + timedelta(milliseconds=timeout_ms)
    return Accepted(request, deadline)
