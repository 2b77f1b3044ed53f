"""What a replica shows of itself beside its counts: the requests it holds, and how its vendors and limits stand."""

from __future__ import annotations

import heapq
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any, Final

from processor.bucket import WINDOW_S, Metric
from processor.catalog import Catalog, CatalogModel
from processor.estimate import Learned
from processor.health import Health, Place
from processor.job import Job
from processor.lanes import Delivery
from processor.limits import Limits

MAX_LISTED: Final = 200
"""Of the requests in flight, the oldest."""


def in_flight(
    running: Mapping[str, Job], held: Collection[Delivery], now: datetime, most: int = MAX_LISTED
) -> list[dict[str, Any]]:
    """The oldest of the requests that this replica holds, `age_s` seconds since the queue took them.

    `state` is `queued` before work begins, `calling` while a vendor is at work, else `waiting`. Whose a request is that
    nobody has read yet is not known.
    """
    unread = (delivery for delivery in held if delivery.request_id not in running)
    oldest = heapq.nsmallest(
        most, [*(job.delivery for job in running.values()), *unread], key=lambda delivery: delivery.accepted
    )
    return [_shown(delivery, running.get(delivery.request_id), now) for delivery in oldest]


def _shown(delivery: Delivery, job: Job | None, now: datetime) -> dict[str, Any]:
    state = "queued"
    if job is not None and job.call is not None:
        state = "calling" if job.tally.under_way else "waiting"
    return {
        "id": delivery.request_id,
        "lane": delivery.priority,
        "tenant": None if job is None else job.tenant,
        "model": None if job is None else job.tally.model,
        "state": state,
        "age_s": round(max(0.0, (now - delivery.accepted).total_seconds()), 3),
        "attempt": 0 if job is None else job.tally.attempts,
        "stream": job is not None and job.streamed,
    }


class Vendors:
    """How every provider of the catalog stands, as this replica sees it."""

    def __init__(
        self, catalog: Catalog, health: Health, limits: Limits, learned: Learned, configured: Collection[str]
    ) -> None:
        self._catalog = catalog
        self._learned = learned
        self._health = health
        self._limits = limits
        self._configured = configured

    def shown(self) -> list[dict[str, Any]]:
        """Each provider with its breaker, what was taken of its limits, and the models that it serves today."""
        today = datetime.now(UTC).date()
        by_provider: dict[str, list[CatalogModel]] = {}
        for model in self._catalog.models.values():
            by_provider.setdefault(model.provider, []).append(model)
        return [
            {
                "provider": provider,
                "configured": provider in self._configured,
                "breaker": self._breaker((provider, "")),
                "limits": list(self._used(provider, "")),
                "models": list(self._models(models, today)) if provider in self._configured else [],
            }
            for provider, models in by_provider.items()
        ]

    def outlook(self, model: CatalogModel, today: date) -> dict[str, Any]:
        """What routing sees of it: whether a call may start now, how fast it was, the free share of its limits."""
        why_not = self.why_not(model, today)
        first_token_s, tokens_per_s = self._learned.speed(model.alias, time.monotonic()) or (None, None)
        room = self._limits.room(model)
        return {
            "callable": why_not is None,
            "why_not": why_not,
            "first_token_s": None if first_token_s is None else round(first_token_s, 3),
            "tokens_per_s": None if tokens_per_s is None else round(tokens_per_s, 1),
            "room": None if room is None else round(room, 3),
        }

    def why_not(self, model: CatalogModel, today: date) -> str | None:
        """Why no call of the model may start now, whatever its limits have left; None where one may."""
        if model.retired(today):
            return "its vendor no longer serves it"
        if model.provider not in self._configured:
            return f"provider {model.provider} is not configured"
        unwell = self._health.refusal(model)
        return None if unwell is None else unwell.why

    def _models(self, models: Collection[CatalogModel], today: date) -> Iterator[dict[str, Any]]:
        for model in models:
            if not model.retired(today):
                yield {
                    "model": model.alias,
                    "id": model.id,
                    "callable": self.why_not(model, today) is None,
                    "breaker": self._breaker((model.provider, model.alias)),
                    "limits": list(self._used(model.provider, model.alias)),
                }

    def _breaker(self, place: Place) -> dict[str, Any]:
        state, ready_in_s = self._health.standing(place)
        return {"state": state, "ready_in_s": round(ready_in_s, 3)}

    def _used(self, provider: str, alias: str) -> Iterator[dict[str, Any]]:
        table = self._catalog.models[alias].limits if alias else self._catalog.limits.get(provider)
        metric: Metric
        for metric, (used, limit) in self._limits.used(provider, alias, table).items():
            yield {"metric": metric, "used": used, "limit": limit, "window_s": round(WINDOW_S[metric])}
