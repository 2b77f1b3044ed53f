"""The contract's errors as OpenAI's: status and body. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from processor.errors import ErrorType, RequestError

_FIELD: Final = re.compile(
    r"((?:messages|model|stream|stream_options|max_tokens|max_completion_tokens|temperature|top_p|stop|tools|tool_choice"
    r"|response_format|n|functions|metadata)(?:\.[A-Za-z0-9_]+)*):"
)


@dataclass(frozen=True, slots=True)
class _Form:
    status: int
    type: str
    code: str | None


_FORMS: Final = {
    ErrorType.INVALID_REQUEST: _Form(400, "invalid_request_error", None),
    ErrorType.UNAUTHORIZED: _Form(401, "authentication_error", "invalid_api_key"),
    # As OpenAI tells an account that has no money left: clients know not to wait for it.
    ErrorType.BUDGET_EXCEEDED: _Form(429, "insufficient_quota", "insufficient_quota"),
    ErrorType.FORBIDDEN: _Form(403, "permission_error", "insufficient_permissions"),
    ErrorType.NOT_FOUND: _Form(404, "invalid_request_error", "unknown_url"),
    ErrorType.TOO_LARGE: _Form(413, "invalid_request_error", "request_too_large"),
    ErrorType.RATE_LIMITED: _Form(429, "rate_limit_error", "rate_limit_exceeded"),
    ErrorType.CANCELLED: _Form(499, "api_error", "cancelled"),
    ErrorType.INTERNAL: _Form(500, "server_error", "internal_error"),
    ErrorType.QUEUE_FULL: _Form(503, "server_error", "queue_full"),
    ErrorType.UNAVAILABLE: _Form(503, "server_error", "unavailable"),
    ErrorType.DEADLINE_EXCEEDED: _Form(504, "server_error", "deadline_exceeded"),
}
_NO_SUCH_MODEL: Final = _Form(404, "invalid_request_error", "model_not_found")
_NO_WINDOW: Final = _Form(400, "invalid_request_error", "context_length_exceeded")


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as it goes out; `status` is an HTTP status."""

    status: int
    body: dict[str, Any]


def openai_refusal(error: RequestError, *, fits_no_window: bool = False) -> Refusal:
    """`error` in OpenAI's form.

    A prompt that `fits_no_window` has a code of its own, at which clients shorten the talk; some know it only by the
    words.
    """
    named = _FIELD.match(error.message)
    param = named.group(1) if named else None
    form, message = _FORMS[error.type], error.message
    if error.type is ErrorType.NOT_FOUND and param == "model":
        form = _NO_SUCH_MODEL
    elif fits_no_window:
        form, message = _NO_WINDOW, f"the prompt is too long (context_length_exceeded): {message}"
    body = {"message": message, "type": form.type, "param": param, "code": form.code}
    return Refusal(form.status, {"error": body})
