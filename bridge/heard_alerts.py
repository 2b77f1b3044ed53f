"""What sidecars tell operators on `llm.alert.*` and `llm.status.*`, the last of it kept in memory. Pure."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

KEPT: Final = 50
MAX_TEXT: Final = 1_000
MAX_NAME: Final = 200
SUBJECTS: Final = ("llm.alert.*", "llm.status.*")
SEVERITIES: Final = ("info", "warning", "critical")
_BREAKER: Final = "breaker:"


class _Alert(Struct):
    severity: str
    kind: str
    message: str
    replica: str
    at: datetime


class _Status(Struct):
    replica: str
    provider: str
    model: str
    after: str
    why: str


_ALERT = msgspec.json.Decoder(_Alert)
_STATUS = msgspec.json.Decoder(_Status)


class HeardAlerts:
    """The last `KEPT`, and how many there were of each severity.

    That a breaker opened is told in both ways, as an alert only once in a while: here its status counts.
    """

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.counts: Counter[str] = Counter(dict.fromkeys(SEVERITIES, 0))

    def hear(self, subject: str, body: bytes, now: datetime) -> None:
        """Take a message in. What is none of a sidecar's is left out."""
        try:
            found = _alert(body) if subject.startswith("llm.alert.") else _change(body, now)
        except (ValueError, RecursionError):
            return
        if found is not None:
            self.counts[found["severity"]] += 1
            self._kept.appendleft(found)

    def shown(self) -> list[dict[str, Any]]:
        """The newest first."""
        return list(self._kept)


def _alert(body: bytes) -> dict[str, Any] | None:
    told = _ALERT.decode(body)
    if told.severity not in SEVERITIES or told.kind.startswith(_BREAKER):
        return None
    at = told.at if told.at.tzinfo is not None else told.at.replace(tzinfo=UTC)
    return _shown(at, told.severity, told.kind, told.message, told.replica)


def _change(body: bytes, now: datetime) -> dict[str, Any] | None:
    """A breaker that opened or closed; one that is being tried is neither."""
    told = _STATUS.decode(body)
    if told.after not in ("open", "closed"):
        return None
    severity, what = ("warning", "is not called for a while") if told.after == "open" else ("info", "is called again")
    whose = told.model or "every model"
    kind = f"{_BREAKER}{told.provider}:{told.model}"
    return _shown(now, severity, kind, f"{told.provider}, {whose}, {what}: {told.why}", told.replica)


def _shown(at: datetime, severity: str, kind: str, message: str, replica: str) -> dict[str, Any]:
    return {
        "at": instant(at),
        "severity": severity,
        "kind": kind[:MAX_NAME],
        "message": message[:MAX_TEXT],
        "replica": replica[:MAX_NAME],
    }


def instant(at: datetime) -> str:
    """In UTC, to the millisecond: 2026-11-30T07:45:12.318Z."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
