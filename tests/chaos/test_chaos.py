"""Whatever dies under load, each kept request ends exactly once and is never paid for after its reply was stored.

The vendors are played in this process, all else is real: sidecar processes, nats-servers, kill -9. The moments are
drawn from a seed, which a failure names; CHAOS_SEED sets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nats.errors
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.acceptance.vendors import serving
from tests.chaos import load as loading
from tests.chaos.ledger import Evidence, faults, stories, summary
from tests.chaos.load import Load
from tests.chaos.replicas import KEPT_LINES, replicas
from tests.chaos.servers import one_server
from tests.chaos.vendor import Cut, Delay, Hang, Refuse, ScriptedVendor, during, sometimes
from tests.cluster import cluster
from tests.conftest import redis_server, short_folder
from tests.processes import command
from tests.wait import wait_until

pytestmark = pytest.mark.slow

RATE = 15.0
"""Requests a second: what two processors, the vendors and the client manage on two cores with room to spare."""
SETTLED_S = 120.0
"""On a busy machine calls time out, and after failed probes a circuit is open for up to a minute."""
STREAMS = ["LLM_REQUESTS", "LLM_REPLIES", "LLM_AUDIT", "LLM_STATE", "LLM_SPEND", "LLM_LEDGER"]


@pytest.fixture
def seed() -> int:
    return int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))


@asynccontextmanager
async def under_load(nc: Client, rng: random.Random, *, asks_end: bool = False) -> AsyncIterator[Load]:
    """A load that runs while the body does; all that has to be kept is kept when it ends."""
    load = Load(nc, rng, RATE, asks_end=asks_end)
    await load.listen()
    sending = asyncio.create_task(load.run())
    try:
        yield load
        load.stop()
        await asyncio.wait({sending}, timeout=SETTLED_S)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()


async def sent_more(load: Load, count: int) -> None:
    """Return when `count` more requests have been sent."""
    goal = len(load.sent) + count
    await wait_until(lambda: len(load.sent) >= goal, timeout_s=60)


async def examine(nc: Client, load: Load, vendor: ScriptedVendor, seed: int) -> Evidence:
    """Wait for quiet, for as long as that may take, and check every promise."""
    deadline = time.monotonic() + SETTLED_S
    while not await loading.settled(nc, load) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    found = await loading.evidence(nc, load, vendor.calls)
    sent = list(load.sent.values())
    broken = faults(sent, found) + [f"{key}: its client still tries" for key in load.trying]
    about = "\n".join([f"seed {seed}: {summary(sent, found)}", *stories(found)])
    assert not broken, "\n".join([about, f"{len(broken)} faults", *broken[:30]])
    return found


async def reply_stored(nc: Client) -> None:
    """Return at the moment when the broker is given a reply to keep: its request is not acknowledged yet."""
    seen = asyncio.Event()

    async def on_reply(msg: Msg) -> None:
        if (msg.headers or {}).get("Sidecar-Event") == "final":
            seen.set()

    sub = await nc.subscribe("llm.reply.*", cb=on_reply)
    await asyncio.wait_for(seen.wait(), 30)
    await sub.unsubscribe()


async def test_ten_processors_killed_under_load(nc: Client, nats_url: str, seed: int) -> None:
    rng = random.Random(seed)
    async with (
        loading.client(nats_url) as own,
        serving(ScriptedVendor()) as vendor,
        replicas(2, nats_url, vendor) as crowd,
    ):
        async with under_load(own, rng) as load:
            for kill in range(10):
                await sent_more(load, rng.randrange(5, 25))
                if kill % 2:
                    await reply_stored(own)
                victim = rng.choice(crowd)
                await victim.kill()
                await victim.start()
        found = await examine(nc, load, vendor, seed)
    assert len(vendor.calls) > len(found.replies), "nothing was in flight at any kill"


async def test_a_processor_told_to_stop_under_load(nc: Client, nats_url: str, seed: int) -> None:
    rng = random.Random(seed)
    async with (
        loading.client(nats_url) as own,
        serving(ScriptedVendor()) as vendor,
        replicas(2, nats_url, vendor, SHUTDOWN_GRACE="0.2") as crowd,
    ):
        async with under_load(own, rng, asks_end=True) as load:
            for victim in crowd * 2:
                await sent_more(load, rng.randrange(20, 40))
                assert await victim.stop() == 0, "".join(victim.said[-KEPT_LINES:])
                await victim.start()
        found = await examine(nc, load, vendor, seed)
    assert len(vendor.calls) > len(found.replies), "nothing had to be handed back"


async def test_a_broker_killed_twice_under_load(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with (
        one_server(tmp_path) as server,
        serving(ScriptedVendor()) as vendor,
        replicas(2, server.url, vendor),
        loading.client(server.url) as nc,
    ):
        async with under_load(nc, rng) as load:
            for _ in range(2):
                await sent_more(load, rng.randrange(60, 120))
                with load.outage():
                    await server.kill()
                    await sent_more(load, rng.randrange(1, 30))
                    await server.start()
                    await wait_until(lambda: nc.is_connected)
                    await sent_more(load, 20)
            await sent_more(load, 30)
        await examine(nc, load, vendor, seed)


async def test_the_leader_of_every_stream_killed_under_load(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    async with cluster(tmp_path) as three, serving(ScriptedVendor()) as vendor:
        url = ",".join(three.urls)
        provisioned = await command("provision", NATS_URL=url)
        assert provisioned.code == 0, provisioned.err
        async with replicas(2, url, vendor), loading.client(url) as nc:
            victim = rng.choice(three.names)
            for stream in STREAMS:
                await three.lead(nc, stream, victim)
            async with under_load(nc, rng) as load:
                await sent_more(load, rng.randrange(60, 120))
                with load.outage():
                    await three.kill(victim)

                    async def another_leads() -> bool:
                        return await three.leader(nc, "LLM_REQUESTS") not in {None, victim}

                    await wait_until(another_leads, timeout_s=30)
                    await three.restart(victim)
                    await sent_more(load, 60)
                await sent_more(load, 30)
            await wait_until(lambda: three.in_step(nc, STREAMS), timeout_s=30)
            await examine(nc, load, vendor, seed)


async def test_vendors_that_cut_refuse_and_hang(nc: Client, nats_url: str, seed: int) -> None:
    rng, began = random.Random(seed), time.time()
    cuts = [Cut(after, abrupt) for after in (0, 1, 4, 12, 20) for abrupt in (True, False)]
    refusals = [Refuse(429, 1), Refuse(429), Refuse(429, 3600), Refuse(529), Refuse(503, 2), Refuse(503), Refuse(500)]
    rules = [
        during("groq", began + 8, began + 12, Refuse(503)),
        sometimes(rng, 0.3, *cuts),
        sometimes(rng, 0.1, *refusals),
        sometimes(rng, 0.03, Hang(), Hang(after=9)),
        sometimes(rng, 0.1, Delay(0.5)),
    ]
    async with (
        loading.client(nats_url) as own,
        serving(ScriptedVendor(*rules)) as vendor,
        replicas(2, nats_url, vendor, READ_TIMEOUT="1.5", FIRST_TOKEN_TIMEOUT="1.5", TOKEN_TIMEOUT="1.5"),
    ):
        async with under_load(own, rng, asks_end=True) as load:
            await sent_more(load, 250)
        found = await examine(nc, load, vendor, seed)
    finals = [ending.fields for i in found.replies if (ending := found.ending(i)) and ending.event == "final"]
    assert any(final["attempts"] > 2 for final in finals)
    assert any(message.event == "restarted" for request in load.sent.values() for message in request.heard)


async def test_redis_killed_under_load_and_back(nc: Client, nats_url: str, seed: int) -> None:
    rng = random.Random(seed)
    alerts = await nc.subscribe("llm.alert.*")
    with short_folder() as folder:
        async with (
            loading.client(nats_url) as own,
            serving(ScriptedVendor()) as vendor,
            replicas(2, nats_url, vendor, REDIS_URL=f"unix://{folder}/redis"),
        ):
            async with under_load(own, rng, asks_end=True) as load:
                for _ in range(2):
                    with redis_server(folder):
                        # Longer than the five seconds after which a sidecar looks again whether it is back.
                        await sent_more(load, int(RATE * rng.uniform(7, 10)))
                    await sent_more(load, rng.randrange(60, 120))
            found = await examine(nc, load, vendor, seed)
    assert all(ending.event == "final" for i in found.replies if (ending := found.ending(i)))
    told: set[str] = set()
    with contextlib.suppress(nats.errors.TimeoutError):
        while True:
            told.add(orjson.loads((await alerts.next_msg(timeout=0.5)).data)["kind"])
    assert {"limits", "limits recovered"} <= told
