"""A request in work: its deliveries, its slot, what it has used so far, and why it is stopped."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from processor.attempt import Tally
from processor.lanes import Delivery
from processor.reuse import Answered
from processor.slots import Slot


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
