"""What might have cost less, computed from the audit log by routing and pricing its requests again. Pure.

Events are taken one by one, in the log's order. What is kept of requests is bounded; what falls out of it is counted as
a request, and suggested to be cheaper by nobody.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, Literal

from processor.audit_events import Attempt, AuditEntry, AuditUsage, Ended, Received, Routed
from processor.catalog import WARN_BEFORE, Catalog, CatalogModel, UnknownModel
from processor.errors import RequestError
from processor.router import Conditions, route
from processor.rules import Rule
from processor.subjects import AuditEvent
from processor.traits import Traits
from processor.usage import money
from providers.base import FinishReason, Usage

MIN_SHARE: Final = 0.05
"""Of a model's requests: a cheaper one for fewer of them is not worth a word."""
MIN_SAVED: Final = Decimal("0.01")
"""Dollars."""
MAX_OPEN: Final = 100_000
"""Requests whose end has not come yet; the oldest is forgotten first."""
ROUTES_KEPT: Final = 10_000

Kind = Literal["cheaper_model", "duplicates", "failed_calls", "retiring"]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`requests` of `of` would have cost `saved_usd` less; for a retiring model, its successor would have (or more)."""

    kind: Kind
    text: str
    saved_usd: Decimal
    requests: int
    of: int
    model: str | None = None
    instead: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "text": self.text,
            "saved_usd": float(self.saved_usd),
            "requests": self.requests,
            "of": self.of,
            "model": self.model,
            "instead": self.instead,
        }


@dataclass(slots=True)
class _Open:
    """A request that has not ended: what routing sees of it, and what its calls have cost."""

    body: tuple[str, str] | None = None
    """Its tenant and its body's fingerprint."""
    is_repeated: bool = False
    traits: Traits | None = None
    cost: Decimal = Decimal(0)


@dataclass(slots=True)
class _Model:
    """What was called of one model."""

    answered: int = 0
    cost: Decimal = Decimal(0)
    failed: int = 0
    failed_cost: Decimal = Decimal(0)
    instead: dict[str, _Instead] = field(default_factory=dict)
    successor: str | None = None
    successor_cost: Decimal = Decimal(0)


@dataclass(slots=True)
class _Instead:
    requests: int = 0
    saved: Decimal = Decimal(0)
    rules: Counter[str] = field(default_factory=Counter)


class Cached:
    """Which bodies an exact cache would have held: the last used `max_size`, each for `ttl` after its answer."""

    def __init__(self, max_size: int, ttl: timedelta) -> None:
        self._max_size = max_size
        self._ttl = ttl
        self._until: OrderedDict[tuple[str, str], datetime] = OrderedDict()

    def holds(self, body: tuple[str, str], at: datetime) -> bool:
        until = self._until.get(body)
        if until is None:
            return False
        if until <= at:
            del self._until[body]
            return False
        self._until.move_to_end(body)
        return True

    def enter(self, body: tuple[str, str], at: datetime) -> None:
        self._until[body] = at + self._ttl
        self._until.move_to_end(body)
        while len(self._until) > self._max_size:
            self._until.popitem(last=False)


class Advisor:
    """Looks at each event of the audit log once, and says at the end what would have cost less.

    A request is routed again as `auto` with what it needs and prefers, by today's catalog, on the day it came, all well
    and with room; available are the providers that the log has named so far. The usage that was reported is priced
    anew: other models count tokens a little differently, and answer at other lengths.
    """

    def __init__(
        self, catalog: Catalog, *, default_model: str, today: date, cache_size: int, cache_ttl: timedelta
    ) -> None:
        self._catalog = catalog
        self._default = default_model
        self._today = today
        self._ttl = cache_ttl
        self._cached = Cached(cache_size, cache_ttl)
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._models: dict[str, _Model] = {}
        self._available: frozenset[str] = frozenset()
        self._received = 0
        self._repeated = 0
        self._repeated_cost = Decimal(0)
        self._choice = lru_cache(ROUTES_KEPT)(self._routed_again)

    @property
    def open(self) -> int:
        """Requests that are kept because they have not ended."""
        return len(self._open)

    def see(self, entry: AuditEntry) -> None:
        """Take in the next event."""
        match entry:
            case Received():
                self._receive(entry)
            case Routed():
                self._know(*(candidate.provider for candidate in entry.candidates))
                self._keep(entry.id).traits = entry.traits
            case Attempt():
                self._know(entry.provider)
                self._count(entry)
            case Ended():
                self._end(entry)

    def _keep(self, request_id: str) -> _Open:
        kept = self._open.setdefault(request_id, _Open())
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return kept

    def _know(self, *providers: str) -> None:
        if not self._available.issuperset(providers):
            self._available = self._available.union(providers)
            self._choice.cache_clear()

    def _receive(self, entry: Received) -> None:
        kept = self._keep(entry.id)
        if kept.body is None:  # else a later delivery of it
            self._received += 1
            kept.body = (entry.tenant, entry.body_sha256)
            kept.is_repeated = self._cached.holds(kept.body, entry.at)

    def _count(self, entry: Attempt) -> None:
        kept = self._open.get(entry.id)
        if kept is not None:
            kept.cost += entry.cost_usd
        alias = entry.alias or entry.model
        model = self._models.setdefault(alias, _Model())
        model.cost += entry.cost_usd
        if entry.error is not None:
            model.failed += 1
            model.failed_cost += entry.cost_usd
            return
        model.answered += 1
        usage = usage_of(entry.usage)
        self._compare_successor(model, alias, entry, usage)
        if kept is not None and kept.traits is not None:
            self._compare_auto(model, alias, entry, usage, kept.traits)

    def _compare_auto(self, model: _Model, alias: str, entry: Attempt, usage: Usage, given: Traits) -> None:
        as_auto = given.model_copy(update={"model": None, "fallback": None})
        chosen = self._choice(as_auto, entry.started.date())
        if chosen is None or chosen[0].alias == alias:
            return
        saved = entry.cost_usd - self._catalog.price_lists[chosen[0].alias].cost(usage, entry.started.date())
        if saved > 0:
            instead = model.instead.setdefault(chosen[0].alias, _Instead())
            instead.requests += 1
            instead.saved += saved
            instead.rules[chosen[1]] += 1

    def _routed_again(self, given: Traits, on: date) -> tuple[CatalogModel, str] | None:
        """The model that `auto` would have called, and by which rule."""
        conditions = Conditions(datetime.combine(on, time(), UTC), self._available, self._default)
        try:
            chosen = route(given, self._catalog, conditions)
        except RequestError:  # DEFAULT_MODEL is none of the catalog's: the sidecar itself would not start
            return None
        return (chosen.candidates[0].model, chosen.rule) if chosen.candidates else None

    def _compare_successor(self, model: _Model, alias: str, entry: Attempt, usage: Usage) -> None:
        if (known := self._catalog.models.get(alias)) is None or known.retires is None or known.successor is None:
            return
        after = self._catalog.resolve(alias, known.retires).model
        model.successor = after.alias
        model.successor_cost += self._catalog.price_lists[after.alias].cost(usage, known.retires)

    def _end(self, entry: Ended) -> None:
        kept = self._open.pop(entry.id, None)
        if kept is None or kept.body is None:
            return
        if kept.is_repeated and kept.cost and not entry.cached:
            self._repeated += 1
            self._repeated_cost += kept.cost
        is_whole = entry.finish_reason in {FinishReason.STOP, FinishReason.TOOL_CALLS}
        if entry.event is AuditEvent.COMPLETED and is_whole and not entry.cached:
            self._cached.enter(kept.body, entry.at)

    def suggestions(self) -> list[Suggestion]:
        """What is worth a word, what would have saved most first; retiring models come last."""
        found = [*self._cheaper(), *self._duplicates(), *self._failures()]
        return [*sorted(found, key=lambda one: (-one.saved_usd, one.text)), *self._retiring()]

    def _cheaper(self) -> Iterator[Suggestion]:
        for alias, model in self._models.items():
            for other, instead in model.instead.items():
                share = instead.requests / model.answered
                if share < MIN_SHARE or instead.saved < MIN_SAVED:
                    continue
                text = (
                    f"{share:.0%} of {alias}'s requests ({instead.requests:,} of {model.answered:,}) "
                    f"{self._why(alias, instead)}: {other} would have saved {money(instead.saved)}"
                )
                yield Suggestion("cheaper_model", text, instead.saved, instead.requests, model.answered, alias, other)

    def _why(self, alias: str, instead: _Instead) -> str:
        """Why others would do: less quality suffices by every rule that counted, or the rules say so."""
        known = self._catalog.models.get(alias)
        rules = [rule for rule in self._catalog.routing.rules if rule.name in instead.rules]
        if known is not None and all(_is_simple(rule, known) for rule in rules):
            return "were simple"
        return f"are {' and '.join(repr(rule) for rule, _ in instead.rules.most_common())} by the rules of auto"

    def _duplicates(self) -> Iterator[Suggestion]:
        if self._repeated_cost >= MIN_SAVED:
            text = (
                f"{self._repeated:,} of {self._received:,} requests repeated one that had been answered within "
                f"{self._ttl / timedelta(minutes=1):g} minutes: the cache would have saved {money(self._repeated_cost)}"
            )
            yield Suggestion("duplicates", text, self._repeated_cost, self._repeated, self._received)

    def _failures(self) -> Iterator[Suggestion]:
        for alias, model in self._models.items():
            if model.failed_cost >= MIN_SAVED:
                calls = model.failed + model.answered
                text = (
                    f"{model.failed:,} of {calls:,} calls of {alias} gave no whole answer "
                    f"and cost {money(model.failed_cost)} all the same"
                )
                yield Suggestion("failed_calls", text, model.failed_cost, model.failed, calls, alias)

    def _retiring(self) -> Iterator[Suggestion]:
        for alias, model in self._models.items():
            try:
                resolved = self._catalog.resolve(alias, self._today)
            except UnknownModel:  # the catalog has changed since: nothing is known of it
                continue
            retires = resolved.model.retires
            if resolved.moved or retires is None or not retires - WARN_BEFORE <= self._today < retires:
                continue
            if not model.answered:
                continue
            then = "it has no successor"
            saved = Decimal(0)
            answered_cost = model.cost - model.failed_cost
            if model.successor is not None:
                saved = answered_cost - model.successor_cost
                then = (
                    f"the same usage of {model.successor} costs {money(model.successor_cost)} "
                    f"instead of {money(answered_cost)}"
                )
            text = f"{alias} retires on {retires}, and answered {model.answered:,} requests: {then}"
            yield Suggestion("retiring", text, saved, model.answered, model.answered, alias, model.successor)


def _is_simple(rule: Rule, model: CatalogModel) -> bool:
    """Whether the rule says that less quality than the model's suffices, for no other reason than the task itself."""
    return rule.tier < model.tier and rule.prefer is None and rule.above_tokens is None


def usage_of(usage: AuditUsage) -> Usage:
    """The tokens of an audit event, to be priced."""
    return Usage(
        usage.input_fresh,
        usage.cache_read,
        usage.cache_write_5m,
        usage.cache_write_1h,
        usage.tool_input,
        usage.output_visible,
        usage.output_thinking,
    )
