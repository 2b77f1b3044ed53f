"""Which models may answer a request, best first, and why the others may not. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from processor.catalog import Catalog, CatalogModel, UnknownModel
from processor.errors import ErrorType, RequestError
from processor.messages import Request
from processor.parts import ImagePart
from processor.prompts import answer_limit
from processor.reply_bodies import Considered
from processor.transcript import CHARS_PER_TOKEN

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer, and why it stands where it does."""

    model: CatalogModel
    name: str
    """What the reply calls it: the alias, or the name that was asked for."""
    reason: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model that may not answer, and why."""

    model: str
    provider: str
    reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """The candidates in the order in which they are tried, and the refusals."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]

    @property
    def considered(self) -> tuple[Considered, ...]:
        tried = (Considered(model=c.name, provider=c.model.provider, reason=c.reason) for c in self.candidates)
        refused = (Considered(model=r.model, provider=r.provider, reason=f"refused: {r.reason}") for r in self.refusals)
        return (*tried, *refused)


def route(request: Request, catalog: Catalog, *, available: Collection[str], default: str, on: datetime) -> Route:
    """The model that was asked for, then the others that can do it, cheapest first.

    With `fallback` false there are no others, and none where a vendor's full id was asked for and `fallback` is unset.
    A demo model answers only when it is asked for by name or when nothing else is there.

    Args:
        available: names of the providers that are configured.
        default: the model that `auto` means.

    Raises:
        RequestError: `not_found` for a model that the catalog does not have.
    """
    asked = request.model if request.model not in {None, AUTO} else None
    try:
        first = catalog.resolve(asked or default, on.date())
    except UnknownModel as error:
        raise RequestError(ErrorType.NOT_FOUND, f"model: {error}") from None
    others_may = request.fallback if request.fallback is not None else asked is None or asked in catalog.models
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    needs = _needs(request)
    for model in (first.model, *_others(catalog, first.model, on)):
        is_first = model is first.model
        if not is_first and not others_may and (asked or candidates):
            break
        if (why := _refusal(model, needs, request, available)) is not None:
            refusals.append(Refusal(model.alias, model.provider, why))
        elif is_first:
            reason = f"{asked} was asked for" if asked else f"auto: the default model {default}"
            candidates.append(Candidate(model, asked or model.alias, reason, (first.warning,) if first.warning else ()))
        elif not model.demo or not (candidates or asked):
            candidates.append(Candidate(model, model.alias, "fallback" if asked else "auto: what is configured"))
    return Route(tuple(candidates), tuple(refusals))


def _others(catalog: Catalog, first: CatalogModel, on: datetime) -> list[CatalogModel]:
    """Every other model still served, cheapest first, demo models last."""
    served = [m for m in catalog.models.values() if m is not first and not m.retired(on.date())]
    return sorted(served, key=lambda m: (m.demo, catalog.list_price(m, on), m.alias))


def _needs(request: Request) -> frozenset[str]:
    needs = set()
    if any(isinstance(part, ImagePart) for message in request.messages for part in message.parts):
        needs.add("images")
    if request.tools:
        needs.add("tools")
    if request.response_format is not None and request.response_format.type != "text":
        needs.add("json")
    return frozenset(needs)


def _refusal(model: CatalogModel, needs: frozenset[str], request: Request, available: Collection[str]) -> str | None:
    if model.provider not in available:
        return f"provider {model.provider} is not configured"
    if missing := sorted(needs - model.abilities):
        return f"it has no {', '.join(missing)}"
    room = request.text_chars // CHARS_PER_TOKEN + answer_limit(request, model.max_output)
    if room > model.context:
        return f"about {room} tokens do not fit its window of {model.context}"
    return None
