"""Tens of thousands of requests through one processor and a broker of its own: what grows, and does it stop?

    .venv/bin/python -m bench.soak [--requests 50000] [--window 200] [--every 5]

The provider is scripted, so that nothing but the sidecar is measured; client and processor share this process. Four
lanes, asks and enqueues by turns, a tenth streamed. Every few seconds one line; at the end a table of first, peak
and rest. A container of the processor that holds more and more is named there by its path.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nats
import orjson
import psutil
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from processor import jetstream, subjects
from processor.broker import contract_dir, embedded_broker
from processor.bus import Bus
from processor.catalog import load_catalog
from processor.config import Settings
from processor.provision import provision
from processor.service import Processor
from providers.scripted import ScriptedProvider

NO_LIMITS = "[limits.anthropic]\nrpm = 1_000_000_000\ntpm = 1_000_000_000_000\n"
PATIENCE_S = 60.0
"""Without a single ending for so long, what is missing is given up and reported."""
REST_S = 3.0
"""From the last ending until what ran beside it should be gone."""
MODULES = ("processor.", "providers.")
SHOWN_FROM = 20
"""A container whose peak is smaller is left out of the table."""


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """Keeps `window` requests in flight until `total` have ended."""

    nc: Client
    total: int
    window: int
    rng: random.Random
    done: int = 0
    errors: int = 0
    open: set[str] = field(default_factory=set)
    """Keys of requests without an ending: the last token of the subject where it will come."""
    heard_at: float = 0.0
    _inbox: str = ""
    _room: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        self._inbox = self.nc.new_inbox()
        await self.nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
        await self.nc.subscribe("llm.reply.*", cb=self._on_message)

    async def run(self) -> None:
        self.heard_at = time.monotonic()
        for number in range(self.total):
            await self._wait(self.window - 1)
            await self._send(number)
        await self._wait(0)

    async def _wait(self, most: int) -> None:
        while len(self.open) > most and time.monotonic() - self.heard_at < PATIENCE_S:
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), 1)
            except TimeoutError:
                continue

    async def _send(self, number: int) -> None:
        key, streamed = f"soak-{number}", self.rng.random() < 0.1
        text = " ".join(self.rng.choices(("rain", "sun", "wind", "snow"), k=20))
        body = orjson.dumps(
            {
                "messages": [{"role": "user", "content": text}],
                "model": "haiku",
                "stream": streamed,
                "deadline_ms": 600_000,
            }
        )
        lane = subjects.ask(self.rng.choice(tuple(subjects.Priority)))
        self.open.add(key)
        if number % 2:
            await self.nc.publish(lane, body, reply=f"{self._inbox}.{key}")
        else:
            headers = {"Nats-Msg-Id": key} | ({"Reply-To": f"{self._inbox}.copy"} if streamed else {})
            await self.nc.jetstream().publish(f"{lane}.{key}", body, headers=headers)

    async def _on_message(self, msg: Msg) -> None:
        event, key = (msg.headers or {}).get("Sidecar-Event"), msg.subject.rpartition(".")[2]
        if event not in {"final", "error"} or key not in self.open:
            return
        self.open.discard(key)
        self.done += 1
        self.errors += event == "error"
        self.heard_at = time.monotonic()
        self._room.set()


OF_REQUESTS = {"running", "_running"}
"""What hangs on a request under way goes with it: only their number counts."""


# --- what is measured -------------------------------------------------------------------------------------------------


def containers(root: object) -> Iterator[tuple[str, int]]:
    """(path, length) of everything sized that hangs on `root`, through objects of this project."""
    waiting: list[tuple[str, object]] = [("processor", root)]
    seen: set[int] = set()
    while waiting:
        path, thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for name, value in _attributes(thing):
            at = f"{path}.{name}"
            if isinstance(value, asyncio.Queue):
                yield at, value.qsize()
            elif isinstance(value, Sized) and not isinstance(value, str | bytes | tuple | frozenset):
                yield at, len(value)
            if type(value).__module__.startswith(MODULES):
                waiting.append((at, value))
            elif name in OF_REQUESTS:
                continue
            elif isinstance(value, dict | list) and len(value) < SHOWN_FROM:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                waiting += [(f"{at}[{k}]", v) for k, v in items if type(v).__module__.startswith(MODULES)]


def _attributes(thing: object) -> list[tuple[str, Any]]:
    names = list(getattr(thing, "__dict__", ()))
    for kind in type(thing).__mro__:
        names += list(getattr(kind, "__slots__", ()))
    return [(name, getattr(thing, name)) for name in names if hasattr(thing, name)]


@dataclass
class Series:
    """First, highest and last value of each measure: the first after one period, the last at rest."""

    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)

    def add(self, measures: dict[str, float]) -> None:
        for name, value in measures.items():
            self.first.setdefault(name, value)
            self.last[name] = value
            self.peak[name] = max(value, self.peak.get(name, value))

    def table(self) -> Table:
        table = Table("", title="What grew")
        for title in ("first", "peak", "at rest"):
            table.add_column(title, justify="right")
        for name, peak in self.peak.items():
            if "." not in name or peak >= SHOWN_FROM:
                table.add_row(name, *(f"{at[name]:,.0f}" for at in (self.first, self.peak, self.last)))
        return table


@dataclass
class Gauges:
    """Reads everything at once."""

    load: Load
    processor: Processor
    broker: psutil.Process
    own: psutil.Process = field(default_factory=psutil.Process)
    _before: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    async def read(self) -> dict[str, float]:
        now, (then, done) = time.monotonic(), self._before
        self._before = now, self.load.done
        info = await jetstream.call(self.load.nc, f"STREAM.INFO.{subjects.REQUESTS}")
        return {
            "requests/s": (self.load.done - done) / max(now - then, 1e-9),
            "RSS MB": self.own.memory_info().rss / 1e6,
            "its broker's MB": self.broker.memory_info().rss / 1e6,
            "tasks": len(asyncio.all_tasks()),
            "queued": info["state"]["messages"],
            **dict(containers(self.processor)),
        }


# --- putting it together ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def running_processor(url: str, catalog: Path) -> AsyncIterator[Processor]:
    """A whole processor in this process with a scripted provider, taken down in order at the end."""
    settings = Settings(_env_file=None, sidecar_catalog=catalog, max_workers=32)
    bus = Bus()
    await bus.connect(url, settings, name="soak")
    await provision(bus.nc, contract_dir())
    provider = ScriptedProvider(name="anthropic")
    processor = Processor(settings, bus, {"anthropic": provider}, load_catalog(catalog), replica="soak")
    ready = asyncio.Event()
    task = asyncio.create_task(processor.run(on_ready=ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield processor
    finally:
        waiting.cancel()
        processor.stop()
        await task
        await bus.close()


async def soak(requests: int, window: int, every_s: float, seed: int, home: Path) -> int:
    """Run, report, and return the number of requests that did not end well."""
    catalog = home / "catalog.toml"
    catalog.write_text(NO_LIMITS, "utf-8")
    console, series = Console(), Series()
    columns = TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    async with embedded_broker(home, 0) as url, running_processor(url, catalog) as processor:
        nc = await nats.connect(url)
        load = Load(nc, requests, window, random.Random(seed))
        await load.listen()
        broker = psutil.Process(int((home / "nats" / "nats-server.pid").read_text()))
        gauges = Gauges(load, processor, broker)
        began, sending = time.monotonic(), asyncio.create_task(load.run())
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("", total=requests)
            while not sending.done():
                await asyncio.wait({sending}, timeout=every_s)
                measures = await gauges.read()
                series.add(measures)
                progress.update(bar, completed=load.done)
                own = (f"{name} {value:,.0f}" for name, value in measures.items() if "." not in name)
                progress.console.print(f"{load.done:,} done, " + ", ".join(own), highlight=False)
        sending.result()
        took = time.monotonic() - began
        await asyncio.sleep(REST_S)
        series.add(await gauges.read())
        await nc.close()
    console.print(series.table())
    console.print(
        f"{load.done:,} of {requests:,} in {took:.1f} s: {load.done / took:,.0f} a second; {load.errors} errors"
    )
    if load.open:
        console.print(f"{len(load.open)} without an ending, such as {sorted(load.open)[:5]}", style="red")
    return load.errors + len(load.open)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--window", type=int, default=200, help="requests in flight")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with tempfile.TemporaryDirectory(prefix="soak-") as home:
        failed = asyncio.run(soak(options.requests, options.window, options.every, options.seed, Path(home)))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
