"""Errors in Anthropic's form, under the statuses that its SDKs read and retry by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import Response

from bridge.anthropic_fields import TOO_LONG
from bridge.asking import fits_no_window
from bridge.bodies import json_response, retry_headers
from processor.errors import ErrorType, RequestError

_FORMS: Mapping[ErrorType, tuple[int, str]] = {
    ErrorType.INVALID_REQUEST: (400, "invalid_request_error"),
    ErrorType.UNAUTHORIZED: (401, "authentication_error"),
    ErrorType.BUDGET_EXCEEDED: (402, "billing_error"),
    ErrorType.FORBIDDEN: (403, "permission_error"),
    ErrorType.NOT_FOUND: (404, "not_found_error"),
    ErrorType.TOO_LARGE: (413, "request_too_large"),
    ErrorType.RATE_LIMITED: (429, "rate_limit_error"),
    ErrorType.CANCELLED: (499, "api_error"),
    ErrorType.INTERNAL: (500, "api_error"),
    ErrorType.UNAVAILABLE: (503, "api_error"),
    ErrorType.DEADLINE_EXCEEDED: (504, "timeout_error"),
    ErrorType.QUEUE_FULL: (529, "overloaded_error"),
}
_NO_WINDOW = (400, "invalid_request_error", f"{TOO_LONG}: ")


def anthropic_error(
    error: RequestError, status: int | None = None, headers: Mapping[str, str] | None = None, *, request_id: str = ""
) -> Response:
    """An error as Anthropic answers it."""
    fields = error_fields(error, request_id=request_id)
    return json_response(fields, status or _form(error)[0], retry_headers(error) | dict(headers or {}))


def error_fields(error: RequestError, *, request_id: str = "") -> dict[str, Any]:
    """The body of an error; in a stream, the data of its event `error`."""
    _, kind, before = _form(error)
    described = {"type": kind, "message": f"{before}{error.message}"}
    return {"type": "error", "error": described, "request_id": request_id or None}


def _form(error: RequestError) -> tuple[int, str, str]:
    """Status, type, and what its message begins with."""
    if fits_no_window(error):
        return _NO_WINDOW
    return *_FORMS[error.type], ""
