"""A steady mixed load on the bus, everything that comes back, and the evidence that streams and vendors hold."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import nats
import nats.errors
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from processor import jetstream, subjects
from processor.book import Book
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.ledger import cells
from processor.spend import Unit
from tests.chaos.ledger import Evidence, Message, Sent, left_over
from tests.chaos.vendor import Call

MODELS = ("haiku", "llama", "gemini", "auto")
FORMS = ("ask", "named ask", "detached ask", "enqueue", "stored enqueue", "silent enqueue")
DEADLINE_MS = 600_000
ONE_TRY_S = 2.0
PATIENCE_S = 20.0
TRIES = 20
_TROUBLE = (JetStreamError, JetStreamUnavailable, nats.errors.Error)


@asynccontextmanager
async def client(url: str) -> AsyncIterator[Client]:
    """A client that comes back by itself, at once and for ever."""

    async def quiet(error: Exception) -> None:
        del error  # a lost connection is what these tests are about

    nc = await nats.connect(
        url.split(","),
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.1,
        ping_interval=5,
        error_cb=quiet,
    )
    try:
        yield nc
    finally:
        await nc.close()


class Load:
    """Sends `rate` requests a second on four lanes and in every form, and remembers what its inbox hears.

    - ask: plain request and reply; it may be lost before its PubAck, never after.
    - named ask: with an id of its own, asked again until an ending comes that is no refusal.
    - detached ask: with Reply-To, so that its inbox gets the PubAck; again until it has one.
    - enqueue: through JetStream, again with the same id until the PubAck; the answer goes to an inbox, or (stored)
      to `llm.reply.<id>` with its deltas, or (silent) only there.

    Where no process dies at once, `asks_end` says that not even a plain ask may be lost.
    """

    def __init__(self, nc: Client, rng: random.Random, rate: float, *, asks_end: bool) -> None:
        self.sent: dict[str, Sent] = {}
        self.outages: list[tuple[float, float]] = []
        self.idle_tasks = 0
        self.trying: set[str] = set()
        """Keys of the requests that are being sent, or sent again."""
        self._asks_end = asks_end
        self._nc = nc
        self._rng = rng
        self._rate = rate
        self._inbox = nc.new_inbox()
        self._stop = asyncio.Event()

    async def listen(self) -> None:
        await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
        self.idle_tasks = max(counts["tasks"] for counts in (await _loads(self._nc)).values())

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> None:
        """Send until `stop`; returns when every publish that has to be repeated has had its PubAck or ending."""
        async with asyncio.TaskGroup() as sending:
            while not self._stop.is_set():
                sending.create_task(self._send(len(self.sent)))
                await asyncio.sleep(self._rng.expovariate(self._rate))

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The time in which connections are lost and found again, the client's or a sidecar's."""
        start = time.time()
        yield
        self.outages.append((start, time.time()))

    async def _on_message(self, msg: Msg) -> None:
        headers = {str(getattr(k, "value", k)): v for k, v in (msg.headers or {}).items()}
        self.sent[msg.subject.rpartition(".")[2]].heard.append(Message.of(headers, msg.data, time.time()))

    async def _send(self, number: int) -> None:
        rng, key = self._rng, f"q{number}"
        form, streamed = rng.choice(FORMS), rng.random() < 0.7
        request_id = None if form == "ask" else f"{form.replace(' ', '-')}-{number}"
        listens = form not in {"stored enqueue", "silent enqueue"}
        request = Sent(key, request_id, streamed, listens, at=time.time())
        self.sent[key] = request
        body = orjson.dumps(
            {
                "messages": [{"role": "user", "content": key}],
                "model": rng.choice(MODELS),
                "stream": streamed,
                "deadline_ms": DEADLINE_MS,
                "metadata": {"key": key},
            }
        )
        lane = subjects.ask(rng.choice(tuple(subjects.Priority)))
        self.trying.add(key)
        await self._publish(form, lane, request, body)
        self.trying.remove(key)

    async def _publish(self, form: str, lane: str, request: Sent, body: bytes) -> None:
        inbox, request_id = f"{self._inbox}.{request.key}", request.request_id or ""
        headers = {"Nats-Msg-Id": request_id, "Reply-To": inbox}
        match form:
            case "ask":
                request.kept = self._asks_end
                await self._nc.publish(lane, body, reply=inbox)
            case "named ask":
                await self._ask_again(lane, request, body)
            case "detached ask":
                await self._until_kept(lane, body, headers, request)
            case "enqueue":
                await self._until_kept(f"{lane}.{request_id}", body, headers, request)
            case "stored enqueue":
                headers["Reply-To"] = subjects.reply(request_id)
                await self._until_kept(f"{lane}.{request_id}", body, headers, request)
            case _:
                del headers["Reply-To"]
                await self._until_kept(f"{lane}.{request_id}", body, headers, request)

    async def _until_kept(self, subject: str, body: bytes, headers: dict[str, str], request: Sent) -> None:
        """Publish with the same id until the server has said that it is kept."""
        while not request.kept:
            try:
                answer = orjson.loads((await self._nc.request(subject, body, ONE_TRY_S, headers=dict(headers))).data)
            except nats.errors.Error:
                await asyncio.sleep(0.1)
                continue
            error = answer.get("error")
            request.kept = error is None or "per subject" in error.get("description", "")
            if not request.kept:
                await asyncio.sleep(0.1)

    async def _ask_again(self, subject: str, request: Sent, body: bytes) -> None:
        """Ask with the same id until an ending is heard; a refusal may be the last word."""
        inbox, headers = f"{self._inbox}.{request.key}", {"Nats-Msg-Id": request.request_id or ""}
        for _ in range(TRIES):
            refused = request.ending is not None and request.ending.refuses
            request.heard = [m for m in request.heard if _counts(m, refused=refused)]
            if refused or not request.begun:
                await self._nc.publish(subject, body, reply=inbox, headers=dict(headers))
            await self._heard_out(request)
            request.kept = request.begun and not (request.ending and request.ending.refuses)
            if request.kept and request.ending is not None:
                return
            await asyncio.sleep(0.5)

    async def _heard_out(self, request: Sent) -> None:
        """Until there is an ending, the server's word that nobody is there, or no more patience."""
        until = time.monotonic() + PATIENCE_S
        while request.ending is None and time.monotonic() < until:
            if request.heard and request.heard[-1].event.startswith("status"):
                return
            await asyncio.sleep(0.05)


def _counts(message: Message, *, refused: bool) -> bool:
    """Whether it belongs to an answer: no status, no refusal, and not the end of a refusal."""
    return not refused if message.event == "end" else bool(message.request_id) and not message.refuses


async def settled(nc: Client, load: Load) -> bool:
    """Whether the queue is empty, nothing is in work, uncounted or unacknowledged, and every client has its ending."""
    try:
        queued, unacknowledged = await _queue(nc)
        if not await _is_counted(nc):
            return False
    except _TROUBLE:
        return False
    if any(left_over(await _loads(nc), load.idle_tasks)):
        return False
    waits = any(r.listens and not r.satisfied and (r.kept or r.begun) for r in load.sent.values())
    return not queued and not any(unacknowledged.values()) and not waits


async def evidence(nc: Client, load: Load, calls: Sequence[Call]) -> Evidence:
    """Read the streams from end to end."""
    replies: dict[str, list[Message]] = defaultdict(list)
    for subject, headers, body, at in await _read(nc, subjects.REPLIES):
        replies[subject.rpartition(".")[2]].append(Message.of(headers, body, at))
    audit: dict[str, list[dict[str, Any]]] = defaultdict(list)
    keys: dict[str, str] = {}
    for subject, _, body, _ in await _read(nc, subjects.AUDIT):
        request_id, entry = subject.rpartition(".")[2], orjson.loads(body)
        audit[request_id].append(entry)
        if entry["event"] == "received":
            keys[request_id] = entry["metadata"]["key"]
    for request_id, messages in replies.items():
        if (final := next((m for m in messages if m.event == "final"), None)) is not None:
            keys.setdefault(request_id, final.fields["response"].partition("/")[0])
    queued, unacknowledged = await _queue(nc)
    loads = await _loads(nc)
    counted = sum([value async for cell, value in cells(nc) if cell.unit is Unit.COST])
    return Evidence(
        replies, audit, keys, queued, unacknowledged, list(calls), load.outages, loads, counted, load.idle_tasks
    )


async def _is_counted(nc: Client) -> bool:
    """Whether the ledger has come to the end of the audit log."""
    last = (await jetstream.call(nc, f"STREAM.INFO.{subjects.AUDIT}"))["state"]["last_seq"]
    message = await jetstream.leaders_message(nc, subjects.LEDGER, {"last_by_subj": subjects.LEDGER_BOOK})
    book = Book() if message is None else Book.decode(message.body)
    return book.entry is None and book.position == last


async def _loads(nc: Client) -> dict[str, dict[str, Any]]:
    """What each sidecar that lives has on its hands, by replica."""
    inbox = nc.new_inbox()
    sub = await nc.subscribe(inbox)
    await nc.publish("$SRV.STATS.sidecar", reply=inbox)
    found: dict[str, dict[str, Any]] = {}
    with suppress(nats.errors.TimeoutError):
        while True:
            stats = orjson.loads((await sub.next_msg(timeout=0.5)).data)
            found[stats["metadata"]["replica"]] = stats["endpoints"][0]["data"]
    await sub.unsubscribe()
    return found


async def _queue(nc: Client) -> tuple[int, dict[str, int]]:
    info = await jetstream.call(nc, f"STREAM.INFO.{subjects.REQUESTS}")
    lanes = {}
    for lane in subjects.Priority:
        consumer = await jetstream.call(nc, f"CONSUMER.INFO.{subjects.REQUESTS}.{lane}")
        lanes[str(lane)] = int(consumer["num_ack_pending"])
    return int(info["state"]["messages"]), lanes


async def _read(nc: Client, stream: str) -> list[tuple[str, dict[str, str], bytes, float]]:
    """(subject, headers, body, time stored) of every message of a stream, in order."""
    count = (await jetstream.call(nc, f"STREAM.INFO.{stream}"))["state"]["messages"]
    sub = await nc.jetstream().subscribe(">", stream=stream, ordered_consumer=True, pending_msgs_limit=-1)
    found: list[tuple[str, dict[str, str], bytes, float]] = []
    while len(found) < count:
        msg: Any = await sub.next_msg(timeout=10)
        found.append((msg.subject, dict(msg.headers or {}), msg.data, msg.metadata.timestamp.timestamp()))
    await sub.unsubscribe()
    return found
