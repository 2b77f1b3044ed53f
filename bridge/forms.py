"""Each surface has its own form of errors; here is which path has which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fastapi import Response

from bridge.anthropic_errors import anthropic_error
from bridge.bodies import error_response
from bridge.openai_routes import error_response as openai_error
from processor.errors import RequestError


class ErrorForm(Protocol):
    """Makes an HTTP answer of an error."""

    def __call__(
        self, error: RequestError, status: int | None = None, headers: Mapping[str, str] | None = None
    ) -> Response: ...


_FORMS: tuple[tuple[str, ErrorForm], ...] = (("/v1/messages", anthropic_error), ("/v1/", openai_error))
"""Beginnings of paths, the longest first; every other path has the bridge's own form."""


def error_form(path: str) -> ErrorForm:
    """The form of errors on a path."""
    return next((form for beginning, form in _FORMS if path.startswith(beginning)), error_response)
