"""One standing pull per priority.

nats-py's `fetch` stalls on orphan pulls, so a lane keeps one pull request open on the server, with as many credits
as it may still buffer. Everything held, buffered or running, is kept alive by in-progress heartbeats.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor import handbacks, subjects
from processor.bus import Bus
from processor.handbacks import Life
from processor.subjects import Priority
from processor.tasks import OwnedTasks, happens

HEARTBEAT_S = 4.0
"""A third of the consumers' ack_wait: two may be lost."""
_PULL_EXPIRES_S = 30
_PULL_HEARTBEAT_S = 5
_SILENCE_S = 2.2 * _PULL_HEARTBEAT_S
_ANSWERS_WITHIN_S = 0.25

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Delivery:
    """One message of a lane, held until it is acknowledged or handed back."""

    bus: Bus
    priority: Priority
    request_id: str
    body: bytes
    headers: dict[str, str]
    ack_subject: str
    count: int
    """How often the server has delivered it, this time included."""
    accepted: datetime
    held: set[Delivery] = field(repr=False)
    deaths: int | None = None
    """How many workers had died with the request when work on this delivery began; None before."""
    done: bool = False

    async def ack(self) -> None:
        await self._end(b"+ACK")

    async def nak(self, delay_s: float = 0) -> None:
        """Hand it back, to be delivered again after `delay_s`."""
        delay = orjson.dumps({"delay": int(delay_s * 1e9)}) if delay_s else b""
        await self._end(b"-NAK " + delay if delay else b"-NAK")

    async def begin(self, deaths: int) -> None:
        """Work on it begins, after so many deaths: from now on it counts as one more unless it is handed back."""
        self.deaths = deaths
        if self.count > 1:
            await handbacks.write(self.bus, self.request_id, self.count, Life(deaths, at_work=True))

    async def hand_back(self, delay_s: float = 0) -> None:
        """Give it back as a sidecar that lives: this delivery does not count as a death of its worker."""
        if self.done:
            return
        if self.deaths is not None or self.count == 1:
            await handbacks.write(self.bus, self.request_id, self.count, Life(self.deaths or 0))
        await self.nak(delay_s)

    async def in_progress(self) -> None:
        await self._tell(b"+WPI")

    def renew(self, again: Delivery) -> None:
        """The server delivered the same message again while we hold it: its newest ack subject counts."""
        self.ack_subject, self.count = again.ack_subject, again.count
        again.held.discard(again)

    async def _end(self, word: bytes) -> None:
        if self.done:
            return
        self.done = True
        self.held.discard(self)
        await self._tell(word)

    async def _tell(self, word: bytes) -> None:
        """Tell the server; where that fails, it delivers again by itself once it has heard nothing for ack_wait."""
        try:
            await self.bus.publish(self.ack_subject, word)
        except nats.errors.Error as error:
            log.warning("delivery not acknowledged", id=self.request_id, word=word.decode(), error=repr(error))


class Lane:
    """The standing pull of one durable consumer."""

    def __init__(self, bus: Bus, priority: Priority, prefetch: int, held: set[Delivery]) -> None:
        self.priority = priority
        self.buffer: deque[Delivery] = deque()
        self._arrived = asyncio.Event()
        self._held = held
        self._bus = bus
        self._prefetch = prefetch
        self._credits = 0
        self._pull = 0
        self._heard = 0.0
        self._inbox = ""
        self._sub: Subscription | None = None
        self._resting = False
        self._wants_one = False
        self._handing_back = OwnedTasks()

    async def start(self) -> None:
        self._inbox = self._bus.nc.new_inbox()
        self._sub = await self._bus.nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
        await self.pull_anew()

    async def stop(self) -> None:
        """Ask for nothing more, and hand back what is only buffered."""
        if self._sub is not None:
            sub, self._sub = self._sub, None  # from now on, what comes is handed back
            await self._bus.leave(sub)
        self.rest()
        await self._handing_back.join()

    def rest(self) -> None:
        """No slot is near: give back what is buffered, and what still comes, for a replica that has one."""
        self._resting = True
        while self.buffer:
            self._handing_back.start(self.buffer.popleft().hand_back())

    async def fetch(self) -> None:
        """While it rests, ask for one request, for a slot that is there; maybe none is queued."""
        self._pull += 1
        self._credits = 1
        self._wants_one = True
        self._arrived.clear()
        await self._ask({"batch": 1, "no_wait": True})
        await happens(self._arrived, _ANSWERS_WITHIN_S)
        self._wants_one = False

    async def resume(self) -> None:
        """Rest no more."""
        self._resting = False
        await self.pull_anew()

    async def ready(self) -> None:
        """Return when something is buffered."""
        while not self.buffer:
            self._arrived.clear()
            await self._arrived.wait()

    @property
    def is_resting(self) -> bool:
        return self._resting

    def take(self) -> Delivery | None:
        """The oldest of what is buffered; None if it was handed back meanwhile. `refill` then asks for more."""
        return self.buffer.popleft() if self.buffer else None

    async def pull_anew(self) -> None:
        """Forget the open pull (the server did, after a reconnection) and open another."""
        self._credits = 0
        self._pull += 1
        await self.refill()

    async def refill(self) -> None:
        """Top the credits up, in steps of at least half the prefetch."""
        want = self._prefetch - len(self.buffer) - self._credits
        if self._sub is None or self._resting or want <= 0 or (self._credits > 0 and want < self._prefetch / 2):
            return
        self._credits += want
        self._heard = asyncio.get_running_loop().time()
        await self._ask(
            {
                "batch": want,
                "expires": _PULL_EXPIRES_S * 1_000_000_000,
                "idle_heartbeat": _PULL_HEARTBEAT_S * 1_000_000_000,
            }
        )

    async def _ask(self, request: dict[str, Any]) -> None:
        try:
            await self._bus.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{subjects.REQUESTS}.{self.priority}",
                orjson.dumps(request),
                reply=f"{self._inbox}.{self._pull}",
            )
        except nats.errors.Error as error:
            # The connection is gone and its buffer full: the reconnection, or the next check, pulls anew.
            self._credits -= request["batch"]
            log.warning("pull failed", lane=self.priority, error=repr(error))

    async def check(self, now: float) -> None:
        """Open the pull again when the server has been silent for longer than two heartbeats."""
        if self._sub is not None and not self._resting and now - self._heard > _SILENCE_S:
            await self.pull_anew()

    async def _on_message(self, msg: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = (msg.headers or {}).get("Status")
        if not msg.reply:
            if status != "100" and msg.subject.endswith(f".{self._pull}"):
                await self._pull_ended(msg, status)
            return
        self._credits = max(0, self._credits - 1)
        delivery = self._delivery(msg)
        if self._sub is None or (self._resting and not self._wants_one):
            await delivery.hand_back()
            return
        self._wants_one = False
        self.buffer.append(delivery)
        self._arrived.set()

    async def _pull_ended(self, msg: Msg, status: str | None) -> None:
        """404, 408, 409, 503: the server gives the rest of a pull back."""
        headers = msg.headers or {}
        given_back = int(headers.get("Nats-Pending-Messages", self._credits))
        self._credits = max(0, self._credits - given_back)
        if self._wants_one:
            self._arrived.set()  # nothing is queued
        elif status in {"408", "404"}:
            await self.refill()
        elif not (status == "409" and "Batch Completed" in headers.get("Description", "")):
            log.warning("pull ended", lane=self.priority, status=status, why=headers.get("Description"))

    def _delivery(self, msg: Msg) -> Delivery:
        meta = msg.metadata
        delivery = Delivery(
            bus=self._bus,
            priority=self.priority,
            request_id=msg.subject.rpartition(".")[2],
            body=msg.data,
            headers={str(k): v for k, v in (msg.headers or {}).items()},
            ack_subject=msg.reply,
            count=meta.num_delivered or 1,
            accepted=meta.timestamp.astimezone(UTC),
            held=self._held,
        )
        self._held.add(delivery)
        return delivery


class Lanes:
    """All lanes of one processor."""

    def __init__(self, bus: Bus, workers: int) -> None:
        self.held: set[Delivery] = set()
        self._bus = bus
        # What is buffered is kept from other replicas and cannot be overtaken on the server: little of it.
        prefetch = max(1, workers // 5)
        self._lanes = {p: Lane(bus, p, prefetch, self.held) for p in Priority}

    def __getitem__(self, priority: Priority) -> Lane:
        return self._lanes[priority]

    async def start(self) -> None:
        self._bus.on_reconnect(self._pull_anew)
        for lane in self._lanes.values():
            await lane.start()

    async def stop(self) -> None:
        for lane in self._lanes.values():
            await lane.stop()

    async def keep_alive(self) -> None:
        """Run for ever: heartbeats for everything held, and a check of every pull."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if not self._bus.nc.is_connected:
                continue
            for delivery in tuple(self.held):
                await delivery.in_progress()
            for lane in self._lanes.values():
                await lane.check(loop.time())

    async def _pull_anew(self) -> None:
        for lane in self._lanes.values():
            await lane.pull_anew()
