"""A process that serves: broker or connection, processor, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator

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


async def serve(settings: Settings, *, embedded: bool) -> int:
    """Run until SIGINT or SIGTERM. With `embedded`, a broker of our own is started where no NATS_URL is set.

    A connection that is lost for good (nats-py ends it at some of the server's complaints) is built anew, for ever.
    """
    configure_logging(settings)
    if settings.nats_url is None and not embedded:
        raise Fatal("NATS_URL is not set: set it to a broker with JetStream, or use `sidecar up`", Exit.USAGE)
    stopping = _signalled()
    try:
        async with _broker(settings) as url:
            lost = await _run_once(settings, url, stopping)
            while lost and not stopping.is_set():
                log.error("connection to NATS lost for good, starting anew")
                try:
                    lost = await _run_once(settings, url, stopping)
                except (*_NO_BROKER, JetStreamError) as error:
                    log.warning("no broker yet", error=str(error))
                    await happens(stopping, START_AGAIN_S)
    except (BrokerError, CatalogError, ValidationError) as error:
        raise Fatal(str(error)) from error
    except _NO_BROKER as error:
        where = shown(settings.nats_url or "the embedded broker")
        raise Fatal(f"no NATS server with JetStream at {where}: {error}", Exit.UNREACHABLE) from error
    except JetStreamError as error:
        raise Fatal(f"the broker refused the streams: {error}") from error
    return Exit.OK


async def _run_once(settings: Settings, url: str, stopping: asyncio.Event) -> bool:
    """Serve until `stopping`; true if the connection was lost for good before."""
    try:
        async with processor(settings, url) as running, asyncio.TaskGroup() as tasks:
            stop = tasks.create_task(_stop_when(stopping, running))
            await running.run(on_ready=lambda: print(f"sidecar: ready on {shown(url)}", file=sys.stderr))
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
