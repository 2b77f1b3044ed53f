"""A request put to the sidecars over NATS, and its answer followed: what all HTTP surfaces stand on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
import structlog
from pydantic import ValidationError
from starlette.types import Receive

from bridge.callers import Caller
from bridge.cancelling import cancel
from bridge.client_gone import ClientGone, unless_gone
from bridge.follow import AWAY_S, following
from bridge.line import BrokerAway, BrokerLost, Line, NoAnswer
from bridge.rights import check_priority, permitted
from bridge.sequence import Piece
from bridge.steering import DEFAULT_PRIORITY, Steering
from processor import subjects
from processor.errors import ErrorType, RequestError
from processor.messages import Request, encode_request
from processor.reply_bodies import ErrorReply, FinalReply, ReplyEvent
from processor.subjects import Priority

ACCEPTED_WITHIN_S = 15.0
"""For a sidecar to say that the request is kept: in a cluster, the queue may be choosing its leader."""
GRACE_S = 10.0
"""After a deadline, for the ending to come."""
CANCEL_AGAIN_S = 0.5

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked request with its id and lane."""

    id: str
    priority: Priority
    request: Request
    detached: bool
    """Whether it goes on when its client has gone."""
    is_new: bool
    """Nobody else can have asked under this id."""

    @classmethod
    def of(cls, steer: Steering, request: Request, who: Caller) -> Ask:
        """The ask that a caller may make of a request.

        Raises:
            RequestError: `forbidden`, saying what the caller may ask for.
        """
        priority = steer.priority or DEFAULT_PRIORITY
        check_priority(priority, who)
        request = permitted(steer.applied(request), who, names_tenant=steer.tenant is not None)
        return cls(_request_id(steer, request.tenant), priority, request, steer.detached, steer.key is None)


def _request_id(steer: Steering, tenant: str) -> str:
    """A new id, or the one that belongs to the tenant's idempotency key: no tenant can name another's request."""
    if steer.key is None:
        return subjects.new_request_id()
    return f"k{hashlib.sha256(f'{tenant} {steer.key}'.encode()).hexdigest()[:40]}"


class Run:
    """An ask on its way: from before it is kept to its ending, or until its client has gone."""

    def __init__(self, line: Line, ask: Ask, *, wait_s: float) -> None:
        """Where the ask names no deadline, its ending is expected within `wait_s`."""
        self._line = line
        self.ask = ask
        self._allowed_s = ask.request.deadline_ms / 1000 if ask.request.deadline_ms else wait_s
        self._is_ours = ask.is_new
        self._has_ended = False

    @asynccontextmanager
    async def pieces(self) -> AsyncIterator[AsyncGenerator[Piece]]:
        """Put the ask to the sidecars, and give its answer to the ending; one that is not streamed has only that.

        Raises:
            RequestError: it is refused, or nobody is there to take it; and among the pieces, where none comes any more.
        """
        async with following(self._line, self.ask.id, shared=not self.ask.is_new) as follower:
            await self._put()
            async with aclosing(self._to_the_ending(follower.pieces(self._allowed_s + GRACE_S))) as pieces:
                yield pieces

    async def final(self) -> FinalReply:
        """The whole answer.

        Raises:
            RequestError: it is refused, or ended without one.
        """
        async with self.pieces() as pieces:
            async for piece in pieces:
                if piece.event is ReplyEvent.FINAL:
                    return FinalReply.model_validate_json(piece.body)
                if piece.event is ReplyEvent.ERROR:
                    raise refusal(piece.body)
        raise AssertionError("the pieces end with an ending")

    async def while_client_waits(self, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on this run; where the client goes away, the request does as in `client_gone`.

        Raises:
            ClientGone: it has gone.
        """
        try:
            return await unless_gone(receive, work)
        except ClientGone:
            await self.client_gone()
            raise

    async def abandon(self) -> None:
        """Stop the request, unless it is to go on, or was another ask's before."""
        if self._may_stop:
            with suppress(RequestError):  # the broker is away; then the deadline ends it
                await cancel(self._line, self.ask.id)

    async def client_gone(self) -> None:
        """Nobody waits for it here any more: as `abandon`, unless somebody waits who sent the same key.

        Where the broker is away, the request is stopped when it is back, within `AWAY_S`.
        """
        until = asyncio.get_running_loop().time() + AWAY_S
        while self._may_stop:
            try:
                if self.ask.is_new or not await self._line.tell(subjects.followed(self.ask.id)):
                    await cancel(self._line, self.ask.id)
                return
            except RequestError as error:
                if asyncio.get_running_loop().time() > until:
                    log.warning("a request whose client has gone goes on", id=self.ask.id, error=error.message)
                    return
                await asyncio.sleep(CANCEL_AGAIN_S)

    @property
    def _may_stop(self) -> bool:
        return self._is_ours and not self.ask.detached and not self._has_ended

    async def _put(self) -> None:
        ask = self.ask
        headers = {"Nats-Msg-Id": ask.id, "Reply-To": subjects.reply(ask.id)}
        body = encode_request(ask.request)
        try:
            answer = await self._line.ask(subjects.ask(ask.priority), body, headers, within_s=ACCEPTED_WITHIN_S)
        except (NoAnswer, BrokerLost):  # it may be kept all the same
            await self.abandon()
            raise
        if (answer.headers or {}).get("Sidecar-Event") == ReplyEvent.ERROR:
            self._has_ended = True
            raise refusal(answer.data)
        # An id of our own is a duplicate too, where a sidecar had to try again until the queue confirmed it.
        self._is_ours = ask.is_new or not orjson.loads(answer.data).get("duplicate", False)

    async def _to_the_ending(self, pieces: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
        async with aclosing(pieces):
            try:
                async for piece in pieces:
                    self._has_ended = piece.is_ending
                    yield piece
                    if piece.is_ending:
                        return
            except BrokerAway:
                raise BrokerLost from None
        await self.abandon()  # its client is told that it has failed
        raise NoAnswer(self._allowed_s)


class Refused(RequestError):
    """The ending of a request that has no answer, in a sidecar's words."""


_OF_THE_BUS = ("body", "the body", "the answer")
"""How the message begins where the bus has no room for a request, or for its answer."""


def fits_no_window(error: RequestError) -> bool:
    """Whether a sidecar has found a prompt too large for every model; what it finds so has come to it whole."""
    is_too_large = isinstance(error, Refused) and error.type is ErrorType.TOO_LARGE
    return is_too_large and not error.message.startswith(_OF_THE_BUS)


def refusal(body: bytes) -> RequestError:
    """The error that an error's body tells of."""
    try:
        error = ErrorReply.model_validate_json(body).error
    except ValidationError:
        log.error("an error that cannot be read", body=repr(body[:200]))
        return Refused(ErrorType.INTERNAL, "the sidecar failed at this; its log says why")
    return Refused(error.type, error.message, retry_after_s=error.retry_after_s)
