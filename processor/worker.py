"""One delivery from pull to ack: accept, answer, store the reply, tell the client, write it down, acknowledge."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import nats.errors
import structlog
from cachetools import TTLCache
from nats.aio.msg import Msg

from processor import deadletters
from processor.accept import Accepted, accept, reply_subject
from processor.admission import Admission, HandedBack
from processor.answer import Answerer, Context, EndedElsewhere
from processor.audit import AuditLog, last_attempt
from processor.audit_events import Received
from processor.bus import Bus, MessageTooLarge
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable
from processor.job import Job, Stop
from processor.lanes import Delivery, Lane, Lanes
from processor.messages import asks_for_stream
from processor.metrics import Metrics
from processor.redelivery import Redelivery
from processor.replies import Ending, Outbox, Probes, Replies
from processor.reply_bodies import FinalReply
from processor.slots import Slot, Slots
from processor.subjects import AuditEvent, Priority, reply
from processor.tasks import OwnedTasks
from processor.terminal_event import terminal_event

MAX_DEATHS = 3
"""A request that has taken so many workers down goes to the dead letters."""
MAX_DELIVERING = 1_000
"""Final messages on their way to clients that may be reconnecting; beyond it a worker waits for its own."""
MAX_CANCELLED = 10_000
CANCELLED_KEPT_S = 3600.0
"""For how many ids, and how long, a cancel is remembered whose request has not been pulled yet."""
RUNS_ELSEWHERE_S = 2.0
SOON_S = 2.0
"""What waits longer for a slot is better off in the queue."""
LONG_S = 300.0
"""After so long a run its ending may have come from elsewhere, and the broker's window for copies may be over."""
AUDIT_FIRST_S = 2.0
"""How long a reply waits for its attempt to be written down, which then goes on beside it."""
_NAK_DELAY_S = 1.0
_STORE_AGAIN_S = 2.0
_BROKER_TROUBLE = (JetStreamUnavailable, JetStreamError, nats.errors.Error)

log = structlog.get_logger(__name__)


class Worker:
    """Answers as many requests at once as there are slots, the most urgent first."""

    def __init__(
        self,
        bus: Bus,
        lanes: Lanes,
        answerer: Answerer,
        admission: Admission,
        slots: Slots,
        audit: AuditLog,
        probes: Probes,
        metrics: Metrics,
        *,
        replica: str,
        on_ended: Callable[[str], None],
        prefixes: tuple[str, ...] = (),
        enable_streaming: bool = True,
    ) -> None:
        self.running: dict[str, Job] = {}
        self._cancelled: TTLCache[str, bool] = TTLCache(MAX_CANCELLED, CANCELLED_KEPT_S)
        self._bus = bus
        self._lanes = lanes
        self._answerer = answerer
        self._admission = admission
        self._audit = audit
        self._probes = probes
        self._metrics = metrics
        self._replies = Replies(bus)
        self.redelivery = Redelivery(bus, self._replies, replica, self.running)
        self._slots = slots
        self._replica = replica
        self._on_ended = on_ended
        self._prefixes = prefixes
        self._enable_streaming = enable_streaming
        self._leaving = False
        self._jobs = OwnedTasks()
        self._delivering = OwnedTasks()

    async def on_cancel(self, msg: Msg) -> None:
        """A message on `llm.cancel.<id>`, which every replica hears."""
        self.cancel(msg.subject.rpartition(".")[2])

    def cancel(self, request_id: str) -> None:
        """Stop a running request; one that is still queued is answered `cancelled` when its turn comes."""
        if (job := self.running.get(request_id)) is not None:
            job.stop(Stop.CANCELLED)
        else:
            self._cancelled[request_id] = True

    async def stop_abandoned(self) -> None:
        """Stop requests whose clients have gone and that nobody else waits for, for ever."""
        while True:
            request_id = await self._probes.gone.get()
            job = self.running.get(request_id)
            if job is not None and not (job.joined or job.copies or self._answerer.is_waited_for(request_id)):
                job.stop(Stop.CLIENT_GONE)

    async def on_joined(self, msg: Msg) -> None:
        """A message on `llm.joined.<id>`, which every replica hears: a second ask waits for the same ending."""
        if (job := self.running.get(msg.subject.rpartition(".")[2])) is not None:
            job.joined = True

    async def pull(self, priority: Priority) -> None:
        """Take a lane's deliveries, for ever; cancel this task first to stop.

        Where a slot is long in coming, a replica that has one may take what waits here: the lane rests, and asks for
        each request only when there is a slot for it.
        """
        lane = self._lanes[priority]
        while True:
            await self._admission.room(priority)
            if not lane.is_resting:
                await lane.ready()
            slot = Slot(self._slots, priority)
            was_near = await self._acquire(slot, lane)
            if lane.is_resting:
                await lane.fetch()
            if (delivery := lane.take()) is not None:
                self._jobs.start(self._hold(delivery, slot))
            else:
                slot.release()
            if lane.is_resting and (was_near or delivery is None):
                await lane.resume()
            else:
                await lane.refill()

    async def _acquire(self, slot: Slot, lane: Lane) -> bool:
        """Whether the slot came within `SOON_S`."""
        rest = asyncio.get_running_loop().call_later(SOON_S, lane.rest)
        began = time.monotonic()
        try:
            await slot.acquire()
        finally:
            rest.cancel()
        return time.monotonic() - began < SOON_S

    async def drain(self, grace_s: float) -> None:
        """Let running requests end within `grace_s` seconds; hand the parked ones back at once, then the rest."""
        self._slots.dismiss()
        self._admission.close()
        await self._jobs.join(grace_s)
        self._leaving = True
        for job in tuple(self.running.values()):
            job.stop(Stop.SHUTDOWN)
        await self._jobs.join()
        await self._delivering.join(1)
        await self._delivering.cancel()

    async def abandon(self) -> None:
        """End what still runs, at once."""
        await self._jobs.cancel()
        await self._delivering.cancel()

    async def _hold(self, delivery: Delivery, slot: Slot) -> None:
        """Serve the delivery in its slot, and after it the copies of its id that came meanwhile."""
        try:
            if (running := self.running.get(delivery.request_id)) is not None:
                running.join(delivery)
                return
            waiting = deque([delivery])
            while waiting:
                job = Job(waiting.popleft(), slot)
                if self._leaving:
                    await job.delivery.hand_back()
                else:
                    await self._serve(job)
                waiting += job.copies
        finally:
            slot.release()

    async def _serve(self, job: Job) -> None:
        delivery = job.delivery
        self.running[delivery.request_id] = job
        try:
            await self._work(job)
        except _BROKER_TROUBLE as error:
            log.warning("request handed back", id=delivery.request_id, error=repr(error))
            await delivery.hand_back(_NAK_DELAY_S)
        except Exception:
            # Not ours to swallow, but a delivery that is neither acknowledged nor handed back would be held for ever.
            # It counts as a death: a request that always fails so is poison.
            log.exception("request handed back after a failure of the sidecar itself", id=delivery.request_id)
            await delivery.nak(_NAK_DELAY_S)
        finally:
            job.leaves(self._metrics)
            del self.running[delivery.request_id]
            self._probes.forget(delivery.request_id)

    async def _work(self, job: Job) -> None:
        delivery = job.delivery
        outbox = Outbox(self._bus, self._probes, delivery.request_id, reply_to=None, stream=False)
        try:
            outbox.reply_to = reply_subject(delivery.request_id, delivery.headers, self._prefixes)
            before = await self.redelivery.history(delivery)
            if before is None:
                await delivery.nak(RUNS_ELSEWHERE_S)
                return
            if isinstance(before, Ending):
                job.streamed = asks_for_stream(delivery.body)
                await self._close(job, outbox, before, None)
                return
            job.begins(self._metrics)
            await delivery.begin(deaths := before.deaths_if_it_is_dead)
            accepted = accept(delivery.body, delivery.headers, delivery.accepted)
            job.tenant, job.streamed = accepted.request.tenant, accepted.request.stream
            if deaths >= MAX_DEATHS:
                raise RequestError(ErrorType.INTERNAL, f"gave up: {deaths} workers died with it")
        except RequestError as poison:
            job.streamed = asks_for_stream(delivery.body)
            job.begins(self._metrics)
            await deadletters.bury(self._bus, delivery, poison)
            if delivery.done:
                job.ends(self._metrics, AuditEvent.DEAD, poison)
                return  # no reply subject can hold its id
            await self._end(job, outbox, poison, AuditEvent.DEAD)
            return
        outbox.stream = job.streamed and self._enable_streaming
        self._audit.write_soon(Received.of(accepted.request, delivery.body, **self._common(job)))
        try:
            result, event = await self._answer(job, accepted, outbox)
        except EndedElsewhere as elsewhere:
            await self._close(job, outbox, elsewhere.ending, None)
            return
        except HandedBack as later:
            await delivery.hand_back(later.wait_s)
            return
        if job.stopped is Stop.SHUTDOWN and not isinstance(result, FinalReply):
            await delivery.hand_back()
            return
        await self._end(job, outbox, result, event)

    async def _answer(
        self, job: Job, accepted: Accepted, outbox: Outbox
    ) -> tuple[FinalReply | RequestError, AuditEvent]:
        delivery = job.delivery
        if self._cancelled.pop(delivery.request_id, False):
            return RequestError(ErrorType.CANCELLED, Stop.CANCELLED), AuditEvent.CANCELLED
        expired = RequestError(ErrorType.DEADLINE_EXCEEDED, "the deadline passed before the answer was complete")
        if accepted.is_expired(datetime.now(UTC)):
            return expired, AuditEvent.EXPIRED
        first = await self._first_attempt(job)
        if job.stopped is not None:
            return RequestError(ErrorType.CANCELLED, job.stopped), AuditEvent.CANCELLED
        if accepted.is_expired(now := datetime.now(UTC)):
            return expired, AuditEvent.EXPIRED
        common = self._common(job)
        context = Context(
            outbox, job.tally, job.slot, delivery.accepted, accepted.deadline, first, common, self._replies
        )
        job.call = asyncio.create_task(self._answerer.answer(accepted.request, context))
        try:
            await asyncio.wait({job.call}, timeout=accepted.left_s(now))
            in_time = job.call.done()
        finally:
            job.call.cancel()
            await asyncio.wait({job.call})
        if (job.call.cancelled() or job.call.exception() is not None) and job.tally.complete is not None:
            self._audit.write_soon(job.tally.complete)  # paid for, though it came to nothing
        try:
            answered = job.call.result()
            if answered.attempt is not None:
                await self._audit.write_within(answered.attempt, AUDIT_FIRST_S)
            return answered.reply, AuditEvent.COMPLETED
        except asyncio.CancelledError:
            if not job.call.cancelled():
                raise
            if in_time or job.stopped is not None:
                return RequestError(ErrorType.CANCELLED, job.stopped or Stop.CANCELLED), AuditEvent.CANCELLED
            return expired, AuditEvent.EXPIRED
        except RequestError as error:
            return error, AuditEvent.FAILED
        except MessageTooLarge as error:
            return _does_not_fit(error), AuditEvent.FAILED
        except (HandedBack, EndedElsewhere, *_BROKER_TROUBLE):
            raise
        except Exception:
            log.exception("request failed in the sidecar itself", id=delivery.request_id)
            return RequestError(ErrorType.INTERNAL, "the sidecar failed; its log says why"), AuditEvent.FAILED

    async def _first_attempt(self, job: Job) -> int:
        """The number of this delivery's first attempt: a worker that died may not have written its own down."""
        if job.delivery.count == 1:
            return 1
        return max(await last_attempt(self._bus, job.delivery.request_id), job.delivery.deaths or 0) + 1

    async def _end(self, job: Job, outbox: Outbox, result: FinalReply | RequestError, event: AuditEvent) -> None:
        """Store the ending; if a worker was faster, or the broker refuses its size, another one counts."""
        if job.delivery.count > 1 and not job.tally.attempts and isinstance(result, RequestError):
            # What an earlier delivery has streamed is void.
            outbox.stream = job.streamed and self._enable_streaming
            await outbox.begin(await self._first_attempt(job))
        ending = Ending.of(outbox, result)
        try:
            first = await self._store(job, ending)
        except MessageTooLarge as error:
            result, event = _does_not_fit(error), AuditEvent.FAILED
            first = await self._store(job, ending := Ending.of(outbox, result))
        if first:
            job.ends(self._metrics, event, result)
        else:
            ending = await self._replies.ending(outbox.request_id) or ending
        await self._close(job, outbox, ending, event if first else None)

    async def _store(self, job: Job, ending: Ending) -> bool:
        """Keep trying while the broker is in trouble: to hand an answer back would be to pay for it again.

        True: it counts, also where only the acknowledgement of an earlier try was lost.
        """
        request_id, was_sent = job.delivery.request_id, False
        while True:
            try:
                is_late = time.monotonic() - job.began > LONG_S and await self._replies.ending(request_id) is not None
                if not is_late and await self._replies.store(request_id, ending):
                    return True
                kept = await self._replies.ending(request_id) if was_sent else None
                return kept is not None and kept.body == ending.body
            except _BROKER_TROUBLE as error:
                if self._leaving:
                    raise
                was_sent = True
                log.warning("ending not stored yet", id=request_id, error=repr(error))
                await asyncio.sleep(_STORE_AGAIN_S)

    async def _close(self, job: Job, outbox: Outbox, ending: Ending, event: AuditEvent | None) -> None:
        """Tell the client, write the terminal event (with an id, so that only the first counts), acknowledge."""
        self._on_ended(outbox.request_id)
        if outbox.reply_to is not None:
            await self._deliver(job, outbox, ending, just_stored=event is not None)
        await self._audit.write(terminal_event(ending, event, job.tally, self._common(job)))
        await job.delivery.ack()

    async def _deliver(self, job: Job, outbox: Outbox, ending: Ending, *, just_stored: bool) -> None:
        assert outbox.reply_to is not None
        if outbox.reply_to == reply(outbox.request_id):
            if job.streamed and just_stored:
                await self._bus.publish(outbox.reply_to, b"")
            elif job.streamed:
                await self._replies.end_stream(outbox.request_id)
            return
        delivery = self._probes.deliver(outbox.reply_to, ending, sentinel=job.streamed)
        if len(self._delivering) < MAX_DELIVERING:
            self._delivering.start(delivery)
        else:
            await delivery

    def _common(self, job: Job) -> dict[str, Any]:
        delivery = job.delivery
        return {
            "id": delivery.request_id,
            "at": datetime.now(UTC),
            "replica": self._replica,
            "priority": delivery.priority,
            "tenant": job.tenant,
            "delivery": delivery.count,
        }


def _does_not_fit(error: MessageTooLarge) -> RequestError:
    return RequestError(ErrorType.TOO_LARGE, f"the answer does not fit the bus: {error}")
