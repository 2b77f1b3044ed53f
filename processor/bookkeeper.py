"""The book in `LLM_LEDGER`: read and changed by compare and set, what many callers want at once in one write."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import nats.errors
import orjson
import structlog

from processor import jetstream, subjects
from processor.book import MAX_WRITES, Book, Op, Reserve, Result
from processor.budgets import Budget, Exceeded, HeldUp, by_tenant
from processor.bus import Bus, MessageTooLarge
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.tasks import OwnedTasks

TRY_S = 1.0
GIVE_UP_S = 3.0
PAUSE_S = 0.02
"""After a write that somebody else was faster with, about, and at first."""
MAX_WAITING = 1_000
MAX_BATCH = 256
CLOSE_S = 2.0
_SOMEBODY_WAS_FASTER = {10071, 10164}

log = structlog.get_logger(__name__)


class BookUnavailable(Exception):
    """The book cannot be read or written; what was asked may have been done or not."""


class BookTooLarge(BookUnavailable):
    """For the broker; what was asked was not done."""


@dataclass(frozen=True, slots=True)
class _Read:
    """The book as it stands at `seq` (0: there is none)."""

    book: Book
    seq: int


class Bookkeeper:
    """Applies operations to the book. `seen` is the book as this replica last saw it."""

    def __init__(
        self,
        bus: Bus,
        budgets: Sequence[Budget],
        replica: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._bus = bus
        self._concerning = by_tenant(budgets)
        self._replica = replica
        self._now = now
        self._numbers = itertools.count(1)
        self._known: _Read | None = None
        self._waiting: deque[tuple[Op, asyncio.Future[Result] | None]] = deque()
        self._working = OwnedTasks()
        self._is_working = False
        self.seen = Book()

    async def do(self, op: Op) -> Result:
        """Apply `op`.

        Raises:
            BookUnavailable: it is not certain that it was done.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if not self._enqueue(op, future):
            raise BookUnavailable("too many operations wait for the ledger's book")
        return await future

    def tell(self, op: Op) -> None:
        """Apply `op` soon; what cannot be written is left to its lease."""
        if not self._enqueue(op, None):
            log.warning("ledger: an operation is dropped, too many wait", dropped=type(op).__name__)

    async def look(self) -> Book:
        """The book as it stands now. Raises BookUnavailable."""
        try:
            read = await self._load(asyncio.get_running_loop().time() + GIVE_UP_S)
        except (nats.errors.Error, OSError, JetStreamError, JetStreamUnavailable) as error:
            raise BookUnavailable(f"the ledger's book cannot be read: {error}") from error
        self.seen = read.book
        return self.seen

    async def close(self) -> None:
        """Write what was told, for at most `CLOSE_S` seconds."""
        await self._working.join(CLOSE_S)
        await self._working.cancel()

    def _enqueue(self, op: Op, future: asyncio.Future[Result] | None) -> bool:
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append((op, future))
        if not self._is_working:
            self._is_working = True
            self._working.start(self._work_off())
        return True

    async def _work_off(self) -> None:
        """Write what waits, batch by batch, until nothing does."""
        batch: list[tuple[Op, asyncio.Future[Result] | None]] = []
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
                batch = [(op, future) for op, future in taken if future is None or not future.done()]
                try:
                    results = await self._change([op for op, _ in batch])
                except BookUnavailable as error:
                    log.warning("ledger: the book is not written", error=str(error), operations=len(batch))
                    for _, future in batch:
                        if future is not None and not future.done():
                            future.set_exception(error)
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if future is not None and not future.done():
                        future.set_result(result)
        except BaseException as error:
            for _, future in (*batch, *self._waiting):
                if future is not None and not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            self._waiting.clear()
            raise
        finally:
            self._is_working = False

    async def _change(self, ops: Sequence[Op]) -> list[Result]:
        """Apply all of `ops` in one write; none is made where they change nothing."""
        deadline = asyncio.get_running_loop().time() + GIVE_UP_S
        pause_s = PAUSE_S
        by = f"{self._replica}:{next(self._numbers)}"
        try:
            known, is_fresh = self._known, False
            while True:
                if known is None:
                    known, is_fresh = await self._load(deadline), True
                book = Book.decode(known.book.encode())
                results = [self._apply(book, op) for op in ops]
                changes = book != known.book or not known.seq
                book.writes = [*book.writes, by][-MAX_WRITES:]
                if not is_fresh and any(isinstance(result, HeldUp | Exceeded) for result in results):
                    known = None  # somebody else may have made room: nobody is refused on old news
                    continue
                if not changes:
                    self.seen = known.book
                    return results
                if (written := await self._write(known, book, by, deadline)) is not None:
                    self.seen = written
                    return results
                known = None
                if asyncio.get_running_loop().time() > deadline:
                    raise BookUnavailable("other replicas were faster each time")
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
                pause_s *= 2
        except MessageTooLarge as error:
            raise BookTooLarge(f"the ledger's book: {error}") from error
        except (nats.errors.Error, OSError, JetStreamError, JetStreamUnavailable) as error:
            self._known = None
            raise BookUnavailable(f"the ledger's book: {error}") from error

    def _apply(self, book: Book, op: Op) -> Result:
        return book.apply(op, self._concerning(op.tenant) if isinstance(op, Reserve) else (), self._now())

    async def _write(self, known: _Read, book: Book, by: str, deadline: float) -> Book | None:
        """Put `book` in place of what is known. The book as it stands then; None where somebody else was faster.

        A try without an answer is looked for before it is sent again.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(known.seq)}
        body = book.encode()
        self._bus.check_size(body, headers)
        while True:
            if self._bus.is_connected:  # nats-py would keep it back, and send it who knows when
                try:
                    answer = await self._bus.nc.request(subjects.LEDGER_BOOK, body, timeout=TRY_S, headers=headers)
                except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                    pass  # it may be there all the same: that is looked for below
                else:
                    fields = orjson.loads(answer.data)
                    if "error" not in fields:
                        self._known = _Read(book, int(fields["seq"]))
                        return book
                    if int(fields["error"].get("err_code", 0)) not in _SOMEBODY_WAS_FASTER:
                        raise BookUnavailable(f"the broker refuses the ledger's book: {fields['error']}")
            found = await self._load(deadline)
            if found.seq != known.seq:
                return found.book if by in found.book.writes else None
            if asyncio.get_running_loop().time() > deadline:
                raise BookUnavailable("the broker does not say that it has the ledger's book")
            await asyncio.sleep(PAUSE_S)

    async def _load(self, deadline: float) -> _Read:
        """The newest book, from the stream's leader: a copy that lags behind would only be beaten again."""
        while True:
            try:
                if not self._bus.is_connected:
                    raise JetStreamUnavailable("not connected")
                query = {"last_by_subj": subjects.LEDGER_BOOK}
                message = await jetstream.leaders_message(self._bus.nc, subjects.LEDGER, query, timeout_s=TRY_S)
                break
            except JetStreamUnavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(PAUSE_S)
        book, seq = Book(), 0
        if message is not None:
            seq = message.seq
            try:
                book = Book.decode(message.body)
            except ValueError as error:
                log.error("ledger: a book that cannot be read is made anew", error=repr(error))
        self._known = _Read(book, seq)
        return self._known
