"""What a replica tells of itself in `$SRV.STATS.sidecar`, decoded; what it does not tell has its default. Pure.

The models follow `Processor.figures`. All of it is another process's word: a wrong type refuses that replica's answer,
and no list is longer than a message.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct, field

ENDPOINT = "models"
"""In whose statistics all figures are."""
MAX_NAME = 200

Count = Annotated[int, Meta(ge=0, le=2**53)]
Amount = Annotated[float, Meta(ge=0, le=1e15)]
"""Bounded, so that sums of many can be written as JSON."""


class Histogram(Struct, frozen=True):
    counts: list[Count] = field(default_factory=list)
    sum_s: Amount = 0.0


class Breaker(Struct, frozen=True):
    state: str = "closed"
    ready_in_s: Amount = 0.0


class Limit(Struct, frozen=True):
    metric: str
    used: Count
    limit: Count
    window_s: Count


class Model(Struct, frozen=True):
    model: str
    id: str = ""
    callable: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    limits: list[Limit] = field(default_factory=list)


class Provider(Struct, frozen=True):
    provider: str
    configured: bool = False
    breaker: Breaker = field(default_factory=Breaker)
    limits: list[Limit] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)


class InFlight(Struct, frozen=True):
    id: str
    lane: str
    state: str
    age_s: Amount
    tenant: str | None = None
    model: str | None = None
    attempt: Count = 0
    stream: bool = False


class Cache(Struct, frozen=True):
    hits: Count = 0
    misses: Count = 0
    coalesced: Count = 0
    saved_usd: Amount = 0.0


class LaneCounts(Struct, frozen=True):
    received: Count = 0
    given_back: Count = 0
    outcomes: dict[str, Count] = field(default_factory=dict)
    answered_from: dict[str, Count] = field(default_factory=dict)
    failed_by: dict[str, Count] = field(default_factory=dict)
    refused: dict[str, Count] = field(default_factory=dict)
    wait: Histogram = field(default_factory=Histogram)
    recent_wait: list[Count] = field(default_factory=list)


class RecentCalls(Struct, frozen=True):
    calls: Count = 0
    errors: Count = 0
    first_token: list[Count] = field(default_factory=list)
    duration: list[Count] = field(default_factory=list)


class LastMinute(Struct, frozen=True):
    requests: Count = 0
    tokens: Count = 0


class ModelCounts(Struct, frozen=True):
    provider: str = ""
    calls: Count = 0
    errors: dict[str, Count] = field(default_factory=dict)
    tokens: dict[str, Count] = field(default_factory=dict)
    cost_usd: Amount = 0.0
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)
    recent: RecentCalls = field(default_factory=RecentCalls)
    last_minute: LastMinute = field(default_factory=LastMinute)


class Counts(Struct, frozen=True):
    """`bounds_s` are the buckets' upper ends; a histogram has one bucket more."""

    bounds_s: list[Amount] = field(default_factory=list)
    recent_s: Amount = 300.0
    lanes: dict[str, LaneCounts] = field(default_factory=dict)
    models: dict[str, ModelCounts] = field(default_factory=dict)


class Figures(Struct, frozen=True):
    """`metrics` is None where the replica counts nothing."""

    running: Count = 0
    parked: Count = 0
    held: Count = 0
    tasks: Count = 0
    cache: Cache = field(default_factory=Cache)
    in_flight: list[InFlight] = field(default_factory=list)
    providers: list[Provider] = field(default_factory=list)
    metrics: Counts | None = None


class _Endpoint(Struct):
    name: str
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Statistics(Struct):
    metadata: dict[str, str]
    endpoints: list[_Endpoint]


_STATISTICS = msgspec.json.Decoder(_Statistics)
_FIGURES = msgspec.json.Decoder(Figures)


def decode_statistics(body: bytes) -> tuple[str, Figures]:
    """The replica's name and its figures.

    Raises:
        ValueError: it is no answer of a sidecar, or of one whose figures we cannot read.
    """
    try:
        return _decoded(body)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _decoded(body: bytes) -> tuple[str, Figures]:
    told = _STATISTICS.decode(body)
    replica = told.metadata.get("replica", "")
    if not 0 < len(replica) <= MAX_NAME:
        raise ValueError("it names no replica")
    for endpoint in told.endpoints:
        if endpoint.name == ENDPOINT:
            return replica, _FIGURES.decode(endpoint.data)
    raise ValueError(f"it has no endpoint {ENDPOINT!r}")
