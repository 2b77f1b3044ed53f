"""Vendors' rate-limit headers as quotas. Pure, and total: what cannot be read is left out, nothing is raised."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from providers.base import Metric, Quota

QuotasIn = Callable[[Mapping[str, str], datetime], tuple[Quota, ...]]
"""Reads a vendor's headers (names in lower case) as of an aware `now`."""

_COUNT: Final = re.compile(r"[0-9]{1,15}")
_PART: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ns|us|µs|μs|ms|s|m|h)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+|0")
_UNIT_S: Final[Mapping[str, float]] = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}


def no_quotas(headers: Mapping[str, str], now: datetime) -> tuple[Quota, ...]:
    """For a vendor that sends no such headers, as Gemini."""
    return ()


def anthropic_quotas(headers: Mapping[str, str], now: datetime) -> tuple[Quota, ...]:
    """`anthropic-ratelimit-<what>-{limit,remaining,reset}`, resets as RFC 3339 (platform.claude.com, rate-limits).

    `tokens` repeats the more restrictive one of `input-tokens` and `output-tokens`, so that it counts only where
    neither is there.
    """

    def read(what: str, metric: Metric) -> Quota | None:
        limit, remaining, reset = (
            headers.get(f"anthropic-ratelimit-{what}-{field}", "") for field in ("limit", "remaining", "reset")
        )
        return _quota(metric, limit, remaining, _seconds_until(reset, now))

    split = (read("input-tokens", "itpm"), read("output-tokens", "otpm"))
    tokens = split if any(split) else (read("tokens", "tpm"),)
    return _found(read("requests", "rpm"), *tokens)


def groq_quotas(headers: Mapping[str, str], now: datetime) -> tuple[Quota, ...]:
    """`x-ratelimit-*`, where requests are per day and tokens per minute (console.groq.com/docs/rate-limits)."""
    return _x_ratelimit(headers, "rpd")


def openai_quotas(headers: Mapping[str, str], now: datetime) -> tuple[Quota, ...]:
    """`x-ratelimit-*` as OpenAI and those who copy it send it: both per minute."""
    return _x_ratelimit(headers, "rpm")


def _x_ratelimit(headers: Mapping[str, str], requests: Metric) -> tuple[Quota, ...]:
    """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as Go writes durations."""

    def read(what: str, metric: Metric) -> Quota | None:
        limit, remaining, reset = (
            headers.get(f"x-ratelimit-{field}-{what}", "") for field in ("limit", "remaining", "reset")
        )
        return _quota(metric, limit, remaining, _duration(reset))

    return _found(read("requests", requests), read("tokens", "tpm"))


def _found(*quotas: Quota | None) -> tuple[Quota, ...]:
    return tuple(quota for quota in quotas if quota is not None)


def _quota(metric: Metric, limit: str, remaining: str, reset_s: float | None) -> Quota | None:
    left = _count(remaining)
    return None if left is None or reset_s is None else Quota(metric, _count(limit), left, reset_s)


def _count(text: str) -> int | None:
    return int(text) if _COUNT.fullmatch(text) else None


def _seconds_until(moment: str, now: datetime) -> float | None:
    """Seconds from `now` to an RFC 3339 moment, 0 for one that is past; None for anything else."""
    try:
        then = datetime.fromisoformat(moment)
        return None if then.tzinfo is None else max(0.0, (then - now).total_seconds())
    except ValueError:
        return None


def _duration(text: str) -> float | None:
    """A duration as Go's `time.Duration.String` writes it ("2m59.56s", "6ms", "0s"), in seconds."""
    if not _DURATION.fullmatch(text):
        return None
    return sum((float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text)), 0.0)
