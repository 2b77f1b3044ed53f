"""Any OpenAI-compatible server (Ollama, vLLM, llama.cpp) by its URL, or the embedded demo model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from providers.base import Endpoint, Event, Json, Prompt
from providers.boundary import error_body, kind_by_status
from providers.chat_completions import ChatAnswer, encode
from providers.codec import to_bytes
from providers.embedded_model import EmbeddedModel
from providers.errors import PromptTooLarge, ProviderError, VendorError
from providers.exchange import Refused, Reply, Vendor, exchange, is_streamed
from providers.late import LateProvider
from providers.quotas import openai_quotas
from providers.sse import data_of_events

if TYPE_CHECKING:
    import aiohttp

_LOCAL: Final = Vendor("The local server", "x-request-id", openai_quotas)
_CONTEXT_ERRORS: Final = ("exceed_context_size", "context_length_exceeded")
_CONTEXT_WORDS: Final = ("maximum context length", "exceeds the available context size")


class LocalWire:
    """One session to one server, and the embedded model behind it, if there is one.

    There is no vendor and so no SDK: the requests go out over aiohttp, as those of the SDKs do in the end.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, embedded: EmbeddedModel | None) -> None:
        self._session = session
        self._url = url
        self._embedded = embedded

    @asynccontextmanager
    async def post(self, body: Mapping[str, Json], *, stream: bool) -> AsyncIterator[Reply]:
        """Send one request. Raises `Refused`, and aiohttp's own errors."""
        headers = {"Content-Type": "application/json"}
        data = to_bytes(body)
        async with self._session.post(self._url, data=data, headers=headers, allow_redirects=False) as response:
            if response.status != 200:
                raise Refused(response.status, error_body(await response.read()), response.headers)
            yield Reply(response.headers, _events(response) if stream else _whole(response))

    async def aclose(self) -> None:
        """Close all connections, and the embedded model."""
        await self._session.close()
        if self._embedded is not None:
            await self._embedded.stop()


class LocalProvider(LateProvider[LocalWire]):
    """Chat completions at `endpoint.base_url`, or at an embedded model's server, which it then owns."""

    def __init__(self, endpoint: Endpoint, embedded: EmbeddedModel | None = None, name: str = "local") -> None:
        super().__init__(endpoint, name)
        self._embedded = embedded

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        """The events of one call, as `Provider.stream` says."""
        streamed = is_streamed(prompt)
        body = encode(prompt, stream=streamed, limit_name="max_tokens")
        post = (await self.opened()).post(body, stream=streamed)
        answer = ChatAnswer(prompt.model, _LOCAL.title)
        events = exchange(post, answer, prompt, vendor=_LOCAL, error_of=self._error)
        async with aclosing(events):
            async for event in events:
                yield event

    async def connect(self) -> LocalWire:
        """Start the embedded model, if there is one, and open the session."""
        import aiohttp

        endpoint = self.endpoint
        url = completions_url(await self._embedded.start() if self._embedded else endpoint.base_url or "")
        session = aiohttp.ClientSession(
            # llama.cpp closes kept connections without a word, and a new one costs nothing nearby.
            connector=aiohttp.TCPConnector(limit=endpoint.connections, force_close=True),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=endpoint.connect_timeout_s, sock_read=endpoint.read_timeout_s
            ),
            headers={"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else None,
        )
        return LocalWire(session, url, self._embedded)

    def _error(self, refused: Refused) -> ProviderError:
        return _LOCAL.error(kind_of(refused.status, refused.body), refused, self.endpoint.api_key)


def completions_url(base_url: str) -> str:
    """The address to post to: `http://host:11434` means its /v1, as every such server has it."""
    url = base_url.rstrip("/")
    if urlsplit(url).path in {"", "/"}:
        url += "/v1"
    return f"{url}/chat/completions"


def kind_of(status: int | None, body: Mapping[str, Json]) -> type[ProviderError]:
    """Which error of ours a local server's is; `status` is None inside a 200."""
    told = f"{body.get('type')} {body.get('code')}"
    message = str(body.get("message") or "")
    if any(word in told for word in _CONTEXT_ERRORS) or any(words in message for words in _CONTEXT_WORDS):
        return PromptTooLarge
    return VendorError if status is None else kind_by_status(status)


async def _events(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    async for data in data_of_events(response.content.iter_any()):
        yield data


async def _whole(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    yield await response.read()
