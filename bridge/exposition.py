"""A snapshot as Prometheus reads it: a series for each replica, and what the broker and the counters say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from bridge.figures import Breaker, Counts, Figures, Histogram, Limit, Provider
from bridge.snapshot import Frame

BREAKER: Final = {"closed": 0, "half_open": 1, "open": 2}
_Values = Iterable[tuple[Sequence[str], float]]
"""Each with the values of its labels."""
_Family = TypeVar("_Family", CounterMetricFamily, GaugeMetricFamily)
_CALLED: Final = ("replica", "provider", "model")


class Exposition:
    """The families of one frame, as prometheus-client's encoders take them."""

    def __init__(self, frame: Frame, alerts: Mapping[str, int]) -> None:
        self._frame = frame
        self._alerts = alerts

    def collect(self) -> Iterator[Metric]:
        figures = self._frame.figures
        counts = {name: one.metrics for name, one in figures.items() if one.metrics is not None}
        yield from _lanes(counts)
        yield from _models(counts)
        yield from _replicas(figures)
        yield from _vendors(figures)
        yield from _broker(self._frame.snapshot)
        yield from _spend(self._frame.snapshot["spend"])
        alerts = CounterMetricFamily("sidecar_alerts", "Alerts that this bridge has heard.", labels=["severity"])
        for severity, number in self._alerts.items():
            alerts.add_metric([severity], number)
        yield alerts


def _counter(name: str, says: str, labels: Sequence[str], values: _Values) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(name, says, labels=labels), values)


def _gauge(name: str, says: str, labels: Sequence[str], values: _Values) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(name, says, labels=labels), values)


def _filled(family: _Family, values: _Values) -> _Family:
    for named, value in values:
        family.add_metric(named, value)
    return family


def _histogram(
    name: str, says: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], Counts, Histogram]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, says, labels=labels)
    for named, counts, histogram in values:
        ends = [*(f"{bound:g}" for bound in counts.bounds_s), "+Inf"]
        if len(histogram.counts) == len(ends):
            buckets = list(zip(ends, map(float, accumulate(histogram.counts)), strict=True))
            family.add_metric(named, buckets, histogram.sum_s)
    return family


def _lanes(counts: Mapping[str, Counts]) -> Iterator[Metric]:
    lanes = [([replica, lane], told, one) for replica, told in counts.items() for lane, one in told.lanes.items()]
    by_lane = ("replica", "lane")
    yield _counter(
        "sidecar_requests_received",
        "Requests that a worker has begun, or that were ended in the queue.",
        by_lane,
        ((named, one.received) for named, _, one in lanes),
    )
    yield _counter(
        "sidecar_requests_given_back",
        "Requests begun here that went on elsewhere or later.",
        by_lane,
        ((named, one.given_back) for named, _, one in lanes),
    )
    for name, says, label, of in (
        ("ended", "Requests by their one outcome.", "outcome", "outcomes"),
        ("answered", "Completed requests by what answered them.", "source", "answered_from"),
        ("failed", "Failed and dead requests by the error that the client got.", "error", "failed_by"),
        ("refused", "Asks that were not let into the queue.", "error", "refused"),
    ):
        yield _counter(
            f"sidecar_requests_{name}",
            says,
            (*by_lane, label),
            (([*named, key], value) for named, _, one in lanes for key, value in getattr(one, of).items()),
        )
    yield _histogram(
        "sidecar_queue_wait_seconds",
        "From acceptance by the queue to the beginning of work.",
        by_lane,
        ((named, told, one.wait) for named, told, one in lanes),
    )


def _models(counts: Mapping[str, Counts]) -> Iterator[Metric]:
    models = [
        ([replica, one.provider, alias], told, one)
        for replica, told in counts.items()
        for alias, one in told.models.items()
    ]
    yield _counter(
        "sidecar_calls", "Calls to vendors that have ended.", _CALLED, ((named, one.calls) for named, _, one in models)
    )
    yield _counter(
        "sidecar_call_errors",
        "Calls without a complete answer, by kind.",
        (*_CALLED, "error"),
        (([*named, kind], value) for named, _, one in models for kind, value in one.errors.items()),
    )
    yield _counter(
        "sidecar_tokens",
        "Tokens; cache_read and cache_write are parts of input.",
        (*_CALLED, "kind"),
        (([*named, kind], value) for named, _, one in models for kind, value in one.tokens.items()),
    )
    yield _counter(
        "sidecar_cost_usd", "What calls have cost.", _CALLED, ((named, one.cost_usd) for named, _, one in models)
    )
    yield _histogram(
        "sidecar_first_token_seconds",
        "From a call's beginning to its first token.",
        _CALLED,
        ((named, told, one.first_token) for named, told, one in models),
    )
    yield _histogram(
        "sidecar_call_duration_seconds",
        "Of calls that gave a complete answer.",
        _CALLED,
        ((named, told, one.duration) for named, told, one in models),
    )


def _replicas(figures: Mapping[str, Figures]) -> Iterator[Metric]:
    for name, says in (
        ("running", "Requests in work, the parked ones too."),
        ("parked", "Requests that wait without a worker."),
        ("held", "Deliveries that are not acknowledged yet."),
        ("tasks", "Tasks of the event loop."),
    ):
        values = (([replica], float(getattr(one, name))) for replica, one in figures.items())
        yield _gauge(f"sidecar_{name}", says, ["replica"], values)
    yield _counter(
        "sidecar_cache_lookups",
        "Looks into the cache, by what was found.",
        ("replica", "result"),
        (
            ([replica, result], value)
            for replica, one in figures.items()
            for result, value in (
                ("hit", one.cache.hits),
                ("coalesced", one.cache.coalesced),
                ("miss", one.cache.misses),
            )
        ),
    )
    yield _counter(
        "sidecar_cache_saved_usd",
        "What reused answers would have cost.",
        ["replica"],
        (([replica], one.cache.saved_usd) for replica, one in figures.items()),
    )


def _vendors(figures: Mapping[str, Figures]) -> Iterator[Metric]:
    told = [(replica, one) for replica, all_of in figures.items() for one in all_of.providers if one.configured]
    places = [place for replica, provider in told for place in _places(replica, provider)]
    yield _gauge(
        "sidecar_breaker_state",
        "0 closed, 1 half open, 2 open; the model is empty for a provider's own.",
        _CALLED,
        ((named, float(BREAKER.get(breaker.state, 2))) for named, breaker, _ in places),
    )
    limits = [([*named, limit.metric], limit) for named, _, its in places for limit in its]
    labels = (*_CALLED, "metric")
    yield _gauge(
        "sidecar_limit_used",
        "What this replica took of a vendor's limit in its window: sum the replicas up.",
        labels,
        ((named, float(limit.used)) for named, limit in limits),
    )
    yield _gauge(
        "sidecar_limit_size",
        "A vendor's limit, which all replicas share.",
        labels,
        ((named, float(limit.limit)) for named, limit in limits),
    )
    yield _gauge(
        "sidecar_model_callable",
        "Whether a call may start now, whatever its limits have left.",
        _CALLED,
        (
            ([replica, provider.provider, model.model], float(model.callable))
            for replica, provider in told
            for model in provider.models
        ),
    )


def _places(replica: str, provider: Provider) -> Iterator[tuple[list[str], Breaker, list[Limit]]]:
    yield [replica, provider.provider, ""], provider.breaker, provider.limits
    for model in provider.models:
        yield [replica, provider.provider, model.model], model.breaker, model.limits


def _broker(snapshot: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("sidecar_broker_up", "Whether the broker answers.", [], [([], snapshot["state"] != "no_broker")])
    yield _gauge("sidecar_replicas", "Replicas that answer.", [], [([], len(snapshot["replicas"]))])
    for name, says in (
        ("queued", "Requests that wait in the stream."),
        ("unfinished", "Requests that are delivered and not acknowledged."),
    ):
        values = (([lane["lane"]], lane[name]) for lane in snapshot["lanes"] if lane[name] is not None)
        yield _gauge(f"sidecar_queue_{name}", says, ["lane"], values)


def _spend(spend: Mapping[str, Any] | None) -> Iterator[Metric]:
    """Of all tenants together: theirs are in `sidecar usage`, and have no bound."""
    if spend is None:
        return
    sums = (("today", spend["today_usd"]), ("month", spend["month_usd"]), ("projection", spend["projection_usd"]))
    values = (([period], value) for period, value in sums if value is not None)
    yield _gauge("sidecar_spend_usd", "Spent today and this month (UTC), and by its end.", ["period"], values)
    budgets = [budget for budget in spend["budgets"] if budget["budget"].startswith("the ")]
    yield _gauge(
        "sidecar_budget_used_ratio",
        "How much of a budget of all tenants is spent; 1 is all of it.",
        ["budget"],
        (([budget["budget"]], budget["share"]) for budget in budgets),
    )
