"""POST /api/route: the decision of `llm.route` over HTTP, and one form of error for everything that hinders."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from bridge import bodies, questions
from processor.messages import MAX_BODY_BYTES
from providers.scripted import ScriptedProvider
from tests.bridge.edge import Edge, bridging, listen, our_broker
from tests.conftest import StartProcessor, nats_server
from tests.talk import body
from tests.wait import wait_until


async def test_the_answer_is_that_of_llm_route_and_no_model_is_called(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    asked = body("Prove that there are infinitely many primes.", model="auto")
    async with edge.client.post("/api/route", data=asked) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        said = await response.read()
    assert said == (await nc.request("llm.route", asked, timeout=5)).data
    assert orjson.loads(said)["candidates"][0]["provider"] == "anthropic"
    assert vendor.calls == 0


# --- what is wrong with a request -----------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "body: not JSON"),
        (b"model=haiku&text=hello", "body: not JSON"),
        (b"[1, 2]", "body: it has to be a JSON object"),
        (b"\xff\xfe\x00", "body: not JSON"),
        (body(modle="haiku"), "modle: unknown field"),
        (body(max_tokens=0), "max_tokens: "),
    ],
)
async def test_a_wrong_body_is_refused_by_name_without_a_sidecar(edge: Edge, sent: bytes, says: str) -> None:
    status, fields = await edge.post(sent)
    assert (status, fields["error"]["type"]) == (400, "invalid_request")
    assert fields["error"]["message"].startswith(says)


async def test_a_sidecars_refusal_comes_with_its_status(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    status, fields = await edge.post(body(model="no-such-model"))
    assert (status, fields["error"]["type"]) == (404, "not_found")
    assert "no-such-model" in fields["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "allowed"),
    [
        ("GET", "/api/route", 405, "invalid_request", "POST"),
        ("DELETE", "/health", 405, "invalid_request", "GET"),
        ("POST", "/api/router", 404, "not_found", None),
        ("POST", "/api/route/", 404, "not_found", None),
        ("GET", "/docs", 404, "not_found", None),
        ("GET", "/redoc", 404, "not_found", None),
    ],
)
async def test_what_is_not_served_says_so_in_the_same_form(
    edge: Edge, method: str, path: str, status: int, kind: str, allowed: str | None
) -> None:
    async with edge.client.request(method, path, allow_redirects=False) as response:
        fields = orjson.loads(await response.read())
    assert (response.status, response.headers.get("Allow")) == (status, allowed)
    assert (fields["error"].keys(), fields["error"]["type"]) == (
        {"type", "message", "request_id", "retry_after_s"},
        kind,
    )


async def test_a_body_that_announces_too_much_is_refused_before_it_is_sent(edge: Edge) -> None:
    async with raw(edge, f"Content-Length: {MAX_BODY_BYTES + 1}") as (reader, _):
        assert_too_large(await read_answer(reader))


async def test_a_body_of_unknown_length_is_refused_where_it_passes_the_limit(edge: Edge) -> None:
    chunk = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    async with raw(edge, "Transfer-Encoding: chunked") as (reader, writer):
        for _ in range(MAX_BODY_BYTES // 0x40000 + 1):
            writer.write(chunk)
            await writer.drain()
        assert_too_large(await read_answer(reader))  # though the body has no end yet


async def test_a_client_that_sends_all_of_a_large_body_reads_why_it_is_refused(edge: Edge) -> None:
    status, fields = await edge.post(bytes(3 * MAX_BODY_BYTES))
    assert (status, fields["error"]["type"]) == (413, "too_large")


async def test_a_body_that_does_not_come_to_its_end_is_given_up(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_WITHIN_S", 0.1)
    async with raw(edge, "Content-Length: 100") as (reader, _):
        assert b"400 Bad Request" in (answer := await read_answer(reader))
        assert b"did not arrive" in answer


# --- what is wrong behind the bridge --------------------------------------------------------


async def test_without_a_sidecar_it_says_how_to_start_one(edge: Edge) -> None:
    status, fields = await edge.post(body())
    assert (status, fields["error"]["type"]) == (503, "unavailable")
    assert "sidecar processor" in fields["error"]["message"]


async def test_without_a_broker_it_says_so_at_once_and_goes_on_when_there_is_one_again(tmp_path: Path) -> None:
    with nats_server(tmp_path) as url:
        port = int(url.rpartition(":")[2])
        async with bridging(url) as edge:
            broker = our_broker()
            broker.kill()
            broker.wait()
            await refused_within(2, edge)
            await refused_within(0.5, edge)  # it is known by now
            with nats_server(tmp_path, port) as again:
                sidecar = await nats.connect(again)
                await listen(sidecar, answering(b'{"rule": "default"}'))

                async def answers() -> bool:
                    return (await edge.post(body())) == (200, {"rule": "default"})

                await wait_until(answers)
                await sidecar.close()


async def test_a_broker_that_has_fallen_silent_is_not_waited_for(tmp_path: Path) -> None:
    with nats_server(tmp_path) as url:
        async with bridging(url) as edge:
            broker = our_broker()
            broker.send_signal(signal.SIGSTOP)
            try:
                await refused_within(2, edge)
            finally:
                broker.send_signal(signal.SIGCONT)


async def test_a_sidecar_that_does_not_answer_is_waited_for_until_the_deadline(
    nc: Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.line.ANSWER_WITHIN_S", 0.2)
    await listen(nc, ignore)
    status, fields = await edge.post(body())
    assert (status, fields["error"]["type"]) == (504, "deadline_exceeded")


async def test_a_sidecar_that_fails_shows_nothing_of_why(nc: Client, edge: Edge) -> None:
    headers = {"Nats-Service-Error-Code": "500", "Nats-Service-Error": "KeyError('secret')"}
    await listen(nc, answering(b"", headers))
    status, fields = await edge.post(body())
    assert (status, fields["error"]["type"]) == (500, "internal")
    assert "secret" not in str(fields)


async def test_a_fault_of_our_own_is_logged_and_shows_nothing(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(_: bytes) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(questions, "decode_request", faulty)
    with capture_logs() as logged:
        status, fields = await edge.post(body())
    assert (status, fields["error"]["type"]) == (500, "internal")
    assert "secret" not in str(fields)
    assert [entry["error"] for entry in logged] == ["KeyError('secret')"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/nope"), ("POST", "/api/route")])
async def test_every_answer_tells_browsers_to_guess_and_keep_nothing_and_names_no_server(
    edge: Edge, method: str, path: str
) -> None:
    async with edge.client.request(method, path) as response:
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers


async def test_health_says_that_the_process_lives_whatever_the_broker_does(tmp_path: Path) -> None:
    with nats_server(tmp_path) as url:
        async with bridging(url) as edge:
            our_broker().kill()
            async with edge.client.get("/health") as response:
                assert (response.status, await response.read()) == (200, b'{"status":"ok"}')


# --------------------------------------------------------------------------------------------


@asynccontextmanager
async def raw(edge: Edge, header: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection on which a POST to /api/route has begun, without any of its body."""
    host, _, port = edge.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"POST /api/route HTTP/1.1\r\nHost: {host}\r\n{header}\r\n\r\n".encode())
        yield reader, writer
    finally:
        writer.close()


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    return head + await reader.readexactly(length)


def assert_too_large(answer: bytes) -> None:
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "too_large"


async def refused_within(seconds: float, edge: Edge) -> None:
    before = time.monotonic()
    status, fields = await edge.post(body())
    assert time.monotonic() - before < seconds
    assert (status, fields["error"]["type"]) == (503, "unavailable")
    assert "broker" in fields["error"]["message"]


def answering(reply: bytes, headers: dict[str, str] | None = None) -> Any:
    async def answer(msg: Msg) -> None:
        await msg._client.publish(msg.reply, reply, headers=headers)

    return answer


async def ignore(_: Msg) -> None:
    """Somebody listens, and says nothing."""
