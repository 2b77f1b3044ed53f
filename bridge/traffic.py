"""What the bridge itself counts: its requests by route, how long they took, and the streams that are open."""

from __future__ import annotations

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER: Final = "other"
"""A method that is none, a path that is none of ours: whoever asks may not make up labels."""
_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Traffic:
    """The bridge's own figures, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "sidecar_http_requests", "HTTP requests answered.", ("route", "method", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "sidecar_http_request_duration_seconds",
            "Until the last byte of an answer, streams too.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._streams = Gauge("sidecar_http_streams_open", "Streams of events under way.", registry=self.registry)
        self.watchers = Gauge("sidecar_watchers", "Who looks at the live feed.", registry=self.registry)

    def begin_stream(self) -> None:
        self._streams.inc()

    def end_stream(self) -> None:
        self._streams.dec()

    def ended(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered; `status` is 0 where its client went away before."""
        route = getattr(scope.get("route"), "path", OTHER)
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Counting:
    """Around all else, so that what is refused at the door is counted too."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, streams = time.perf_counter(), 0, False

        async def send_on(message: Message) -> None:
            nonlocal status, streams
            if message["type"] == "http.response.start":
                status = message["status"]
                streams = any(
                    name.lower() == b"content-type" and value.startswith(b"text/event-stream")
                    for name, value in message["headers"]
                )
                if streams:
                    self._traffic.begin_stream()
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            if streams:
                self._traffic.end_stream()
            self._traffic.ended(scope, status, time.perf_counter() - began)
        return None
