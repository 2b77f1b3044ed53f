"""Anthropic's Claude through the official SDK: one prompt in, a stream of frozen events out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from providers.anthropic_answer import AnthropicAnswer
from providers.anthropic_codec import encode
from providers.base import Endpoint, Json, Prompt
from providers.boundary import kind_by_status
from providers.errors import (
    BadCredentials,
    InvalidPrompt,
    ModelGone,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    TimedOut,
    VendorError,
)
from providers.exchange import Answer, Vendor
from providers.quotas import anthropic_quotas
from providers.stainless import StainlessProvider

_BY_TYPE: Final[Mapping[str, type[ProviderError]]] = {
    "authentication_error": BadCredentials,
    "permission_error": BadCredentials,
    "billing_error": OutOfCredit,
    "not_found_error": ModelGone,
    "request_too_large": PromptTooLarge,
    "rate_limit_error": RateLimited,
    "timeout_error": TimedOut,
    "api_error": VendorError,
    "overloaded_error": Overloaded,
}
_TOO_LARGE: Final = re.compile(
    r"prompt is too long|exceeds? (the )?(context|maximum context)|maximum context length", re.I
)
_NO_CREDIT: Final = re.compile(r"credit balance is too low|spend(ing)?[ _-]?(limit|cap)|api usage limits", re.I)


class AnthropicProvider(StainlessProvider):
    """The Messages API."""

    vendor = Vendor("Anthropic", "request-id", anthropic_quotas)
    sdk_name = "anthropic"
    http_name = "httpx2"

    def __init__(self, endpoint: Endpoint, name: str = "anthropic") -> None:
        super().__init__(endpoint, name)

    def client(self, sdk: Any, **shared: Any) -> Any:
        base_url = (self.endpoint.base_url or "").rstrip("/").removesuffix("/v1") or None
        return sdk.AsyncAnthropic(base_url=base_url, **shared)

    def call(self, prompt: Prompt, sdk: Any, *, stream: bool) -> tuple[str, dict[str, Json], Answer]:
        return "/v1/messages", encode(prompt, sdk.transform_schema, stream=stream), AnthropicAnswer(prompt.model)

    @staticmethod
    def kind_of(status: int | None, body: Mapping[str, Json]) -> type[ProviderError]:
        """By the error's type, which also counts inside a 200, then by the status."""
        kind, message = str(body.get("type") or ""), str(body.get("message") or "")
        details = body.get("details")
        code = str(details.get("error_code") or "") if isinstance(details, Mapping) else ""
        if kind in {"invalid_request_error", "rate_limit_error"} or status in {400, 429}:
            if _NO_CREDIT.search(f"{message} {code}"):
                return OutOfCredit
            if _TOO_LARGE.search(message):
                return PromptTooLarge
        if kind in _BY_TYPE:
            return _BY_TYPE[kind]
        if kind == "invalid_request_error" and status in {None, 400}:
            return InvalidPrompt
        return VendorError if status is None else kind_by_status(status)
