"""The models as data: names, abilities, limits, prices and successors, from `catalog.toml` and an overlay."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from processor.parts import Token
from processor.pricing import FREE, PER, Cost, Price, PriceList, Rates
from processor.rules import DEFAULT, Routing, unknown_model
from processor.traits import AUTO, Ability, Combination
from providers.base import Usage

WARN_BEFORE = timedelta(days=30)
ABILITIES = frozenset(get_args(Ability))

Count = Annotated[int, Field(gt=0)]
Usd = Annotated[Decimal, Field(ge=0)]


class CatalogError(Exception):
    """The catalog cannot be used; the message names file, table and field."""


class UnknownModel(Exception):
    """No model has that name; the message offers the closest ones."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Table):
    """What a vendor allows: requests and tokens a minute and a day, input and output apart where it counts so.

    Input read from the vendor's prompt cache does not count. `pace` spaces the requests that one replica sends, so
    many a second, for a vendor that takes no bursts; it is read of a provider only.
    """

    pace: Annotated[float, Field(gt=0)] | None = None
    rpm: Count | None = None
    rpd: Count | None = None
    tpm: Count | None = None
    tpd: Count | None = None
    itpm: Count | None = None
    otpm: Count | None = None


class Budget(_Table):
    """US dollars a month and a day. `hard` refuses before spending; otherwise there are only alerts."""

    monthly_usd: Usd | None = None
    daily_usd: Usd | None = None
    hard: bool = False


class Budgets(Budget):
    """The global budget, and one for each tenant that has its own."""

    tenants: dict[Token, Budget] = Field(default_factory=dict)


class OwnPrice(_Table):
    """A price the catalog states itself, in US dollars per million tokens."""

    valid_from: date = date.min
    above_input_tokens: int = Field(0, ge=0)
    input: Usd
    output: Usd
    cache_read: Usd | None = None
    cache_write_5m: Usd | None = None
    cache_write_1h: Usd | None = None
    source: str = ""

    def price(self) -> Price:
        write = self.input if self.cache_write_5m is None else self.cache_write_5m
        rates = Rates(
            input=self.input,
            output=self.output,
            cache_read=self.input if self.cache_read is None else self.cache_read,
            cache_write_5m=write,
            cache_write_1h=write if self.cache_write_1h is None else self.cache_write_1h,
        )
        return Price(rates, self.valid_from, self.above_input_tokens)


class CatalogModel(_Table):
    """One model. `tier` is its quality from 1 to 5; `demo` keeps it out of routing unless nothing else is there."""

    alias: str
    id: str
    also: tuple[str, ...] = ()
    provider: str
    description: str = ""
    context: Count
    max_output: Count
    abilities: frozenset[Ability] = frozenset()
    cannot: frozenset[Combination] = frozenset()
    """What its abilities promise and its vendor refuses."""
    tier: int = Field(3, ge=1, le=5)
    demo: bool = False
    free: bool = False
    limits: Limits = Limits()
    retires: date | None = None
    successor: str | None = None
    prices: tuple[OwnPrice, ...] = ()

    def serves(self, model_id: str) -> bool:
        """Whether its vendor calls it that."""
        return model_id in {self.id, *self.also}

    def lacks(self, needs: Iterable[Ability | Combination]) -> list[str]:
        """What of `needs` it cannot do."""
        return sorted(
            need for need in needs if need in self.cannot or (need in ABILITIES and need not in self.abilities)
        )

    def retired(self, on: date) -> bool:
        """Whether the vendor no longer serves it: from the day `retires` on."""
        return self.retires is not None and on >= self.retires


class _File(_Table):
    limits: dict[str, Limits] = Field(default_factory=dict)
    budgets: Budgets = Budgets()
    routing: Routing
    models: dict[str, CatalogModel]

    @model_validator(mode="after")
    def _is_consistent(self) -> _File:
        owner: dict[tuple[str, str], str] = {}
        for alias, model in self.models.items():
            if alias.lower() in {AUTO, DEFAULT}:
                raise ValueError(f"models.{alias}: {alias!r} is what routing decides, and no model's name")
            # Two providers may serve one model under one id: asked for by it, the first of them answers.
            names = {("", name) for name in (alias, *model.also)}
            for scope, name in names | {(model.provider, name) for name in (model.id, *model.also)}:
                if (other := owner.setdefault((scope, name), alias)) != alias:
                    raise ValueError(f"the name {name!r} belongs to two models, {other} and {alias}")
            if model.successor is not None and model.successor not in self.models:
                raise ValueError(f"models.{alias}.successor: there is no model {model.successor!r}")
        if (complaint := unknown_model(self.routing.rules, frozenset(self.models))) is not None:
            raise ValueError(complaint)
        for alias in self.models:
            seen: list[str] = []
            step: str | None = alias
            while step is not None:
                if step in seen:
                    raise ValueError(f"models.{alias}.successor: the successors go round: {' -> '.join([*seen, step])}")
                seen.append(step)
                step = self.models[step].successor
        return self


@dataclass(frozen=True, slots=True)
class Resolved:
    """The model that a name means today. `warning` says that it moved on, or soon will."""

    model: CatalogModel
    moved: bool = False
    warning: str | None = None


@dataclass(frozen=True)
class Catalog:
    """All models by alias, in the order of the file, with their price lists."""

    models: Mapping[str, CatalogModel]
    limits: Mapping[str, Limits]
    budgets: Budgets
    price_lists: Mapping[str, PriceList]
    routing: Routing
    _names: Mapping[str, str] = field(default_factory=dict)

    def resolve(self, name: str, on: date) -> Resolved:
        """The model that `name` (an alias, an id, or another spelling) means on that day.

        Raises:
            UnknownModel: with the closest names.
        """
        alias = self._names.get(name)
        if alias is None:
            close = difflib.get_close_matches(name, self._names, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(self.models)}"
            raise UnknownModel(f"there is no model {name!r}; {hint}")
        asked = model = self.models[alias]
        while model.retired(on) and model.successor is not None:
            model = self.models[model.successor]
        if model is not asked:
            warning = f"{name} ({asked.id}) was retired on {asked.retires}; {model.alias} ({model.id}) answers instead"
            return Resolved(model, moved=True, warning=warning)
        if model.retires is not None and on >= model.retires - WARN_BEFORE:
            then = f"{model.successor} will answer then" if model.successor else "it has no successor"
            return Resolved(model, warning=f"{name} ({model.id}) retires on {model.retires}; {then}")
        return Resolved(model)

    def price(self, usage: Usage, asked: CatalogModel, *, served_by: str | None, at: datetime) -> Cost:
        """The cost of a call, by the price of the model that really served it.

        Where neither the catalog nor the published prices know `served_by`, the asked model's price is taken and the
        cost is marked as an estimate.
        """
        served = (served_by or asked.id).removeprefix("models/")
        if asked.serves(served):
            return Cost(self.price_lists[asked.alias].cost(usage, at.date()))
        prices = self._served_prices(asked, served)
        if prices is None:
            return Cost(self.price_lists[asked.alias].cost(usage, at.date()), estimated=True)
        return Cost(prices.cost(usage, at.date()))

    def _served_prices(self, asked: CatalogModel, served: str) -> PriceList | None:
        if asked.free:
            return FREE
        for model in self.models.values():
            if model.provider == asked.provider and model.serves(served):
                return self.price_lists[model.alias]
        from processor.published_prices import published

        return published(asked.provider, served)

    def expected_cost(self, model: CatalogModel, input_tokens: int, output_tokens: int, on: date) -> Decimal:
        """US dollars that a call of so many tokens costs on that day, without what a cache may save."""
        rates = self.price_lists[model.alias].rates(input_tokens, on)
        return (rates.input * input_tokens + rates.output * output_tokens) / PER


def load_catalog(overlay: Path | None = None, *, local_server: bool = False, local_model: str | None = None) -> Catalog:
    """The shipped catalog with `overlay` laid over it.

    With `local_server` the alias `local` is the model `local_model` of a server of the user's own, not the demo model.

    Raises:
        CatalogError: an unreadable file, an unknown key, a wrong type, a name used twice, or a model without a price.
    """
    tables = tomllib.loads(files("processor").joinpath("catalog.toml").read_text("utf-8"))
    own = tables.pop("local_server")
    if local_server:
        tables = merge(tables, {"models": {"local": own | ({"id": local_model} if local_model else {})}})
    origin = "catalog.toml"
    if overlay is not None:
        origin = str(overlay)
        try:
            tables = merge(tables, tomllib.loads(overlay.read_text("utf-8")))
        except OSError as error:
            raise CatalogError(f"SIDECAR_CATALOG: cannot read {overlay}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise CatalogError(f"{overlay}: not TOML: {error}") from error
    return build_catalog(tables, origin)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Table by table: what `over` names replaces what `under` has, the rest stays."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def build_catalog(tables: Mapping[str, Any], origin: str) -> Catalog:
    """Check the tables and find every model's prices. Raises CatalogError naming `origin`, table and field."""
    from processor.published_prices import published

    models = tables.get("models")
    if isinstance(models, dict):
        named = {a: {"alias": a, **m} if isinstance(m, dict) else m for a, m in models.items()}
        tables = {**tables, "models": named}
    try:
        file = _File.model_validate(tables)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"])
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise CatalogError(f"{origin}: {where}: {what}" if where else f"{origin}: {what}") from None
    prices: dict[str, PriceList] = {}
    for alias, model in file.models.items():
        found = FREE if model.free else published(model.provider, model.id)
        if model.prices:
            found = PriceList.of(own.price() for own in model.prices).after(found)
        if found is None:
            raise CatalogError(
                f"{origin}: models.{alias}: no price is known for {model.id}: "
                f"add [[models.{alias}.prices]] with input and output, or free = true"
            )
        if hole := found.hole():
            raise CatalogError(f"{origin}: models.{alias}.prices: {hole}")
        prices[alias] = found
    names = {m.id: a for a, m in reversed(file.models.items())}
    names |= {name: a for a, m in file.models.items() for name in (a, *m.also)}
    return Catalog(file.models, file.limits, file.budgets, prices, file.routing, names)
