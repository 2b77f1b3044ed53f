"""One request to one answer: route, admission, then attempts over the candidates until one is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from processor.admission import Admission, Admitted, Candidature, Entrant
from processor.attempt import Attempts, Outrun, Run, Tally, milliseconds
from processor.audit import AuditLog
from processor.audit_events import Attempt, Routed
from processor.bucket import Need
from processor.budgets import Price, forecast
from processor.catalog import Catalog, UnknownModel
from processor.errors import ErrorType, RequestError
from processor.estimate import Learned
from processor.lookout import Lookout
from processor.messages import Request
from processor.outcome import Contender, Option, Plan, verdict
from processor.prompts import answer_limit
from processor.replies import Ending, Outbox, Replies
from processor.reply_bodies import Considered, FinalReply, ReplyRoute, ReplyUsage, Timing
from processor.reuse import Answered, Reuse, Reused
from processor.router import ASKED, Candidate, Route
from processor.slots import Slot
from processor.spending import Spending
from processor.subjects import Priority
from providers.base import TextDelta, ToolCallDelta
from providers.errors import ProviderError, RateLimited

LOOK_AGAIN_S = 0.2
"""After so long a wait, a call is made only if the request has not ended meanwhile."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer needs to know of its delivery."""

    outbox: Outbox
    tally: Tally
    slot: Slot
    accepted: datetime
    deadline: datetime | None
    first_attempt: int
    common: Mapping[str, Any]
    """The fields that all its audit events share."""
    replies: Replies


class EndedElsewhere(Exception):
    """While it waited, another worker has answered the request: nobody is called for it any more."""

    def __init__(self, ending: Ending) -> None:
        super().__init__("ended elsewhere")
        self.ending = ending


@dataclass(slots=True)
class _Work:
    """A request on its way through its candidates."""

    request: Request
    context: Context
    chosen: Route
    base_tokens: int
    entrant: Entrant
    plan: Plan
    first_call: datetime | None = None
    looked_at: float = field(default_factory=time.monotonic)
    """When it was last known that the request has not ended."""

    def run(self, admitted: Admitted) -> Run:
        tally = self.context.tally
        run = Run(
            self.context.first_attempt + tally.attempts,
            self.chosen.candidates[admitted.index],
            admitted.reservation,
            admitted.ticket,
            admitted.hold,
            self.base_tokens,
        )
        tally.attempts += 1
        self.first_call = self.first_call or run.started_at
        return run

    def fail(self, index: int, error: ProviderError) -> None:
        self.plan.failed(index, error, time.monotonic())
        self.entrant.passed_over[index] = f"failed: {error.message} ({error.kind})"

    @property
    def reuse_class(self) -> str:
        """Which models may answer: a request that pins its model has no answer of one that another stood in for."""
        alone = len(self.chosen.candidates) <= 1
        return f"{self.chosen.model_class} {self.chosen.means}{'' if alone else ' or another'}"

    def stands_in(self, index: int) -> bool:
        """Whether candidate `index` is not what was meant: for `auto`, whether it is worse, or a demo."""
        meant, served = self.chosen.meant, self.chosen.candidates[index].model
        if self.chosen.rule == ASKED:
            return served.id != self.chosen.model_class
        return meant is None or served.tier < meant.tier or served.demo

    def considered(self, served: int) -> tuple[Considered, ...]:
        """Every candidate with what came of it, then those that were refused."""
        reasons = {index: why for index, why in self.entrant.passed_over.items() if index != served}
        seen = [
            Considered(model=c.name, provider=c.model.provider, reason=reasons.get(i, c.reason))
            for i, c in enumerate(self.chosen.candidates)
        ]
        return (*seen, *self.chosen.considered[len(seen) :])


class Answerer:
    """Calls vendors. It knows nothing of lanes, and its task may be cancelled at any moment."""

    def __init__(
        self,
        attempts: Attempts,
        admission: Admission,
        lookout: Lookout,
        learned: Learned,
        catalog: Catalog,
        spending: Spending,
        audit: AuditLog,
        reuse: Reuse,
        *,
        max_retries: int,
        hedge_critical: bool,
        jitter: Callable[[], float],
    ) -> None:
        self._attempts = attempts
        self._admission = admission
        self._lookout = lookout
        self._learned = learned
        self._catalog = catalog
        self._spending = spending
        self._audit = audit
        self._reuse = reuse
        self._max_retries = max_retries
        self._hedge_critical = hedge_critical
        self._jitter = jitter

    async def answer(self, request: Request, context: Context) -> Answered:
        """An answer that is there already, or the reply of the first candidate that completes.

        Raises:
            RequestError: every candidate failed, none fits or is free in time, or the model is unknown.
            HandedBack: no candidate is free soon, and the request has time.
        """
        work = self._begin(request, context)
        found = await self._reuse.answer(
            context.outbox.request_id,
            request,
            work.reuse_class,
            context.slot.priority,
            partial(self._call_until_one_completes, work),
            partial(self._admission.rest, context.slot),
        )
        if isinstance(found, Reused):
            return Answered(await self._again(work, found), None)
        return found

    def is_waited_for(self, request_id: str) -> bool:
        """Whether other requests wait for the call that this one makes."""
        return self._reuse.is_waited_for(request_id)

    async def _call_until_one_completes(self, work: _Work) -> Answered:
        while options := work.plan.options():
            await self._look_again(work)
            try:
                admitted = await self._admission.enter(work.entrant, options, partial(self._look_again, work))
            except RequestError as error:
                raise _with_failures(error, work) from None
            done = await self._call(work, admitted, options)
            if done is not None:
                run, index, record = done
                return Answered(self._final(work, run, index), record, stands_in=work.stands_in(index))
        failures = [(work.chosen.candidates[index].name, error) for index, error in work.plan.failures]
        raise verdict(failures, [(r.model, r.reason) for r in work.chosen.refusals], work.chosen.nobody)

    async def _look_again(self, work: _Work) -> None:
        """After a wait, make sure that the request has not ended meanwhile: it may have been delivered twice."""
        if time.monotonic() - work.looked_at < LOOK_AGAIN_S:
            return
        ending = await work.context.replies.ending(work.context.outbox.request_id)
        if ending is not None:
            raise EndedElsewhere(ending)
        work.looked_at = time.monotonic()

    def _begin(self, request: Request, context: Context) -> _Work:
        now = datetime.now(UTC)
        chosen = self._lookout.route(request)
        self._audit.write_soon(Routed.of(chosen, **context.common))
        base = chosen.traits.input_tokens
        left_s = None if context.deadline is None else (context.deadline - now).total_seconds()
        entrant = Entrant(
            context.slot,
            request.tenant,
            None if left_s is None else time.monotonic() + left_s,
            [self._candidature(c, request, base, now) for c in chosen.candidates],
        )
        contenders = [Contender(c.model.provider, c.model.context) for c in chosen.candidates]
        plan = Plan(contenders, self._max_retries, self._jitter)
        return _Work(request, context, chosen, base, entrant, plan)

    def _candidature(self, candidate: Candidate, request: Request, base: int, now: datetime) -> Candidature:
        model = candidate.model
        most = answer_limit(request.max_tokens, model.max_output)
        need = Need(1, *self._learned.need(model.alias, base, most))
        if not self._spending.is_limited(request.tenant):
            return Candidature(model, need)
        return Candidature(model, need, partial(self._forecast, model.alias, base, most, now.date()))

    def _forecast(self, alias: str, base: int, most: int, on: date) -> Price:
        usual = Need(1, *self._learned.need(alias, base, most)).output_tokens
        return forecast(self._catalog.price_lists[alias], self._learned.input_tokens(alias, base), usual, most, on)

    async def _call(
        self, work: _Work, admitted: Admitted, options: Sequence[Option]
    ) -> tuple[Run, int, Attempt] | None:
        """One call, or two that race; None when it failed and the plan knows."""
        alias, streamed = work.chosen.candidates[admitted.index].model.alias, work.context.outbox.stream
        patience = self._learned.first_token_p95(alias, streamed=streamed)
        others = [option for option in options if option.index != admitted.index]
        run = work.run(admitted)
        if self._hedge_critical and work.context.slot.priority is Priority.CRITICAL and patience and others:
            return await self._race(work, admitted, run, others, patience)
        try:
            return run, admitted.index, await self._make(work, run)
        except ProviderError as error:
            work.fail(admitted.index, error)
            return None

    async def _race(
        self, work: _Work, admitted: Admitted, run: Run, others: Sequence[Option], patience_s: float
    ) -> tuple[Run, int, Attempt] | None:
        """Start a second candidate when the first token is later than usual; the first to speak goes on alone."""
        calls: dict[asyncio.Task[Attempt], tuple[Run, int]] = {}
        winner: list[Run] = []

        def claim(mine: Run) -> bool:
            if winner:
                return False
            winner.append(mine)
            for task, (other, _) in calls.items():
                if other is not mine:
                    task.cancel()
            return True

        def start(one: Run, index: int) -> None:
            one.claim = lambda: claim(one)
            calls[asyncio.create_task(self._make(work, one))] = (one, index)

        try:
            start(run, admitted.index)
            await asyncio.wait(calls, timeout=patience_s)
            if not winner and not any(task.done() for task in calls):
                second = await self._admission.try_now(work.entrant, others)
                if second is not None and (winner or any(task.done() for task in calls)):
                    model = work.chosen.candidates[second.index].model
                    self._admission.drop(model, second)
                elif second is not None:
                    start(work.run(second), second.index)
            await asyncio.wait(calls)
        finally:
            for task in calls:
                task.cancel()
            await asyncio.wait(calls)
            for called, index in calls.values():
                if not called.begun:
                    never_made = Admitted(index, called.reservation, called.ticket, called.hold)
                    self._admission.drop(called.candidate.model, never_made)
        return _outcome(work, calls)

    async def _make(self, work: _Work, run: Run) -> Attempt:
        context = work.context
        return await self._attempts.make(run, work.request, context.outbox, context.tally, context.common)

    async def _again(self, work: _Work, found: Reused) -> FinalReply:
        """What another request was answered, as this one's own reply: for nothing, and streamed if that was asked."""
        context, original = work.context, found.reply
        await context.outbox.begin(context.first_attempt)
        if original.response:
            await context.outbox.delta(TextDelta(original.response))
        for number, call in enumerate(original.tool_calls):
            await context.outbox.delta(ToolCallDelta(number, call.id, call.name, call.arguments))
        total_ms = milliseconds((datetime.now(UTC) - context.accepted).total_seconds())
        whence = "an identical request under way" if found.coalesced else "the cache"
        mine = self._as_asked(work, original)
        return original.model_copy(
            update={
                "id": context.outbox.request_id,
                "model": mine.name if mine else original.model,
                "warnings": mine.warnings if mine else original.warnings,
                "cost_usd": Decimal(0),
                "cost_estimated": False,
                "cached": not found.coalesced,
                "coalesced": found.coalesced,
                "saved_usd": original.cost_usd,
                "attempts": context.first_attempt - 1,
                "route": ReplyRoute(reason=f"from {whence}: {mine.reason if mine else original.route.reason}"),
                "timing": Timing(queued_ms=total_ms, first_token_ms=total_ms, total_ms=total_ms),
            }
        )

    def _as_asked(self, work: _Work, original: FinalReply) -> Candidate | None:
        """The model that answered, as a candidate of this request: several names may mean it, one of them retired."""
        try:
            served = self._catalog.resolve(original.model, datetime.now(UTC).date()).model
        except UnknownModel:  # of another replica's catalog
            return None
        return next((c for c in work.chosen.candidates if c.model is served), None)

    def _final(self, work: _Work, run: Run, index: int) -> FinalReply:
        context, candidate = work.context, run.candidate
        seen, usage, finished = run.transcript, run.transcript.usage, run.transcript.finished
        assert finished is not None
        assert work.first_call is not None
        before_s = (run.started_at - context.accepted).total_seconds()
        first_token_s = None if run.first_token_s is None else before_s + run.first_token_s
        return FinalReply(
            id=context.outbox.request_id,
            model=candidate.name,
            provider=candidate.model.provider,
            served_by=finished.model,
            response=seen.text,
            tool_calls=seen.tool_calls,
            finish_reason=finished.reason,
            usage=ReplyUsage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=usage.cache_read,
                cache_write_tokens=usage.cache_write,
                reasoning_tokens=usage.output_thinking,
            ),
            cost_usd=context.tally.cost_usd,
            cost_estimated=context.tally.estimated,
            attempts=context.first_attempt + context.tally.attempts - 1,
            route=ReplyRoute(reason=candidate.reason, considered=work.considered(index)),
            timing=Timing(
                queued_ms=milliseconds(max(0.0, (work.first_call - context.accepted).total_seconds())),
                first_token_ms=milliseconds(first_token_s),
                total_ms=milliseconds((datetime.now(UTC) - context.accepted).total_seconds()),
            ),
            warnings=candidate.warnings,
        )


def _outcome(work: _Work, calls: Mapping[asyncio.Task[Attempt], tuple[Run, int]]) -> tuple[Run, int, Attempt] | None:
    """The race's complete answer; the plan is told of what failed."""
    done = None
    for task, (run, index) in calls.items():
        if task.cancelled():
            continue
        error = task.exception()
        if error is None:
            done = (run, index, task.result())
        elif isinstance(error, Outrun):
            continue
        elif isinstance(error, ProviderError):
            work.fail(index, error)
        else:
            raise error
    return done


def _with_failures(error: RequestError, work: _Work) -> RequestError:
    """That no candidate is free, with what those said that were called before."""
    failures = work.plan.failures
    if not failures:
        return error
    said = verdict([(work.chosen.candidates[index].name, failure) for index, failure in failures]).message
    kind = error.type if all(isinstance(f, RateLimited) for _, f in failures) else ErrorType.UNAVAILABLE
    return RequestError(kind, f"{said}; {error.message}"[:1000], retry_after_s=error.retry_after_s)
