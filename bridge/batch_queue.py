"""A batch put into the streams: its list kept, then its requests queued in the low lane, each once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence

import structlog

from bridge.batch_standing import connected_bus, ended_before, standings, streams_answer
from bridge.line import Line
from processor import jetstream, subjects
from processor.backpressure import FILL
from processor.batches import Batch
from processor.bus import Bus, MessageTooLarge
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.subjects import Priority

AT_ONCE = 64
"""Requests of a batch on their way to the queue."""
RETRY_AFTER_FULL_S = 60.0
KEY_HEADER = "Idempotency-Key"

log = structlog.get_logger(__name__)


async def find(line: Line, batch_id: str) -> Batch | None:
    """The list of a batch. Raises RequestError, `unavailable`."""
    bus = connected_bus(line)
    with streams_answer():
        query = {"last_by_subj": subjects.batch(batch_id)}
        message = await jetstream.leaders_message(bus.nc, subjects.BATCHES, query)
    return None if message is None else Batch.model_validate_json(message.body)


async def put(line: Line, batch: Batch, bodies: Sequence[bytes]) -> None:
    """Keep the list, then queue every request that is neither queued nor answered: a repetition queues nothing twice.

    Raises:
        RequestError: `queue_full`, `unavailable`, or `too_large` for the broker. Either nothing was queued, or the
            message says how many were.
    """
    bus = connected_bus(line)
    _check_sizes(bus, batch, bodies)
    known = await find(line, batch.id)
    _check_same(known, batch)
    missing = list(zip(batch.request_ids, bodies, strict=True))
    if known is not None:
        found = [standing async for page in standings(line, batch.request_ids) for standing in page]
        unknown = [at.id for at in found if at.state is None]
        never_queued = set(unknown) - await ended_before(line, unknown)
        missing = [pair for pair in missing if pair[0] in never_queued]
    if not missing:
        return
    await _check_room(bus, len(missing), sum(len(body) for _, body in missing))
    if known is None:
        await _keep(line, batch)
    await _queue(bus, missing, of=batch.count)


def _check_sizes(bus: Bus, batch: Batch, bodies: Iterable[bytes]) -> None:
    """An operator's own broker may take less than a body may have."""
    for number, body in enumerate([batch.model_dump_json().encode(), *bodies]):
        try:
            bus.check_size(body, None)
        except MessageTooLarge as error:
            which = f"request {number}" if number else "the list of its requests"
            raise RequestError(ErrorType.TOO_LARGE, f"{which} is too large for the broker: {error}") from None


async def _check_room(bus: Bus, count: int, size: int) -> None:
    """A batch leaves the share of the queue free that is not the low lane's."""
    with streams_answer():
        stream = await jetstream.call(bus.nc, f"STREAM.INFO.{subjects.REQUESTS}")
    config, state = stream["config"], stream["state"]
    share = FILL[Priority.LOW]
    allowed = math.floor(share * config["max_msgs"])
    if count > allowed or size > share * config["max_bytes"]:
        raise RequestError(ErrorType.TOO_LARGE, f"the queue never takes {count:,} low requests of {size:,} bytes")
    free = max(0, allowed - state["messages"])
    if count > free or state["bytes"] + size > share * config["max_bytes"]:
        why = f"the queue has room for {free:,} more low requests now, of {count:,}; none of them was queued"
        raise RequestError(ErrorType.QUEUE_FULL, why, retry_after_s=RETRY_AFTER_FULL_S)


async def _keep(line: Line, batch: Batch) -> None:
    """Store the list. Whoever sends under the same key at this moment may have done so just before."""
    headers = {"Nats-Msg-Id": f"{batch.id}:batch"}
    with streams_answer():
        try:
            ack = await jetstream.publish(line.bus, subjects.batch(batch.id), batch.model_dump_json().encode(), headers)
        except JetStreamError as error:
            if not error.is_full:
                raise
            why = "the broker keeps as many batches as it can; none of the requests was queued"
            raise RequestError(ErrorType.QUEUE_FULL, why, retry_after_s=RETRY_AFTER_FULL_S) from error
    if ack.duplicate:
        _check_same(await find(line, batch.id), batch)


def _check_same(known: Batch | None, batch: Batch) -> None:
    if known is not None and known.digest != batch.digest:
        why = f"{KEY_HEADER}: it belongs to another batch, with other requests"
        raise RequestError(ErrorType.INVALID_REQUEST, why)


async def _queue(bus: Bus, requests: Sequence[tuple[str, bytes]], *, of: int) -> None:
    """Queue them in order; the first that the broker does not keep stops the rest."""
    waiting, kept = iter(requests), 0
    failed: list[Exception] = []

    async def work() -> None:
        nonlocal kept
        for request_id, body in waiting:
            try:
                await _enqueue(bus, request_id, body)
            except (JetStreamError, JetStreamUnavailable, MessageTooLarge) as error:
                failed.append(error)
            else:
                kept += 1
            if failed:
                return

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(AT_ONCE, len(requests))):
            tasks.create_task(work())
    if failed:
        log.warning("a batch is queued in part", queued=kept, missing=len(requests) - kept, error=str(failed[0]))
        raise _in_part(failed[0], of, len(requests) - kept)


def _in_part(error: Exception, count: int, missing: int) -> RequestError:
    is_full = isinstance(error, JetStreamError) and error.is_full
    why = "the queue is full" if is_full else "the broker does not answer"
    told = (
        f"{why}: of {count:,} requests {count - missing:,} are queued and will be answered, {missing:,} are not; "
        f"to queue these too, send the same batch again with the {KEY_HEADER} that this answer's headers name"
    )
    kind = ErrorType.QUEUE_FULL if is_full else ErrorType.UNAVAILABLE
    return RequestError(kind, told, retry_after_s=RETRY_AFTER_FULL_S if is_full else 1.0)


async def _enqueue(bus: Bus, request_id: str, body: bytes) -> None:
    try:
        await jetstream.publish(bus, subjects.enqueue(Priority.LOW, request_id), body, {"Nats-Msg-Id": request_id})
    except JetStreamError as error:
        if not error.is_copy:
            raise
