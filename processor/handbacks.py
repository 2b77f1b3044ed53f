"""How many workers died with a request: told from hand-backs, and from deliveries that nobody had begun to work on.

JetStream counts deliveries. Whoever begins to work on a request that was delivered before notes that, and whoever hands
one back (at shutdown, or to wait for a limit of hours) notes that too; who dies can note nothing. Of a first delivery
it is taken for granted that work on it began.
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
class Life:
    """`deaths` workers have died with the request, and one more if the last one `at_work` on it does not live."""

    deaths: int = 0
    at_work: bool = False

    @property
    def deaths_if_it_is_dead(self) -> int:
        return self.deaths + self.at_work


async def read(bus: Bus, request_id: str, delivery: int) -> Life:
    """What is known of the request when it is delivered for the `delivery`th time.

    Raises:
        JetStreamUnavailable: the broker does not answer.
    """
    if delivery == 1:
        return Life()
    note = await jetstream.last_message(bus.nc, subjects.STATE, subjects.handed_back(request_id))
    return Life(**orjson.loads(note.body)) if note else Life(at_work=True)


async def write(bus: Bus, request_id: str, delivery: int, life: Life) -> None:
    """Note it. Where that fails, a hand-back will count as a death, and a death not at all."""
    try:
        step = "begun" if life.at_work else "handback"
        headers = {"Nats-Msg-Id": f"{request_id}:{step}:{delivery}"}
        await jetstream.publish(bus, subjects.handed_back(request_id), orjson.dumps(life), headers, timeout_s=_WRITE_S)
    except (JetStreamUnavailable, JetStreamError, nats.errors.Error) as error:
        log.warning("not noted whether a worker is at work", id=request_id, at_work=life.at_work, error=repr(error))
