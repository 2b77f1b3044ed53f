"""One request to one answer: route, then attempts over the candidates until one is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from processor.audit import Attempt, AuditError, AuditLog, AuditUsage
from processor.catalog import Catalog
from processor.messages import Request
from processor.outcome import Plan, verdict
from processor.prompts import build_prompt
from processor.replies import Outbox
from processor.reply_bodies import FinalReply, ReplyRoute, ReplyUsage, Timing
from processor.router import Candidate, Route, route
from processor.transcript import Transcript
from providers.base import Prompt, Provider, TextDelta, ThinkingDelta, ToolCallDelta, Usage
from providers.errors import ProviderError, StreamCut


@dataclass(slots=True)
class Tally:
    """What a request has used so far, over all its attempts in this delivery."""

    attempts: int = 0
    cost_usd: Decimal = Decimal(0)
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Context:
    """What an answer needs to know of its delivery."""

    outbox: Outbox
    tally: Tally
    accepted: datetime
    first_attempt: int
    common: Mapping[str, Any]
    """The fields that all its audit events share."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A complete answer, and its attempt for the audit log: to be written where no cancellation can lose it."""

    reply: FinalReply
    attempt: Attempt


class Answerer:
    """Calls vendors. It knows nothing of lanes, and its task may be cancelled at any moment."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        catalog: Catalog,
        audit: AuditLog,
        *,
        default_model: str,
        max_retries: int,
        jitter: Callable[[], float],
    ) -> None:
        self._providers = providers
        self._catalog = catalog
        self._audit = audit
        self._default_model = default_model
        self._max_attempts = max_retries + 1
        self._jitter = jitter

    async def answer(self, request: Request, context: Context) -> Answered:
        """The reply of the first candidate that completes.

        Raises:
            RequestError: every candidate failed, none fits, or the model is unknown.
        """
        started = datetime.now(UTC)
        chosen = route(
            request, self._catalog, available=self._providers.keys(), default=self._default_model, on=started
        )
        plan = Plan([candidate.model.provider for candidate in chosen.candidates], self._max_attempts, self._jitter)
        step = plan.first()
        while step is not None:
            await asyncio.sleep(step.delay_s)
            candidate = chosen.candidates[step.index]
            number = context.first_attempt + len(plan.failures)
            context.tally.attempts = number
            await context.outbox.begin(number)
            run = _Run(number, datetime.now(UTC), time.monotonic(), Transcript())
            try:
                await self._attempt(request, candidate, context, run)
            except ProviderError as error:
                step = plan.failed(step.index, error, time.monotonic())
                continue
            record = self._record(run, candidate, request, context, None)
            return Answered(_final(run, candidate, chosen, started, context), record)
        failures = [(chosen.candidates[index].name, error) for index, error in plan.failures]
        raise verdict(failures, [(r.model, r.reason) for r in chosen.refusals])

    async def _attempt(self, request: Request, candidate: Candidate, context: Context, run: _Run) -> None:
        """Drive one provider's stream to its end, and write down what it used where it came to none."""
        model = candidate.model
        prompt = build_prompt(request, model_id=model.id, max_output=model.max_output, stream=context.outbox.stream)
        try:
            await self._drive(self._providers[model.provider], prompt, run, context.outbox)
        except BaseException as error:
            self._audit.write_soon(self._record(run, candidate, request, context, _failure(error)))
            raise

    async def _drive(self, provider: Provider, prompt: Prompt, run: _Run, outbox: Outbox) -> None:
        async with aclosing(provider.stream(prompt)) as events:
            async for event in events:
                run.transcript.add(event, time.monotonic())
                if isinstance(event, TextDelta | ThinkingDelta | ToolCallDelta):
                    await outbox.delta(event)
        if run.transcript.finished is None:
            raise StreamCut("the stream ended without its terminal event")

    def _record(
        self, run: _Run, candidate: Candidate, request: Request, context: Context, error: AuditError | None
    ) -> Attempt:
        """The attempt's audit event; its cost is added to the request's tally."""
        ended, seen = time.monotonic(), run.transcript
        usage, estimated = seen.settled(prompt_chars=request.text_chars)
        served_by = seen.finished.model if seen.finished else None
        price = self._catalog.price(usage, candidate.model, served_by=served_by, at=run.started_at)
        run.cost_usd, run.estimated = price.usd, estimated or price.estimated
        context.tally.cost_usd += run.cost_usd
        context.tally.estimated |= run.estimated
        return Attempt(
            **context.common,
            attempt=run.number,
            model=candidate.name,
            provider=candidate.model.provider,
            served_by=served_by,
            vendor_request_id=seen.opened.vendor_request_id if seen.opened else None,
            started=run.started_at,
            duration_ms=round((ended - run.started) * 1000, 3),
            first_token_ms=_milliseconds(run.started, seen.first_token_at),
            finish_reason=seen.finished.reason if seen.finished else None,
            usage=_audit_usage(usage),
            cost_usd=run.cost_usd,
            cost_estimated=run.estimated,
            error=error,
        )


@dataclass(slots=True)
class _Run:
    """One attempt: its number, its start on both clocks, and what came of it."""

    number: int
    started_at: datetime
    started: float
    transcript: Transcript
    cost_usd: Decimal = Decimal(0)
    estimated: bool = False


def _final(run: _Run, candidate: Candidate, chosen: Route, request_started: datetime, context: Context) -> FinalReply:
    seen, usage, finished = run.transcript, run.transcript.usage, run.transcript.finished
    assert finished is not None
    queued_ms = max(0.0, (request_started - context.accepted).total_seconds() * 1000)
    before_ms = (run.started_at - context.accepted).total_seconds() * 1000
    first_ms = _milliseconds(run.started, seen.first_token_at)
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
        attempts=run.number,
        route=ReplyRoute(reason=candidate.reason, considered=chosen.considered),
        timing=Timing(
            queued_ms=round(queued_ms, 1),
            first_token_ms=None if first_ms is None else round(before_ms + first_ms, 1),
            total_ms=round((datetime.now(UTC) - context.accepted).total_seconds() * 1000, 1),
        ),
        warnings=candidate.warnings,
    )


def _failure(error: BaseException) -> AuditError:
    if isinstance(error, ProviderError):
        return AuditError(
            kind=error.kind, message=error.message, status=error.status, retry_after_s=error.retry_after_s
        )
    if isinstance(error, asyncio.CancelledError):
        return AuditError(kind="cancelled", message="stopped before the answer was complete")
    return AuditError(kind="internal", message=f"the sidecar failed ({type(error).__name__})")


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 3)


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
