"""What has become of the requests of a batch, from what the streams hold of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from bridge.line import BrokerAway, Line
from bridge.standing import ENDINGS, State, ended_as
from processor import jetstream, subjects
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.replies import Ending, Replies
from processor.subjects import Priority

_PAGE_BYTES = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a request of a batch stands."""

    id: str
    state: State | None
    """None: never queued, or its reply is no longer kept."""
    body: bytes | None = None
    """Once it has ended, its final reply or its error."""


@contextmanager
def streams_answer() -> Iterator[None]:
    """What ails the streams, as the client reads it."""
    try:
        yield
    except (JetStreamError, JetStreamUnavailable) as error:
        log.error("the streams of batches do not answer", error=str(error))
        message = "the broker's streams do not answer now; where LLM_BATCHES is missing, `sidecar provision` makes it"
        raise RequestError(ErrorType.UNAVAILABLE, message, retry_after_s=1.0) from error


def connected_bus(line: Line) -> Bus:
    if not line.bus.is_connected:
        raise BrokerAway
    return line.bus


async def standings(line: Line, ids: Sequence[str], *, page: int = 500) -> AsyncGenerator[list[Standing]]:
    """Every request in order, `page` of them at a time. Raises RequestError, `unavailable`."""
    for begin in range(0, len(ids), page):
        bus = connected_bus(line)
        with streams_answer():
            found = await _page(bus, ids[begin : begin + page])
        yield found


async def ended_before(line: Line, ids: Sequence[str], *, page: int = 200) -> set[str]:
    """Those that the audit log, which is kept for longer than replies, has the end of. Raises RequestError."""
    found: set[str] = set()
    for begin in range(0, len(ids), page):
        places = [subjects.audit(event, one) for one in ids[begin : begin + page] for event in ENDINGS]
        bus = connected_bus(line)
        with streams_answer():
            found |= (await _newest(bus, subjects.AUDIT, places)).keys()
    return found


async def _page(bus: Bus, ids: Sequence[str]) -> list[Standing]:
    """The queue is looked at first: what leaves it has its reply stored before."""
    delivered = await _delivered(bus)
    queued = await _newest(bus, subjects.REQUESTS, [subjects.enqueue(Priority.LOW, one) for one in ids])
    replies = await _newest(bus, subjects.REPLIES, [subjects.reply(one) for one in ids if one not in queued])
    found = []
    for one in ids:
        if one in queued:
            found.append(Standing(one, State.RUNNING if queued[one].seq <= delivered else State.QUEUED))
        elif one in replies:
            found.append(await _answered(bus, one, replies[one]))
        else:
            found.append(Standing(one, None))
    return found


async def _delivered(bus: Bus) -> int:
    """Up to which message the low lane was handed to sidecars."""
    info = await jetstream.call(bus.nc, f"CONSUMER.INFO.{subjects.REQUESTS}.{Priority.LOW}")
    return int(info["delivered"]["stream_seq"])


async def _newest(bus: Bus, stream: str, places: Sequence[str]) -> dict[str, StoredMessage]:
    """The newest message of each subject that has one, by the request's id."""
    found: dict[str, StoredMessage] = {}
    seq, pending = 1, len(places)
    while pending:
        query = {"multi_last": places, "seq": seq, "max_bytes": _PAGE_BYTES}
        some, pending = await jetstream.batch(bus.nc, stream, query)
        if not some:
            break
        found |= {message.subject.rpartition(".")[2]: message for message in some}
        seq = some[-1].seq + 1
    return found


async def _answered(bus: Bus, request_id: str, last: StoredMessage) -> Standing:
    if Ending.is_one(last):
        ending: Ending | None = Ending.stored(last)
    else:  # somebody else had it streamed: more may stand behind its ending
        ending = await Replies(bus).ending(request_id)
    if ending is None:
        return Standing(request_id, State.RUNNING)
    return Standing(request_id, ended_as(ending), ending.body)
