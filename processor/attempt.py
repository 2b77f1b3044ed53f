"""One call to one vendor: driven, timed, settled with limits and breakers, and written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog

from processor.audit import AuditLog
from processor.audit_events import Attempt, AuditError, AuditUsage
from processor.bucket import Need
from processor.catalog import Catalog
from processor.clocks import Clocks, timed
from processor.estimate import Learned
from processor.health import Health, Ticket
from processor.limits import Limits, Reservation
from processor.messages import Request
from processor.metrics import Metrics
from processor.prefixes import Prefixes
from processor.prompts import build_prompt
from processor.replies import Outbox
from processor.router import Candidate
from processor.spending import Spending
from processor.transcript import Transcript
from providers.base import Event, Finished, Opened, Prompt, Provider, TextDelta, ThinkingDelta, ToolCallDelta, Usage
from providers.errors import BadResponse, ProviderError, StreamCut, Throttled, VendorFault

THROTTLED_S = 1.0
"""How long a model rests whose vendor said "too many" and not until when."""
SHORT_HOLD_S = 60.0
"""A shorter Retry-After may mean a limit that all of the provider's models share; a longer one is one model's."""

log = structlog.get_logger(__name__)

Speech = TextDelta | ThinkingDelta | ToolCallDelta


@dataclass(slots=True)
class Tally:
    """What a request has used so far, over all its attempts in this delivery.

    `complete`: the record of its complete answer, for whoever finds that nobody else could write it.
    """

    attempts: int = 0
    cost_usd: Decimal = Decimal(0)
    estimated: bool = False
    complete: Attempt | None = None
    model: str | None = None
    """The catalog's name of the model that was called last."""
    under_way: int = 0
    """Calls that are out: two where they race."""


@dataclass(slots=True, eq=False)
class Run:
    """One attempt: its number, its start on both clocks, and what came of it."""

    number: int
    candidate: Candidate
    reservation: Reservation
    ticket: Ticket
    hold: str | None
    """What hard budgets hold for it."""
    base_tokens: int
    """The prompt's size before what is learned of the model."""
    claim: Callable[[], bool] | None = None
    """Of two hedged runs one may speak: asked before the first token is passed on."""
    begun: bool = False
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.monotonic)
    transcript: Transcript = field(default_factory=Transcript)
    cost_usd: Decimal = Decimal(0)
    estimated: bool = False

    @property
    def first_token_s(self) -> float | None:
        at = self.transcript.first_token_at
        return None if at is None else at - self.started


class Outrun(ProviderError):
    """The other of two hedged calls was faster."""


class Attempts:
    """Makes calls, and leaves each one settled: with limits, breakers, estimates, budgets and the audit log."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        audit: AuditLog,
        limits: Limits,
        health: Health,
        learned: Learned,
        prefixes: Prefixes,
        spending: Spending,
        metrics: Metrics,
        clocks: Clocks,
        whole_answer_s: float,
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._audit = audit
        self._limits = limits
        self._health = health
        self._learned = learned
        self._prefixes = prefixes
        self._spending = spending
        self._metrics = metrics
        self._clocks = clocks
        self._whole_clocks = replace(clocks, first_token_s=whole_answer_s)

    async def make(
        self, run: Run, request: Request, outbox: Outbox, tally: Tally, common: Mapping[str, Any]
    ) -> Attempt:
        """Drive the call to its end, deltas to `outbox`. The record of a complete answer is returned, not yet written.

        Raises:
            ProviderError: there is no complete answer; the record of that is written.
        """
        model, run.begun, seen = run.candidate.model, True, run.transcript
        tally.model = model.alias
        tally.under_way += 1
        try:
            prefix = self._prefixes.of(request, model.id, run.base_tokens)
            prompt = build_prompt(
                request,
                model_id=model.id,
                max_output=model.max_output,
                stream=outbox.stream,
                stable_messages=prefix.stable_messages,
            )
            await self._drive(run, prompt, outbox)
        except BaseException as error:
            settled = seen.settled(prompt_tokens=run.base_tokens, at_work=_may_be_at_work(error))
            self._give_up(run, error, settled[0])
            self._audit.write_soon(self._record(run, request, tally, common, settled, _failure(error)))
            raise
        finally:
            tally.under_way -= 1
        self._settle(run, streamed=outbox.stream)
        self._prefixes.answered(prefix)
        self._health.succeeded(model, run.ticket)
        tally.complete = self._record(run, request, tally, common, (seen.usage, False), None)
        return tally.complete

    async def _drive(self, run: Run, prompt: Prompt, outbox: Outbox) -> None:
        seen = run.transcript
        if run.claim is None:
            await outbox.begin(run.number)
        silent = run.claim is not None
        events = self._providers[run.candidate.model.provider].stream(prompt)
        # What is a first token to a stream is all of a whole answer.
        clocks = self._clocks if prompt.stream else self._whole_clocks
        async with aclosing(timed(events, clocks)) as in_time:
            while (event := await _next(in_time)) is not None:
                seen.add(event, time.monotonic())
                if isinstance(event, Opened):  # now, not at the end: a later call may know better by then
                    self._limits.tell(run.candidate.model, event.quotas)
                if silent and isinstance(event, Speech | Finished):
                    await self._speak(run, outbox)
                    silent = False
                if isinstance(event, Speech):
                    await outbox.delta(event)
        if seen.finished is None:
            raise StreamCut("the stream ended without its terminal event")

    async def _speak(self, run: Run, outbox: Outbox) -> None:
        assert run.claim is not None
        if not run.claim():
            raise Outrun("another candidate answered first")
        await outbox.begin(run.number)

    def _settle(self, run: Run, *, streamed: bool) -> None:
        """A complete answer: its usage in place of the estimate, and what is learned from it."""
        usage, counted = run.transcript.usage, _counted(run.transcript.usage)
        self._limits.settle(run.reservation, counted)
        self._learned.observe(
            run.candidate.model.alias,
            run.base_tokens,
            usage.input_tokens,
            usage.output_tokens,
            run.first_token_s,
            counted.input_tokens,
            streamed=streamed,
            duration_s=(now := time.monotonic()) - run.started,
            now=now,
        )

    def _give_up(self, run: Run, error: BaseException, usage: Usage) -> None:
        """No complete answer: what the vendor never saw is given back, the rest is settled as far as it is known."""
        model = run.candidate.model
        unsent = isinstance(error, ProviderError) and error.unsent
        self._limits.settle(run.reservation, None if unsent else _counted(usage))
        if not isinstance(error, ProviderError) or isinstance(error, Outrun):
            self._health.abandoned(model, run.ticket)
            return
        self._limits.tell(model, error.quotas)
        if isinstance(error, Throttled):
            for_s = THROTTLED_S if error.retry_after_s is None else error.retry_after_s
            whole = error.retry_after_s is not None and for_s <= SHORT_HOLD_S
            self._limits.hold(model, for_s, whole_provider=whole, reason="the vendor asked to wait")
        self._health.failed(model, error, run.ticket)

    def _record(
        self,
        run: Run,
        request: Request,
        tally: Tally,
        common: Mapping[str, Any],
        settled: tuple[Usage, bool],
        error: AuditError | None,
    ) -> Attempt:
        """The attempt's audit event; its cost is added to the request's tally, and settled with budgets."""
        ended, seen, model = time.monotonic(), run.transcript, run.candidate.model
        usage, estimated = settled
        served_by = seen.finished.model if seen.finished else None
        price = self._catalog.price(usage, model, served_by=served_by, at=run.started_at)
        run.cost_usd, run.estimated = price.usd, estimated or price.estimated
        tally.cost_usd += run.cost_usd
        tally.estimated |= run.estimated
        self._spending.settle(run.hold, run.cost_usd)
        record = Attempt(
            **common,
            attempt=run.number,
            model=run.candidate.name,
            alias=model.alias,
            provider=model.provider,
            served_by=served_by,
            task_type=request.task_type,
            vendor_request_id=seen.opened.vendor_request_id if seen.opened else None,
            started=run.started_at,
            duration_ms=round((ended - run.started) * 1000, 3),
            first_token_ms=milliseconds(run.first_token_s),
            finish_reason=seen.finished.reason if seen.finished else None,
            usage=_audit_usage(usage),
            cost_usd=run.cost_usd,
            cost_estimated=run.estimated,
            hold=run.hold,
            error=error,
        )
        self._metrics.called(record, ended)
        return record


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    """The next event, None at the end. Whatever a provider raises that is none of its errors becomes one here."""
    try:
        return _in_unicode(await anext(events, None))
    except ProviderError:
        raise
    except Exception as error:
        log.exception("a provider failed in a way of its own")
        raise BadResponse(f"its answer could not be handled ({type(error).__name__})") from error


def _in_unicode(event: Event | None) -> Event | None:
    """The event with U+FFFD for halves of surrogate pairs: a vendor's JSON may hold such, no message of ours can."""
    match event:
        case TextDelta(text) | ThinkingDelta(text) if (mended := _mended(text)) is not text:
            return replace(event, text=mended)
        case ToolCallDelta(arguments=text) if (mended := _mended(text)) is not text:
            return replace(event, arguments=mended)
    return event


def _mended(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _may_be_at_work(error: BaseException) -> bool:
    """Whether the vendor may be at work, for money, on a call of which nothing has come back yet."""
    if not isinstance(error, ProviderError):
        return True  # cancelled
    return isinstance(error, VendorFault | Outrun) and error.status is None and not error.unsent


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _counted(usage: Usage) -> Need:
    """What vendors' limits count: one request, input without what their cache held, and all output."""
    return Need(1, usage.input_tokens - usage.cache_read, usage.output_tokens)


def _failure(error: BaseException) -> AuditError:
    if isinstance(error, ProviderError):
        return AuditError(
            kind=error.kind, message=error.message, status=error.status, retry_after_s=error.retry_after_s
        )
    if isinstance(error, asyncio.CancelledError):
        return AuditError(kind="cancelled", message="stopped before the answer was complete")
    return AuditError(kind="internal", message=f"the sidecar failed ({type(error).__name__})")


def _audit_usage(usage: Usage) -> AuditUsage:
    return AuditUsage(
        input_fresh=usage.input_fresh,
        cache_read=usage.cache_read,
        cache_write_5m=usage.cache_write_5m,
        cache_write_1h=usage.cache_write_1h,
        tool_input=usage.tool_input,
        output_visible=usage.output_visible,
        output_thinking=usage.output_thinking,
        raw=dict(usage.raw),
    )
