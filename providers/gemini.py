"""Gemini through the official google-genai SDK: one prompt in, a stream of frozen events out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from providers.base import Endpoint, Event, Prompt
from providers.boundary import safe_message
from providers.errors import BadCredentials, ProviderError
from providers.exchange import Refused, Vendor, exchange, is_streamed
from providers.gemini_answer import GeminiAnswer
from providers.gemini_codec import calls_so_far, encode
from providers.gemini_errors import kind_of, status_of, wait_of
from providers.gemini_wire import Connection, RawWire, connect
from providers.late import LateProvider

_GEMINI: Final = Vendor("Gemini", "x-goog-request-id")


class GeminiProvider(LateProvider[Connection]):
    """Google's Gemini API. `Endpoint.api_version` None means the SDK's default (v1); many proxies serve v1beta only."""

    def __init__(self, endpoint: Endpoint, name: str = "gemini") -> None:
        super().__init__(endpoint, name)

    @property
    def raw(self) -> bool:
        """Whether answers are read as raw bytes; False before `open`, and after it with an SDK of another make."""
        return self._client is not None and isinstance(self._client.wire, RawWire)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        """The events of one call, as `Provider.stream` says."""
        body = encode(prompt)
        connection = await self.opened()
        post = connection.wire.post(prompt.model, body, stream=is_streamed(prompt))
        answer = GeminiAnswer(prompt.model, calls_so_far(prompt))
        events = exchange(post, answer, prompt, vendor=_GEMINI, error_of=self._error)
        async with aclosing(events):
            async for event in events:
                yield event

    async def connect(self) -> Connection:
        """Import the SDK and build its client.

        Raises:
            BadCredentials: there is no key.
        """
        try:
            return await connect(self.endpoint)
        except ValueError as error:
            raise BadCredentials(safe_message(str(error), self.endpoint.api_key)) from error

    def _error(self, refused: Refused) -> ProviderError:
        body = refused.body
        status = refused.status or status_of(body)
        said: dict[str, Any] = {"status": status}
        wait = wait_of(body, datetime.now(UTC))
        if wait is not None:
            said["retry_after_s"] = wait
        return _GEMINI.error(kind_of(status, body), refused, self.endpoint.api_key, **said)
