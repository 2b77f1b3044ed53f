"""Asks: checks them, keeps each as a queued request, and lets a repeated id join the run that exists."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import nats.errors
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from processor import jetstream, subjects
from processor.accept import FRESH_HEADER, TIMEOUT_HEADER, reply_subject
from processor.backlog import Backlog
from processor.bus import Bus, MessageTooLarge
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, PubAck, StoredMessage
from processor.messages import Request, asks_for_stream, decode_request
from processor.metrics import Metrics
from processor.replies import Ending, Probes, Replies
from processor.subjects import Priority
from processor.tasks import OwnedTasks
from processor.withdraw import Withdrawals

MAX_OPEN_ASKS = 1_000
"""Asks between arrival and their PubAck (or, joined to a run, their reply); one more is refused with `queue_full`."""
RETRY_AFTER_FULL_S = 5.0
_KEPT_HEADERS = ("traceparent", "tracestate")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ask:
    """A checked ask."""

    priority: Priority
    request_id: str
    fresh: bool
    request: Request
    body: bytes
    reply_to: str | None
    """Where the result goes."""
    detached: bool
    """Header Reply-To was given: the inbox gets the PubAck."""
    trace: dict[str, str]

    @property
    def told(self) -> str | None:
        """Where an ending is told, beside the place where all are kept."""
        return None if self.reply_to == subjects.reply(self.request_id) else self.reply_to


def named_id(headers: Mapping[str, str]) -> str | None:
    """The id that the client chose: in Nats-Msg-Id, else by naming `llm.reply.<id>` as the place of the answer."""
    place = headers.get("Reply-To", "")
    return headers.get("Nats-Msg-Id") or (place.removeprefix("llm.reply.") if place.startswith("llm.reply.") else None)


def read_ask(msg: Msg, headers: Mapping[str, str], request_id: str, prefixes: tuple[str, ...]) -> Ask:
    """Check an ask.

    Raises:
        RequestError: naming what is wrong.
    """
    named = reply_subject(request_id, headers, prefixes)
    return Ask(
        priority=_lane(msg),
        request_id=request_id,
        fresh=named_id(headers) is None,
        request=decode_request(msg.data),
        body=msg.data,
        reply_to=named or msg.reply or None,
        detached=named is not None,
        trace={k: headers[k] for k in _KEPT_HEADERS if k in headers},
    )


def _lane(msg: Msg) -> Priority:
    return Priority(msg.subject.rpartition(".")[2])


class Ingress:
    """Serves `llm.request.<priority>` in the queue group that all replicas share."""

    def __init__(
        self,
        bus: Bus,
        replies: Replies,
        probes: Probes,
        backlog: Backlog,
        withdrawals: Withdrawals,
        metrics: Metrics,
        *,
        timeout_s: float,
        prefixes: tuple[str, ...],
    ) -> None:
        self._bus = bus
        self._backlog = backlog
        self._withdrawals = withdrawals
        self._metrics = metrics
        self._replies = replies
        self._probes = probes
        self._timeout_s = timeout_s
        self._prefixes = prefixes
        self._subs: list[Subscription] = []
        self._open = OwnedTasks()

    async def start(self) -> None:
        for priority in Priority:
            subject = subjects.ask(priority)
            self._subs.append(await self._bus.nc.subscribe(subject, subjects.QUEUE_GROUP, cb=self._on_ask))

    async def stop(self) -> None:
        """Take no more asks, let those on their way reach the queue, and give up the joined ones."""
        for sub in self._subs:
            await self._bus.leave(sub)
        await self._open.join(2)
        await self._open.cancel()

    async def abandon(self) -> None:
        """End what still runs, at once."""
        await self._open.cancel()

    async def _on_ask(self, msg: Msg) -> None:
        # nats-py runs the callbacks of a subscription one after the other, so the work goes to a task of its own.
        if len(self._open) >= MAX_OPEN_ASKS:
            full = RequestError(ErrorType.QUEUE_FULL, "too many asks at once", retry_after_s=RETRY_AFTER_FULL_S)
            await self._refuse(msg, "", full)
            return
        self._open.start(self._serve(msg))

    async def _serve(self, msg: Msg) -> None:
        headers = {str(k): v for k, v in (msg.headers or {}).items()}
        request_id = named_id(headers) or subjects.new_request_id()
        if msg.reply and not subjects.is_inbox(msg.reply):
            log.warning("ask refused: its reply subject is no inbox", reply=msg.reply)
            return
        try:
            await self._accept(msg, read_ask(msg, headers, request_id, self._prefixes))
        except RequestError as error:
            await self._refuse(msg, request_id, error)
        except (nats.errors.Error, JetStreamUnavailable) as error:
            log.error("ask failed", id=request_id, error=repr(error))
            reason = RequestError(ErrorType.UNAVAILABLE, "the queue does not answer", retry_after_s=RETRY_AFTER_FULL_S)
            await self._refuse(msg, request_id, reason)

    async def _accept(self, msg: Msg, ask: Ask) -> None:
        if not ask.fresh and (ending := await self._replies.ending(ask.request_id)) is not None:
            if ask.detached:
                await self._confirm(msg, PubAck(subjects.REQUESTS, 0, duplicate=True))
            await self._hand_over(ask, ending)
            return
        if (full := self._backlog.refusal(ask.priority, self._allowed_s(ask))) and not await self._is_queued(ask):
            raise RequestError(ErrorType.QUEUE_FULL, full.why, retry_after_s=full.retry_after_s)
        ack = await self._enqueue(ask)
        if not ack.duplicate:
            self._let_in(ask)
        if ask.detached:
            await self._confirm(msg, ack)
        if ack.duplicate and not await self._is_kept_for(ask):
            await self._join(ask)

    def _allowed_s(self, ask: Ask) -> float:
        return ask.request.deadline_ms / 1000 if ask.request.deadline_ms else self._timeout_s

    def _let_in(self, ask: Ask) -> None:
        self._backlog.let_in(ask.priority)
        # Where it is still queued then, or held for a worker that is long in coming, nobody else would tell the client.
        self._withdrawals.at_deadline(ask.request_id, self._allowed_s(ask))

    async def _is_queued(self, ask: Ask) -> bool:
        return not ask.fresh and await self._queued(ask) is not None

    async def _queued(self, ask: Ask) -> StoredMessage | None:
        subject = subjects.enqueue(ask.priority, ask.request_id)
        return await jetstream.last_message(self._bus.nc, subjects.REQUESTS, subject)

    async def _enqueue(self, ask: Ask) -> PubAck:
        """Keep the request, unless its id is queued already."""
        headers = {"Nats-Msg-Id": ask.request_id, TIMEOUT_HEADER: str(int(self._timeout_s * 1000)), **ask.trace}
        if ask.reply_to is not None:
            headers["Reply-To"] = ask.reply_to
        if ask.fresh:
            headers[FRESH_HEADER] = "1"
        subject = subjects.enqueue(ask.priority, ask.request_id)
        try:
            return await jetstream.publish(self._bus, subject, ask.body, headers, timeout_s=self._timeout_s)
        except MessageTooLarge as error:
            raise RequestError(ErrorType.TOO_LARGE, f"body: {error}") from None
        except JetStreamError as error:
            if error.is_copy:
                return PubAck(subjects.REQUESTS, 0, duplicate=True)
            if error.is_full:
                raise RequestError(
                    ErrorType.QUEUE_FULL, "the queue is full", retry_after_s=RETRY_AFTER_FULL_S
                ) from error
            raise RequestError(ErrorType.UNAVAILABLE, f"the queue refused: {error.description}") from error

    async def _is_kept_for(self, ask: Ask) -> bool:
        """Whether what is queued answers to the same place: it is this ask (a PubAck got lost) or its repetition."""
        if ask.fresh:
            return True
        queued = await self._queued(ask)
        return queued is not None and queued.headers.get("Reply-To") == ask.reply_to

    async def _join(self, ask: Ask) -> None:
        """The id is queued, running or just done: wait for that run's ending."""
        await self._bus.publish(subjects.joined(ask.request_id), b"")
        timeout_s = self._allowed_s(ask)
        try:
            ending = await self._replies.wait_for_ending(ask.request_id, timeout_s)
        except (nats.errors.Error, JetStreamUnavailable) as error:
            log.error("joined ask failed", id=ask.request_id, error=repr(error))
            ending = self._ask_again(ask, "the queue does not answer")
        except asyncio.CancelledError:
            if ask.told is not None:
                await self._say(ask.told, self._ask_again(ask, "this sidecar stops"), sentinel=ask.request.stream)
            raise
        if ending is None:
            late = f"the earlier request {ask.request_id} has not ended in {timeout_s:g} s"
            ending = Ending.refusal(ask.request_id, RequestError(ErrorType.DEADLINE_EXCEEDED, late))
        await self._hand_over(ask, ending)

    def _ask_again(self, ask: Ask, why: str) -> Ending:
        said = f"{why}; ask again with the same id"
        return Ending.refusal(ask.request_id, RequestError(ErrorType.UNAVAILABLE, said, retry_after_s=1.0))

    async def _hand_over(self, ask: Ask, ending: Ending) -> None:
        if ask.told is not None:
            await self._probes.deliver(ask.told, ending, sentinel=ask.request.stream)

    async def _confirm(self, msg: Msg, ack: PubAck) -> None:
        if msg.reply:
            fields = {"stream": ack.stream, "seq": ack.seq} | ({"duplicate": True} if ack.duplicate else {})
            await self._bus.publish(msg.reply, orjson.dumps(fields))

    async def _refuse(self, msg: Msg, request_id: str, error: RequestError) -> None:
        self._metrics.refused(_lane(msg), error.type)
        if not msg.reply:
            log.warning("ask refused, and nobody to tell", error=error.message)
            return
        await self._say(msg.reply, Ending.refusal(request_id, error), sentinel=asks_for_stream(msg.data))

    async def _say(self, subject: str, ending: Ending, *, sentinel: bool) -> None:
        await self._bus.publish(subject, ending.body, ending.headers)
        if sentinel:
            await self._bus.publish(subject, b"")
