"""The `sidecar` command as a process of its own, as users run it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ENDED_S = 40.0
SIDECAR = str(Path(sys.executable).parent / "sidecar")


@dataclass
class Sidecar:
    """A running process; `said` grows with what it prints on stderr, `url` is its broker's, `http` its bridge's."""

    process: Process
    said: list[str] = field(default_factory=list)
    url: str = ""
    http: str = ""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


def _environment(settings: dict[str, str]) -> dict[str, str]:
    ours = {"LOG_FORMAT": "json", "PYTHONFAULTHANDLER": "1", "COLUMNS": "200", "SIDECAR_PORT": "0"}
    # Tests that ask the same thing again mean another call, unless they are about the cache.
    return os.environ | ours | {"ENABLE_CACHE": "false"} | settings


@asynccontextmanager
async def running(*command: str, **settings: str) -> AsyncIterator[Sidecar]:
    """`sidecar up`, `processor` or `bridge`, from readiness on; SIGTERM at the end, unless it has ended."""
    process = await asyncio.create_subprocess_exec(
        *(SIDECAR, *command),
        env=_environment(settings),
        stdin=DEVNULL,
        stderr=PIPE,
    )
    sidecar = Sidecar(process)
    ready = asyncio.Event()

    async def listen() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            sidecar.said.append(line.decode())
            if sidecar.said[-1].startswith("sidecar: ready on "):
                sidecar.url = sidecar.said[-1].split()[-1]
            elif sidecar.said[-1].startswith("sidecar: dashboard and API on "):
                sidecar.http = sidecar.said[-1].split()[-1]
            if sidecar.http or (sidecar.url and command[0] == "processor"):
                ready.set()
        ready.set()

    listening = asyncio.create_task(listen())
    try:
        await asyncio.wait_for(ready.wait(), 30)
        assert sidecar.url or sidecar.http, "".join(sidecar.said)
        yield sidecar
    finally:
        if process.returncode is None:
            process.terminate()
        await _ended(process, sidecar.said)
        await listening


async def _ended(process: Process, said: list[str]) -> None:
    try:
        await asyncio.wait_for(process.wait(), ENDED_S)
    except TimeoutError:
        process.send_signal(signal.SIGABRT)  # with PYTHONFAULTHANDLER, it says where it stands
        await process.wait()
        pytest.fail(f"no end in {ENDED_S:g} s:\n{''.join(said[-60:])}")


async def command(*arguments: str, stdin: str | None = None, timeout_s: float = 60, **settings: str) -> Ended:
    """Run one command to its end."""
    process = await asyncio.create_subprocess_exec(
        *(SIDECAR, *arguments),
        env=_environment(settings),
        stdin=DEVNULL if stdin is None else PIPE,
        stdout=PIPE,
        stderr=PIPE,
    )
    given = None if stdin is None else stdin.encode()
    try:
        out, err = await asyncio.wait_for(process.communicate(given), timeout_s)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())
