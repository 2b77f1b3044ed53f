"""Three nodes from `nats/cluster`: three replicas by themselves, and a node's death costs a pause and no message."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats.errors
import pytest
from nats.aio.client import Client

from processor import jetstream, subjects
from processor.broker import binary, contract_dir
from processor.bus import Bus
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.provision import Drift, provision
from processor.subjects import Priority
from processor.tasks import OwnedTasks
from tests.cluster import Cluster, cluster, free_ports
from tests.conftest import make_settings
from tests.wait import wait_until

CONTRACT = contract_dir()
STREAMS = [subjects.REQUESTS, subjects.REPLIES, subjects.AUDIT, subjects.DEAD, subjects.STATE]
PUBLISHERS = 8
pytestmark = pytest.mark.slow


@asynccontextmanager
async def connected(made: Cluster) -> AsyncIterator[Bus]:
    """A client that finds the nodes that live."""
    bus = Bus()
    await bus.connect(",".join(made.urls), make_settings(), name="test")
    try:
        yield bus
    finally:
        await bus.close()


async def test_streams_take_three_replicas_and_their_consumers_follow(tmp_path: Path) -> None:
    made = Cluster(tmp_path)
    try:
        await asyncio.gather(*(made.restart(name) for name in made.names))
        async with connected(made) as bus:  # it has no leader yet: provision waits for it
            await takes_three(bus.nc)
            await keeps_what_it_has_until_told_otherwise(made, bus.nc)
    finally:
        await made.end()


async def takes_three(nc: Client) -> None:
    created = await provision(nc, CONTRACT)
    assert {(outcome.state, outcome.drift) for outcome in created} == {("created", ())}
    assert await replicas(nc) == [3] * len(STREAMS)
    lane = await jetstream.call(nc, "CONSUMER.INFO.LLM_REQUESTS.high")
    assert len(lane["cluster"]["replicas"]) == 2
    assert {outcome.state for outcome in await provision(nc, CONTRACT)} == {"unchanged"}


async def keeps_what_it_has_until_told_otherwise(made: Cluster, nc: Client) -> None:
    found = (await jetstream.call(nc, "STREAM.INFO.LLM_DEAD"))["config"]
    await jetstream.call(nc, "STREAM.UPDATE.LLM_DEAD", found | {"max_bytes": 12345})
    updated = {outcome.name: outcome for outcome in await provision(nc, CONTRACT, update=True)}
    assert [drift.field for drift in updated["LLM_DEAD"].drift] == ["max_bytes"]
    assert await replicas(nc) == [3] * len(STREAMS)
    one = {outcome.name: outcome for outcome in await provision(nc, CONTRACT, update=True, replicas=1)}
    assert one["LLM_AUDIT"].drift == (Drift("num_replicas", 1, 3),)
    await provision(nc, CONTRACT, update=True, replicas=3)
    await wait_until(lambda: made.in_step(nc, STREAMS), timeout_s=20)
    assert await replicas(nc) == [3] * len(STREAMS)


async def replicas(nc: Client) -> list[int]:
    found = [await jetstream.call(nc, f"STREAM.INFO.{stream}") for stream in STREAMS]
    return [info["config"]["num_replicas"] for info in found]


async def test_two_nodes_keep_one_copy_as_the_files_say_and_it_is_told_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, 2) as two, connected(two) as bus:
        created = await provision(bus.nc, CONTRACT)
        few = (Drift("num_replicas", 3, 1),)
        assert {(o.state, o.drift) for o in created if o.kind == "stream"} == {("created", few)}
        assert await replicas(bus.nc) == [1] * len(STREAMS)
        assert {outcome.state for outcome in await provision(bus.nc, CONTRACT)} == {"unchanged"}


async def test_a_cluster_without_jetstream_is_told_at_once() -> None:
    port, route = free_ports(2)
    flags = ("-a", "127.0.0.1", "-p", str(port), "--cluster_name", "bare", "--cluster", f"nats://127.0.0.1:{route}")
    server = await asyncio.create_subprocess_exec(str(binary()), *flags, stderr=asyncio.subprocess.DEVNULL)
    bus = Bus()
    try:
        await bus.connect(f"nats://127.0.0.1:{port}", make_settings(), name="test")
        async with asyncio.timeout(5):
            with pytest.raises(JetStreamUnavailable):
                await provision(bus.nc, CONTRACT)
    finally:
        await bus.close()
        server.kill()
        await server.wait()


@dataclass
class Kept:
    """What the server has acknowledged, and the longest time without an acknowledgement."""

    ids: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    last: float = field(default_factory=time.monotonic)

    async def publish(self, bus: Bus, publisher: int) -> None:
        """For ever, each until it is acknowledged."""
        for number in itertools.count():
            name = f"p{publisher}-{number}"
            while not await _acknowledged(bus, name):
                pass
            now = time.monotonic()
            self.ids.append(name)
            self.last, self.longest_s = now, max(self.longest_s, now - self.last)


async def _acknowledged(bus: Bus, name: str) -> bool:
    try:
        subject = subjects.enqueue(Priority.LOW, name)
        await jetstream.publish(bus, subject, b"{}", {"Nats-Msg-Id": name}, timeout_s=2)
    except (JetStreamUnavailable, nats.errors.Error):
        await asyncio.sleep(0)
        return False
    except JetStreamError as error:
        if not error.is_copy:  # kept by a try whose PubAck was lost
            raise
    return True


async def test_a_leaders_kill_9_costs_a_pause_and_no_acknowledged_message(tmp_path: Path) -> None:
    async with cluster(tmp_path) as three, connected(three) as bus:
        await provision(bus.nc, CONTRACT)
        kept = Kept()
        publishing = OwnedTasks()
        for number in range(PUBLISHERS):
            publishing.start(kept.publish(bus, number))
        try:
            await wait_until(lambda: len(kept.ids) > 200)
            victim = await three.leader(bus.nc, subjects.REQUESTS)
            assert victim is not None
            await three.kill(victim)
            before = len(kept.ids)
            await wait_until(lambda: len(kept.ids) > before + 200, timeout_s=20)
        finally:
            await publishing.cancel()
        assert kept.longest_s < 15
        assert await three.leader(bus.nc, subjects.REQUESTS) not in {None, victim}
        assert set(kept.ids) <= await queued(bus.nc)
        await three.restart(victim)
        await wait_until(lambda: three.in_step(bus.nc, STREAMS), timeout_s=20)


async def queued(nc: Client) -> set[str]:
    found: set[str] = set()
    seq = 1
    while True:
        query = {"seq": seq, "next_by_subj": "llm.request.*.*", "batch": 1000}
        messages, _ = await jetstream.batch(nc, subjects.REQUESTS, query)
        if not messages:
            return found
        found |= {message.subject.rpartition(".")[2] for message in messages}
        seq = messages[-1].seq + 1
