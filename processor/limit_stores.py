"""Where the used part of limits is kept: in this process, in NATS by compare and set, in Redis by one script."""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

import nats.errors
import orjson
import structlog

from processor import jetstream, subjects
from processor.bucket import (
    GUARD_S,
    Admit,
    Denied,
    Hold,
    Op,
    Record,
    Result,
    Settle,
    State,
    Told,
    apply,
    kept_ms,
    slot_ms,
)
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.limit_documents import GAP_S, Document, Turns, joined

if TYPE_CHECKING:
    from redis.asyncio import Redis

TRY_S = 1.0
"""For one answer of NATS, or of Redis."""
GIVE_UP_S = 3.0
PAUSE_S = 0.05
_SOMEBODY_WAS_FASTER = {10071, 10164}

log = structlog.get_logger(__name__)

Clock = Callable[[], float]
"""Unix seconds."""


class StoreUnavailable(Exception):
    """The store does not answer; what it was asked may have been done or not."""


class StateLost(Exception):
    """The store answers, but has forgotten what this replica told it: nothing was done."""


class Contended(Exception):
    """The store answers, but other replicas were faster each time: nothing was done."""


class LimitStore(Protocol):
    """Applies operations, in order and all at once, to what is known of a provider's limits.

    Raises:
        StoreUnavailable: use another one.
        StateLost: tell it what it has to know, and ask again.
        Contended: ask again.
    """

    name: str

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]: ...


def steady_clock() -> Clock:
    """Unix seconds that no setting of the system's clock moves: read once, then counted on."""
    start = time.time() - time.monotonic()
    return lambda: start + time.monotonic()


@dataclass(slots=True)
class Ahead:
    """A clock that keeps up with the newest time it meets, and goes on from there at its own pace."""

    clock: Clock
    by_s: float = 0.0

    def now(self, state: State) -> float:
        reading = self.clock()
        self.by_s = max(self.by_s, state.newest_ms / 1000 - reading)
        return reading + self.by_s


class MemoryStore:
    """This process's own count."""

    name = "this process alone"

    def __init__(self, clock: Clock) -> None:
        self._time = Ahead(clock)
        self._states: dict[str, State] = {}

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]:
        state = self._states.setdefault(provider, State())
        now = self._time.now(state)
        return [apply(state, op, now) for op in ops]


@dataclass(frozen=True, slots=True)
class _Known:
    """The document at stream sequence `seq`; 0 where there is none yet."""

    document: Document
    seq: int


@dataclass(eq=False, slots=True)
class _Book:
    """What a replica knows of one provider's document. `lock`: one change at a time, told by its number."""

    known: _Known | None = None
    owed: State | None = None
    """What was known of a document that was lost, until it is written into the one that took its place."""
    written: int = 0
    """The number of this replica's last change."""
    turns: Turns = field(default_factory=Turns)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class NatsStore:
    """One document a provider in LLM_STATE (or of whatever else `place` gives subjects to), changed by compare and set.

    The last known document is kept, so that a change that nobody contends costs one round trip, and a stream that
    came back empty goes on from there.
    """

    name = "NATS"

    def __init__(self, bus: Bus, clock: Clock, place: Callable[[str], str] = subjects.limits_state) -> None:
        self._bus = bus
        self._place = place
        self._time = Ahead(clock)
        self._writer = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._books: dict[str, _Book] = {}

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]:
        loop, book = asyncio.get_running_loop(), self._books.setdefault(provider, _Book())
        async with book.lock:
            if (wait_s := book.turns.next_s - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            try:
                return await self._run(book, provider, ops, loop.time() + GIVE_UP_S)
            except (nats.errors.Error, OSError, JetStreamError, JetStreamUnavailable, MessageTooLarge) as error:
                raise StoreUnavailable(f"NATS: {error}") from error

    async def _run(self, book: _Book, provider: str, ops: Sequence[Op], deadline: float) -> list[Result]:
        number, loop = next(self._numbers), asyncio.get_running_loop()
        known, is_fresh = book.known, False
        if known is None or book.turns.looks_first(loop.time()):
            known, is_fresh = await self._load(book, provider, deadline), True
        while True:
            draft = known.document.changed_by(self._writer, number)
            now = self._time.now(draft.state)
            results = [apply(draft.state, op, now) for op in ops]
            if not all(isinstance(result, Denied) for result in results):
                known = await self._write(book, provider, known, draft, deadline)
                if known.document.writers.get(self._writer) == number:
                    book.written = number
                    book.turns.wrote(loop.time(), random.uniform(*GAP_S))
                    return results
                book.turns.beaten(loop.time())
                if loop.time() > deadline:
                    raise Contended(f"NATS: other replicas were faster for {GIVE_UP_S:g} s")
            elif is_fresh:  # there is nothing to write
                return results
            else:
                known = await self._load(book, provider, deadline)
            is_fresh = True

    async def _write(self, book: _Book, provider: str, known: _Known, draft: Document, deadline: float) -> _Known:
        """Put `draft` in place of `known`; returns it, or what somebody else wrote first.

        A try without an answer is looked for, and sent again unchanged where nothing has changed: whichever copy
        comes first counts, and the server refuses the other.
        """
        subject, body = self._place(provider), draft.encode()
        headers = {"Nats-Expected-Last-Subject-Sequence": str(known.seq)}
        self._bus.check_size(body, headers)
        pause_s = PAUSE_S
        while True:
            fields: Any = None
            if self._bus.nc.is_connected:  # nats-py would keep it back, and send it who knows when
                try:
                    answer = await self._bus.nc.request(subject, body, timeout=TRY_S, headers=headers)
                    fields = orjson.loads(answer.data)
                except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                    fields = None
            if fields is not None and "error" not in fields:
                book.known, book.owed = _Known(draft, int(fields["seq"])), None
                return book.known
            if fields is not None and int(fields["error"].get("err_code", 0)) not in _SOMEBODY_WAS_FASTER:
                raise StoreUnavailable(f"NATS refuses the limits: {fields['error'].get('description')}")
            seen = await self._load(book, provider, deadline)
            if seen.seq != known.seq:
                return seen
            pause_s = await _pause(pause_s, deadline)

    async def _load(self, book: _Book, provider: str, deadline: float) -> _Known:
        """The document as it stands now, with what this replica knows and a lost one has forgotten."""
        known, subject, pause_s = book.known, self._place(provider), PAUSE_S
        while True:
            try:
                if not self._bus.nc.is_connected:
                    raise JetStreamUnavailable("not connected")
                message = await jetstream.last_message(self._bus.nc, subjects.STATE, subject, timeout_s=TRY_S)
                break
            except JetStreamUnavailable as error:
                pause_s = await _pause(pause_s, deadline, error)
        document = None
        if message is not None:
            try:
                document = Document.decode(message.body)
            except (ValueError, KeyError, TypeError) as error:
                log.error("limits: a document that cannot be read is replaced", subject=subject, error=repr(error))
        seq = message.seq if message is not None else 0
        if document is None:
            document = Document(secrets.token_hex(4), known.document.state if known is not None else State())
        elif known is not None and document.birth != known.document.birth:
            book.owed = known.document.state
        elif known is not None and document.writers.get(self._writer, 0) < book.written:
            # An older copy came back, or a server that lags behind was asked: the next read or write shows which.
            document.state = joined(document.state, known.document.state)
        if book.owed is not None:
            document.state = joined(document.state, book.owed)
        if known is not None and document.others(self._writer) != known.document.others(self._writer):
            book.turns.seen_others(asyncio.get_running_loop().time())
        book.known = _Known(document, seq)
        return book.known


async def _pause(pause_s: float, deadline: float, why: Exception | None = None) -> float:
    """Wait about so long before the next try; returns how long the wait after that is."""
    if asyncio.get_running_loop().time() + pause_s > deadline:
        raise StoreUnavailable(f"NATS: {why or 'no answer'} for {GIVE_UP_S:g} s") from why
    await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
    return min(2 * pause_s, TRY_S)


class RedisStore:
    """One JSON document a provider, changed by a script: one round trip, the server's clock, no races.

    Retries of the client are turned off: a script that is sent twice would count twice. `clock` is for tests, in place
    of the server's.
    """

    name = "Redis"

    def __init__(self, client: Redis, *, clock: Clock | None = None) -> None:
        # Imported by whoever has a Redis: it takes 7 MB and 0.14 s.
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError

        client.set_retry(Retry(NoBackoff(), 0))
        self._errors = (RedisError, OSError, ValueError)
        self._clock = clock
        self._script = client.register_script(files("processor").joinpath("limits.lua").read_text("utf-8"))
        self._known: dict[str, tuple[str, int]] = {}
        """Each document's birth, and its newest version."""

    async def run(self, provider: str, ops: Sequence[Op]) -> list[Result]:
        never = [op.never() if isinstance(op, Admit) else None for op in ops]
        asked = [op for op, no in zip(ops, never, strict=True) if no is None]
        now = "" if self._clock is None else str(round(self._clock() * 1000))
        birth, version = self._known.get(provider, ("", 0))
        args: list[bytes | str | int] = [
            orjson.dumps([_for_script(op) for op in asked]),
            birth,
            secrets.token_hex(4),
            round(GUARD_S * 1000),
            now,
            version,
        ]
        try:
            async with asyncio.timeout(TRY_S):
                reply = orjson.loads(await self._script([f"sidecar:limits:{provider}"], args))
        except self._errors as error:
            raise StoreUnavailable(f"Redis: {str(error) or 'no answer'}") from error
        if not reply:
            self._known.pop(provider, None)
            raise StateLost(f"Redis has forgotten the limits of {provider}")
        if asked:
            birth, version = self._known.get(provider, ("", 0))
            self._known[provider] = (reply[0], max(reply[2], version if birth == reply[0] else 0))
        rows = iter(reply[1])
        return [_from_script(op, next(rows)) if no is None else no for op, no in zip(ops, never, strict=True)]


def _for_script(op: Op) -> list[Any]:
    match op:
        case Admit(limits):
            demands = [
                (d.scope, d.metric, d.amount, -1 if d.cap is None else d.cap, slot_ms(d.metric), kept_ms(d.metric))
                for d in op.demands()
            ]
            return ["admit", list(limits), demands]
        case Settle() | Record():
            entries = [(*entry, slot_ms(entry.metric), kept_ms(entry.metric)) for entry in op.entries()]
            return ["record", entries, [tuple(entry) for entry in op.unused()] if isinstance(op, Settle) else []]
        case Hold(scope):
            return ["hold", scope, op.for_ms, op.reason[:200]]
        case Told(scope, metric):
            return ["told", scope, metric, tuple(op.word(0))]


def _from_script(op: Op, row: list[Any] | None) -> Result:
    if row is None or not isinstance(op, Admit):
        return None
    return op.granted(row[0]) if len(row) == 1 else op.denied(*row)
