"""The figures of all replicas brought together as the lists of one snapshot: sums, the worst, the oldest. Pure."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bridge.figures import Breaker, Cache, Counts, Figures, LaneCounts, Limit, Model, ModelCounts, Provider
from bridge.quantiles import percentiles, together

LANES: Final = ("critical", "high", "medium", "low")
OUTCOMES: Final = ("completed", "failed", "cancelled", "expired", "dead")
SOURCES: Final = ("call", "cached", "coalesced")
TOKENS: Final = ("input", "output", "cache_read", "cache_write")
MAX_IN_FLIGHT: Final = 200
STALE_S: Final = 5.0
"""Between two answers of a replica: of a longer pause no rate is made."""
_BADNESS: Final = {"closed": 0, "half_open": 1, "open": 2}

Rates = Mapping[tuple[str, str], float]
"""A second, by what and whose: ("received", lane), ("ended", lane), ("calls", provider)."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A replica's last answer, and when it came, in seconds of any one clock."""

    at: float
    figures: Figures
    rates: Rates | None = None

    def then(self, figures: Figures, at: float) -> Heard:
        """The next answer, with what was counted between the two."""
        between_s = at - self.at
        if not 0 < between_s <= STALE_S:
            return Heard(at, figures)
        before, after = _totals(self.figures), _totals(figures)
        return Heard(at, figures, {key: max(0, after[key] - before.get(key, 0)) / between_s for key in after})


def _totals(figures: Figures) -> Counter[tuple[str, str]]:
    totals: Counter[tuple[str, str]] = Counter()
    if figures.metrics is not None:
        for lane, counts in figures.metrics.lanes.items():
            totals["received", lane] += counts.received
            totals["ended", lane] += sum(counts.outcomes.values())
        for called in figures.metrics.models.values():
            totals["calls", called.provider] += called.calls
    return totals


@dataclass(frozen=True, slots=True)
class Depth:
    """Of a lane in the stream: how many wait there, and how many are delivered and not acknowledged."""

    queued: int
    unfinished: int


@dataclass(frozen=True)
class Merge:
    """Everything that replicas told, by name; `depths` has the lanes that the broker could say."""

    heard: Mapping[str, Heard]
    depths: Mapping[str, Depth] = field(default_factory=dict)

    @property
    def counts(self) -> list[Counts]:
        return [one.figures.metrics for one in self.heard.values() if one.figures.metrics is not None]

    @property
    def bounds(self) -> Sequence[float]:
        """The buckets of the most replicas: one of another version cannot be merged into them."""
        seen = Counter(tuple(counts.bounds_s) for counts in self.counts)
        return max(seen, key=lambda bounds: (seen[bounds], bounds), default=())

    def shown(self) -> dict[str, Any]:
        """The parts of a snapshot that come from replicas."""
        return {
            "metrics": bool(self.counts) or not self.heard,
            "replicas": [self._replica(name) for name in sorted(self.heard)],
            "requests_per_s": self._rate("received", LANES),
            "lanes": [self._lane(lane) for lane in LANES],
            "providers": self._providers(),
            **self._in_flight(),
            "cache": _cache([one.figures.cache for one in self.heard.values()]),
        }

    def _replica(self, name: str) -> dict[str, Any]:
        figures = self.heard[name].figures
        loads = {what: getattr(figures, what) for what in ("running", "parked", "held", "tasks")}
        return {"replica": name, **loads}

    def _rate(self, what: str, whose: Iterable[str]) -> float | None:
        """Summed up; None where no replica has been heard twice."""
        known = [one.rates for one in self.heard.values() if one.rates is not None]
        if not known:
            return None
        return round(sum(rates.get((what, one), 0.0) for rates in known for one in whose), 3)

    def _lane(self, lane: str) -> dict[str, Any]:
        counts = [found for one in self.counts if (found := one.lanes.get(lane)) is not None]
        depth = self.depths.get(lane)
        return {
            "lane": lane,
            "queued": None if depth is None else depth.queued,
            "unfinished": None if depth is None else depth.unfinished,
            "received": sum(one.received for one in counts),
            "given_back": sum(one.given_back for one in counts),
            "outcomes": _summed((one.outcomes for one in counts), OUTCOMES),
            "answered_from": _summed((one.answered_from for one in counts), SOURCES),
            "failed_by": _summed(one.failed_by for one in counts),
            "refused": _summed(one.refused for one in counts),
            "received_per_s": self._rate("received", [lane]),
            "ended_per_s": self._rate("ended", [lane]),
            "wait": percentiles(self.bounds, together(self._waits(lane))),
        }

    def _waits(self, lane: str) -> list[list[int]]:
        return [found.recent_wait for one in self._alike if (found := one.lanes.get(lane, LaneCounts())).recent_wait]

    @property
    def _alike(self) -> list[Counts]:
        return [counts for counts in self.counts if tuple(counts.bounds_s) == tuple(self.bounds)]

    def _providers(self) -> list[dict[str, Any]]:
        told: dict[str, list[Provider]] = {}
        for one in self.heard.values():
            for provider in one.figures.providers:
                told.setdefault(provider.provider, []).append(provider)
        return [self._provider(name, told[name]) for name in sorted(told)]

    def _provider(self, name: str, told: list[Provider]) -> dict[str, Any]:
        models: dict[str, list[Model]] = {}
        for provider in told:
            for model in provider.models:
                models.setdefault(model.model, []).append(model)
        shown = [self._model(alias, models[alias]) for alias in sorted(models)]
        return {
            "provider": name,
            "configured": any(provider.configured for provider in told),
            "callable": any(model["callable"] for model in shown),
            "breaker": _worst([provider.breaker for provider in told]),
            "limits": _limits([provider.limits for provider in told]),
            "recent": self._recent(models),
            "calls_per_s": self._rate("calls", [name]),
            "models": shown,
        }

    def _model(self, alias: str, told: list[Model]) -> dict[str, Any]:
        counts = [found for one in self.counts if (found := one.models.get(alias)) is not None]
        return {
            "model": alias,
            "id": told[0].id,
            "callable": any(model.callable for model in told),
            "breaker": _worst([model.breaker for model in told]),
            "calls": sum(one.calls for one in counts),
            "errors": _summed(one.errors for one in counts),
            "tokens": _summed((one.tokens for one in counts), TOKENS),
            "cost_usd": round(sum(one.cost_usd for one in counts), 12),
            "limits": _limits([model.limits for model in told]),
            "recent": self._recent([alias]),
            "last_minute": {
                "requests": sum(one.last_minute.requests for one in counts),
                "tokens": sum(one.last_minute.tokens for one in counts),
            },
        }

    def _recent(self, aliases: Collection[str]) -> dict[str, Any]:
        """Of the last minutes, these models together."""
        every = _of(self.counts, aliases)
        calls, errors = sum(one.recent.calls for one in every), sum(one.recent.errors for one in every)
        alike = _of(self._alike, aliases)
        return {
            "window_s": round(max((one.recent_s for one in self.counts), default=300)),
            "calls": calls,
            "errors": errors,
            "error_rate": round(errors / calls, 4) if calls else None,
            "first_token": percentiles(self.bounds, together(one.recent.first_token for one in alike)),
            "duration": percentiles(self.bounds, together(one.recent.duration for one in alike)),
        }

    def _in_flight(self) -> dict[str, Any]:
        """The oldest; an id that two replicas hold is listed once, with the one that is at work on it."""
        order = ("calling", "waiting", "queued")
        found: dict[str, dict[str, Any]] = {}
        for replica, one in self.heard.items():
            for request in one.figures.in_flight:
                shown = {name: getattr(request, name) for name in request.__struct_fields__} | {"replica": replica}
                other = found.setdefault(request.id, shown)
                if request.state in order and order.index(request.state) < _place(order, other["state"]):
                    found[request.id] = shown
        listed = heapq.nlargest(MAX_IN_FLIGHT, found.values(), key=lambda request: request["age_s"])
        held = sum(max(one.figures.held, len(one.figures.in_flight)) for one in self.heard.values())
        return {"in_flight": listed, "in_flight_total": max(held, len(listed))}


def _place(order: Sequence[str], state: str) -> int:
    return order.index(state) if state in order else len(order)


def _of(counts: Iterable[Counts], aliases: Collection[str]) -> list[ModelCounts]:
    return [found for one in counts for alias in aliases if (found := one.models.get(alias)) is not None]


def _summed(counters: Iterable[Mapping[str, int]], always: Iterable[str] = ()) -> dict[str, int]:
    total = dict.fromkeys(always, 0)
    for counter in counters:
        for key, value in counter.items():
            total[key] = total.get(key, 0) + value
    return total


def _worst(breakers: Sequence[Breaker]) -> dict[str, Any]:
    """The state that is furthest from closed, and the longest wait of those in it."""
    worst = max(breakers, key=lambda one: (_BADNESS.get(one.state, 2), one.ready_in_s), default=Breaker())
    not_closed = sum(one.state != "closed" for one in breakers)
    return {"state": worst.state, "ready_in_s": worst.ready_in_s, "replicas": not_closed}


def _limits(told: Iterable[Sequence[Limit]]) -> list[dict[str, Any]]:
    """What all replicas together took of each limit: each tells its own part. Of limits that differ, the smallest."""
    found: dict[str, dict[str, Any]] = {}
    for limits in told:
        for one in limits:
            shown = found.setdefault(
                one.metric, {"metric": one.metric, "used": 0, "limit": one.limit, "window_s": one.window_s}
            )
            shown["used"] += one.used
            shown["limit"] = min(shown["limit"], one.limit)
    return list(found.values())


def _cache(told: Sequence[Cache]) -> dict[str, Any]:
    hits, coalesced, misses = (sum(getattr(one, what) for one in told) for what in ("hits", "coalesced", "misses"))
    looked = hits + coalesced + misses
    return {
        "hits": hits,
        "coalesced": coalesced,
        "misses": misses,
        "saved_usd": round(sum(one.saved_usd for one in told), 12),
        "hit_rate": round((hits + coalesced) / looked, 4) if looked else None,
    }
