"""Hundreds of SSE streams through one bridge: is each whole and in order, what does it cost, and if the bridge dies?

    .venv/bin/python -m bench.streams [--streams 500] [--chunks 60] [--pause 0.2]

Broker, processor (with a scripted provider) and bridges are processes of their own; this one has the clients. First
all streams go through one bridge. Then the same again, and in the middle that bridge is killed (-9): every client
re-attaches through another one with Last-Event-ID, and each byte has to come once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import structlog
from rich.console import Console
from rich.table import Table

from bench.reader import Reader
from processor.broker import contract_dir, embedded_broker
from processor.bus import Bus
from processor.catalog import load_catalog
from processor.config import Settings
from processor.provision import provision
from processor.service import Processor
from providers.base import Event, Finished, FinishReason, Opened, Prompt, Text, TextDelta, Usage
from providers.scripted import Pause, ScriptedProvider, Step

NO_LIMITS = "[limits.anthropic]\nrpm = 1_000_000_000\ntpm = 1_000_000_000_000\n"
LOOK_EVERY_S = 0.1


def chunk(question: str, number: int) -> str:
    """The text of a stream's delta: no two deltas of all streams are the same."""
    return f"{question}:{number} "


def expected(question: str, chunks: int) -> str:
    return "".join(chunk(question, number) for number in range(chunks))


def scripted(chunks: int, pause_s: float) -> ScriptedProvider:
    """Answers any question with `chunks` deltas, `pause_s` apart."""

    def script(prompt: Prompt) -> Sequence[Step]:
        question = next(part.text for part in prompt.messages[-1].parts if isinstance(part, Text))
        steps: list[Step] = [Opened()]
        for number in range(chunks):
            steps += [Pause(pause_s), TextDelta(chunk(question, number))]
        usage = Usage(input_fresh=10, output_visible=chunks, raw={})
        ended: Event = Finished(FinishReason.STOP, usage, prompt.model)
        return [*steps, ended]

    return ScriptedProvider(script, name="anthropic")


# --- the processes ----------------------------------------------------------------------------------------------------


async def process_requests(url: str, catalog: Path, chunks: int, pause_s: float) -> None:
    """What the processor's process does until it is killed."""
    settings = Settings(_env_file=None, sidecar_catalog=catalog, max_workers=1000, enable_cache=False)
    bus = Bus()
    await bus.connect(url, settings, name="streams")
    await provision(bus.nc, contract_dir())
    provider = scripted(chunks, pause_s)
    processor = Processor(settings, bus, {"anthropic": provider}, load_catalog(catalog), replica="streams")
    await processor.run(on_ready=lambda: print("ready", file=sys.stderr, flush=True))


@asynccontextmanager
async def started(*command: str, ready: str, **environment: str) -> AsyncIterator[tuple[Process, str]]:
    """A Python process from its line that begins with `ready` on, and the end of that line; killed at the end."""
    env = os.environ | {"LOG_LEVEL": "WARNING"} | environment
    process = await asyncio.create_subprocess_exec(sys.executable, *command, env=env, stdin=DEVNULL, stderr=PIPE)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            said = ""
            async for line in process.stderr:
                said += line.decode()
                if line.decode().startswith(ready):
                    break
            else:
                raise SystemExit(f"{command} did not start:\n{said}")
        reading = asyncio.create_task(process.stderr.read())
        yield process, line.decode().strip().removeprefix(ready)
        reading.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def bridge(url: str) -> AsyncIterator[tuple[Process, str]]:
    """A bridge and its address."""
    command = ("-m", "processor.cli", "bridge")
    settings = {"NATS_URL": url, "SIDECAR_PORT": "0", "SIDECAR_HOST": "127.0.0.1"}
    async with started(*command, ready="sidecar: dashboard and API on ", **settings) as (process, address):
        yield process, address


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one run. Memory is the resident set of a bridge, in MB."""

    title: str
    readers: list[Reader]
    whole: int
    took_s: float
    before_mb: float
    peak_mb: float
    after_mb: float

    @property
    def figures(self) -> dict[str, str]:
        chunks = sum(reader.chunks for reader in self.readers)
        return {
            "whole": f"{self.whole:,} of {len(self.readers):,}",
            "out of order": str(sum(reader.out_of_order for reader in self.readers)),
            "connections": f"{sum(reader.connections for reader in self.readers):,}",
            "chunks": f"{chunks:,}",
            "chunks a second": f"{chunks / self.took_s:,.0f}",
            "bridge's memory before": f"{self.before_mb:.0f} MB",
            "at its peak": f"{self.peak_mb:.0f} MB",
            "a second later": f"{self.after_mb:.0f} MB",
        }


async def run(url: str, title: str, streams: int, chunks: int, *, kill: bool) -> Outcome:
    """All streams at once through one bridge; where `kill`, it dies in the middle and another one serves the rest."""
    async with AsyncExitStack() as stack:
        first, address = await stack.enter_async_context(bridge(url))
        other, address_of_other = await stack.enter_async_context(bridge(url)) if kill else (first, address)
        measured = psutil.Process(other.pid)
        before = peak = measured.memory_info().rss
        connector = aiohttp.TCPConnector(limit=0)
        client = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=_NO_TIMEOUT))
        readers = [Reader(f"{title}-{number}") for number in range(streams)]
        began = time.monotonic()
        tasks = [asyncio.create_task(reader.read(client, [address, address_of_other])) for reader in readers]
        while not all(task.done() for task in tasks):
            await asyncio.wait(tasks, timeout=LOOK_EVERY_S)
            peak = max(peak, measured.memory_info().rss)
            if kill and sum(reader.chunks for reader in readers) > streams * chunks / 2:
                first.kill()
                kill = False
        took = time.monotonic() - began
        for task in tasks:
            task.result()
        await asyncio.sleep(1)
        whole = sum(reader.is_whole(expected(reader.question, chunks)) for reader in readers)
        return Outcome(title, readers, whole, took, before / 1e6, peak / 1e6, measured.memory_info().rss / 1e6)


_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=120)


async def bench(streams: int, chunks: int, pause_s: float, home: Path) -> int:
    """Run both, print the table, and return the number of streams that were not whole."""
    catalog = home / "catalog.toml"
    catalog.write_text(NO_LIMITS, "utf-8")
    async with embedded_broker(home, 0) as url, AsyncExitStack() as stack:
        command = ("-m", "bench.streams", "--serve", url, "--chunks", str(chunks), "--pause", str(pause_s))
        await stack.enter_async_context(started(*command, "--catalog", str(catalog), ready="ready"))
        outcomes = [
            await run(url, "one bridge", streams, chunks, kill=False),
            await run(url, "killed in the middle", streams, chunks, kill=True),
        ]
    table = Table("", *(outcome.title for outcome in outcomes))
    for name in outcomes[0].figures:
        table.add_row(name, *(outcome.figures[name] for outcome in outcomes))
    console = Console()
    console.print(table)
    for fault in [fault for outcome in outcomes for reader in outcome.readers for fault in reader.faults][:5]:
        console.print(fault, style="red")
    return sum(len(outcome.readers) - outcome.whole for outcome in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--chunks", type=int, default=60, help="deltas of a stream")
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between two deltas")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--catalog", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if options.serve:
        asyncio.run(process_requests(options.serve, options.catalog, options.chunks, options.pause))
        return
    with tempfile.TemporaryDirectory(prefix="streams-") as home:
        lost = asyncio.run(bench(options.streams, options.chunks, options.pause, Path(home)))
    raise SystemExit(1 if lost else 0)


if __name__ == "__main__":
    main()
