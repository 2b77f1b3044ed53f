"""The bridge as a service of the process: its address, its HTTP server inside our own loop, and its orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import structlog

from bridge.keyring import Keyring
from bridge.line import connected
from bridge.open_files import raise_open_files
from bridge.snapshot import Collector
from processor.config import Settings
from processor.exits import Exit, Fatal

if TYPE_CHECKING:
    import uvicorn

BACKLOG = 128

log = structlog.get_logger(__name__)


@contextlib.contextmanager
def bridge(settings: Settings) -> Iterator[Bridge]:
    """A bridge with its address, which is taken from here to the end.

    Raises:
        Fatal: SIDECAR_API_KEYS cannot be used, SIDECAR_HOST is not this machine's own though there are no keys, or is
            no address of it, or SIDECAR_PORT is taken.
    """
    keyring = Keyring(settings)
    with _listening(settings.sidecar_host, settings.sidecar_port, with_keys=keyring.required) as listener:
        if not keyring.required:
            log.info("no SIDECAR_API_KEYS are set: the bridge serves programs and pages of this machine alone")
        raise_open_files(settings.sidecar_max_connections)
        yield Bridge(settings, listener, keyring)


class Bridge:
    """The HTTP edge: a NATS client like any other."""

    def __init__(self, settings: Settings, listener: socket.socket, keyring: Keyring) -> None:
        self._settings = settings
        self._listener = listener
        self._keyring = keyring

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def serve(self, nats_url: str, stopping: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Serve until `stopping`, then end what is being answered, for SHUTDOWN_GRACE seconds at most.

        Raises:
            ConnectionError: no server took us at `nats_url` at first.
            Fatal: NATS_URL or NATS_CREDS is wrong.
        """
        # The framework takes a fifth of a second to import, in which a processor in this loop goes on.
        server_module = await asyncio.to_thread(importlib.import_module, "bridge.server")
        async with connected(self._settings, nats_url) as line:
            collector = Collector(line)
            server: uvicorn.Server = server_module.server(line, self._settings, self._keyring, collector)
            async with asyncio.TaskGroup() as tasks:
                beside = (line.keep(), collector.run(), self._keyring.watch(), _end(server, stopping))
                background = [tasks.create_task(work) for work in beside]
                serving = tasks.create_task(server.serve([self._listener]))
                on_ready(f"dashboard and API on {self.url}")
                await serving
                for task in background:
                    task.cancel()


async def _end(server: uvicorn.Server, stopping: asyncio.Event) -> None:
    await stopping.wait()
    server.should_exit = True


@contextlib.contextmanager
def _listening(host: str, port: int, *, with_keys: bool) -> Iterator[socket.socket]:
    """A socket that listens already: who connects while the rest starts is answered then."""
    address = _address(host) if with_keys else _loopback(host)
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    with contextlib.closing(listener):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise Fatal(
                f"the HTTP bridge cannot listen on {address} port {port} ({error.strerror}): "
                "set SIDECAR_PORT to a free port (0 takes any), SIDECAR_HOST to an address of this machine"
            ) from error
        yield listener


def _loopback(host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return host
    raise Fatal(
        f"SIDECAR_HOST={host}: the HTTP bridge has no API keys, so it serves this machine alone; "
        "set SIDECAR_API_KEYS (`sidecar keys add` makes one), or SIDECAR_HOST to 127.0.0.1",
        Exit.USAGE,
    )


def _address(host: str) -> str:
    """Raises Fatal for a name that nobody knows."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise Fatal(f"SIDECAR_HOST={host}: no such address ({error})", Exit.USAGE) from None
