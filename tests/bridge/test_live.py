"""The live feed: a snapshot a second to each of many watchers, and none can hold the bridge up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from nats.aio.client import Client

from bridge import live, server, websocket
from bridge import snapshot as snapshot_module
from bridge.callers import Caller
from bridge.snapshot import Collector
from providers.base import Opened, TextDelta
from providers.scripted import Pause, ScriptedProvider
from tests.bridge.edge import Edge, bridging
from tests.bridge.test_observing import hurry, snapshot
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.talk import body, listen
from tests.wait import wait_until


@pytest.fixture
async def edge(nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    hurry(monkeypatch)
    async with bridging(nats_url) as one:
        yield one


async def until(feed: aiohttp.ClientWebSocketResponse, seen: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """The first snapshot of which that is true."""
    while True:
        shown: dict[str, Any] = orjson.loads(await feed.receive_str(timeout=10))
        if seen(shown):
            return shown


async def test_the_feed_moves_while_requests_run(edge: Edge, start: StartProcessor) -> None:
    endless = ScriptedProvider([Opened(), TextDelta("Hello"), Pause(60), *answer()])
    await start({"anthropic": endless})
    async with edge.client.ws_connect("/ws") as feed:
        first = await until(feed, lambda shown: shown["replicas"])
        assert (first["v"], first["state"], first["in_flight"]) == (1, "ok", [])
        headers = {"X-Sidecar-Priority": "critical"}
        async with edge.client.post("/api/chat", data=body(stream=True, tenant="shop"), headers=headers) as response:
            shown = await until(feed, lambda shown: [one["state"] for one in shown["in_flight"]] == ["calling"])
            (request,) = shown["in_flight"]
            assert request["id"] == response.headers["X-Sidecar-Request-Id"]
            assert (request["lane"], request["tenant"], request["model"]) == ("critical", "shop", "haiku")
            assert shown["lanes"][0]["unfinished"] == 1
            async with edge.client.delete(f"/api/requests/{request['id']}") as stopped:
                assert stopped.status == 202
        shown = await until(feed, lambda shown: not shown["in_flight"])
        assert (shown["lanes"][0]["outcomes"]["cancelled"], shown["lanes"][0]["received"]) == (1, 1)


async def test_every_watcher_gets_the_same_and_the_sidecars_are_asked_once(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    asked = await nc.subscribe("$SRV.STATS.sidecar")
    async with edge.client.ws_connect("/ws") as one, edge.client.ws_connect("/ws") as other:
        told = [await one.receive_str() for _ in range(8)]
        assert asked.pending_msgs < 2 * len(told)
        await wait_until(lambda: is_among(other, told))
    assert orjson.loads(told[-1])["at"] > orjson.loads(told[0])["at"]


async def is_among(feed: aiohttp.ClientWebSocketResponse, told: list[str]) -> bool:
    return await feed.receive_str() in told


async def test_while_nobody_looks_nobody_is_asked(nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    rounds, look = 0, Collector._round

    async def counted(collector: Collector) -> None:
        nonlocal rounds
        await look(collector)
        rounds += 1

    monkeypatch.setattr(Collector, "_round", counted)
    asked = await listen(nc, "$SRV.STATS.sidecar")
    async with bridging(nats_url) as edge:
        async with edge.client.ws_connect("/ws") as feed:
            await feed.receive_str()
        await wait_until(lambda: not edge.client.closed and rounds > 2)
        await snapshot(edge)
        before, then = asked.pending_msgs, rounds
        await wait_until(lambda: rounds > then + 5)
    assert asked.pending_msgs <= before + 1


async def test_a_bridge_that_stops_tells_its_watchers_to_come_back(nc: Client, nats_url: str) -> None:
    async with bridging(nats_url) as edge, edge.client.ws_connect("/ws") as feed:
        await feed.receive_str()
        edge.stopping.set()
        while (message := await feed.receive()).type is aiohttp.WSMsgType.TEXT:
            pass
        assert (message.type, feed.close_code) == (aiohttp.WSMsgType.CLOSE, 1012)


async def test_one_watcher_too_many_is_told_to_come_later(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_WATCHERS", 1)
    async with edge.client.ws_connect("/ws") as first:
        await first.receive_str()
        async with edge.client.ws_connect("/ws") as second:
            assert (await second.receive()).type is aiohttp.WSMsgType.CLOSE
            assert second.close_code == 1013
    async with edge.client.ws_connect("/ws") as again:
        await wait_until(lambda: gets_one(again, edge))


async def gets_one(feed: aiohttp.ClientWebSocketResponse, edge: Edge) -> bool:
    return (await feed.receive()).type is aiohttp.WSMsgType.TEXT


async def test_a_watcher_that_takes_nothing_is_dropped_and_the_others_go_on(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TAKES_WITHIN_S", 0.2)
    monkeypatch.setattr(snapshot_module, "instant", lambda at: at.isoformat() + "x" * 1_000_000)
    async with lazy(edge) as (reader, _), edge.client.ws_connect("/ws", max_msg_size=0) as feed:
        while True:
            await feed.receive_str()
            watchers = await count(edge)
            if watchers == 1:
                break
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1_000_000_000)


async def count(edge: Edge) -> float:
    async with edge.client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return float(next(line for line in lines if line.startswith("sidecar_watchers ")).split()[1])


@asynccontextmanager
async def lazy(edge: Edge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A watcher that reads no more than a few kilobytes."""
    host, _, port = edge.url.removeprefix("http://").partition(":")
    plug = socket.socket()
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plug, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=plug, limit=1024)
    handshake = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + "A" * 22
    )
    writer.write(f"GET /ws HTTP/1.1\r\nHost: {host}\r\n{handshake}==\r\n\r\n".encode())
    try:
        yield reader, writer
    finally:
        writer.close()


# --- with keys ------------------------------------------------------------------------------


@pytest.fixture
async def guarded(nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    """A bridge whose watchers need a key."""
    hurry(monkeypatch)
    monkeypatch.setattr(live, "KEY_WITHIN_S", 0.2)
    callers = {"sk-one": Caller("one", operator=True), "sk-two": Caller("two", "shop")}
    routes = live.live
    monkeypatch.setattr("bridge.app.live", lambda collector, traffic, _: routes(collector, traffic, callers.get))
    async with bridging(nats_url) as one:
        yield one


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('{"key": "sk-one"}', None),
        ('{"key": "sk-two"}', 4403),
        ('{"key": "sk-three"}', 4401),
        ('{"key": 1}', 4401),
        ("sk-one", 4401),
        ('{"x": ' + "[" * 4000, 4401),
        (b"sk-one", 4401),
        (None, 4401),
        ("x" * (server.MAX_MESSAGE_BYTES + 1), 1009),
    ],
)
async def test_with_keys_the_first_message_has_to_be_an_operators(
    guarded: Edge, said: str | bytes | None, code: int | None
) -> None:
    async with guarded.client.ws_connect("/ws") as feed:
        if isinstance(said, str):
            await feed.send_str(said)
        elif said is not None:
            await feed.send_bytes(said)
        first = await feed.receive()
        if code is None:
            assert orjson.loads(first.data)["v"] == 1
        else:
            assert (first.type, feed.close_code) == (aiohttp.WSMsgType.CLOSE, code)


async def test_what_a_watcher_says_is_not_looked_at(edge: Edge) -> None:
    async with edge.client.ws_connect("/ws") as feed:
        for _ in range(100):
            await feed.send_str('{"key": "none is needed"}')
        assert orjson.loads(await feed.receive_str())["v"] == 1
    assert (await snapshot(edge))["v"] == 1
