"""Quantiles estimated from histograms, of one replica or of many together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest


def together(histograms: Iterable[Sequence[int]]) -> list[int]:
    """The sums of all buckets."""
    total: list[int] = []
    for counts in histograms:
        total = [a + b for a, b in zip_longest(total, counts, fillvalue=0)]
    return total


def quantile(bounds: Sequence[float], counts: Sequence[int], q: float) -> float | None:
    """The value below which the share `q` lies, taking each bucket as evenly filled; None where nothing was counted.

    What lies beyond the last of `bounds` is taken to be that bound.
    """
    total = sum(counts)
    if total <= 0 or not bounds:
        return None
    rank, below = q * total, 0
    for index, count in enumerate(counts):
        if count > 0 and below + count >= rank:
            if index >= len(bounds):
                break
            lower = bounds[index - 1] if index else 0.0
            return lower + (bounds[index] - lower) * max(0.0, rank - below) / count
        below += count
    return bounds[-1]


def percentiles(bounds: Sequence[float], counts: Sequence[int]) -> dict[str, float | None]:
    """p50, p95 and p99, in seconds."""
    found = {name: quantile(bounds, counts, q) for name, q in (("p50_s", 0.5), ("p95_s", 0.95), ("p99_s", 0.99))}
    return {name: None if value is None else round(value, 6) for name, value in found.items()}
