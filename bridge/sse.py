"""Server-sent events: their form, and a response that streams them, keeps the line warm and sees its client go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from fastapi import Response
from starlette.types import Message, Receive, Scope, Send

from bridge.client_gone import ClientGone, gone
from processor.errors import RequestError

HEARTBEAT_S = 15.0
"""The longest silence: proxies take a longer one for the end."""
SEND_WITHIN_S = 30.0
"""A client that takes nothing for so long has gone."""
_HEARTBEAT = b": \n\n"
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(data: bytes, *, name: str | None = None, id: str | None = None) -> bytes:
    """One event; `data` is one line, as JSON is."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {name}\n" if name is not None else "")
    return b"%sdata: %s\n\n" % (head.encode(), data)


class EventStream(Response):
    """A stream of events as an ASGI response.

    Its status is held back until the first chunk or heartbeat, so that what is refused before is an HTTP error.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes],
        *,
        on_gone: Callable[[], Awaitable[None]],
        failed: Callable[[RequestError], Response],
        late: Callable[[RequestError], bytes],
        headers: Mapping[str, str] | None = None,
        heartbeat: bytes = _HEARTBEAT,
    ) -> None:
        """`chunks` are sent as they are. A RequestError among them is the end: where nothing has been sent it becomes
        the answer that `failed` gives, else the chunk that `late` gives. `heartbeat` is sent in a long silence; what
        is no stream of events has an empty one.
        """
        super().__init__()
        self._chunks = chunks
        self._on_gone = on_gone
        self._failed = failed
        self._late = late
        self._said = HEADERS | dict(headers or {})
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = _Out(scope, receive, send, self._said)
        tasks = [
            asyncio.ensure_future(self._pump(out)),
            asyncio.ensure_future(gone(receive)),
            asyncio.ensure_future(out.keep_warm(self._heartbeat)),
        ]
        pumping = tasks[0]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            has_gone = not pumping.done() or isinstance(pumping.exception(), ClientGone)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if has_gone:
            await self._on_gone()
        else:
            pumping.result()

    async def _pump(self, out: _Out) -> None:
        async with aclosing(self._chunks) as chunks:
            try:
                async for chunk in chunks:
                    await out.write(chunk)
            except RequestError as error:
                if await out.fail(self._failed(error)):
                    return
                await out.write(self._late(error))
        await out.end()


class _Out:
    """The connection to the client: one message after the other."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._sending = asyncio.Lock()
        self._sent_at = asyncio.get_running_loop().time()
        self.has_begun = False
        self._has_ended = False

    async def send(self, message: Message) -> None:
        """Raises ClientGone where the client takes nothing."""
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                await self._send(message)
        except (TimeoutError, OSError):
            raise ClientGone from None
        self._sent_at = asyncio.get_running_loop().time()

    async def write(self, chunk: bytes) -> None:
        async with self._sending:
            if self._has_ended:  # a heartbeat that was waiting
                return
            if not self.has_begun:
                self.has_begun = True
                await self.send({"type": "http.response.start", "status": 200, "headers": self._headers})
            await self.send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def fail(self, response: Response) -> bool:
        """Answer with `response`, unless something was sent before."""
        async with self._sending:
            if self.has_begun:
                return False
            self.has_begun = self._has_ended = True
            await response(self._scope, self._receive, self.send)
            return True

    async def end(self) -> None:
        async with self._sending:
            self._has_ended = True
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def keep_warm(self, heartbeat: bytes) -> None:
        """A heartbeat after each silence of HEARTBEAT_S. Ends when the client takes nothing."""
        while True:
            silent = asyncio.get_running_loop().time() - self._sent_at
            if silent < HEARTBEAT_S:
                await asyncio.sleep(HEARTBEAT_S - silent)
                continue
            try:
                await self.write(heartbeat)
            except ClientGone:
                return
