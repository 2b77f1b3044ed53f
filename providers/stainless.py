"""Providers over the SDKs that Stainless generates (anthropic, groq): their client sends, we read the bytes.

The SDK keeps credentials, headers, URLs and error classes. Its lowest public call gives the response back unread, which
takes a half of the CPU of its typed answers, and a third of that of its typed streams.
"""

from __future__ import annotations

import asyncio
import importlib
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar

from providers.base import Event, Json, Prompt
from providers.boundary import error_body
from providers.codec import to_bytes
from providers.errors import ProviderError
from providers.exchange import Answer, Refused, Reply, Vendor, exchange, is_streamed
from providers.late import LateProvider
from providers.sse import data_of_events

_UNREAD = {"X-Stainless-Raw-Response": "stream"}
"""The SDK's own switch: leave the body to the caller."""


class StainlessWire:
    """One SDK client over an aiohttp transport. `sdk` is the SDK's module."""

    def __init__(self, sdk: Any, client: Any, response_type: type) -> None:
        self.sdk = sdk
        self._client = client
        self._response_type = response_type

    @asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Json], *, stream: bool) -> AsyncIterator[Reply]:
        """Send one request. Leaving the context closes the connection unless the answer was read to its end.

        Raises `Refused`, and the transport's own errors.
        """
        try:
            response = await self._client.post(
                path,
                cast_to=self._response_type,
                content=to_bytes(body),
                options={"headers": {**_UNREAD, "Content-Type": "application/json"}},
            )
        except self.sdk.APIStatusError as error:
            refusal = error.response
            raise Refused(refusal.status_code, error_body(refusal.content), refusal.headers) from None
        except self.sdk.APIConnectionError as error:
            # The whole chain of causes goes along: only its end says what happened.
            raise ConnectionError(str(error)) from error.__cause__
        try:
            yield Reply(response.headers, _events(response) if stream else _whole(response))
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close every connection to the vendor."""
        await self._client.close()


async def _events(response: Any) -> AsyncGenerator[bytes]:
    async with aclosing(response.aiter_bytes()) as chunks:
        async for data in data_of_events(chunks):
            yield data


async def _whole(response: Any) -> AsyncGenerator[bytes]:
    yield await response.aread()


class StainlessProvider(LateProvider[StainlessWire]):
    """A provider that says how to build its SDK's client, what to send, and what its errors mean; the rest is here."""

    vendor: ClassVar[Vendor]
    sdk_name: ClassVar[str]
    http_name: ClassVar[str]
    """The HTTP library that the SDK is built on: "httpx2" or "httpx"."""

    @abstractmethod
    def client(self, sdk: Any, **shared: Any) -> Any:
        """The SDK's async client; `shared` has the arguments that all of them take."""

    @abstractmethod
    def call(self, prompt: Prompt, sdk: Any, *, stream: bool) -> tuple[str, dict[str, Json], Answer]:
        """(path, body, decoder of the answer). Raises `Unsupported` for what the vendor cannot do."""

    @staticmethod
    @abstractmethod
    def kind_of(status: int | None, body: Mapping[str, Json]) -> type[ProviderError]:
        """Which error of ours the vendor's is; `status` is None inside a 200."""

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        """The events of one call, as `Provider.stream` says."""
        wire = await self.opened()
        streamed = is_streamed(prompt)
        path, body, answer = self.call(prompt, wire.sdk, stream=streamed)
        post = wire.post(path, body, stream=streamed)
        events = exchange(post, answer, prompt, vendor=self.vendor, error_of=self._error)
        async with aclosing(events):
            async for event in events:
                yield event

    async def connect(self) -> StainlessWire:
        # In a thread: the import takes a second or two, and the client reads the certificate store.
        return await asyncio.to_thread(self._connect)

    def _connect(self) -> StainlessWire:
        sdk = importlib.import_module(self.sdk_name)
        http: Any = importlib.import_module(self.http_name)
        timeout = http.Timeout(self.endpoint.read_timeout_s, connect=self.endpoint.connect_timeout_s, pool=None)
        connections = self.endpoint.connections
        limits = http.Limits(max_connections=connections, max_keepalive_connections=connections)
        client = self.client(
            sdk,
            api_key=self.endpoint.api_key,
            max_retries=0,
            timeout=timeout,
            http_client=sdk.DefaultAioHttpClient(timeout=timeout, limits=limits),
        )
        return StainlessWire(sdk, client, http.Response)

    def _error(self, refused: Refused) -> ProviderError:
        return self.vendor.error(self.kind_of(refused.status, refused.body), refused, self.endpoint.api_key)
