"""What is known of the models at this moment, brought together from where each thing is known: routes by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from processor.catalog import Catalog
from processor.estimate import Learned
from processor.health import Health
from processor.limits import Limits
from processor.messages import Request
from processor.router import Conditions, Route, route
from processor.traits import Traits, traits


class Lookout:
    """Routes requests by what this replica sees. No I/O: it stands on the way of every request.

    `thrifty` says of a tenant whether a budget that concerns it is nearly used.
    """

    def __init__(
        self,
        catalog: Catalog,
        learned: Learned,
        health: Health,
        limits: Limits,
        *,
        available: Collection[str],
        default_model: str,
        by_quality: bool,
        thrifty: Callable[[str], bool] = lambda tenant: False,
    ) -> None:
        self._catalog = catalog
        self._learned = learned
        self._health = health
        self._limits = limits
        self._available = available
        self._default_model = default_model
        self._by_quality = by_quality
        self._thrifty = thrifty

    def route(self, request: Request) -> Route:
        """The route of `request` now. Raises RequestError, `not_found` for a model that the catalog does not have."""
        given = traits(request)
        return route(given, self._catalog, self.conditions(given, request.tenant))

    def conditions(self, given: Traits, tenant: str) -> Conditions:
        """What is known now of the models that are configured."""
        unwell: dict[str, str] = {}
        latency: dict[str, tuple[float, float]] = {}
        room: dict[str, float] = {}
        usual_output: dict[str, int] = {}
        now = time.monotonic()
        for alias, model in self._catalog.models.items():
            if model.provider not in self._available:
                continue
            if (refusal := self._health.refusal(model)) is not None:
                unwell[alias] = refusal.why
            if (speed := self._learned.speed(alias, now)) is not None:
                latency[alias] = speed
            counted = self._learned.counted_input(alias, given.input_tokens)
            if (free := self._limits.room(model, counted)) is not None:
                room[alias] = free
            if (usual := self._learned.usual_output(alias)) is not None:
                usual_output[alias] = usual
        return Conditions(
            datetime.now(UTC),
            self._available,
            self._default_model,
            unwell=unwell,
            latency=latency,
            room=room,
            usual_output=usual_output,
            by_quality=self._by_quality,
            thrifty=self._thrifty(tenant),
        )
