"""What a call costs: usage times a dated, tiered price list, exact to the last digit. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from providers.base import Usage

PER = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Rates:
    """US dollars per million tokens."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """US dollars. Thinking is output; a tool's input is input."""
        return (
            self.input * (usage.input_fresh + usage.tool_input)
            + self.cache_read * usage.cache_read
            + self.cache_write_5m * usage.cache_write_5m
            + self.cache_write_1h * usage.cache_write_1h
            + self.output * usage.output_tokens
        ) / PER


@dataclass(frozen=True, slots=True)
class Price:
    """Rates that hold from a day on for prompts of more than `above` tokens: the whole request is priced by them."""

    rates: Rates
    valid_from: date = date.min
    above: int = 0


@dataclass(frozen=True, slots=True)
class PriceList:
    """All prices of one model, as its vendor changes them over time."""

    prices: tuple[Price, ...]

    @classmethod
    def of(cls, prices: Iterable[Price]) -> PriceList:
        """Sorted, so that the last price that applies counts."""
        return cls(tuple(sorted(prices, key=lambda p: (p.valid_from, p.above))))

    def after(self, earlier: PriceList | None) -> PriceList:
        """These prices, and before their first day the earlier ones."""
        first = min(p.valid_from for p in self.prices)
        before = earlier.prices if earlier is not None else ()
        return PriceList.of([*self.prices, *(p for p in before if p.valid_from < first)])

    def hole(self) -> str | None:
        """Where a request would find no price, or None: `rates` then never fails."""
        days = {p.valid_from for p in self.prices if p.above == 0}
        if date.min not in days:
            return f"no price holds before {min(p.valid_from for p in self.prices)}: leave valid_from out of the first"
        if bare := {p.valid_from for p in self.prices} - days:
            return f"from {min(bare)} on only longer prompts have a price: add one without above_input_tokens"
        return None

    def rates(self, input_tokens: int, on: date) -> Rates:
        """The rates for a prompt of that length on that day. Raises LookupError where no price holds yet."""
        day = max((p.valid_from for p in self.prices if p.valid_from <= on), default=None)
        holding = [p for p in self.prices if p.valid_from == day and (p.above == 0 or input_tokens > p.above)]
        if not holding:
            raise LookupError(f"no price holds on {on}")
        return holding[-1].rates

    def cost(self, usage: Usage, on: date) -> Decimal:
        return self.rates(usage.input_tokens, on).cost(usage)


FREE = PriceList((Price(Rates(*[Decimal(0)] * 5)),))


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars, exact. `estimated`: by the price of the model that was asked for, its real one being unknown."""

    usd: Decimal
    estimated: bool = False
