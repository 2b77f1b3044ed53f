"""Slow clients and floods, on real sockets: closed or answered in bounded time and memory, and nobody else notices."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import aiohttp
import orjson
import psutil
import pytest
import uvicorn
from nats.aio.client import Client
from nats.aio.msg import Msg
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket
from structlog.testing import capture_logs

from bridge import connections
from bridge.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, bounded
from tests.bridge.edge import Edge, bridging, listen
from tests.talk import body
from tests.wait import wait_until

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /api/route HTTP/1.1\r\nHost: localhost\r\n"


class Raw:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> bytes:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        return head + await asyncio.wait_for(self.reader.readexactly(length), 5)

    async def closed(self) -> bytes:
        """What comes until the server closes."""
        said = bytearray()
        async with asyncio.timeout(5):
            try:
                while chunk := await self.reader.read(65536):
                    said += chunk
            except OSError:
                pass
        return bytes(said)

    async def flood(self, piece: bytes, most: int) -> int:
        """Send again and again until the server closes; returns how many bytes it let us send."""
        sent = 0
        try:
            while sent < most and not self.reader.at_eof():
                await self.send(piece)
                sent += len(piece)
        except OSError:
            pass
        return sent


@asynccontextmanager
async def raw(edge: Edge | str) -> AsyncIterator[Raw]:
    url = edge if isinstance(edge, str) else edge.url
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.2)
    monkeypatch.setattr(connections, "REST_WITHIN_S", 0.2)


# --- slow -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"", b"\r\n", b"G", GET])
async def test_headers_that_do_not_come_to_their_end_are_given_up(edge: Edge, begun: bytes) -> None:
    async with raw(edge) as slow:
        await slow.send(begun)
        said = await slow.closed()
        assert said.startswith(b"HTTP/1.1 408 ") if begun.strip() else said == b""


@pytest.mark.usefixtures("impatient")
async def test_a_header_that_comes_byte_by_byte_is_given_up_all_the_same(edge: Edge) -> None:
    async with raw(edge) as slow:
        await slow.send(GET + b"X-Slow: ")

        async def trickle() -> None:
            while True:
                await slow.send(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        try:
            assert (await slow.closed()).startswith(b"HTTP/1.1 408 ")
        finally:
            trickling.cancel()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("begun", [b"\r\n", b"GET /hea"])
async def test_the_second_request_of_a_connection_has_no_more_time_than_the_first(edge: Edge, begun: bytes) -> None:
    async with raw(edge) as slow:
        await slow.send(GET + b"\r\n")
        assert (await slow.answer()).startswith(b"HTTP/1.1 200 ")
        await slow.send(begun)
        said = await slow.closed()
        assert said.startswith(b"HTTP/1.1 408 ") if begun.strip() else said == b""


async def test_a_connection_that_rests_between_two_requests_is_kept(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.05)
    async with raw(edge) as client:
        for _ in range(3):
            await client.send(GET + b"\r\n")
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.1)


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_takes_long_is_not_cut_by_what_is_sent_behind_it(nc: Client, edge: Edge) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer_late(msg: Msg) -> None:
        asked.set()
        await go_on.wait()
        await nc.publish(msg.reply, b'{"rule": "late"}')

    await listen(nc, answer_late)
    async with raw(edge) as client:
        sent = body()
        await client.send(POST + b"Content-Length: %d\r\n\r\n%sGET /heal" % (len(sent), sent))
        await asked.wait()
        await asyncio.sleep(0.5)
        go_on.set()
        assert b'{"rule": "late"}' in await client.answer()
        await client.send(b"th HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("impatient")
async def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever(edge: Edge) -> None:
    async with raw(edge) as slow:
        await slow.send(POST + b"Host: evil.example\r\nContent-Length: 1000000\r\n\r\n")
        assert (await slow.answer()).startswith(b"HTTP/1.1 403 ")
        assert await slow.flood(b"x", 1000) < 1000 or await slow.closed() == b""


async def test_a_connection_rests_no_longer_where_its_body_came_after_the_answer(
    nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.server.IDLE_S", 0.3)
    async with bridging(nats_url) as edge, raw(edge) as client:
        await client.send(POST + b"Host: evil.example\r\nContent-Length: 3\r\n\r\n")
        assert (await client.answer()).startswith(b"HTTP/1.1 403 ")
        await client.send(b"abc")
        assert await client.closed() == b""


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_nothing_is_let_go(nc: Client, edge: Edge) -> None:
    async def answer(msg: Msg) -> None:
        await nc.publish(msg.reply, b"x" * 7_000_000)

    await listen(nc, answer)
    ours = psutil.Process()
    before = len(ours.net_connections())
    async with raw(edge) as deaf:
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own has it
        sent = body()
        await deaf.send(POST + b"Content-Length: %d\r\n\r\n%s" % (len(sent), sent))
        await wait_until(lambda: len(ours.net_connections()) >= before + 2)
        await wait_until(lambda: len(ours.net_connections()) < before + 2)


@pytest.mark.usefixtures("impatient")
async def test_a_client_that_reads_slowly_has_all_of_it(nc: Client, edge: Edge) -> None:
    async def answer(msg: Msg) -> None:
        await nc.publish(msg.reply, b"x" * 7_000_000)

    await listen(nc, answer)
    async with raw(edge) as slow:
        sent = body()
        await slow.send(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(sent), sent))
        read = 0
        while chunk := await slow.reader.read(500_000):
            read += len(chunk)
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own has it
            await asyncio.sleep(0.02)
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]  # asyncio's own has it
        assert read > 7_000_000


# --- large ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Large: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        GET + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
    ],
)
async def test_a_head_that_is_too_large_is_answered_so(edge: Edge, head: bytes) -> None:
    async with raw(edge) as client:
        await client.send(head)
        assert (await client.closed()).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "piece", [b"x" * 4096, b"X-Many: y\r\n" * 400], ids=["one endless header", "endlessly many headers"]
)
async def test_a_head_without_an_end_is_cut_off_near_the_limit(edge: Edge, piece: bytes) -> None:
    async with raw(edge) as client:
        await client.send(GET + b"X-Begun: ")
        sent = await client.flood(piece, 100_000_000)
        assert sent < 20_000_000  # what the system's buffers took
        await client.closed()


async def test_headers_behind_a_chunked_body_are_bounded_too(edge: Edge) -> None:
    async with raw(edge) as client:
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        assert await client.flood(b"X-Many: y\r\n" * 400, 100_000_000) < 20_000_000
        await client.closed()


async def test_a_head_at_the_limit_is_taken(edge: Edge) -> None:
    async with raw(edge) as client:
        await client.send(GET + b"X-Large: " + b"x" * (MAX_HEAD_BYTES - 200) + b"\r\n\r\n")
        assert (await client.answer()).startswith(b"HTTP/1.1 200 ")


# --- many -----------------------------------------------------------------------------------


async def test_requests_that_pile_up_behind_one_another_are_bounded(nc: Client, edge: Edge) -> None:
    asked: list[str] = []

    async def take(msg: Msg) -> None:
        asked.append(msg.reply)

    await listen(nc, take)
    sent = body()
    ask = POST + b"Content-Length: %d\r\n\r\n%s" % (len(sent), sent)
    async with raw(edge) as client:
        await client.send(ask * (MAX_PIPELINED + 20))
        assert await client.closed() == b""
    async with raw(edge) as client:
        await client.send((GET + b"\r\n") * MAX_PIPELINED)
        for _ in range(MAX_PIPELINED):
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
    await wait_until(lambda: asked)
    assert len(asked) == 1
    await nc.publish(asked[0], b"{}")


async def test_more_connections_than_are_allowed_are_told_so_then_closed_and_make_room_again(
    nc: Client, nats_url: str
) -> None:
    with capture_logs() as logged:
        async with bridging(nats_url, sidecar_max_connections=20) as edge, AsyncExitStack() as stack:
            held = [await stack.enter_async_context(raw(edge)) for _ in range(20)]
            for one in held:
                await one.send(GET + b"\r\n")
                assert (await one.answer()).startswith(b"HTTP/1.1 200 ")
            async with raw(edge) as late:
                await late.send(POST + b"Content-Length: 2\r\n\r\n{}")
                answer = await late.closed()
                assert answer.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 1" in answer.lower()
                fields = orjson.loads(answer.partition(b"\r\n\r\n")[2])
                assert "too many connections" in fields["error"]["message"]
            async with raw(edge) as orchestrator:
                await orchestrator.send(GET + b"\r\n")
                assert (await orchestrator.answer()).startswith(b"HTTP/1.1 200 ")
            over = [await stack.enter_async_context(raw(edge)) for _ in range(10)]
            assert await over[-1].closed() == b""
            for one in [*held, *over]:
                one.writer.transport.abort()

            async def is_free() -> bool:
                async with raw(edge) as again:
                    await again.send(POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}")
                    return (await again.closed()).startswith(b"HTTP/1.1 400 ")

            await wait_until(is_free)
    assert [entry["event"] for entry in logged].count("too many connections: see SIDECAR_MAX_CONNECTIONS") == 1


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"x" * 100_000, b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 50],
)
async def test_what_is_no_http_is_answered_briefly_and_shows_nothing(edge: Edge, garbage: bytes) -> None:
    async with raw(edge) as client:
        await client.send(garbage)
        said = await client.closed()
        assert said.startswith(b"HTTP/1.1 400 ")
        assert said.endswith(b"Invalid HTTP request received.")
    assert (await edge.client.get("/health")).status == 200


PIECES = (
    GET + b"\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"POST / HTTP/1.1\r\nContent-Length: 500\r\n\r\n" + b"x" * 500,
    b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n" + b"X: y\r\n" * MAX_HEADERS + b"\r\n",
    *(b"CONNECT x:1 HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n", b"GET http://[::x HTTP/1.1\r\n\r\n"),
    *(b"\r\n" * 5, b"\x00\xff", GET + b"X: " + b"z" * 70_000, b"X: y\r\n" * 400),
)


@pytest.mark.usefixtures("impatient")
async def test_whatever_is_sent_in_whatever_pieces_every_connection_ends_and_nothing_is_raised() -> None:
    chance, raised = random.Random(5), list[object]()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await Response("ok")(scope, receive, send)

    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    async with serving(answer) as url:

        async def client() -> None:
            async with raw(url) as one:
                data = b"".join(chance.choices(PIECES, k=chance.randint(1, 12)))
                with suppress(OSError):
                    while data and not one.reader.at_eof():
                        length = chance.choice([7, 100, 5_000, 100_000])
                        await one.send(data[:length])
                        data = data[length:]
                await one.closed()

        for _ in range(20):
            await asyncio.gather(*(client() for _ in range(10)))
    assert raised == []


async def test_a_websocket_is_left_alone_also_on_a_connection_that_was_used_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "HEAD_WITHIN_S", 0.1)

    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            return await Response("ok")(scope, receive, send)
        connected = WebSocket(scope, receive, send)
        await connected.accept()
        async for text in connected.iter_text():
            await connected.send_text(text)
        return None

    async with serving(echo) as url, aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=1)) as client:
        for _ in range(2):
            async with client.get("/") as response:
                assert await response.text() == "ok"
            async with client.ws_connect("/") as client_end:
                for _ in range(2):
                    await asyncio.sleep(0.3)
                    await client_end.send_str("still here")
                    assert await client_end.receive_str(timeout=5) == "still here"


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """A server of any application, with connections as the bridge has them."""
    config = uvicorn.Config(app, http=bounded(10), ws="websockets-sansio", lifespan="off", log_config=None)
    config.timeout_keep_alive = 0.2  # type: ignore[assignment]  # any number of seconds will do
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server._serve([listener]))
        await wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def test_more_large_bodies_than_the_bridge_can_hold_are_refused_and_small_ones_pass(
    nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.body_budget.MAX_HELD_BYTES", 300_000)
    asked: list[Msg] = []

    async def later(msg: Msg) -> None:
        asked.append(msg)

    await listen(nc, later)
    large, small = body("x" * 250_000), body()
    async with bridging(nats_url) as edge:

        async def held() -> None:
            async with edge.client.post("/api/route", data=large) as response:
                assert response.status == 200

        for _ in range(2):  # the first gives back what it held
            first = asyncio.create_task(held())
            await wait_until(lambda: asked)
            async with edge.client.post("/api/route", data=large) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "2")
                assert "large requests" in orjson.loads(await response.read())["error"]["message"]
            second = asyncio.create_task(edge.post(small))
            await wait_until(lambda: len(asked) == 2)
            for msg in asked:
                await nc.publish(msg.reply, b"{}")
            assert (await second)[0] == 200
            await first
            asked.clear()
