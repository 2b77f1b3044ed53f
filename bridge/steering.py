"""What a client says beside the body of a request: priority, tenant, deadline, cache. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from processor.errors import ErrorType, RequestError
from processor.messages import MAX_DEADLINE_MS, Request
from processor.parts import Model, Token
from processor.subjects import Priority

DEFAULT_PRIORITY = Priority.MEDIUM
MAX_KEY_CHARS = 255
_HEADERS = {
    "priority": "x-sidecar-priority",
    "tenant": "x-sidecar-tenant",
    "deadline_ms": "x-sidecar-deadline-ms",
    "cache": "x-sidecar-cache",
    "detached": "x-sidecar-detach",
    "key": "idempotency-key",
}
METADATA = {name: f"sidecar_{name}" for name in ("priority", "tenant", "deadline_ms", "cache")}
"""The same in the `metadata` of a body: field to key."""


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12 else value


def _flag(value: object) -> object:
    flags = {"true": True, "1": True, "false": False, "0": False}
    return flags.get(value.lower(), value) if isinstance(value, str) else value


class Steering(Model):
    """What was said; None where nothing was."""

    priority: Annotated[Priority | None, Field(strict=False)] = None
    tenant: Token | None = None
    deadline_ms: Annotated[int | None, BeforeValidator(_number), Field(ge=1, le=MAX_DEADLINE_MS)] = None
    cache: Literal["use", "skip", "refresh"] | None = None
    detached: Annotated[bool, BeforeValidator(_flag)] = False
    """Whether the request goes on when its client has gone."""
    key: Annotated[str | None, Field(min_length=1, max_length=MAX_KEY_CHARS)] = None
    """One key, one request, however often it is sent."""

    def applied(self, request: Request) -> Request:
        """The request with what the headers say in place of what its body says."""
        said = {"tenant": self.tenant, "deadline_ms": self.deadline_ms, "cache": self.cache}
        return request.model_copy(update={name: value for name, value in said.items() if value is not None})


def steering(headers: Mapping[str, str], metadata: Mapping[str, object] | None = None) -> Steering:
    """What the headers say, and for what they leave out the body's metadata.

    Raises:
        RequestError: `invalid_request`, naming the header or the key.
    """
    found: dict[str, object] = {}
    names: dict[str, str] = {}
    for field, key in METADATA.items():
        if metadata is not None and key in metadata:
            found[field], names[field] = metadata[key], f"metadata.{key}"
    for field, header in _HEADERS.items():
        if header in headers:
            found[field], names[field] = headers[header], header.title()
    try:
        return Steering.model_validate(found)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        name = names[str(detail["loc"][0])]
        raise RequestError(ErrorType.INVALID_REQUEST, f"{name}: {detail['msg']}"[:500]) from None
