"""The way to Gemini through the official SDK: its requests, and answers left as raw bytes where it lets us."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.request import getproxies

from providers.base import Endpoint, Json
from providers.boundary import error_body
from providers.codec import to_bytes
from providers.errors import BadResponse
from providers.exchange import Refused, Reply
from providers.gemini_answer import error_in
from providers.gemini_codec import method_path
from providers.sse import data_of_events

if TYPE_CHECKING:
    import aiohttp
    from google.genai import Client

log = logging.getLogger(__name__)

READ_BUFFER: Final = 2**22
TAIL: Final = 4096
LARGE_BODY: Final = 2**20
"""aiohttp warns of a larger body given as bytes."""


class Wire(Protocol):
    """Sends one request. Leaving the context closes the vendor's connection unless the answer was read to its end.

    Raises `Refused`, and the transport's own errors.
    """

    def post(self, model: str, body: Mapping[str, Json], *, stream: bool) -> AbstractAsyncContextManager[Reply]: ...


class RawWire:
    """Lets the SDK build the request (address, version, key, its headers) and sends it over `session` itself.

    The SDK's own sending costs twice the CPU for a whole answer and five times for a chunk of a stream, knows neither
    a connect timeout nor one for silence, and with aiohttp it repeats a call whose connection dropped, after 1–10 s,
    unless retry options are set.
    """

    def __init__(self, client: Client, session: aiohttp.ClientSession, timeout: aiohttp.ClientTimeout) -> None:
        self._api: Any = client._api_client
        self._session = session
        self._timeout = timeout

    @staticmethod
    def fits(client: Client) -> bool:
        """Whether this version of the SDK has the request layer that `post` uses."""
        try:
            api: Any = client._api_client
            request = api._build_request("post", method_path("probe", stream=False), {}, None)
            return all(
                (
                    str(request.url).endswith("/models/probe:generateContent"),
                    isinstance(request.headers, dict),
                    isinstance(api._async_client_session_request_args, dict),
                )
            )
        except (AttributeError, TypeError, ValueError):
            return False

    @asynccontextmanager
    async def post(self, model: str, body: Mapping[str, Json], *, stream: bool) -> AsyncIterator[Reply]:
        request = self._api._build_request("post", method_path(model, stream=stream), {}, None)
        data = to_bytes(body)
        response = await self._session.post(
            request.url,
            headers=request.headers,
            data=io.BytesIO(data) if len(data) > LARGE_BODY else data,
            timeout=self._timeout,
            allow_redirects=False,
            **self._api._async_client_session_request_args,
        )
        try:
            if response.status != 200:
                raise Refused(response.status, error_body(await response.read()), response.headers)
            yield Reply(response.headers, _events(response) if stream else _whole(response))
        finally:
            response.close()


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    tail = bytearray()

    async def chunks() -> AsyncGenerator[bytes]:
        async for chunk in response.content.iter_any():
            tail.extend(chunk)
            del tail[:-TAIL]
            yield chunk

    async for data in data_of_events(chunks()):
        yield data
    error = error_in(bytes(tail))
    if error is not None:
        yield error


async def _whole(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    yield await response.read()


class TypedWire:
    """Sends through the SDK's public, typed calls: the way out when a new version has another request layer."""

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s

    @asynccontextmanager
    async def post(self, model: str, body: Mapping[str, Json], *, stream: bool) -> AsyncIterator[Reply]:
        # The body goes in whole as `extra_body`, which replaces the typed arguments' contents.
        config: Any = {
            "http_options": {"extra_body": dict(body)},
            "automatic_function_calling": {"disable": True},
            "automatic_continuation": False,
        }
        async with aclosing(self._chunks(method_path(model, stream=stream).split(":")[0], config, stream)) as chunks:
            first = await anext(chunks, None)
            answered = getattr(first, "sdk_http_response", None)
            yield Reply(getattr(answered, "headers", None) or {}, _dumped(first, chunks))

    async def _chunks(self, model: str, config: Any, stream: bool) -> AsyncGenerator[Any]:
        from google.genai.errors import APIError

        models = self._client.aio.models
        try:
            if not stream:
                async with asyncio.timeout(self._timeout_s):
                    answer = await models.generate_content(model=model, contents="-", config=config)
                yield answer
                return
            source = await models.generate_content_stream(model=model, contents="-", config=config)
            while True:
                async with asyncio.timeout(self._timeout_s):
                    chunk = await anext(source, None)
                if chunk is None:
                    return
                yield chunk
        except APIError as error:
            details = error.details if isinstance(error.details, Mapping) else {}
            raise Refused(
                int(error.code or 500), details.get("error", details), getattr(error.response, "headers", {})
            ) from error
        except ValueError as error:
            raise BadResponse("Gemini sent an answer that the SDK cannot read") from error


async def _dumped(first: Any, rest: AsyncGenerator[Any]) -> AsyncGenerator[bytes]:
    if first is not None:
        yield first.model_dump_json(by_alias=True, exclude_none=True).encode()
    async for chunk in rest:
        yield chunk.model_dump_json(by_alias=True, exclude_none=True).encode()


@dataclass(frozen=True, slots=True)
class Connection:
    """The open SDK client with its session; whoever holds it keeps both alive, and closes them."""

    client: Client
    session: aiohttp.ClientSession
    wire: Wire

    async def aclose(self) -> None:
        """Close every connection to the vendor."""
        await self.session.close()
        await self.client.aio.aclose()
        self.client.close()


async def connect(endpoint: Endpoint) -> Connection:
    """Build the SDK's client over a session of our own. Its import takes seconds, so it happens in a thread.

    Raises:
        ValueError: the SDK has no key.
    """
    await asyncio.to_thread(__import__, "google.genai")
    import aiohttp

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=endpoint.connections),
        # As the SDK's own session; but aiohttp then looks for proxies and a netrc in threads, at every call, which
        # costs more CPU than all the rest of it. So only where a proxy is set.
        trust_env=bool(getproxies()),
        read_bufsize=READ_BUFFER,
    )
    try:
        client = await asyncio.to_thread(_client, endpoint, session)
    except BaseException:
        await session.close()
        raise
    if RawWire.fits(client):
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=endpoint.connect_timeout_s, sock_read=endpoint.read_timeout_s
        )
        return Connection(client, session, RawWire(client, session, timeout))
    log.warning("this google-genai has another request layer: answers go through its typed calls, at more CPU")
    return Connection(client, session, TypedWire(client, endpoint.read_timeout_s))


def _client(endpoint: Endpoint, session: aiohttp.ClientSession) -> Client:
    from google import genai
    from google.genai.types import HttpOptions, HttpRetryOptions

    # No `timeout`: it would end long streams, and go out as X-Server-Timeout too (in seconds, from milliseconds).
    options = HttpOptions(
        base_url=endpoint.base_url,
        api_version=endpoint.api_version,
        retry_options=HttpRetryOptions(attempts=1),
        aiohttp_client=session,
    )
    return genai.Client(api_key=endpoint.api_key or None, vertexai=False, http_options=options)
