"""nats-py's client, mended: nothing that arrives ends its read loop, and it tells and ends in bounded time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import nats.aio.client
import nats.errors
import nats.protocol.parser
import structlog
from nats.aio.msg import Msg

MAX_LINE_BYTES = 4096 - 32
"""Of subject and reply subject: the server closes the connection at a longer control line; the rest is for sizes."""
_ACK = b"$JS.ACK."
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

# A subject may hold any byte but space, tab, CR and LF. For nats-py, vertical tab and form feed end one, too:
# a queued message with such a subject would end every connection that it is delivered to, again and again.
nats.protocol.parser.MSG_RE = re.compile(
    rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n"
)
nats.protocol.parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
)

T = TypeVar("T")

log = structlog.get_logger(__name__)


def warn(event: str, **fields: object) -> None:
    """Log where an exception would end a task of nats-py's and so the connection: stderr itself may be gone."""
    with suppress(Exception):
        log.warning(event, **fields)


def sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """Those that nats-py can send: what arrives may have any name, what it sends must have a token for one."""
    return {name: value for name, value in headers.items() if _HEADER_NAME.fullmatch(name)}


@contextmanager
def cancellable() -> Iterator[None]:
    """Raise CancelledError at the end if this task was cancelled inside and what it called has swallowed that."""
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    yield
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError


async def within(timeout_s: float, work: Awaitable[T]) -> T:
    """The result of `work`; TimeoutError after `timeout_s` even where nats-py swallows the cancellation."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            raise TimeoutError(f"not done in {timeout_s:g} s")
        return task.result()
    finally:
        task.cancel()


class Client(nats.aio.client.Client):
    """A connection to NATS."""

    @property
    def is_deaf(self) -> bool:
        """Whether nobody reads any more what the server sends, though the connection stands."""
        return self.is_connected and (self._reading_task is None or self._reading_task.done())

    async def round_trip(self, timeout_s: float) -> None:
        """Return once the server has answered a PING. `flush` would return at once where the read loop has ended.

        Raises:
            nats.errors.Error: it does not answer, or there is no connection.
        """
        if self.is_closed:
            raise nats.errors.ConnectionClosedError
        if not self.is_connected:
            raise nats.errors.ConnectionReconnectingError
        if self.is_deaf:
            raise nats.errors.StaleConnectionError
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            await within(timeout_s, self._send_ping(answered))
            # Waited for and not cancelled: a PONG may still come for it.
            await asyncio.wait({answered}, timeout=timeout_s)
        except TimeoutError:
            raise nats.errors.FlushTimeoutError from None
        except (RuntimeError, OSError) as error:  # uvloop's, for a transport that has just been closed
            raise nats.errors.StaleConnectionError from error
        if not answered.done():
            raise nats.errors.FlushTimeoutError

    async def hang_up(self, timeout_s: float) -> None:
        """Close whatever the server does, sending what is buffered if it takes that; never raises."""
        if self._flush_queue is None:  # it has never begun to connect
            return
        if not self.is_connected and self._pending:
            warn("closed without a connection: some messages were not sent", bytes=self._pending_data_size)
            # nats-py would write them to the transport that is gone, and fail.
            self._pending, self._pending_data_size = [], 0
        closing = asyncio.create_task(self.close())
        try:
            await asyncio.wait({closing}, timeout=timeout_s)
            if not closing.done():
                warn("the broker does not take what is unsent: connection dropped")
        finally:
            self._drop()
            closing.cancel()
        await asyncio.wait({closing}, timeout=1)
        if closing.done() and not closing.cancelled() and (error := closing.exception()) is not None:
            warn("connection not closed in order", error=repr(error))

    def _drop(self) -> None:
        """What `close` did not come to: end the transport, and the tasks that nats-py started."""
        writer = getattr(self._transport, "_io_writer", None)  # a websocket has none
        if writer is not None:
            writer.transport.abort()
        for sub in self._subs.values():
            sub._stop_processing()
        while self._flush_queue is not None and not self._flush_queue.empty():
            flushed = self._flush_queue.get_nowait()  # whoever waits for it goes on, and finds the connection closed
            if not flushed.done():
                flushed.set_result(None)
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task, self._reconnection_task):
            if task is not None:
                task.cancel()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        if len(subject.encode()) + len(reply.encode()) > MAX_LINE_BYTES:
            raise nats.errors.BadSubjectError
        await super().publish(subject, payload, reply, headers)

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, Any] | None = None,
    ) -> Msg:
        # Python 3.11's `wait_for` loses a cancellation that comes together with the answer.
        with cancellable():
            return await super().request(subject, payload, timeout, old_style, headers)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:  # noqa: BLE001  whatever it is, one message must not end the read loop
            warn("a message that cannot be read was dropped", subject=repr(subject[:200]), error=repr(error))
            sub = self._subs.get(sid)
            # Only where the server itself delivers is the reply subject its word, and not a client's.
            if sub is not None and sub.subject.startswith(self._inbox_prefix.decode()) and reply.startswith(_ACK):
                with suppress(nats.errors.Error):  # then it comes again, and is dropped again
                    await self.publish(reply.decode("ascii"), b"+TERM it cannot be read")

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        try:
            found: dict[str, str] | None = await super()._process_headers(headers)
        except (UnicodeDecodeError, IndexError) as error:
            warn("headers that cannot be read were left out", headers=repr(headers[:200]), error=repr(error))
            return None
        return found

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # A subject may be any bytes; what is no text arrives as `\\xfc`, and is refused for what it is.
        return self.msg_class(
            _client=self,
            _sid=sid,
            subject=subject.decode("utf-8", "backslashreplace"),
            reply=reply.decode("utf-8", "backslashreplace"),
            data=data,
            headers=headers,
        )

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # nats-py swallows a cancellation that comes while a publish waits for room in its buffer.
        with cancellable():
            try:
                return await super()._flush_pending(force_flush)
            except RuntimeError as error:  # uvloop's, for a transport that is closed
                raise nats.errors.StaleConnectionError from error

    async def _process_pong(self) -> None:
        # nats-py sets the future of a `flush` that timed out, which is cancelled: its read loop would end.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()
