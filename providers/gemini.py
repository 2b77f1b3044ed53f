"""Gemini through the official google-genai SDK: one prompt in, a stream of frozen events out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from providers.base import Endpoint, Event, Json, Opened, Prompt, Usage, UsageSeen
from providers.boundary import (
    Call,
    rate_limit_headers,
    retry_after_seconds,
    safe_message,
    transport_error,
    vendor_boundary,
)
from providers.errors import BadCredentials, BadResponse, ModelNoise, ProviderError, StreamCut
from providers.gemini_answer import Answer, StreamError, joined
from providers.gemini_codec import calls_so_far, encode, method_path
from providers.gemini_errors import kind_of, status_of, wait_of
from providers.gemini_wire import Connection, RawWire, Refused, Reply, connect

STREAMED_FROM_TOKENS: Final = 8192
"""Answers that may grow larger are streamed even when nobody watches: a whole one would look like silence."""

LAST_WORDS_S: Final = 2.0
"""How long to wait for the end of the connection once the answer is complete."""

_REQUEST_IDS: Final = ("x-request-id", "x-goog-request-id", "x-cloud-trace-context")


class GeminiProvider:
    """Google's Gemini API. `Endpoint.api_version` None means the SDK's default (v1); many proxies serve v1beta only."""

    def __init__(self, endpoint: Endpoint, name: str = "gemini") -> None:
        self._endpoint = endpoint
        self._name = name
        self._opening = asyncio.Lock()
        self._connection: Connection | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def raw(self) -> bool:
        """Whether answers are read as raw bytes; False before `open`, and after it with an SDK of another make."""
        return self._connection is not None and isinstance(self._connection.wire, RawWire)

    @staticmethod
    def check(prompt: Prompt) -> None:
        """Refuse what Gemini cannot do, before any call.

        Raises:
            Unsupported: names it.
        """
        method_path(prompt.model, stream=prompt.stream)
        encode(prompt)

    async def open(self) -> None:
        """Import the SDK and build its client.

        Raises:
            BadCredentials: there is no key.
        """
        await self._opened()

    async def aclose(self) -> None:
        """Close all connections. The next `stream` opens anew."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        """The events of one call, as `Provider.stream` says."""
        body = encode(prompt)
        connection = await self._opened()
        answer = Answer(prompt.model, calls_so_far(prompt))
        streamed = prompt.stream or prompt.max_tokens > STREAMED_FROM_TOKENS
        call = Call()
        try:
            with vendor_boundary(call):
                async with connection.wire.post(prompt.model, body, stream=streamed) as reply, aclosing(reply.data):
                    call.opened = True
                    yield Opened(_request_id(reply.headers), rate_limit_headers(reply.headers))
                    async for data in reply.data:
                        events = answer.feed(data)
                        for event in events if prompt.stream else joined(events):
                            yield event
                        if answer.complete:
                            break
                    for event in await _last_words(reply, answer):
                        yield event
        except Refused as refused:
            raise self._error(refused.status, refused.body, refused.headers) from None
        except StreamError as error:
            raise self._error(status_of(error.body), error.body, {}) from None
        if not answer.complete:
            raise _unfinished(streamed)
        try:
            finished = answer.finish()
        except ModelNoise:
            if answer.usage != Usage():
                yield UsageSeen(answer.usage)
            raise
        yield finished

    async def _opened(self) -> Connection:
        async with self._opening:
            if self._connection is None:
                try:
                    self._connection = await connect(self._endpoint)
                except ValueError as error:
                    raise BadCredentials(safe_message(str(error), self._endpoint.api_key)) from error
            return self._connection

    def _error(self, status: int, body: Mapping[str, Json], headers: Mapping[str, str]) -> ProviderError:
        now = datetime.now(UTC)
        message = str(body.get("message") or f"Gemini answered {status}")
        vendor_type = body.get("status")
        wait = wait_of(body, now)
        return kind_of(status, body)(
            safe_message(message, self._endpoint.api_key),
            status=status,
            vendor_type=vendor_type if isinstance(vendor_type, str) else None,
            retry_after_s=wait if wait is not None else retry_after_seconds(headers),
            vendor_request_id=_request_id(headers),
            headers=rate_limit_headers(headers),
        )


async def _last_words(reply: Reply, answer: Answer) -> list[Event]:
    """Read to the end of the connection, so that it can serve again, and take in usage that came late."""
    if not answer.complete:
        return []
    events: list[Event] = []
    try:
        async with asyncio.timeout(LAST_WORDS_S):
            async for data in reply.data:
                events += answer.feed(data)
    except Exception as error:
        if transport_error(error, opened=True) is None:
            raise
        # The answer is complete: a rough end of the connection takes nothing from it.
    return events


def _unfinished(streamed: bool) -> ProviderError:
    if streamed:
        return StreamCut("Gemini's stream ended before the answer did")
    return BadResponse("Gemini sent an answer without a reason for its end")


def _request_id(headers: Mapping[str, str]) -> str | None:
    return next((headers[name] for name in _REQUEST_IDS if name in headers), None)
