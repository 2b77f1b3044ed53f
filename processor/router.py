"""Which models may answer a request, best first, and why the others may not. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from statistics import median
from typing import Final

from processor.catalog import Catalog, CatalogModel, Resolved, UnknownModel
from processor.errors import ErrorType, RequestError
from processor.messages import Request
from processor.prompts import answer_limit
from processor.reply_bodies import Considered
from processor.rules import DEFAULT, Rule
from processor.scoring import SCARCE, Aims, Aspects, scores
from processor.traits import Traits, traits

ASKED: Final = "asked"
"""What stands for a rule where a model was asked for by name."""
USUAL_OUTPUT: Final = 300
"""Tokens that an answer is taken to have while no model's usual length is known: a paragraph or two."""


@dataclass(frozen=True)
class Conditions:
    """What a decision depends on beside the request and the catalog: settings, and what is known at the moment.

    The mappings go by alias. What they lack is unknown, and counts neither for a model nor against it.
    """

    now: datetime
    available: Collection[str]
    """Names of the providers that are configured."""
    default: str
    """The model that the setting DEFAULT_MODEL names."""
    unwell: Mapping[str, str] = field(default_factory=dict)
    """Why no call of a model may start now."""
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Measured: seconds to the first token, then tokens a second."""
    room: Mapping[str, float] = field(default_factory=dict)
    """The free share of a model's tightest limit, from 0 to 1."""
    usual_output: Mapping[str, int] = field(default_factory=dict)
    """Tokens of its usual answer; a model that lacks it is taken to say as much as the others do."""
    by_quality: bool = False
    """COST_OPTIMIZATION is off: where a request has no preference of its own, quality decides."""
    thrifty: bool = False
    """A budget is nearly used: price counts double, and no model is preferred."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may answer, and why it stands where it does."""

    model: CatalogModel
    name: str
    """What the reply calls it: the alias, or the name that was asked for."""
    reason: str
    warnings: tuple[str, ...] = ()
    score: float = 0.0
    cost_usd: Decimal = Decimal(0)
    """Expected, of this request."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A model that may not answer, and why."""

    model: str
    provider: str
    reason: str
    fault: ErrorType = ErrorType.UNAVAILABLE
    """What a client is told where no other may answer either."""


@dataclass(frozen=True, slots=True)
class Route:
    """The candidates in the order in which they are tried, and the refusals: together every model there is."""

    candidates: tuple[Candidate, ...]
    refusals: tuple[Refusal, ...]
    traits: Traits
    rule: str
    """The name of the rule that counted; `ASKED` for a model that was asked for by name."""
    model_class: str
    """What an answer may be kept under: the id of the model that was asked for, else `auto:` and the rule."""
    meant: CatalogModel | None = None
    """Whose answer was wanted, were it well and had it room; None where there is no candidate."""
    nobody: ErrorType = ErrorType.UNAVAILABLE
    """What a client is told where there is no candidate: whether the request is at fault, or what is configured."""
    means: str = ""
    """Of a rule: the ids of the models that it prefers today and what counts, by the catalog and the settings; then
    the ids of those that alone may answer. Where that differs, an answer that was kept is none for this request."""

    @property
    def considered(self) -> tuple[Considered, ...]:
        tried = (Considered(model=c.name, provider=c.model.provider, reason=c.reason) for c in self.candidates)
        refused = (Considered(model=r.model, provider=r.provider, reason=f"refused: {r.reason}") for r in self.refusals)
        return (*tried, *refused)


def route(asked: Request | Traits, catalog: Catalog, conditions: Conditions) -> Route:
    """Every model as a candidate, best first, or as a refusal, each with its reason.

    A model that is asked for by name comes first whatever its score. For `auto` the first rule of the catalog that
    fits says which models are preferred and what counts. What a request needs (abilities, its window) is never
    weighed: a model has it or is refused.

    With `fallback` false there is one candidate, and so where a vendor's full id was asked for and `fallback` is unset.
    A demo model answers where it is asked for by name, where a rule or DEFAULT_MODEL prefers it, or for `auto` where
    there is no other. Where `only` names models, no other answers, whatever stands above.

    Raises:
        RequestError: `not_found` for a model that the catalog does not have, `forbidden` for one that is asked for by
            name and is not in `only`.
    """
    given = asked if isinstance(asked, Traits) else traits(asked)
    if given.model is not None:
        return _for_name(given.model, given, catalog, conditions)
    return _for_auto(given, catalog, conditions)


def _for_name(name: str, given: Traits, catalog: Catalog, conditions: Conditions) -> Route:
    found = _resolve(catalog, name, conditions)
    first = found.model
    only = _only(given, catalog, conditions)
    if only is not None and first.alias not in only:
        raise RequestError(
            ErrorType.FORBIDDEN,
            f"model: {name} is not among the models that may answer this request: {', '.join(given.only)}",
        )
    alone = not (given.fallback if given.fallback is not None else name in catalog.models)
    able, refusals = _sorted_out(given, catalog, conditions, only, first)
    fault = _fault([refusal for refusal in refusals if refusal.model == first.alias or not alone])
    others = [model for model in able if model is not first]
    refusals += [_refused(model, "a demo model stands in for no other") for model in _demos(others)]
    others = [model for model in others if not model.demo]
    if alone:
        refusals += [_refused(model, f"{name} alone may answer") for model in others]
        others = []
    entered = [first, *others] if first in able else others
    aims = Aims(tier=first.tier, quality_only=conditions.by_quality)
    ranked = _ranked(entered, given, catalog, conditions, aims, {}, "fallback", first.provider)
    mine = [
        Candidate(c.model, name, f"{name} was asked for", _warnings(found), c.score, c.cost_usd)
        for c in ranked
        if c.model is first
    ]
    candidates = (*mine, *(c for c in ranked if c.model is not first))
    meant = candidates[0].model if candidates else None
    return Route(candidates, tuple(refusals), given, ASKED, first.id, meant, fault, _ids(only, catalog))


def _for_auto(given: Traits, catalog: Catalog, conditions: Conditions) -> Route:
    rule = catalog.routing.rule(given)
    preferred = _preferred(rule, catalog, conditions)
    only = _only(given, catalog, conditions)
    able, refusals = _sorted_out(given, catalog, conditions, only)
    demos = [model for model in _demos(able) if model.alias not in preferred]
    if len(demos) < len(able):
        refusals += [_refused(model, "a demo model, and there are others") for model in demos]
        able = [model for model in able if model not in demos]
    of_its_own = given.prefer not in {None, "quality"}
    aims = Aims(rule.weigh, rule.tier, conditions.by_quality and not of_its_own, conditions.thrifty)
    says = f"rule '{rule.name}'"
    if aims.thrifty:
        says = f"{says}, the budget is nearly used"
    elif aims.quality_only:
        says = f"{says}, by quality"
    ranked = _ranked(able, given, catalog, conditions, aims, preferred, says)
    meant = _meant([candidate.model for candidate in ranked], preferred, aims)
    if given.fallback is False:
        refusals += [_refused(c.model, f"{ranked[0].name} alone may answer") for c in ranked[1:]]
        ranked = ranked[:1]
    means = f"{_ids(preferred, catalog)} {aims.weigh} {aims.tier}{' by quality' if aims.quality_only else ''}"
    if only is not None:
        means += f" only {_ids(only, catalog)}"
    return Route(tuple(ranked), tuple(refusals), given, rule.name, f"auto:{rule.name}", meant, _fault(refusals), means)


def _meant(ranked: Sequence[CatalogModel], preferred: Collection[str], aims: Aims) -> CatalogModel | None:
    """The best by the rule or by quality, whether it is well or not; where only price counts, the first."""
    if aims.quality_only and not aims.thrifty:
        return max(ranked, key=lambda model: model.tier, default=None)
    by_alias = {} if aims.thrifty else {model.alias: model for model in ranked}
    named = (by_alias[alias] for alias in preferred if alias in by_alias)
    return next(named, ranked[0] if ranked else None)


def _preferred(rule: Rule, catalog: Catalog, conditions: Conditions) -> dict[str, tuple[int, tuple[str, ...]]]:
    """By alias, each preferred model's place, and what there is to say of the name it was preferred by."""
    places: dict[str, tuple[int, tuple[str, ...]]] = {}
    for name in rule.models:
        found = _resolve(catalog, conditions.default if name == DEFAULT else name, conditions)
        if rule.successors or not found.moved:
            warnings = _warnings(found) if name == DEFAULT else ()
            places.setdefault(found.model.alias, (len(places), warnings))
    return places


def _resolve(catalog: Catalog, name: str, conditions: Conditions, field: str = "model") -> Resolved:
    try:
        return catalog.resolve(name, conditions.now.date())
    except UnknownModel as error:
        raise RequestError(ErrorType.NOT_FOUND, f"{field}: {error}") from None


def _only(given: Traits, catalog: Catalog, conditions: Conditions) -> list[str] | None:
    """The aliases, sorted, of the models that may answer today; None: all."""
    if not given.only:
        return None
    return sorted({_resolve(catalog, name, conditions, "only").model.alias for name in given.only})


def _ids(aliases: Iterable[str] | None, catalog: Catalog) -> str:
    return ",".join(catalog.models[alias].id for alias in aliases or ())


def _warnings(found: Resolved) -> tuple[str, ...]:
    return (found.warning,) if found.warning else ()


def _sorted_out(
    given: Traits,
    catalog: Catalog,
    conditions: Conditions,
    only: Collection[str] | None,
    named: CatalogModel | None = None,
) -> tuple[list[CatalogModel], list[Refusal]]:
    """The models that can do it, and the refusals of those that cannot."""
    able: list[CatalogModel] = []
    refusals: list[Refusal] = []
    for model in sorted(catalog.models.values(), key=lambda m: m is not named):
        if only is not None and model.alias not in only:
            refusals.append(_refused(model, "it is not among the models that may answer"))
        elif (why := _refusal(model, given, conditions, is_named=model is named)) is not None:
            refusals.append(why)
        else:
            able.append(model)
    return able, refusals


def _refusal(model: CatalogModel, given: Traits, conditions: Conditions, *, is_named: bool) -> Refusal | None:
    if model.retired(conditions.now.date()) and not is_named:
        return _refused(model, "its vendor no longer serves it")
    if model.provider not in conditions.available:
        return _refused(model, f"provider {model.provider} is not configured")
    if missing := model.lacks(given.needs):
        return _refused(model, f"it has no {', '.join(missing)}", ErrorType.INVALID_REQUEST)
    room = given.input_tokens + answer_limit(given.max_tokens, model.max_output)
    if room > model.context:
        why = f"about {room} tokens do not fit its window of {model.context}"
        return _refused(model, why, ErrorType.TOO_LARGE)
    return None


def _refused(model: CatalogModel, why: str, fault: ErrorType = ErrorType.UNAVAILABLE) -> Refusal:
    return Refusal(model.alias, model.provider, why, fault)


def _fault(refusals: Collection[Refusal]) -> ErrorType:
    """The one that is nearest to an answer: a shorter request, another request, another sidecar."""
    faults = {refusal.fault for refusal in refusals}
    return next((f for f in (ErrorType.TOO_LARGE, ErrorType.INVALID_REQUEST) if f in faults), ErrorType.UNAVAILABLE)


def _demos(models: Collection[CatalogModel]) -> list[CatalogModel]:
    return [model for model in models if model.demo]


def _ranked(
    models: Collection[CatalogModel],
    given: Traits,
    catalog: Catalog,
    conditions: Conditions,
    aims: Aims,
    preferred: Mapping[str, tuple[int, tuple[str, ...]]],
    says: str,
    asked_of: str | None = None,
) -> list[Candidate]:
    """The models as candidates, the best score first, equal ones by alias.

    `asked_of` is the provider of the model that was asked for by name.
    """
    usual = round(median(conditions.usual_output.values())) if conditions.usual_output else USUAL_OUTPUT
    aspects = [_aspects(model, given, catalog, conditions, preferred, asked_of, usual) for model in models]
    candidates = [
        Candidate(
            model,
            model.alias,
            f"{says}: {_figures(one, conditions.unwell.get(model.alias))}",
            preferred[model.alias][1] if model.alias in preferred else (),
            score,
            one.cost_usd,
        )
        for model, one, score in zip(models, aspects, scores(aspects, aims), strict=True)
    ]
    return sorted(candidates, key=lambda c: (-c.score, c.model.alias))


def _aspects(
    model: CatalogModel,
    given: Traits,
    catalog: Catalog,
    conditions: Conditions,
    preferred: Mapping[str, tuple[int, tuple[str, ...]]],
    asked_of: str | None,
    usual_output: int,
) -> Aspects:
    alias = model.alias
    output = min(conditions.usual_output.get(alias, usual_output), answer_limit(given.max_tokens, model.max_output))
    latency_s = None
    if (measured := conditions.latency.get(alias)) is not None:
        first_token_s, tokens_a_second = measured
        latency_s = first_token_s + (output / tokens_a_second if tokens_a_second > 0 else 0.0)
    return Aspects(
        tier=model.tier,
        cost_usd=catalog.expected_cost(model, given.input_tokens, output, conditions.now.date()),
        preferred=preferred[alias][0] if alias in preferred else None,
        latency_s=latency_s,
        room=conditions.room.get(alias),
        unwell=alias in conditions.unwell,
        same_vendor=model.provider == asked_of,
    )


def _figures(one: Aspects, unwell: str | None) -> str:
    said = [f"tier {one.tier}", f"about ${one.cost_usd:.6f}" if one.cost_usd else "free"]
    if one.latency_s is not None:
        said.append(f"{one.latency_s:.1f} s")
    if one.room is not None and one.room < SCARCE:
        said.append(f"{one.room:.0%} of its limits free")
    if unwell is not None:
        said.append(unwell)
    return ", ".join(said)
