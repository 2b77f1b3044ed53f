"""A bridge that dies takes no answer with it: whoever re-attaches through another one has every byte once."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from bench.reader import Reader
from bench.streams import expected, scripted
from tests.conftest import StartProcessor
from tests.processes import running
from tests.wait import wait_until

STREAMS = 50
CHUNKS = 30


@pytest.mark.slow
async def test_fifty_streams_go_on_through_another_bridge_where_theirs_was_killed(
    nats_url: str, start: StartProcessor
) -> None:
    await start({"anthropic": scripted(CHUNKS, pause_s=0.1)}, max_workers=STREAMS + 10)
    async with (
        running("bridge", NATS_URL=nats_url) as first,
        running("bridge", NATS_URL=nats_url) as other,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        readers = [Reader(f"stream-{number}") for number in range(STREAMS)]
        for reader in readers:
            tasks.create_task(reader.read(client, [first.http, other.http]))
        await wait_until(lambda: sum(reader.chunks for reader in readers) > STREAMS * CHUNKS / 3, timeout_s=30)
        first.process.kill()
        await wait_until(lambda: all(reader.has_ended for reader in readers), timeout_s=60)
    assert [reader.faults for reader in readers] == [[]] * STREAMS
    assert [reader.out_of_order for reader in readers] == [0] * STREAMS
    assert [reader.text for reader in readers] == [expected(reader.question, CHUNKS) for reader in readers]
    assert [reader.response for reader in readers] == [reader.text for reader in readers]
    assert sum(reader.connections for reader in readers) > STREAMS
