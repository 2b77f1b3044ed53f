"""A request in work: its deliveries, its slot, what it has used so far, and why it is stopped."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from processor.attempt import Tally
from processor.errors import RequestError
from processor.lanes import Delivery
from processor.metrics import Metrics
from processor.reply_bodies import FinalReply
from processor.reuse import Answered
from processor.slots import Slot
from processor.subjects import AuditEvent


class Stop(StrEnum):
    """Why a running request is stopped from outside."""

    CANCELLED = "cancelled by the client"
    CLIENT_GONE = "nobody listens for the answer any more"
    SHUTDOWN = "the sidecar stops"


@dataclass(slots=True, eq=False)
class Job:
    """A request in work. `call` is the task that talks to vendors; only that is ever cancelled, not the ending."""

    delivery: Delivery
    slot: Slot
    copies: list[Delivery] = field(default_factory=list)
    """The same id on other lanes: one request, whose ending they are given when it has one."""
    tally: Tally = field(default_factory=Tally)
    tenant: str = "default"
    streamed: bool = False
    """The client asked for a stream, and reads on until the empty message."""
    call: asyncio.Task[Answered] | None = None
    stopped: Stop | None = None

    joined: bool = False
    """Somebody else waits for its ending, and does not listen where its own client does."""
    began: float = field(default_factory=time.monotonic)
    has_begun: bool = False
    has_ended: bool = False
    """Both as they were counted."""

    def join(self, delivery: Delivery) -> None:
        """Hold another delivery of this id.

        On the same lane it is the same message, redelivered to the very process that is at work on it, after
        heartbeats were lost on the way.
        """
        for held in (self.delivery, *self.copies):
            if held.priority is delivery.priority:
                held.renew(delivery)
                return
        self.copies.append(delivery)

    def stop(self, why: Stop) -> None:
        self.stopped = self.stopped or why
        if self.call is not None:
            self.call.cancel()

    def begins(self, metrics: Metrics) -> None:
        """Count its beginning, once."""
        if not self.has_begun:
            self.has_begun = True
            wait_s = (datetime.now(UTC) - self.delivery.accepted).total_seconds()
            metrics.began(self.delivery.priority, wait_s, time.monotonic())

    def ends(self, metrics: Metrics, event: AuditEvent, result: FinalReply | RequestError) -> None:
        """Count its outcome, which is stored."""
        self.has_ended = True
        metrics.ended(self.delivery.priority, event, result.type if isinstance(result, RequestError) else result)

    def leaves(self, metrics: Metrics) -> None:
        """Nobody works on it here any more: what has begun and has no outcome goes on elsewhere."""
        if self.has_begun and not self.has_ended:
            metrics.gave_back(self.delivery.priority)
