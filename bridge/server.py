"""uvicorn as the bridge runs it: inside a loop and under signals that are ours, and its log in ours."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Iterator

import structlog
import uvicorn

from bridge.app import create_app
from bridge.connections import bounded
from bridge.keyring import Keyring
from bridge.line import Line
from bridge.snapshot import Collector
from bridge.websocket import ImpatientProtocol
from processor.config import Settings

IDLE_S = 75
"""How long a connection without a request is kept: longer than a proxy in front keeps its own."""
MAX_MESSAGE_BYTES = 4096
"""Of what a watcher says: it only ever sends its key."""

log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process has its own signals."""
        yield


class _Told(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError):
            return  # at the end of the grace, which is told of in a line of its own
        log.log(record.levelno, record.getMessage(), logger=record.name)


def server(line: Line, settings: Settings, keyring: Keyring, collector: Collector) -> uvicorn.Server:
    """A server of `create_app`; it is given its socket when it serves."""
    config = uvicorn.Config(
        create_app(line, settings, keyring, collector),
        http=bounded(settings.sidecar_max_connections),
        ws=ImpatientProtocol,
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        log_level=logging.WARNING,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_grace),
    )
    uvicorns = logging.getLogger("uvicorn")
    uvicorns.handlers, uvicorns.propagate = [_Told()], False
    return _Server(config)
