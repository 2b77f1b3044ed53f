"""The JetStream calls we make, thinner and stricter than nats-py's: publish with retry, last message, API."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor.bus import Bus, MessageTooLarge
from processor.nats_client import cancellable

STREAM_LIMIT_REACHED = 10077
STREAM_NOT_FOUND = 10059
CONSUMER_NOT_FOUND = 10014
NO_MESSAGE_FOUND = 10037
_TOO_LARGE = {10054, 10097}
"""The message for the stream's max_msg_size, its headers for 64 KiB."""
_NOT_SENDABLE = (nats.errors.BadSubjectError, nats.errors.BadHeaderError, nats.errors.MaxPayloadError)
"""The message's own fault, which no other try would mend."""
_MAY_PASS = (nats.errors.NoRespondersError, nats.errors.TimeoutError, nats.errors.OutboundBufferLimitError)
_ONE_TRY_S = 2.0
_PAUSE_S = 0.25
_PLACE_HEADERS = {
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
}


class JetStreamError(Exception):
    """An error answer of the JetStream API; `err_code` is the server's own number."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description

    @property
    def is_copy(self) -> bool:
        """The subject already holds its one message: a second copy of a queued id."""
        return self.err_code == STREAM_LIMIT_REACHED and "per subject" in self.description

    @property
    def is_full(self) -> bool:
        return self.err_code == STREAM_LIMIT_REACHED and not self.is_copy


class JetStreamUnavailable(Exception):
    """No PubAck within the time allowed: no leader, no stream, or no connection."""


@dataclass(frozen=True, slots=True)
class PubAck:
    """The server's word that a message is kept (or, `duplicate`, was kept before: maybe by a try of our own)."""

    stream: str
    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message read out of a stream."""

    subject: str
    seq: int
    time: datetime
    headers: dict[str, str]
    body: bytes


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """Whatever ails the connection (no answer, a full buffer, closed for good) is `JetStreamUnavailable`."""
    try:
        yield
    except _NOT_SENDABLE:
        raise
    except (nats.errors.Error, OSError) as error:
        raise JetStreamUnavailable(f"{what} ({error})") from error


async def publish(
    bus: Bus, subject: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float = 10.0
) -> PubAck:
    """Publish and wait for the PubAck, trying again while there is no leader or no answer.

    A second try is safe because `headers` holds a `Nats-Msg-Id`: the server drops what it already has.

    Raises:
        MessageTooLarge: for the broker, or for the stream.
        JetStreamError: the server refused.
        JetStreamUnavailable: no PubAck in `timeout_s` seconds, or the connection is closed for good.
    """
    assert "Nats-Msg-Id" in headers
    bus.check_size(body, headers, subject)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        left = deadline - loop.time()
        if not bus.is_connected and not bus.nc.is_closed:  # nats-py would keep every try, and send them all later
            if left <= _PAUSE_S:
                raise JetStreamUnavailable(f"no PubAck for {subject} in {timeout_s:g} s (not connected)")
            await asyncio.sleep(_PAUSE_S)
            continue
        with _unavailable(f"no PubAck for {subject} in {timeout_s:g} s"):
            try:
                answer = await bus.nc.request(
                    subject, body, timeout=max(0.05, min(left, _ONE_TRY_S)), headers=dict(headers)
                )
            except _MAY_PASS:
                if deadline - loop.time() <= _PAUSE_S:
                    raise
                await asyncio.sleep(_PAUSE_S)
                continue
        fields = orjson.loads(answer.data)
        if "error" in fields:
            error = _error(fields["error"])
            raise MessageTooLarge(error.description) if error.err_code in _TOO_LARGE else error
        return PubAck(fields["stream"], fields["seq"], bool(fields.get("duplicate")))


async def call(nc: Client, subject: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 5.0) -> Any:
    """One call of `$JS.API.<subject>`, decoded.

    Raises:
        JetStreamError: the server's error answer.
        JetStreamUnavailable: no answer, no connection, or JetStream is not enabled.
    """
    with _unavailable(f"JetStream does not answer {subject}: is it enabled on the server?"):
        answer = await nc.request(f"$JS.API.{subject}", orjson.dumps(body) if body else b"", timeout=timeout_s)
    fields = orjson.loads(answer.data)
    if "error" in fields:
        raise _error(fields["error"])
    return fields


async def last_message(nc: Client, stream: str, subject: str, *, timeout_s: float = 2.0) -> StoredMessage | None:
    """The newest message on `subject`, read by direct get, or None.

    Raises:
        JetStreamUnavailable: no answer.
    """
    with _unavailable(f"{stream} does not answer"):
        return _stored(await nc.request(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"", timeout=timeout_s))


async def leaders_message(
    nc: Client, stream: str, query: Mapping[str, Any], *, timeout_s: float = 2.0
) -> StoredMessage | None:
    """One message as the stream's leader has it, where a direct get's copy may lag behind; or None.

    Raises:
        JetStreamError: the server refused the query.
        JetStreamUnavailable: no answer.
    """
    try:
        found = (await call(nc, f"STREAM.MSG.GET.{stream}", query, timeout_s=timeout_s))["message"]
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE_FOUND:
            return None
        raise
    headers = parse_headers(base64.b64decode(found.get("hdrs", "")))
    body = base64.b64decode(found.get("data", ""))
    return StoredMessage(found["subject"], found["seq"], parse_time(found["time"]), headers, body)


def parse_headers(raw: bytes) -> dict[str, str]:
    """NATS headers, as the API gives them: a version line, then one header a line."""
    lines = raw.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def batch(
    nc: Client, stream: str, query: Mapping[str, Any], *, timeout_s: float = 5.0
) -> tuple[list[StoredMessage], int]:
    """A direct get of several messages (ADR-31), in stream order, and how many more match after the last of them.

    `query` says what (`next_by_subj` with `seq` or `start_time`, or `multi_last`) and how much: `batch` messages, and
    `max_bytes`, which one message may exceed.

    Raises:
        JetStreamError: the server refused the query.
        JetStreamUnavailable: `timeout_s` seconds without an answer.
    """
    found: list[StoredMessage] = []
    async with _answers(nc, stream, orjson.dumps(query)) as sub:
        while True:
            # Python 3.11's `wait_for` loses a cancellation that comes together with a message.
            with cancellable():
                answer = await sub.next_msg(timeout=timeout_s)
            if (message := _stored(answer)) is not None:
                found.append(message)
                continue
            headers = answer.headers or {}
            match headers.get("Status"):
                case "204":
                    return found, int(headers["Nats-Num-Pending"])
                case "404":
                    return [], 0
                case "503":
                    raise JetStreamUnavailable(f"{stream} does not answer")
                case status:
                    raise JetStreamError(int(status or 500), 0, headers.get("Description", "direct get refused"))


@asynccontextmanager
async def _answers(nc: Client, stream: str, query: bytes) -> AsyncIterator[Subscription]:
    """What a direct get answers, on an inbox of its own."""
    with _unavailable(f"{stream} does not answer"):
        inbox = nc.new_inbox()
        sub = await nc.subscribe(inbox)
        try:
            await nc.publish(f"$JS.API.DIRECT.GET.{stream}", query, reply=inbox)
            yield sub
        finally:
            await sub.unsubscribe()


def _stored(answer: Msg) -> StoredMessage | None:
    """A direct get's answer; the headers that the server adds to tell where the message stood are taken off."""
    found = {str(k): v for k, v in (answer.headers or {}).items()}
    if "Nats-Sequence" not in found:
        return None
    return StoredMessage(
        subject=found["Nats-Subject"],
        seq=int(found["Nats-Sequence"]),
        time=parse_time(found["Nats-Time-Stamp"]),
        headers={k: v for k, v in found.items() if k not in _PLACE_HEADERS},
        body=answer.data,
    )


def parse_time(text: str) -> datetime:
    """The server's RFC 3339 time, nanoseconds cut to microseconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6].ljust(6, '0')}").replace(tzinfo=UTC)


def _error(fields: Mapping[str, Any]) -> JetStreamError:
    return JetStreamError(
        int(fields.get("code", 500)), int(fields.get("err_code", 0)), str(fields.get("description", ""))
    )
