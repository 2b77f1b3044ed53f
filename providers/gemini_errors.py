"""Gemini's error bodies in our family of errors, decided without I/O."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from providers.base import Json
from providers.boundary import finite, kind_by_status
from providers.errors import (
    BadCredentials,
    InvalidPrompt,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
)

_HTTP_STATUS: Final[Mapping[str, int]] = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_TOO_LARGE: Final = re.compile(
    r"token count.*exceeds|maximum number of tokens allowed|maximum context length|payload size exceeds", re.I | re.S
)
_BAD_KEY: Final = re.compile(r"api key (not valid|not found|expired|was reported)|pass a valid api key", re.I)
_BAD_PLACE: Final = re.compile(r"user location is not supported|free tier is not available", re.I)
_NO_CREDIT: Final = re.compile(
    r"spend(ing)?[ -]?(cap|limit)|credits? (are|is|has been|have been) (depleted|exhausted)", re.I
)
_RETRY_IN: Final = re.compile(r"retry in ([\d.]+)s", re.I)


def status_of(body: Mapping[str, Json]) -> int:
    """The HTTP status that an error body inside a 200 stands for; 500 if it does not say."""
    code = body.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return _HTTP_STATUS.get(str(body.get("status")), 500)


def kind_of(status: int, body: Mapping[str, Json]) -> type[ProviderError]:
    """Which error of ours an answer with `status` and `body` is."""
    message = str(body.get("message") or "")
    if status in (400, 413) and _TOO_LARGE.search(message):
        return PromptTooLarge
    if status == 400:
        refused = _BAD_KEY.search(message) or _BAD_PLACE.search(message) or "API_KEY_INVALID" in _reasons(body)
        return BadCredentials if refused else InvalidPrompt
    if status == 429 and _NO_CREDIT.search(message):
        return OutOfCredit
    if status == 429 and "MODEL_CAPACITY_EXHAUSTED" in _reasons(body):
        return Overloaded
    return kind_by_status(status)


def wait_of(body: Mapping[str, Json], now: datetime) -> float | None:
    """Seconds the body asks to wait, None if it does not say.

    A quota per day refills at midnight Pacific time, whatever RetryInfo says. `now` is aware.
    """
    delay = None
    for detail in _details(body):
        for violation in _dicts(detail.get("violations")):
            if re.search(r"per_?day", f"{violation.get('quotaId')} {violation.get('quotaMetric')}", re.I):
                return _to_midnight_pacific(now)
        if str(detail.get("@type", "")).endswith("RetryInfo"):
            delay = re.fullmatch(r"([\d.]+)s", str(detail.get("retryDelay", "")))
    delay = delay or _RETRY_IN.search(str(body.get("message") or ""))
    return finite(delay[1]) if delay else None


def _to_midnight_pacific(now: datetime) -> float:
    zone: tzinfo
    try:
        zone = ZoneInfo("America/Los_Angeles")
    except ZoneInfoNotFoundError:
        # Without a time zone database: an hour late in summer, never early.
        zone = timezone(timedelta(hours=-8))
    midnight = datetime.combine(now.astimezone(zone).date() + timedelta(days=1), time.min, tzinfo=zone)
    return midnight.timestamp() - now.timestamp()


def _details(body: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    return _dicts(body.get("details"))


def _dicts(value: Json) -> Iterator[Mapping[str, Json]]:
    return (item for item in value if isinstance(item, Mapping)) if isinstance(value, list) else iter(())


def _reasons(body: Mapping[str, Json]) -> set[str]:
    return {str(detail["reason"]) for detail in _details(body) if "reason" in detail}
