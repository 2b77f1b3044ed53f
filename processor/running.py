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

log = structlog.get_logger(__name__)


async def serve(settings: Settings, *, embedded: bool) -> int:
    """Run until SIGINT or SIGTERM. With `embedded`, a broker of our own is started where no NATS_URL is set."""
    configure_logging(settings)
    if settings.nats_url is None and not embedded:
        raise Fatal("NATS_URL is not set: set it to a broker with JetStream, or use `sidecar up`", Exit.USAGE)
    try:
        async with _broker(settings) as url, processor(settings, url) as running:
            _stop_on_signals(running)
            await running.run(on_ready=lambda: print(f"sidecar: ready on {shown(url)}", file=sys.stderr))
    except (BrokerError, CatalogError, ValidationError) as error:
        raise Fatal(str(error)) from error
    except (OSError, nats.errors.NoServersError, JetStreamUnavailable) as error:
        where = shown(settings.nats_url or "the embedded broker")
        raise Fatal(f"no NATS server with JetStream at {where}: {error}", Exit.UNREACHABLE) from error
    except JetStreamError as error:
        raise Fatal(f"the broker refused the streams: {error}") from error
    except BaseExceptionGroup as group:
        if group.subgroup(BusClosed) is None:
            raise
        raise Fatal("the connection to NATS is gone for good; start again", Exit.UNREACHABLE) from group
    return Exit.OK


@contextlib.asynccontextmanager
async def _broker(settings: Settings) -> AsyncIterator[str]:
    if settings.nats_url is not None:
        yield settings.nats_url
        return
    async with embedded_broker(settings.sidecar_data_dir, settings.nats_port) as url:
        yield url


def _stop_on_signals(running: Processor) -> None:
    """The first signal stops in order; a second one ends the process at once."""
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        running.stop()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
