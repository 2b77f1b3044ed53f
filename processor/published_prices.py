"""The published prices that the package genai-prices keeps, as our own price lists."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, StartDateConstraint, TieredPrices

from processor.pricing import Price, PriceList, Rates

_PROVIDER = {"gemini": "google"}
"""Where genai-prices names a provider otherwise."""


def published(provider: str, model_id: str) -> PriceList | None:
    """The prices of a model over time, from the data in the installed package (never from the network), or None."""
    try:
        _, model = get_snapshot().find_provider_model(model_id, None, _PROVIDER.get(provider, provider), None)
    except LookupError:
        return None
    days = {date.min}
    if isinstance(model.prices, list):
        days |= {p.constraint.start_date for p in model.prices if isinstance(p.constraint, StartDateConstraint)}
    found = [
        price for day in days for price in _prices(model.get_prices(datetime.combine(_real(day), time(12), UTC)), day)
    ]
    return PriceList.of(found) if found else None


def _real(day: date) -> date:
    return max(day, date(2000, 1, 1))


def _prices(price: ModelPrice, valid_from: date) -> list[Price]:
    """One price for each tier; none where even input or output is unpriced."""
    if price.input_mtok is None or price.output_mtok is None:
        return []
    fields = [price.input_mtok, price.output_mtok, price.cache_read_mtok]
    fields += [price.cache_write_mtok, price.cache_write_1h_mtok]
    starts = {0} | {tier.start for field in fields if isinstance(field, TieredPrices) for tier in field.tiers}
    return [Price(_rates(price, start), valid_from, start) for start in sorted(starts)]


def _rates(price: ModelPrice, start: int) -> Rates:
    """What is not priced apart costs what fresh input costs; a one-hour cache write, what a five-minute one does."""

    def at(field: Decimal | TieredPrices | None, otherwise: Decimal) -> Decimal:
        if field is None:
            return otherwise
        if isinstance(field, TieredPrices):
            return next((tier.price for tier in reversed(field.tiers) if start >= tier.start), field.base)
        return field

    fresh = at(price.input_mtok, Decimal(0))
    write = at(price.cache_write_mtok, fresh)
    return Rates(
        input=fresh,
        output=at(price.output_mtok, Decimal(0)),
        cache_read=at(price.cache_read_mtok, fresh),
        cache_write_5m=write,
        cache_write_1h=at(price.cache_write_1h_mtok, write),
    )
