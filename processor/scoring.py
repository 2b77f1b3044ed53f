"""How good a model is for a request: quality, price, speed, health and room as one figure, higher is better. Pure.

A doubling is the unit of price and latency: what costs twice as much, or takes twice as long, loses the same
everywhere. All weights stand here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from processor.rules import Weigh

PREFERRED: Final = 10.0
"""For the first model that a rule prefers, a half of it for the second, a third for the third …

So much, and with such steps, that price and latency do not turn a rule's order round: of the shipped models the dearest
costs about 50 times what the cheapest does, six doublings. Health and room do turn it."""
PRICE: Final[Mapping[Weigh, float]] = {"balanced": 0.5, "cost": 1.5, "speed": 0.25, "quality": 0.25}
"""What each doubling of the cheapest candidate's price takes off. With "cost" it may outweigh a second preference, and
the first one still holds against a model at a sixteenth of its price."""
LATENCY: Final[Mapping[Weigh, float]] = {"balanced": 0.5, "cost": 0.25, "speed": 3.0, "quality": 0.25}
"""What each doubling of the fastest candidate's time takes off."""
MOST_DOUBLINGS: Final = 8.0
"""So that no price and no latency outweighs that a model is unwell."""
SHORTFALL: Final = 2.0
"""For each tier below the one that suffices."""
SAME_VENDOR: Final = 1.0
"""For a fallback of the vendor whose model was asked for: what stops one often stops the other. Less than a tier."""
QUALITY: Final = 5.0
"""For each tier, where quality alone decides: more than latency (weighed as for "quality"), room that is not scarce and
the vendor take off together, so these only part models of one tier."""
THRIFT: Final = 2.0
"""How many times its weight, or that of "balanced" if this is more, the price has where the budget is nearly used."""
SCARCE: Final = 0.1
"""Of a model with less free than this share of its tightest limit the next request may have to wait …"""
SCARCE_LOSS: Final = 12.0
"""… so it loses more than a preference is worth."""
ROOM: Final = 2.0
"""What a model loses just before; nothing while all is free."""
UNWELL: Final = 150.0
"""More than all else together: a model that may not be called now comes after all that may."""
FREE_AS: Final = Decimal("0.5")
"""A free model counts as one at half the price of the cheapest that is not: a ratio to nothing would be infinite."""


@dataclass(frozen=True, slots=True)
class Aspects:
    """What is known of one candidate for one request."""

    tier: int
    cost_usd: Decimal
    preferred: int | None = None
    """Its place among the models that the rule prefers, from 0."""
    latency_s: float | None = None
    """To the end of the answer; None where it was not measured."""
    room: float | None = None
    """The free share of its tightest limit, from 0 to 1; None where there is none."""
    unwell: bool = False
    same_vendor: bool = False
    """It is a fallback, and of the vendor whose model was asked for."""


@dataclass(frozen=True, slots=True)
class Aims:
    """What counts. `quality_only`: neither preference nor price, the tier in their place. `thrifty` goes before it."""

    weigh: Weigh = "balanced"
    tier: int = 1
    quality_only: bool = False
    thrifty: bool = False


def scores(candidates: Sequence[Aspects], aims: Aims) -> list[float]:
    """One score for each candidate. They compare only with each other: price and latency are relative to the best."""
    prices = _doublings(_prices([candidate.cost_usd for candidate in candidates]))
    measured = [candidate.latency_s for candidate in candidates if candidate.latency_s is not None]
    fastest = min(measured, default=0.0)
    found = []
    for candidate, dearer in zip(candidates, prices, strict=True):
        score = -SHORTFALL * max(0, aims.tier - candidate.tier)
        weigh = aims.weigh
        if aims.thrifty:
            score -= THRIFT * max(PRICE[weigh], PRICE["balanced"]) * dearer
        elif aims.quality_only:
            score += QUALITY * candidate.tier
            weigh = "quality"
        else:
            score -= PRICE[weigh] * dearer
            score += 0.0 if candidate.preferred is None else PREFERRED / (candidate.preferred + 1)
        if candidate.latency_s is not None:
            score -= LATENCY[weigh] * _doubled(candidate.latency_s, fastest)
        if candidate.room is not None:
            score -= SCARCE_LOSS if candidate.room < SCARCE else ROOM * (1 - candidate.room)
        score -= SAME_VENDOR * candidate.same_vendor + UNWELL * candidate.unwell
        found.append(round(score, 3))
    return found


def _prices(costs: Sequence[Decimal]) -> list[float]:
    cheapest = min((cost for cost in costs if cost), default=Decimal(1))
    return [float(cost or cheapest * FREE_AS) for cost in costs]


def _doublings(values: Sequence[float]) -> list[float]:
    least = min(values, default=1.0)
    return [_doubled(value, least) for value in values]


def _doubled(value: float, least: float) -> float:
    """How many times `least` is doubled until it is `value`."""
    if value <= least:
        return 0.0
    return MOST_DOUBLINGS if least <= 0 else min(MOST_DOUBLINGS, math.log2(value / least))
