"""What a client receives: deltas in order, one final message, kept in `LLM_REPLIES` before it is sent."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import nats.errors
import orjson
import structlog
from cachetools import LRUCache
from nats.aio.msg import Msg

from processor import jetstream, subjects
from processor.bus import Bus
from processor.errors import RequestError
from processor.jetstream import StoredMessage
from processor.reply_bodies import ErrorBody, ErrorReply, FinalReply, ReplyEvent
from processor.tasks import happens
from providers.base import TextDelta, ThinkingDelta, ToolCallDelta

PROBE_EVERY = 20
"""Deltas between two probes for a client that has gone."""
MAX_MISSED = 10_000
_DELIVER_S = 10.0
_RETRY_S = 0.25
_LOOK_AGAIN_S = 0.5
_BATCH = 1_000
_BATCH_BYTES = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


def error_body(request_id: str, error: RequestError) -> bytes:
    body = ErrorBody(type=error.type, message=error.message, request_id=request_id, retry_after_s=error.retry_after_s)
    return ErrorReply(error=body).model_dump_json().encode()


def error_headers(error: RequestError) -> dict[str, str]:
    """The services API's error headers; a header is one line of printable ASCII."""
    line = " ".join(error.message.split()).encode("ascii", "replace").decode()[:200]
    return {"Nats-Service-Error-Code": str(error.type.code), "Nats-Service-Error": line}


def sidecar_headers(request_id: str, event: ReplyEvent, attempt: int, seq: int) -> dict[str, str]:
    return {
        "Sidecar-Request-Id": request_id,
        "Sidecar-Event": event,
        "Sidecar-Attempt": str(attempt),
        "Sidecar-Seq": str(seq),
    }


@dataclass(slots=True)
class Outbox:
    """The numbered messages of one request to its client."""

    bus: Bus
    probes: Probes
    request_id: str
    reply_to: str | None
    stream: bool
    """Whether deltas are sent."""
    attempt: int = 1
    seq: int = 0
    _probes_sent: int = 0
    _lost: bool = False

    async def begin(self, attempt: int) -> None:
        """A new attempt: unless it is the request's first, the text so far is void."""
        self.attempt, self.seq = attempt, 0
        if attempt > 1 and self.stream:
            body = orjson.dumps({"id": self.request_id, "seq": self.seq, "text": "", "attempt": attempt})
            await self._send(ReplyEvent.RESTARTED, body)

    async def delta(self, event: TextDelta | ThinkingDelta | ToolCallDelta) -> None:
        if not self.stream:
            return
        fields: dict[str, object] = {"id": self.request_id, "seq": self.seq, "text": ""}
        match event:
            case TextDelta(text):
                fields["text"] = text
            case ThinkingDelta(text):
                fields["thinking"] = text
            case ToolCallDelta(index, call_id, name, arguments):
                call = {"index": index, "id": call_id, "name": name, "arguments": arguments}
                fields["tool_call"] = {k: v for k, v in call.items() if v is not None}
        await self._send(ReplyEvent.DELTA, orjson.dumps(fields))

    def headers(self, event: ReplyEvent) -> dict[str, str]:
        return sidecar_headers(self.request_id, event, self.attempt, self.seq)

    async def _send(self, event: ReplyEvent, body: bytes) -> None:
        headers = self.headers(event)
        self.seq += 1
        if self.reply_to is None:
            return
        probe = ""
        if self.seq % PROBE_EVERY == 0:
            self._probes_sent += 1
            probe = self.probes.subject(self.request_id, self._probes_sent)
        try:
            await self.bus.publish(self.reply_to, body, headers, reply=probe)
        except nats.errors.OutboundBufferLimitError:
            # The connection has been lost for long. The final message has all of the answer.
            if not self._lost:
                log.warning("deltas lost: the broker is away", id=self.request_id)
            self._lost = True


@dataclass(frozen=True, slots=True)
class Ending:
    """The one terminal message of a request."""

    event: ReplyEvent
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, outbox: Outbox, result: FinalReply | RequestError) -> Ending:
        if isinstance(result, FinalReply):
            return cls(ReplyEvent.FINAL, result.model_dump_json().encode(), outbox.headers(ReplyEvent.FINAL))
        headers = outbox.headers(ReplyEvent.ERROR) | error_headers(result)
        return cls(ReplyEvent.ERROR, error_body(outbox.request_id, result), headers)

    @classmethod
    def refusal(cls, request_id: str, error: RequestError) -> Ending:
        """For a request that no worker has taken up."""
        headers = sidecar_headers(request_id, ReplyEvent.ERROR, attempt=1, seq=0) | error_headers(error)
        return cls(ReplyEvent.ERROR, error_body(request_id, error), headers)

    @staticmethod
    def is_one(message: StoredMessage) -> bool:
        return message.headers.get("Sidecar-Event") in {ReplyEvent.FINAL, ReplyEvent.ERROR}

    @classmethod
    def stored(cls, message: StoredMessage) -> Ending:
        """What `LLM_REPLIES` holds, without the headers that are the stream's own."""
        headers = {k: v for k, v in message.headers.items() if not k.startswith("Nats-") or "Service-Error" in k}
        return cls(ReplyEvent(headers["Sidecar-Event"]), message.body, headers)


class Probes:
    """Finds out whether anybody listens: the server answers a publish without listeners with 503 on its reply."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.nc.new_inbox()
        self._waiting: dict[str, asyncio.Event] = {}
        # The last probe of a request that nobody heard. Bounded, for it may be told after the request was forgotten.
        self._missed: LRUCache[str, int] = LRUCache(MAX_MISSED)
        self.gone: asyncio.Queue[str] = asyncio.Queue()
        """Ids of requests whose client has gone: nobody heard two probes in a row."""

    async def start(self) -> None:
        await self._bus.nc.subscribe(f"{self._inbox}.*.*", cb=self._on_answer)

    def subject(self, request_id: str, number: int = 1) -> str:
        return f"{self._inbox}.{request_id}.{number}"

    def forget(self, request_id: str) -> None:
        self._missed.pop(request_id, None)

    async def _on_answer(self, msg: Msg) -> None:
        # Whoever receives a probed message may answer it (a stream that captures it does, with its PubAck).
        _, token, number = msg.subject.rsplit(".", 2)
        if (msg.headers or {}).get("Status") != "503" or not number.isdecimal():
            return
        if (waiting := self._waiting.get(token)) is not None:
            waiting.set()
        elif self._missed.get(token) == int(number) - 1:
            self.forget(token)
            self.gone.put_nowait(token)
        else:
            self._missed[token] = int(number)

    async def deliver(self, subject: str, ending: Ending, *, sentinel: bool) -> bool:
        """Send a final message until somebody hears it, for at most ten seconds: a client may be reconnecting.

        The empty message that ends a stream follows it at once: nobody would send it after a crash between the two.
        What was on its way when the connection broke may be lost, so silence says something on a whole one alone.
        """
        token = subjects.new_request_id()
        missed = self._waiting[token] = asyncio.Event()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DELIVER_S
        try:
            while True:
                connection = self._bus.connection
                missed.clear()
                await self._bus.publish(subject, ending.body, ending.headers, reply=self.subject(token))
                if sentinel:
                    await self._bus.publish(subject, b"")
                unheard = await happens(missed, _RETRY_S)
                if connection is None or self._bus.connection != connection:
                    while not self._bus.is_connected:
                        await asyncio.sleep(_RETRY_S)
                    deadline = loop.time() + _DELIVER_S
                elif not unheard:
                    return True
                elif loop.time() > deadline:
                    return False
                await asyncio.sleep(_RETRY_S)
        finally:
            del self._waiting[token]


class Replies:
    """`LLM_REPLIES`: one ending per request, whoever writes it first."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def ending(self, request_id: str) -> Ending | None:
        """How the request ended, or None while it has not."""
        subject = subjects.reply(request_id)
        last = await jetstream.last_message(self._bus.nc, subjects.REPLIES, subject)
        if last is None:
            return None
        if Ending.is_one(last):
            return Ending.stored(last)
        # Of a stream that is kept here, deltas and empty messages may stand behind the ending.
        query = {"next_by_subj": subject, "batch": _BATCH, "max_bytes": _BATCH_BYTES}
        seq, pending = 1, 1
        while pending:
            found, pending = await jetstream.batch(self._bus.nc, subjects.REPLIES, query | {"seq": seq})
            if (ending := next(filter(Ending.is_one, found), None)) is not None:
                return Ending.stored(ending)
            seq = found[-1].seq + 1 if found else seq
        return None

    async def end_stream(self, request_id: str) -> None:
        """Put the empty message behind a stream that is kept here, unless it stands there."""
        subject = subjects.reply(request_id)
        last = await jetstream.last_message(self._bus.nc, subjects.REPLIES, subject)
        if last is None or last.headers or last.body:
            await self._bus.publish(subject, b"")

    async def store(self, request_id: str, ending: Ending) -> bool:
        """Keep the ending. False: another worker had stored one before, and that one counts.

        Raises:
            MessageTooLarge: the broker does not take it.
            JetStreamUnavailable: the broker did not acknowledge.
        """
        headers = ending.headers | {"Nats-Msg-Id": f"{request_id}:ending"}
        ack = await jetstream.publish(self._bus, subjects.reply(request_id), ending.body, headers)
        return not ack.duplicate

    async def wait_for_ending(self, request_id: str, timeout_s: float) -> Ending | None:
        """The ending of a request that runs or waits elsewhere, or None after `timeout_s`."""
        arrived: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()

        async def on_message(msg: Msg) -> None:
            headers = {str(k): v for k, v in (msg.headers or {}).items()}
            if headers.get("Sidecar-Event") in {ReplyEvent.FINAL, ReplyEvent.ERROR} and not arrived.done():
                headers.pop("Nats-Msg-Id", None)
                arrived.set_result(Ending(ReplyEvent(headers["Sidecar-Event"]), msg.data, headers))

        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        sub = await self._bus.nc.subscribe(subjects.reply(request_id), cb=on_message)
        try:
            while True:
                # Not once but again and again: what was published just before the subscription may be stored after
                # the first look, and a reconnection loses what is published meanwhile.
                if (before := await self.ending(request_id)) is not None:
                    return before
                left = deadline - loop.time()
                if left <= 0:
                    return None
                await asyncio.wait({arrived}, timeout=min(left, _LOOK_AGAIN_S))
                if arrived.done():
                    return arrived.result()
        finally:
            await sub.unsubscribe()
