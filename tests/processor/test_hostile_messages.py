"""Messages that no client library sends: each is answered, buried or dropped, and nothing else suffers."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client

from processor import jetstream, redrive, subjects
from processor.bus import Bus, MessageTooLarge
from processor.nats_client import MAX_LINE_BYTES
from processor.service import Processor
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor, make_settings
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body, stored
from tests.wait import wait_until


async def send_raw(url: str, data: bytes) -> None:
    """Speak the protocol by hand, and see that the server took it."""
    host, port = url.rpartition("/")[2].split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\n' + data + b"PING\r\n")
    assert await asyncio.wait_for(reader.readline(), 5) == b"PONG\r\n"
    writer.close()
    await writer.wait_closed()


def pub(subject: bytes, data: bytes) -> bytes:
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(data), data)


def hpub(subject: bytes, headers: bytes, data: bytes) -> bytes:
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(data), headers, data)


@pytest.fixture
async def processor(start: StartProcessor) -> Processor:
    return await start({"anthropic": ScriptedProvider(answer())})


MESSAGES = {
    "a subject that is no text": pub(b"llm.request.low.m\xfcller", body()),
    "a subject with a vertical tab": pub(b"llm.request.low.a\x0bb", body()),
    "a subject with a form feed": pub(b"llm.request.low.a\x0c7", body()),
    "an id that leaves no room in the control line": pub(b"llm.request.low." + b"x" * 4030, b"hi"),
    "a header with a name that is no token": hpub(
        b"llm.request.low.x", b"NATS/1.0\r\nX/Origin: a\r\n\r\n", b"no request"
    ),
    "headers in wide characters beside the largest body": hpub(
        b"llm.request.low.x", b"NATS/1.0\r\ntracestate: " + "€".encode() * 21_000 + b"\r\n\r\n", b"y" * 8_320_000
    ),
    "headers at the stream's limit": hpub(
        b"llm.request.low.x", b"NATS/1.0\r\ntracestate: " + b"x" * 65_450 + b"\r\n\r\n", b"no request"
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_queued_message_that_is_no_request_is_buried_once(
    name: str, processor: Processor, nc: Client, nats_url: str
) -> None:
    await send_raw(nats_url, MESSAGES[name])

    async def buried() -> bool:
        queue = await nc.jetstream().stream_info(subjects.REQUESTS)
        return (queue.state.messages, await redrive.count(nc)) == (0, 1)

    await wait_until(buried, timeout_s=20)
    bus = processor._bus
    assert bus.reconnected_at is None
    assert not bus.nc.is_deaf
    assert (await ask(nc, body()))["response"] == "Hello."
    assert (await ask(nc, body(), "low"))["response"] == "Hello."


@pytest.mark.parametrize("subject", [b"llm.cancel.m\xfcller", b"llm.cancel.a\x0bb", b"llm.running.m\xfcller"])
async def test_a_subject_that_is_no_text_deafens_nobody(
    subject: bytes, processor: Processor, nc: Client, nats_url: str
) -> None:
    await send_raw(nats_url, pub(subject, b""))
    assert (await ask(nc, body()))["response"] == "Hello."
    assert processor._bus.reconnected_at is None


@pytest.mark.parametrize("headers", [b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0 503 \xff\r\n\r\n", b"NATS/1.0"])
async def test_headers_that_are_none_are_left_out(
    headers: bytes, processor: Processor, nc: Client, nats_url: str
) -> None:
    await send_raw(nats_url, hpub(b"llm.request.low.job-1", headers, body()))
    ending = await wait_until(lambda: stored(nc, "job-1"))
    assert ending["response"] == "Hello."


async def test_a_message_that_cannot_be_read_in_any_way_is_dropped_and_its_delivery_terminated(
    processor: Processor, nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = processor._bus.nc._build_message

    def fail(sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None) -> object:
        if data == b"poison":
            raise ValueError("as if it could not be read")
        return build(sid, subject, reply, data, headers)

    monkeypatch.setattr(processor._bus.nc, "_build_message", fail)
    await send_raw(nats_url, pub(b"llm.request.low.job-1", b"poison") + pub(b"llm.cancel.x", b"poison"))

    async def gone() -> bool:
        return (await nc.jetstream().stream_info(subjects.REQUESTS)).state.messages == 0

    await wait_until(gone)
    assert (await ask(nc, body()))["response"] == "Hello."


async def test_an_id_that_is_none_is_kept_under_a_stand_in_beside_the_original(
    processor: Processor, nc: Client, nats_url: str
) -> None:
    await send_raw(nats_url, pub("llm.request.low.müller".encode(), body()))

    async def letters() -> list[redrive.DeadLetter]:
        return await redrive.latest(nc, 10)

    (letter,) = await wait_until(letters)
    assert subjects.is_request_id(letter.id)
    assert letter.headers["Sidecar-Original-Id"] == "müller"


async def test_what_the_server_would_hang_up_for_is_refused_by_its_bytes(nats_url: str) -> None:
    bus = Bus()
    await bus.connect(nats_url, make_settings(), name="test")
    with pytest.raises(MessageTooLarge):
        await bus.publish("some.subject", b"x" * (bus.nc.max_payload - 6000), {"h": "€" * 1000})
    for subject in ("s" * MAX_LINE_BYTES, "€" * (MAX_LINE_BYTES // 3)):
        with pytest.raises(MessageTooLarge):
            await bus.publish(subject, b"")
        with pytest.raises(MessageTooLarge):
            await jetstream.publish(bus, subject, b"", {"Nats-Msg-Id": "1"})
    await bus.settle()
    assert bus.reconnected_at is None
    await bus.close()
