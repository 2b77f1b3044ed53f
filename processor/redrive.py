"""Dead letters read back from `LLM_DEAD`, sent again under a new id, and removed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from nats.aio.client import Client

from processor import jetstream, subjects
from processor.accept import FRESH_HEADER
from processor.bus import Bus
from processor.jetstream import JetStreamError, StoredMessage
from processor.nats_client import sendable
from processor.subjects import Priority

RETRY_OF: Final = "Sidecar-Retry-Of"
"""On a request sent again: the id that it had first."""
_BATCH: Final = {"batch": 64, "max_bytes": 4_000_000}
"""One more message may come, of at most the broker's max_payload: this is all that is in memory at once."""
_ALL: Final = "llm.dead.*.*"
_NOT_KEPT: Final = {"Sidecar-Reason", "Sidecar-Deliveries", "Sidecar-Body-Bytes", FRESH_HEADER}


class CannotRetry(Exception):
    """This dead letter cannot be sent again; the message says why."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A request that could not be done. `headers` are the request's own, `seq` its number in `LLM_DEAD`."""

    id: str
    priority: str
    seq: int
    time: datetime
    reason: str
    deliveries: int | None
    headers: Mapping[str, str]
    body: bytes
    body_bytes: int
    """Of the request."""

    @property
    def cut(self) -> bool:
        """Whether only a part of the body was kept."""
        return self.body_bytes > len(self.body)

    @classmethod
    def of(cls, message: StoredMessage) -> DeadLetter:
        _, _, priority, request_id = message.subject.split(".", 3)
        told = message.headers
        whole, deliveries = told.get("Sidecar-Body-Bytes", ""), told.get("Sidecar-Deliveries", "")
        return cls(
            id=request_id,
            priority=priority,
            seq=message.seq,
            time=message.time,
            reason=told.get("Sidecar-Reason", "not told"),
            deliveries=int(deliveries) if deliveries.isdecimal() else None,
            headers={k: v for k, v in told.items() if k not in _NOT_KEPT and not k.lower().startswith("nats-")},
            body=message.body,
            body_bytes=int(whole) if whole.isdecimal() else len(message.body),
        )


@dataclass(frozen=True, slots=True)
class Retry:
    """A dead letter's request as it is sent again."""

    id: str
    subject: str
    headers: Mapping[str, str]


def retry_of(letter: DeadLetter) -> Retry:
    """The request again, under the id `<first id>-r<number of the dead letter>`.

    A new id, because the old one has its ending: it is stored, every worker answers from it, and for the streams'
    duplicate window another ending and another terminal audit event of that id would be dropped. The same dead letter
    always makes the same id, so that sending it twice is sending it once. The answer goes where the first one was to
    go; only `llm.reply.<id>` is open to no other id than its own and becomes the new one's.

    Raises:
        CannotRetry: the body was cut, or the lane is none of ours.
    """
    if letter.cut:
        kept = f"only the first {len(letter.body):,} of its {letter.body_bytes:,} bytes were kept"
        raise CannotRetry(f"{kept}: the client has to send it again, smaller")
    if letter.priority not in set(Priority):
        raise CannotRetry(f"there is no lane {letter.priority!r}")
    number = f"-r{letter.seq}"
    base = re.sub(r"-r\d+\Z", "", letter.id) if RETRY_OF in letter.headers else letter.id
    if not subjects.is_request_id(base + number):  # no worker would take it, or it is too long for its number
        base = hashlib.sha256(base.encode()).hexdigest()[:32]
    new = base + number
    headers = {RETRY_OF: letter.id, **sendable(letter.headers), "Nats-Msg-Id": new}
    if headers.get("Reply-To") == subjects.reply(letter.id):
        headers["Reply-To"] = subjects.reply(new)
    return Retry(new, subjects.enqueue(Priority(letter.priority), new), headers)


async def retry(bus: Bus, letter: DeadLetter) -> Retry:
    """Queue the request again, and remove the dead letter once the broker has it.

    A crash between the two leaves the dead letter: its next retry has the same id, which the queue and the stored
    ending know.

    Raises:
        CannotRetry: see `retry_of`.
        MessageTooLarge, JetStreamError, JetStreamUnavailable: it is not queued, and the dead letter stays.
    """
    again = retry_of(letter)
    try:
        await jetstream.publish(bus, again.subject, letter.body, again.headers)
    except JetStreamError as error:
        if not error.is_copy:  # a copy: an earlier retry of this dead letter is still queued
            raise
    await remove(bus.nc, letter)
    return again


async def remove(nc: Client, letter: DeadLetter) -> int:
    """Remove the letter and the older ones of its id: one id is one request. Returns how many these were."""
    if not _is_token(letter.id):
        await jetstream.call(nc, f"STREAM.MSG.DELETE.{subjects.DEAD}", {"seq": letter.seq, "no_erase": True})
        return 1
    return await _purge(nc, {"filter": f"llm.dead.*.{letter.id}", "seq": letter.seq + 1})


async def older_than(nc: Client, moment: datetime | None) -> tuple[int, int]:
    """The number of the first dead letter since `moment` (None: of the next one to come), and how many precede it."""
    state = await _state(nc)
    if moment is not None:
        first, after = await jetstream.batch(nc, subjects.DEAD, {**_since(moment), "next_by_subj": _ALL, "batch": 1})
        if first:
            return first[0].seq, state["messages"] - 1 - after
    return state["last_seq"] + 1, state["messages"]


async def remove_below(nc: Client, seq: int) -> int:
    """Remove all with a number below `seq`. Returns how many these were."""
    return await _purge(nc, {"seq": seq})


async def count(nc: Client, *, priority: Priority | None = None, since: datetime | None = None) -> int:
    """How many there are."""
    start = {"seq": 1} if since is None else _since(since)
    return await _from(nc, {**start, "next_by_subj": _lane(priority)})


async def latest(
    nc: Client, limit: int, *, priority: Priority | None = None, since: datetime | None = None
) -> list[DeadLetter]:
    """The newest `limit` of them without their bodies, the newest first."""
    lane = _lane(priority)
    wanted = min(limit, await count(nc, priority=priority, since=since))
    state = await _state(nc)
    low, high = state["first_seq"], state["last_seq"] + 1
    while high - low > 1:  # the last place from which on there are still as many as wanted
        middle = (low + high) // 2
        if await _from(nc, {"seq": middle, "next_by_subj": lane}) >= wanted:
            low = middle
        else:
            high = middle
    found: list[DeadLetter] = []
    async for letter in _walk(nc, lane, low, state["last_seq"]):
        found.append(replace(letter, body=b""))
    found.reverse()
    return found[:wanted]


async def oldest_first(nc: Client, *, priority: Priority | None = None) -> AsyncGenerator[DeadLetter]:
    """All that are there at the start, so that one which comes back while it is retried is not met again."""
    state = await _state(nc)
    async for letter in _walk(nc, _lane(priority), state["first_seq"], state["last_seq"]):
        yield letter


async def newest(nc: Client, request_id: str) -> DeadLetter | None:
    """The newest dead letter of an id, on whichever lane."""
    if not _is_token(request_id):
        return None
    query = {"multi_last": [f"llm.dead.*.{request_id}"], "batch": len(Priority)}
    found, _ = await jetstream.batch(nc, subjects.DEAD, query)
    return DeadLetter.of(max(found, key=lambda message: message.seq)) if found else None


async def is_newest(nc: Client, letter: DeadLetter) -> bool:
    """Whether no younger one has its id."""
    last = await newest(nc, letter.id)
    return last is None or last.seq == letter.seq


async def _walk(nc: Client, lane: str, seq: int, last: int) -> AsyncGenerator[DeadLetter]:
    while seq <= last:
        messages, _ = await jetstream.batch(nc, subjects.DEAD, {**_BATCH, "seq": seq, "next_by_subj": lane})
        for message in messages:
            if message.seq <= last:
                yield DeadLetter.of(message)
        seq = messages[-1].seq + 1 if messages else last + 1


async def _from(nc: Client, query: Mapping[str, Any]) -> int:
    """How many messages match the query and come after it."""
    first, after = await jetstream.batch(nc, subjects.DEAD, {**query, "batch": 1})
    return len(first) + after


async def _state(nc: Client) -> dict[str, int]:
    state: dict[str, int] = (await jetstream.call(nc, f"STREAM.INFO.{subjects.DEAD}"))["state"]
    return state


async def _purge(nc: Client, what: Mapping[str, Any]) -> int:
    return int((await jetstream.call(nc, f"STREAM.PURGE.{subjects.DEAD}", what))["purged"])


def _lane(priority: Priority | None) -> str:
    return _ALL if priority is None else f"llm.dead.{priority}.*"


def _since(moment: datetime) -> dict[str, str]:
    return {"start_time": moment.astimezone(UTC).isoformat().replace("+00:00", "Z")}


def _is_token(request_id: str) -> bool:
    """Whether it is one token of a subject and no wildcard. A client may have queued the id `*`."""
    return re.fullmatch(r"[^\s.]+", request_id) is not None and request_id not in {"*", ">"}
