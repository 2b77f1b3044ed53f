"""The connection to NATS, with the defaults and guards that nats-py lacks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

import nats.errors
import structlog
from nats.aio.subscription import Subscription

from processor.config import Settings
from processor.nats_client import MAX_LINE_BYTES, Client, warn, within
from processor.nats_login import login, server_urls

HEADER_RESERVE = 4096
"""The server counts headers into max_payload and the client does not: over it, the server closes the connection."""
MAX_SUBJECT_BYTES = MAX_LINE_BYTES - 512
"""So that a reply subject has room beside it."""
CONNECT_WITHIN_S = 10.0
WATCHDOG_PERIOD_S = 10.0
FLUSH_TIMEOUT_S = 2.0
CLOSE_TIMEOUT_S = 1.0
LEAVE_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class MessageTooLarge(Exception):
    """The broker would refuse this message and close the connection."""


class BusClosed(Exception):
    """The connection is gone for good; the process has to start anew."""


class Bus:
    """A NATS connection shared by everything in one process."""

    def __init__(self) -> None:
        self.nc = Client()
        self._closed = asyncio.Event()
        self._closing = False
        self.reconnected_at: datetime | None = None
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []

    async def connect(self, url: str, settings: Settings, *, name: str) -> None:
        """Connect, waiting a little for a server that is just starting.

        Raises:
            Fatal: NATS_URL or NATS_CREDS is wrong.
            ConnectionError: no server took us at `url` within `CONNECT_WITHIN_S`; says what the last one answered.
        """
        last: list[Exception] = []

        async def on_error(error: Exception) -> None:
            if self.nc.is_connected or not last:
                warn("nats error", error=repr(error))
            last[:] = [error]

        async def on_disconnected() -> None:
            if not self._closing:
                warn("nats connection lost, reconnecting")

        async def on_reconnected() -> None:
            self.reconnected_at = datetime.now(UTC)
            with suppress(Exception):
                log.info("nats reconnected")
            for callback in self._on_reconnect:
                try:
                    await callback()
                except Exception as error:  # noqa: BLE001  nats-py would take it for the connection's, or die of it
                    warn("not done after a reconnection", error=repr(error))

        async def on_closed() -> None:
            self._closed.set()

        connecting = self.nc.connect(
            server_urls(url),
            name=name,
            error_cb=on_error,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
            closed_cb=on_closed,
            connect_timeout=5,
            reconnect_time_wait=0.2,  # type: ignore[arg-type]  # nats-py says int and takes any number
            max_reconnect_attempts=-1,
            ping_interval=10,
            **login(settings),
        )
        try:
            # Without an end to its attempts, nats-py would also try the first connection for ever.
            await asyncio.wait_for(connecting, CONNECT_WITHIN_S)
        except TimeoutError:
            await self.close()
            raise ConnectionError(str(last[0]) if last else "no answer") from None
        except nats.errors.Error as error:
            raise ConnectionError(str(error)) from error

    @property
    def is_connected(self) -> bool:
        """False while a connection is lost: what is published then is kept back and sent later, up to 2 MiB in all."""
        return self.nc.is_connected

    @property
    def connection(self) -> int | None:
        """Which connection this is, counted from 0; None while there is none."""
        return self.nc.stats["reconnects"] if self.nc.is_connected else None

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` after every reconnection."""
        self._on_reconnect.append(callback)

    async def publish(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Publish, refusing here what the server would answer by closing the connection."""
        self.check_size(body, headers, subject)
        await self.nc.publish(subject, body, reply=reply, headers=dict(headers) if headers else None)

    def check_size(self, body: bytes, headers: Mapping[str, str] | None, subject: str = "") -> None:
        """Raise `MessageTooLarge` for what the server would not take."""
        if len(subject.encode()) > MAX_SUBJECT_BYTES:
            raise MessageTooLarge(f"a subject of {len(subject)} characters")
        size = len(body) + sum(len(k.encode()) + len(v.encode()) + 4 for k, v in (headers or {}).items())
        if size > self.nc.max_payload - HEADER_RESERVE:
            raise MessageTooLarge(f"{size} bytes; the broker takes {self.nc.max_payload - HEADER_RESERVE}")

    async def settle(self) -> None:
        """Return once the server has taken in everything sent so far, subscriptions too.

        Raises:
            nats.errors.Error: it does not answer.
        """
        # nats-py's PING overtakes what is still buffered; only a second one comes behind it.
        for _ in range(2):
            await self.nc.round_trip(FLUSH_TIMEOUT_S)

    async def leave(self, sub: Subscription) -> None:
        """End a subscription without losing what the server has sent it: all that came is handled first.

        `unsubscribe` drops what has come and was not looked at; `drain` may wait for ever, and its PING overtakes its
        own UNSUB. What is not handled within `LEAVE_TIMEOUT_S` is dropped here too.
        """
        try:
            await within(LEAVE_TIMEOUT_S, self._handle_the_rest(sub))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.warning("subscription not ended in order", subject=sub.subject, error=repr(error))
        finally:
            sub._closed = True
            sub._stop_processing()
            self.nc._remove_sub(sub._id)

    async def _handle_the_rest(self, sub: Subscription) -> None:
        await self.nc._send_unsubscribe(sub._id)
        try:
            await self.settle()
        except nats.errors.Error as error:  # no more will come; what has come is handled all the same
            log.warning("the broker did not confirm an unsubscription", subject=sub.subject, error=repr(error))
        await sub._pending_queue.join()

    async def watch(self) -> None:
        """Run until the connection is closed or stops answering; then raise `BusClosed`."""
        misses = 0
        while not self._closed.is_set():
            try:
                await asyncio.wait_for(self._closed.wait(), WATCHDOG_PERIOD_S)
            except TimeoutError:
                misses = 0 if await self._answers() else misses + 1
            if self.nc.is_deaf or (misses >= 2 and self.nc.is_connected):
                raise BusClosed("the NATS connection stopped answering")
        raise BusClosed("the NATS connection was closed")

    async def _answers(self) -> bool:
        try:
            await self.nc.round_trip(FLUSH_TIMEOUT_S)
        except nats.errors.Error:
            return False
        return True

    async def close(self) -> None:
        """Send what is buffered and close, within some 3 s whatever the server does; never raises."""
        self._closing = True
        if self.nc.is_connected and not await self._answers():
            log.warning("the broker did not confirm what was sent last")
        await self.nc.hang_up(CLOSE_TIMEOUT_S)
        self._closed.set()
