"""Brokers that can be killed and come back: one nats-server, or three of them in a cluster on loopback."""

from __future__ import annotations

import asyncio
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats
from nats.aio.client import Client

from processor import broker, jetstream
from processor.jetstream import JetStreamError, JetStreamUnavailable
from tests.wait import wait_until

HOST = "127.0.0.1"
STARTED_S = 20.0
_NOT_YET = (JetStreamError, JetStreamUnavailable, nats.errors.Error, OSError)


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


class Cluster:
    """Three nodes, by name."""

    def __init__(self, nodes: dict[str, Server]) -> None:
        self.nodes = nodes
        self.url = ",".join(node.url for node in nodes.values())

    async def leader(self, nc: Client, stream: str) -> str | None:
        """The node that leads the stream now, or None while there is an election."""
        try:
            info = await jetstream.call(nc, f"STREAM.INFO.{stream}", timeout_s=1)
        except _NOT_YET:
            return None
        name: str | None = info["cluster"].get("leader")
        return name

    async def lead(self, nc: Client, stream: str, node: str) -> None:
        """Hand the stream over until `node` leads it."""

        async def leads() -> bool:
            if await self.leader(nc, stream) == node:
                return True
            try:
                wish = {"placement": {"preferred": node}}
                await jetstream.call(nc, f"STREAM.LEADER.STEPDOWN.{stream}", wish, timeout_s=2)
            except _NOT_YET:
                return False
            return await self.leader(nc, stream) == node

        await wait_until(leads, STARTED_S)

    async def in_step(self, nc: Client, streams: list[str]) -> bool:
        """Whether every stream has a leader and both followers are up to date."""
        for stream in streams:
            try:
                cluster = (await jetstream.call(nc, f"STREAM.INFO.{stream}", timeout_s=1))["cluster"]
            except _NOT_YET:
                return False
            followers = cluster.get("replicas") or []
            if not cluster.get("leader") or [f.get("current", False) for f in followers] != [True, True]:
                return False
        return True


@asynccontextmanager
async def three_servers(home: Path) -> AsyncIterator[Cluster]:
    """A cluster that has elected its meta leader, without streams yet."""
    ports = free_ports(6)
    routes = ",".join(f"nats://{HOST}:{port}" for port in ports[3:])
    nodes = {}
    for number, (port, route) in enumerate(zip(ports[:3], ports[3:], strict=True), 1):
        name = f"n{number}"
        cluster = ("--cluster", f"nats://{HOST}:{route}", "--cluster_name", "chaos", "--routes", routes)
        nodes[name] = Server(home / name, port, "-n", name, *cluster)
    try:
        await asyncio.gather(*(node.start() for node in nodes.values()))
        cluster_of_three = Cluster(nodes)
        await _has_meta_leader(cluster_of_three.url)
        yield cluster_of_three
    finally:
        await asyncio.gather(*(node.kill() for node in nodes.values()))


async def _has_meta_leader(url: str) -> None:
    nc = await nats.connect(url.split(","))
    try:

        async def answers() -> bool:
            try:
                await jetstream.call(nc, "STREAM.NAMES", timeout_s=1)
            except _NOT_YET:
                return False
            return True

        await wait_until(answers, STARTED_S)
    finally:
        await nc.close()


def free_ports(count: int) -> list[int]:
    """Ports that nobody had a moment ago: a server that comes back must be found where it was."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind((HOST, 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()
