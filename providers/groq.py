"""Groq through the official SDK: chat completions with Groq's own usage, errors and limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from providers.base import Endpoint, Json, Prompt
from providers.boundary import kind_by_status
from providers.chat_completions import ChatAnswer, encode
from providers.errors import (
    BadCredentials,
    InvalidPrompt,
    ModelGone,
    ModelNoise,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    Unsupported,
    VendorError,
)
from providers.exchange import Answer, Vendor
from providers.quotas import groq_quotas
from providers.stainless import StainlessProvider

MAX_STOP_SEQUENCES: Final = 4
_BY_CODE: Final[Mapping[str, type[ProviderError]]] = {
    # The model wrote a call or JSON that Groq cannot parse: no fault of the caller's, and the next try may be fine.
    "tool_use_failed": ModelNoise,
    "json_validate_failed": ModelNoise,
    "context_length_exceeded": PromptTooLarge,
    "request_too_large": PromptTooLarge,
    "invalid_api_key": BadCredentials,
    "organization_restricted": BadCredentials,
    "model_not_found": ModelGone,
    "model_decommissioned": ModelGone,
    "model_terms_required": ModelGone,
    "model_permission_blocked_org": ModelGone,
    "model_permission_blocked_project": ModelGone,
    "rate_limit_exceeded": RateLimited,
    "blocked_api_access": OutOfCredit,
    "capacity_exceeded": Overloaded,
    "over_capacity": Overloaded,
    "invalid_request_error": InvalidPrompt,
}
_TOO_LARGE: Final = re.compile(r"(maximum )?context (length|window)|reduce (the length|your message)", re.I)


class GroqProvider(StainlessProvider):
    """Groq's chat completions. `Endpoint.base_url` may end in /openai/v1 or leave that to the SDK."""

    vendor = Vendor("Groq", "x-request-id", groq_quotas)
    sdk_name = "groq"
    http_name = "httpx"

    def __init__(self, endpoint: Endpoint, name: str = "groq") -> None:
        super().__init__(endpoint, name)

    def client(self, sdk: Any, **shared: Any) -> Any:
        base_url = (self.endpoint.base_url or "").rstrip("/").removesuffix("/openai/v1") or None
        return sdk.AsyncGroq(base_url=base_url, **shared)

    def call(self, prompt: Prompt, sdk: Any, *, stream: bool) -> tuple[str, dict[str, Json], Answer]:
        if len(prompt.stop) > MAX_STOP_SEQUENCES:
            raise Unsupported(f"Groq takes at most {MAX_STOP_SEQUENCES} stop sequences, not {len(prompt.stop)}")
        if prompt.tools and prompt.response_format is not None:
            raise Unsupported("Groq cannot answer in JSON while it has tools")
        body = encode(prompt, stream=stream, limit_name="max_completion_tokens")
        return "/openai/v1/chat/completions", body, ChatAnswer(prompt.model, self.vendor.title)

    @staticmethod
    def kind_of(status: int | None, body: Mapping[str, Json]) -> type[ProviderError]:
        """By the error's code, which also counts inside a 200, then by the status."""
        code = body.get("code") or body.get("type")
        if status in {400, 413} and _TOO_LARGE.search(str(body.get("message") or "")):
            return PromptTooLarge
        if status != 400 and code == "invalid_request_error":
            code = None  # Groq's type of nearly every 4xx
        if isinstance(code, str) and code in _BY_CODE:
            return _BY_CODE[code]
        return VendorError if status is None else kind_by_status(status)
