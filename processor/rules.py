"""Routing rules as data: which requests of `auto` each is for, and what it wants for them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from processor.traits import Ability, Preference, Traits

DEFAULT: Final = "default"
"""In a rule's `models`: the model that the setting DEFAULT_MODEL names."""

Weigh = Literal["balanced", "cost", "speed", "quality"]
_CONDITIONS: Final = frozenset({"task_types", "prefer", "complexity_from", "above_tokens", "needs"})


def spelling(task_type: str) -> str:
    """As task types are compared: "Code-Review" is "code_review"."""
    return task_type.lower().replace("-", "_")


class Rule(BaseModel):
    """A kind of request, and how it is routed.

    Conditions: all that are named have to hold. Effects: `models` are preferred, in this order; `tier` is the least
    quality that suffices; `weigh` is what counts most; with `successors` false no retired model's successor is meant.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=64)]
    task_types: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    prefer: Preference | None = None
    complexity_from: Annotated[float, Field(ge=0, le=1)] | None = None
    above_tokens: Annotated[int, Field(gt=0)] | None = None
    """Estimated tokens of the whole prompt."""
    needs: Annotated[tuple[Ability, ...], Field(min_length=1)] | None = None

    models: tuple[str, ...] = ()
    tier: int = Field(1, ge=1, le=5)
    weigh: Weigh = "balanced"
    successors: bool = True

    @property
    def is_for_all(self) -> bool:
        """Whether it has no condition."""
        return all(getattr(self, condition) is None for condition in _CONDITIONS)

    @field_validator("task_types")
    @classmethod
    def _spelled_alike(cls, task_types: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if task_types is None else tuple(map(spelling, task_types))

    def fits(self, traits: Traits) -> bool:
        task_type = None if traits.task_type is None else spelling(traits.task_type)
        return (
            (self.task_types is None or task_type in self.task_types)
            and (self.prefer is None or traits.prefer == self.prefer)
            and (self.complexity_from is None or traits.complexity >= self.complexity_from)
            and (self.above_tokens is None or traits.input_tokens > self.above_tokens)
            and (self.needs is None or set(self.needs) <= set(traits.needs))
        )


class Routing(BaseModel):
    """The rules, the first that fits counts; the last one, and no other, is for all requests."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _always_has_one(self) -> Routing:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two rules have the name {name!r}")
        for rule in self.rules[:-1]:
            if rule.is_for_all:
                raise ValueError(f"the rule {rule.name!r} has no condition: none after it would ever count")
        if not self.rules or not self.rules[-1].is_for_all:
            raise ValueError("the last rule has to be one without conditions")
        return self

    def rule(self, traits: Traits) -> Rule:
        """The one that counts."""
        return next(rule for rule in self.rules if rule.fits(traits))


def unknown_model(rules: Sequence[Rule], known: frozenset[str]) -> str | None:
    """Where a rule prefers a model that there is not, or None."""
    for index, rule in enumerate(rules):
        for name in rule.models:
            if name != DEFAULT and name not in known:
                return f"routing.rules.{index}.models: there is no model {name!r}"
    return None
