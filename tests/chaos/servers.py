"""A broker that can be killed and comes back where it was."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from processor import broker
from tests.cluster import HOST, free_ports
from tests.wait import wait_until

STARTED_S = 20.0


class Server:
    """A nats-server with the shipped configuration, always on the same port and with the same streams."""

    def __init__(self, home: Path, port: int, *flags: str) -> None:
        self.port = port
        self.url = f"nats://{HOST}:{port}"
        self._home = home
        self._flags = flags
        self._process: Process | None = None

    async def start(self) -> None:
        """Start it and wait until it takes clients."""
        self._home.mkdir(parents=True, exist_ok=True)
        config = broker.contract_dir() / "nats-server.conf"
        self._process = await asyncio.create_subprocess_exec(
            str(broker.binary()),
            *("-c", str(config), "-a", HOST, "-p", str(self.port), "-sd", str(self._home)),
            *("-l", str(self._home / "log"), *self._flags),
            stdin=DEVNULL,
        )
        await wait_until(self._listens, STARTED_S)

    async def kill(self) -> None:
        """As if the machine's memory had gone: SIGKILL, nothing written any more."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, and nothing is read any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, (self._home / "log").read_text("utf-8")[-2000:]
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


@asynccontextmanager
async def one_server(home: Path) -> AsyncIterator[Server]:
    server = Server(home, free_ports(1)[0])
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
