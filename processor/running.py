"""A process that serves: broker or connection, what serves on it, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Protocol

import nats.errors
import structlog
from pydantic import ValidationError

from processor.broker import BrokerError, embedded_broker
from processor.bus import BusClosed
from processor.catalog import CatalogError
from processor.config import Settings, shown
from processor.exits import Exit, Fatal
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.log import configure_logging
from processor.service import Processor, processor
from processor.tasks import happens

START_AGAIN_S = 2.0
_NO_BROKER = (OSError, nats.errors.NoServersError, JetStreamUnavailable)

log = structlog.get_logger(__name__)


class Service(Protocol):
    """Something that serves on the broker, beside others in one process."""

    async def serve(self, nats_url: str, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Serve until `stopping`, and end in order. `on_ready` is called, perhaps again, with what the user is told."""


Opening = Callable[[Settings], contextlib.AbstractContextManager[Service]]
"""Makes a service out of the settings, before there is a broker; raises Fatal where they cannot be followed."""


async def serve(settings: Settings, *openings: Opening, embedded: bool) -> int:
    """Run these services until SIGINT or SIGTERM, each from when the one before is ready.

    With `embedded`, a broker of our own is started where no NATS_URL is set; it ends after them.
    """
    configure_logging(settings)
    if settings.nats_url is None and not embedded:
        raise Fatal("NATS_URL is not set: set it to a broker with JetStream, or use `sidecar up`", Exit.USAGE)
    stopping = _signalled()
    try:
        with contextlib.ExitStack() as stack:
            services = [stack.enter_context(opening(settings)) for opening in openings]
            async with _broker(settings) as url:
                await _serve_all(services, url, stopping)
    except (BrokerError, CatalogError, ValidationError) as error:
        raise Fatal(str(error)) from error
    except _NO_BROKER as error:
        where = shown(settings.nats_url or "the embedded broker")
        raise Fatal(f"no NATS server with JetStream at {where}: {error}", Exit.UNREACHABLE) from error
    except JetStreamError as error:
        raise Fatal(f"the broker refused the streams: {error}") from error
    return Exit.OK


async def _serve_all(services: Sequence[Service], url: str, stopping: asyncio.Event) -> None:
    """Raises the first error of one of them, and ends the others for it."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for service in services:
                ready = asyncio.Event()
                serving = tasks.create_task(service.serve(url, stopping, partial(_tell, ready)))
                serving.add_done_callback(partial(_over, ready))
                await ready.wait()
                if stopping.is_set():
                    break
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _tell(ready: asyncio.Event, what: str) -> None:
    print(f"sidecar: {what}", file=sys.stderr)
    ready.set()


def _over(ready: asyncio.Event, _: asyncio.Task[None]) -> None:
    ready.set()


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


@contextlib.contextmanager
def processing(settings: Settings) -> Iterator[Service]:
    """The processor as a service. A connection that is lost for good is built anew, for ever.

    nats-py ends one at some of the server's complaints.
    """
    yield _Processing(settings)


class _Processing:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def serve(self, nats_url: str, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        lost = await self._run_once(nats_url, stopping, on_ready)
        while lost and not stopping.is_set():
            log.error("connection to NATS lost for good, starting anew")
            try:
                lost = await self._run_once(nats_url, stopping, on_ready)
            except (*_NO_BROKER, JetStreamError) as error:
                log.warning("no broker yet", error=str(error))
                await happens(stopping, START_AGAIN_S)

    async def _run_once(self, url: str, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> bool:
        """Serve until `stopping`; true if the connection was lost for good before."""
        try:
            async with processor(self._settings, url) as running, asyncio.TaskGroup() as tasks:
                stop = tasks.create_task(_stop_when(stopping, running))
                await running.run(on_ready=lambda: on_ready(f"ready on {shown(url)}"))
                stop.cancel()
        except BaseExceptionGroup as group:
            if group.subgroup(BusClosed) is None:
                raise
            return True
        return False


async def _stop_when(stopping: asyncio.Event, running: Processor) -> None:
    await stopping.wait()
    running.stop()


@contextlib.asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[str]:
    if settings.nats_url is not None:
        yield settings.nats_url
        return
    async with embedded_broker(settings.sidecar_data_dir, settings.nats_port) as url:
        yield url


def _signalled() -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM, for an orderly stop; a second signal, of either kind, ends all at once."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stopping.set()
        for number in numbers:
            loop.add_signal_handler(number, _end_at_once, number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return stopping


def _end_at_once(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
