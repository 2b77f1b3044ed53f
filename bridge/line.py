"""The bridge's connection to the broker: one question, one answer, and a named error for everything that hinders."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NoReturn

import nats.errors
import structlog
from nats.aio.msg import Msg

from processor.bus import Bus, BusClosed, MessageTooLarge
from processor.config import Settings
from processor.errors import ErrorType, RequestError

NAME = "ckcias-sidecar bridge"
ANSWER_WITHIN_S = 5.0
"""A sidecar calls nobody for what is asked here; one that has just started may still be importing its SDKs."""
LOOK_EVERY_S = 1.0
BROKER_ANSWERS_WITHIN_S = 0.5
"""Each for a PING to go out and for its answer: a broker that has fallen silent is noticed within 2 s."""
CONNECT_AGAIN_S = 2.0
UNHEARD_WITHIN_S = 0.05
"""For the broker's word that nobody hears a message to be read, which came before its word that it has it."""

log = structlog.get_logger(__name__)


class BrokerAway(RequestError):
    """There is no connection to the broker now."""

    def __init__(
        self,
        message: str = "the bridge cannot reach its NATS broker now: see that it runs; it is tried again",
        retry_after_s: float | None = 1.0,
    ) -> None:
        super().__init__(ErrorType.UNAVAILABLE, message, retry_after_s=retry_after_s)


class BrokerLost(BrokerAway):
    """It went away while an answer was waited for: what was asked may be done, and paid for, all the same."""

    def __init__(self) -> None:
        super().__init__("the bridge has lost its NATS broker: what was asked may be done all the same", None)


class NoSidecar(RequestError):
    """The broker knows of nobody who would answer."""

    def __init__(self) -> None:
        message = "no sidecar runs on this broker: start one with `sidecar processor`"
        super().__init__(ErrorType.UNAVAILABLE, message, retry_after_s=5.0)


class NoAnswer(RequestError):
    """A sidecar is there and says nothing."""

    def __init__(self, within_s: float) -> None:
        super().__init__(ErrorType.DEADLINE_EXCEEDED, f"no sidecar has answered in {within_s:g} s")


class Line:
    """A NATS client like any other. A connection that is lost for good is built anew, and meanwhile all is refused."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._settings = settings
        self._url = url
        self._bus = Bus()

    async def connect(self) -> None:
        """Raises what `Bus.connect` raises."""
        await self._bus.connect(self._url, self._settings, name=NAME)

    async def keep(self) -> NoReturn:
        """Keep connected, for ever."""
        while True:
            try:
                await self._bus.watch()
            except BusClosed as lost:
                log.error("connection to NATS lost for good, starting anew", why=str(lost))
            await self.close()
            await self._connect_anew()

    async def _connect_anew(self) -> None:
        while True:
            self._bus = Bus()
            try:
                return await self.connect()
            except OSError as error:
                log.warning("no broker yet", error=str(error))
                await self.close()
                await asyncio.sleep(CONNECT_AGAIN_S)

    async def close(self) -> None:
        await self._bus.close()

    @property
    def bus(self) -> Bus:
        """The connection of now; another one after the last was lost for good."""
        return self._bus

    async def tell(self, subject: str) -> bool:
        """Send an empty message, and know that the broker has it: whether anybody hears it.

        Raises:
            BrokerAway: it is not sent, or nobody knows.
        """
        bus = self._bus
        if not bus.is_connected:
            raise BrokerAway
        telling = asyncio.create_task(bus.nc.request(subject, timeout=ANSWER_WITHIN_S))
        try:
            await asyncio.sleep(0)  # it is sent
            await bus.settle()
            await asyncio.wait({telling}, timeout=UNHEARD_WITHIN_S)
            if telling.done():
                telling.result()
            return True
        except nats.errors.NoRespondersError:
            return False
        except (nats.errors.Error, OSError):
            raise BrokerAway from None
        finally:
            telling.cancel()

    async def ask(
        self,
        subject: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        within_s: float = ANSWER_WITHIN_S,
    ) -> Msg:
        """The answer of one sidecar.

        Raises:
            BrokerAway, BrokerLost, NoSidecar, NoAnswer: `unavailable` or `deadline_exceeded`.
            RequestError: `too_large` for more than the broker takes.
        """
        bus = self._bus
        if not bus.is_connected:
            raise BrokerAway
        try:
            bus.check_size(body, headers, subject)
        except MessageTooLarge as error:
            raise RequestError(ErrorType.TOO_LARGE, f"the body is too large for the broker: {error}") from None
        sent = dict(headers) if headers else None
        asking = asyncio.create_task(bus.nc.request(subject, body, timeout=within_s, headers=sent))
        try:
            await self._await(asking, bus)
            return asking.result()
        except nats.errors.NoRespondersError:
            raise NoSidecar from None
        except nats.errors.TimeoutError:
            raise NoAnswer(within_s) from None
        except (nats.errors.Error, OSError):
            raise BrokerLost from None
        finally:
            asking.cancel()

    async def _await(self, asking: asyncio.Task[Msg], bus: Bus) -> None:
        """Wait for the answer, looking now and then whether the broker is still there. Raises nats.errors.Error."""
        while not asking.done():
            await asyncio.wait({asking}, timeout=LOOK_EVERY_S)
            if not asking.done():
                try:
                    await bus.nc.round_trip(BROKER_ANSWERS_WITHIN_S)
                except nats.errors.TimeoutError:
                    raise nats.errors.StaleConnectionError from None


@asynccontextmanager
async def connected(settings: Settings, url: str) -> AsyncIterator[Line]:
    """A line that is connected; closed at the end. Raises what `Bus.connect` raises."""
    line = Line(settings, url)
    try:
        await line.connect()
        yield line
    finally:
        await line.close()
