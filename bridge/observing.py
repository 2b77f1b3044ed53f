"""The routes for those who operate the sidecars: `/metrics` for Prometheus, `/ready` for load balancers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector as Collects

from bridge.bodies import json_response
from bridge.exposition import Exposition
from bridge.live import of_operators
from bridge.readiness import readiness
from bridge.snapshot import Collector
from bridge.traffic import Traffic
from processor.errors import ErrorType, RequestError

NOT_READY = 503


def observing(collector: Collector, traffic: Traffic, *, enabled: bool) -> APIRouter:
    """The routes; `enabled` is ENABLE_METRICS."""
    router = APIRouter()

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """All figures, in the text format or OpenMetrics, as Accept says."""
        if not enabled:
            raise RequestError(ErrorType.NOT_FOUND, "nothing is counted: ENABLE_METRICS is false")
        of_operators(request)
        frame = await collector.latest()
        encode, content_type = _encoder(request.headers.get("accept", ""))
        # In a thread: of many replicas there is much to write, and meanwhile streams go on.
        both = _Both(traffic.registry, Exposition(frame, dict(collector.alerts.counts)))
        body = await asyncio.to_thread(encode, both)
        return Response(body, media_type=content_type)

    @router.get("/ready")
    async def ready() -> Response:
        """Whether requests can be answered now, and if not, what is missing."""
        try:
            found = readiness((await collector.latest()).snapshot)
        except RequestError:
            found = readiness(None)
        return json_response(found, 200 if found["ready"] else NOT_READY)

    return router


def _encoder(accept: str) -> tuple[Callable[[Collects], bytes], str]:
    try:
        return choose_encoder(accept)
    except (ValueError, TypeError):  # a version that is none
        return choose_encoder("")


class _Both(Collects):
    """Two collectors as one."""

    def __init__(self, own: CollectorRegistry, told: Exposition) -> None:
        self._parts: tuple[Callable[[], Iterator[Metric]], ...] = (lambda: iter(own.collect()), told.collect)

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            yield from part()
