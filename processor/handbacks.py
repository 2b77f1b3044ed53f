"""How often a request was handed back by a sidecar that lived, to tell that from the deaths of its workers.

JetStream counts deliveries. A request that is delivered again was either handed back (at shutdown, or to wait for a
limit of hours), which is noted here, or its worker died with it, which nobody can note.
"""

from __future__ import annotations

from dataclasses import dataclass

import nats.errors
import orjson
import structlog

from processor import jetstream, subjects
from processor.bus import Bus
from processor.jetstream import JetStreamError, JetStreamUnavailable

_WRITE_S = 2.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HandedBackAt:
    """Delivery number `delivery` was handed back; `deaths` deliveries before it were not.

    With `owner_lives` that was because another delivery of the request was in work.
    """

    delivery: int = 0
    deaths: int = 0
    owner_lives: bool = False

    def deaths_before(self, delivery: int) -> int:
        """How many workers had died when the request was delivered for the `delivery`th time."""
        return self.deaths + max(0, delivery - 1 - self.delivery)

    def ended(self, delivery: int) -> bool:
        """Whether that delivery is over, without a death: nobody is at work on the request."""
        return self.delivery >= delivery and not self.owner_lives


async def noted(bus: Bus, request_id: str, delivery: int) -> HandedBackAt:
    """What was noted before this delivery.

    Raises:
        JetStreamUnavailable: the broker does not answer.
    """
    if delivery == 1:
        return HandedBackAt()
    note = await jetstream.last_message(bus.nc, subjects.STATE, subjects.handed_back(request_id))
    return HandedBackAt(**orjson.loads(note.body)) if note else HandedBackAt()


async def note(bus: Bus, request_id: str, delivery: int, *, owner_lives: bool = False) -> None:
    """Write down that this delivery is no death; with `owner_lives`, the one before it is none either.

    Where that fails, it will count as one.
    """
    try:
        before = await noted(bus, request_id, delivery)
        deaths = before.deaths_before(delivery)
        if owner_lives:
            deaths = max(before.deaths, deaths - 1)
        body = orjson.dumps(HandedBackAt(delivery, deaths, owner_lives))
        headers = {"Nats-Msg-Id": f"{request_id}:handback:{delivery}"}
        await jetstream.publish(bus, subjects.handed_back(request_id), body, headers, timeout_s=_WRITE_S)
    except (JetStreamUnavailable, JetStreamError, nats.errors.Error) as error:
        log.warning("hand-back not noted", id=request_id, error=repr(error))
