"""One answer followed to its end, heard live and read from `LLM_REPLIES`: every piece once and in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from bridge.line import BrokerAway, Line
from bridge.sequence import BEGINNING, Mark, Piece, Place, place
from processor import jetstream, subjects
from processor.bus import Bus
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.reply_bodies import ReplyEvent
from processor.tasks import happens

FIRST_LOOK_S = 0.1
"""A silence after which the stream is looked at: what was published before the subscription is stored by then."""
LAST_LOOK_S = 5.0
"""The longest time between two looks at an answer that is silent."""
AWAY_S = 30.0
"""How long a broker may be away before whoever waits is told."""
MAX_HEARD = 1_000
"""Heard and not yet taken by a slow client. What is over that is dropped here, and read from the stream later."""
_BATCH = 256
_BATCH_BYTES = 1024 * 1024


@asynccontextmanager
async def following(
    line: Line, request_id: str, after: Mark = BEGINNING, *, shared: bool = False
) -> AsyncIterator[Following]:
    """What comes after `after` of a request's answer; it is listened to from here on.

    `shared`: others may follow it for other clients; whoever asks on `llm.followed.<id>` learns that somebody does.

    Raises:
        RequestError: `unavailable` where the broker is away.
    """
    follower = Following(line, request_id, after, shared=shared)
    try:
        await follower.listen()
        yield follower
    finally:
        await follower.leave()


class Following:
    """A follower of one answer. `seen` is the mark of the last piece that was handed on, `has_ended` that it was the
    ending."""

    def __init__(self, line: Line, request_id: str, after: Mark, *, shared: bool) -> None:
        self._line = line
        self._shared = shared
        self._id = request_id
        self.seen = after
        self.has_ended = False
        self._next_seq = 1
        self._bus: Bus | None = None
        self._subs: list[Subscription] = []
        self._connection: int | None = None
        self._heard: deque[Piece] = deque()
        self._news = asyncio.Event()

    async def listen(self) -> None:
        """Hear what is published from here on, on whatever connection there is. Raises `BrokerAway`."""
        await self.leave()
        bus = self._line.bus
        if bus.connection is None:
            raise BrokerAway
        try:
            if self._shared:
                self._subs.append(await bus.nc.subscribe(subjects.followed(self._id), cb=_is_there))
            self._subs.append(await bus.nc.subscribe(subjects.reply(self._id), cb=self._on_message))
        except (nats.errors.Error, OSError):
            raise BrokerAway from None
        self._bus, self._connection = bus, bus.connection

    async def leave(self) -> None:
        while self._subs:
            sub = self._subs.pop()
            with suppress(nats.errors.Error, OSError):  # then the connection is gone, and the subscription with it
                await sub.unsubscribe()

    async def pieces(self, within_s: float | None = None) -> AsyncGenerator[Piece]:
        """Every piece in order, the ending last. They end without one only after `within_s`.

        Raises:
            RequestError: `unavailable` where the broker was away for `AWAY_S`.
        """
        loop = asyncio.get_running_loop()
        begun = reached = looked = loop.time()
        pause = FIRST_LOOK_S
        while not self.has_ended:
            piece = await self._hear(pause)
            if piece is not None and self._is_next(piece):
                pause = FIRST_LOOK_S
                yield self._take(piece)
                reached = loop.time()
                continue
            if piece is not None and (piece.mark <= self.seen or loop.time() - looked < FIRST_LOOK_S):
                continue
            pause = min(pause * 2, LAST_LOOK_S)
            try:
                async for stored in self._stored():
                    pause = FIRST_LOOK_S
                    yield stored
                    reached = loop.time()
                reached = loop.time()
            except (JetStreamUnavailable, JetStreamError, BrokerAway):
                if loop.time() - reached > AWAY_S:
                    raise BrokerAway from None
            looked = loop.time()
            if within_s is not None and looked - begun > within_s:
                return

    def _is_next(self, piece: Piece) -> bool:
        """An ending has all of the answer, so nothing comes after it, wherever its mark stands; but what is missing
        before it is read first."""
        where = place(self.seen, piece.mark)
        return where is Place.NEXT or (piece.is_ending and where is Place.PAST)

    def _take(self, piece: Piece) -> Piece:
        self.seen = max(self.seen, piece.mark)
        self.has_ended = piece.is_ending
        return piece

    async def _on_message(self, msg: Msg) -> None:
        piece = read_piece({str(k): v for k, v in (msg.headers or {}).items()}, msg.data)
        if piece is not None and len(self._heard) < MAX_HEARD:
            self._heard.append(piece)
            self._news.set()

    async def _hear(self, timeout_s: float) -> Piece | None:
        """The next piece, or None after `timeout_s`, and where the connection has become another one."""
        if self._heard:
            return self._heard.popleft()
        if not self._subs or self._bus is not self._line.bus or self._line.bus.connection != self._connection:
            try:
                await self.listen()
            except BrokerAway:
                await asyncio.sleep(timeout_s)
            return None
        self._news.clear()
        await happens(self._news, timeout_s)
        return self._heard.popleft() if self._heard else None

    async def _stored(self) -> AsyncGenerator[Piece]:
        """What the stream has of the answer beyond what was seen.

        What is missing there was never stored: after such a hole only a new attempt goes on, or the ending.
        """
        if self._bus is None or not self._bus.is_connected:
            raise BrokerAway
        query = {"next_by_subj": subjects.reply(self._id), "batch": _BATCH, "max_bytes": _BATCH_BYTES}
        pending = 1
        while pending:
            found, pending = await jetstream.batch(
                self._bus.nc, subjects.REPLIES, query | {"seq": self._next_seq}, timeout_s=2.0
            )
            for message in found:
                self._next_seq = message.seq + 1
                piece = read_piece(message.headers, message.body)
                if piece is not None and (piece.is_ending or place(self.seen, piece.mark) is Place.NEXT):
                    yield self._take(piece)
                    if self.has_ended:
                        return


async def _is_there(_: Msg) -> None:
    """That it is heard says all."""


def read_piece(headers: Mapping[str, str], body: bytes) -> Piece | None:
    """The piece that a message is, or None for the empty one that ends a stream, and for what is none of ours."""
    try:
        event = ReplyEvent(headers["Sidecar-Event"])
        mark = Mark.parse(f"{headers['Sidecar-Attempt']}.{headers['Sidecar-Seq']}")
    except (KeyError, ValueError):
        return None
    return Piece(event, mark, body)
