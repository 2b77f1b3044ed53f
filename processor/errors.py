"""The errors a client can receive: one exception, twelve types, each with its code."""

from __future__ import annotations

from enum import StrEnum


class ErrorType(StrEnum):
    """The types of the wire contract; `code` is what `Nats-Service-Error-Code` carries."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    BUDGET_EXCEEDED = "budget_exceeded"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    RATE_LIMITED = "rate_limited"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    QUEUE_FULL = "queue_full"
    UNAVAILABLE = "unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"

    @property
    def code(self) -> int:
        return _CODES[self]


_CODES: dict[ErrorType, int] = {
    ErrorType.INVALID_REQUEST: 400,
    ErrorType.UNAUTHORIZED: 401,
    ErrorType.BUDGET_EXCEEDED: 402,
    ErrorType.FORBIDDEN: 403,
    ErrorType.NOT_FOUND: 404,
    ErrorType.TOO_LARGE: 413,
    ErrorType.RATE_LIMITED: 429,
    ErrorType.CANCELLED: 499,
    ErrorType.INTERNAL: 500,
    ErrorType.QUEUE_FULL: 503,
    ErrorType.UNAVAILABLE: 503,
    ErrorType.DEADLINE_EXCEEDED: 504,
}


class RequestError(Exception):
    """A request that ends without an answer. `message` is what the client reads: no key, no trace, no other tenant."""

    def __init__(self, type: ErrorType, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.type = type
        self.message = message
        self.retry_after_s = retry_after_s
