"""A cluster on loopback from the shipped `nats/cluster/node.conf`, whose nodes can be killed and come back.

async with cluster(tmp_path) as three:
    nc = await nats.connect(three.urls)
    await three.kill("n2")
    await three.restart("n2")
"""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import nats
import nats.errors
from nats.aio.client import Client

from processor import broker, jetstream
from processor.jetstream import JetStreamError, JetStreamUnavailable
from tests.wait import wait_until

HOST = "127.0.0.1"
WITHIN_S = 20.0
NOT_YET = (JetStreamError, JetStreamUnavailable, nats.errors.Error, OSError)


class Cluster:
    """Nodes n1, n2 … under `home`, each on its own ports and with its own folder for as long as the cluster lives."""

    def __init__(self, home: Path, size: int = 3) -> None:
        self.names = [f"n{number}" for number in range(1, size + 1)]
        self._home = home
        self._processes: dict[str, Process] = {}
        free = free_ports(2 * size)
        self._ports = dict(zip(self.names, free, strict=False))
        self._routes = dict(zip(self.names, free[size:], strict=True))

    @property
    def urls(self) -> list[str]:
        return [self.url(name) for name in self.names]

    def url(self, name: str) -> str:
        return f"nats://{HOST}:{self._ports[name]}"

    async def start(self) -> list[str]:
        """Start all nodes and wait for a leader of their JetStream; there are no streams yet. Returns the URLs."""
        await asyncio.gather(*(self.restart(name) for name in self.names))
        nc = await nats.connect(self.urls)
        try:
            await wait_until(lambda: _answers(nc), WITHIN_S)
        finally:
            await nc.close()
        return self.urls

    async def restart(self, name: str) -> None:
        """Start a node on what it had on disk; returns when it takes clients."""
        home = self._home / name
        home.mkdir(parents=True, exist_ok=True)
        routes = ", ".join(f"nats://{HOST}:{port}" for port in self._routes.values())
        self._processes[name] = await asyncio.create_subprocess_exec(
            str(broker.binary()),
            *("-c", str(broker.contract_dir() / "cluster" / "node.conf")),
            *("-a", HOST, "-p", str(self._ports[name]), "--cluster", f"nats://{HOST}:{self._routes[name]}"),
            *("-sd", str(home), "-l", str(home / "log")),
            env={**os.environ, "NATS_NODE": name, "NATS_ROUTES": f"[{routes}]"},
            stdin=DEVNULL,
        )
        await wait_until(lambda: self._listens(name), WITHIN_S)

    async def kill(self, name: str) -> None:
        """SIGKILL: nothing is written, handed over or said any more."""
        process = self._processes[name]
        if process.returncode is None:
            process.kill()
            await process.wait()

    async def stop(self, name: str) -> None:
        """SIGTERM: it hands over what it leads and ends."""
        self._processes[name].terminate()
        await self._processes[name].wait()

    async def end(self) -> None:
        """Kill whatever runs."""
        await asyncio.gather(*(self.kill(name) for name in self._processes))

    async def leader(self, nc: Client, stream: str) -> str | None:
        """The node that leads the stream, or None while there is an election."""
        try:
            info = await jetstream.call(nc, f"STREAM.INFO.{stream}", timeout_s=1)
        except NOT_YET:
            return None
        name: str | None = info["cluster"].get("leader")
        return name

    async def lead(self, nc: Client, stream: str, name: str) -> None:
        """Hand the stream over until that node leads it."""

        async def leads() -> bool:
            if await self.leader(nc, stream) == name:
                return True
            try:
                wish = {"placement": {"preferred": name}}
                await jetstream.call(nc, f"STREAM.LEADER.STEPDOWN.{stream}", wish, timeout_s=2)
            except NOT_YET:
                return False
            return await self.leader(nc, stream) == name

        await wait_until(leads, WITHIN_S)

    async def in_step(self, nc: Client, streams: Sequence[str]) -> bool:
        """Whether every stream has a leader, and all its followers are up to date."""
        for stream in streams:
            try:
                found = (await jetstream.call(nc, f"STREAM.INFO.{stream}", timeout_s=1))["cluster"]
            except NOT_YET:
                return False
            if not found.get("leader") or not all(follower.get("current") for follower in found.get("replicas", ())):
                return False
        return True

    async def _listens(self, name: str) -> bool:
        assert self._processes[name].returncode is None, (self._home / name / "log").read_text("utf-8")[-2000:]
        try:
            _, writer = await asyncio.open_connection(HOST, self._ports[name])
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


@asynccontextmanager
async def cluster(home: Path, size: int = 3) -> AsyncIterator[Cluster]:
    """A running cluster, killed at the end."""
    made = Cluster(home, size)
    try:
        await made.start()
        yield made
    finally:
        await made.end()


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago: a node that comes back must be found where it was."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind((HOST, 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


async def _answers(nc: Client) -> bool:
    try:
        await jetstream.call(nc, "INFO", timeout_s=1)
    except NOT_YET:
        return False
    return True
