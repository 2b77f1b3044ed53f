"""One call to a vendor, whatever its format: the reply's bytes through an answer's decoder into events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from providers.base import Event, Finished, Json, Opened, Prompt, Quota, TextDelta, ThinkingDelta, Usage, UsageSeen
from providers.boundary import (
    Call,
    retry_after_seconds,
    safe_message,
    transport_error,
    vendor_boundary,
)
from providers.errors import BadResponse, ModelNoise, ProviderError, StreamCut
from providers.quotas import QuotasIn, no_quotas

STREAMED_FROM_TOKENS: Final = 4096
"""Answers that may grow larger are streamed even when nobody watches: a whole one would look like silence.

A minute of silence is the usual timeout, and the slower of the catalog's models write some seventy tokens a second.
"""

LAST_WORDS_S: Final = 2.0
"""How long to wait for the end of the connection once the answer is complete."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A 200: its headers, and the JSON of each event (of the one answer, if it was asked for whole)."""

    headers: Mapping[str, str]
    data: AsyncGenerator[bytes]


class Refused(Exception):
    """The vendor's error: with its HTTP status, or with None where it came inside a 200.

    `body` is the error object itself, out of its envelope.
    """

    def __init__(self, status: int | None, body: Mapping[str, Json], headers: Mapping[str, str]) -> None:
        super().__init__("the vendor refused")
        self.status = status
        self.body = body
        self.headers = headers


class Answer(Protocol):
    """One answer as it comes in: `feed` takes each piece of JSON, `finish` closes it once it is `complete`.

    `feed` raises `BadResponse` for what is not of the vendor's format and `Refused` for an error inside a 200;
    `finish` may raise `ModelNoise`.
    """

    @property
    def complete(self) -> bool:
        """Whether the vendor has said why it stopped, so that an orderly end of the stream is the answer's end."""
        ...

    @property
    def closed(self) -> bool:
        """Whether nothing of the answer can follow, however the connection ends. Implies `complete`."""
        ...

    @property
    def usage(self) -> Usage: ...

    def feed(self, data: bytes) -> list[Event]: ...

    def finish(self) -> Finished: ...


ErrorOf = Callable[[Refused], ProviderError]


@dataclass(frozen=True, slots=True)
class Vendor:
    """What messages and headers call a vendor.

    `request_id` is the header with its own id of the request; `quotas_in` reads its rate-limit headers.
    """

    title: str
    request_id: str
    quotas_in: QuotasIn = no_quotas

    def quotas(self, headers: Mapping[str, str], now: datetime | None = None) -> tuple[Quota, ...]:
        """What the headers say of the vendor's limits."""
        return self.quotas_in({k.lower(): v for k, v in headers.items()}, now or datetime.now(UTC))

    def error(self, kind: type[ProviderError], refused: Refused, api_key: str, **said: Any) -> ProviderError:
        """A `kind` of error out of what the vendor said; `said` overrides what was read."""
        body = refused.body
        fields = {
            "status": refused.status,
            "vendor_type": next((v for k in ("type", "code", "status") if isinstance(v := body.get(k), str)), None),
            "retry_after_s": retry_after_seconds(refused.headers),
            "vendor_request_id": refused.headers.get(self.request_id),
            "quotas": self.quotas(refused.headers),
        }
        message = str(body.get("message") or f"{self.title} answered {refused.status or 'with an error'}")
        return kind(safe_message(message, api_key), **fields | said)


def is_streamed(prompt: Prompt) -> bool:
    """Whether the vendor is asked for a stream."""
    return prompt.stream or prompt.max_tokens > STREAMED_FROM_TOKENS


async def exchange(
    post: AbstractAsyncContextManager[Reply],
    answer: Answer,
    prompt: Prompt,
    *,
    vendor: Vendor,
    error_of: ErrorOf,
) -> AsyncGenerator[Event]:
    """Send and read to the end, as `Provider.stream` promises."""
    call = Call()
    try:
        with vendor_boundary(call):
            async with post as reply, aclosing(reply.data):
                call.opened = True
                yield Opened(reply.headers.get(vendor.request_id), vendor.quotas(reply.headers))
                async for data in reply.data:
                    events = answer.feed(data)
                    for event in events if prompt.stream else joined(events):
                        yield event
                    if answer.closed:
                        break
                if answer.closed:
                    for event in await _last_words(reply, answer):
                        yield event
    except Refused as refused:
        raise error_of(refused) from None
    if not answer.complete:
        if is_streamed(prompt):
            raise StreamCut(f"{vendor.title}'s stream ended before the answer did")
        raise BadResponse(f"{vendor.title} sent an answer without a reason for its end")
    try:
        finished = answer.finish()
    except ModelNoise:
        if answer.usage != Usage():
            yield UsageSeen(answer.usage)
        raise
    yield finished


async def _last_words(reply: Reply, answer: Answer) -> list[Event]:
    """Read to the end of the connection, so that it can serve again, and take in usage that came late."""
    events: list[Event] = []
    try:
        async with asyncio.timeout(LAST_WORDS_S):
            async for data in reply.data:
                events += answer.feed(data)
    except (ProviderError, Refused):
        # The answer is complete, and paid for: neither noise nor an error after it takes anything from it.
        return events
    except Exception as error:
        if transport_error(error, opened=True) is None:
            raise
        # Nor does a rough end of the connection.
    return events


def joined(events: list[Event]) -> list[Event]:
    """A whole answer's events with its runs of text, and of thinking, in one delta each."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ThinkingDelta) and isinstance(last, ThinkingDelta) and last.signature is None:
            out[-1] = ThinkingDelta(last.text + event.text, event.signature)
        else:
            out.append(event)
    return out
