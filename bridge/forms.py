"""Each surface has its own form of errors; here is which request has which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import Scope

from bridge.anthropic_errors import anthropic_error
from bridge.anthropic_models import VERSION_HEADER
from bridge.bodies import error_response
from bridge.openai_routes import error_response as openai_error
from processor.errors import RequestError


class ErrorForm(Protocol):
    """Makes an HTTP answer of an error."""

    def __call__(
        self, error: RequestError, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Response: ...


def error_form(scope: Scope) -> ErrorForm:
    """The form of errors for an ASGI connection's request."""
    path: str = scope["path"]
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and VERSION_HEADER in Headers(scope=scope)):
        return anthropic_error
    return openai_error if path.startswith("/v1/") else error_response
