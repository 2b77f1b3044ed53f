"""How hard a prompt looks, from what can be read at a glance: its words, its structure, its signs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

from processor.instruction import WORD, part
from processor.vocabulary import VOCABULARY, plain

NOTABLE: Final = 0.3
"""Log-odds from which on a contribution is among the reasons."""


@dataclass(frozen=True, slots=True)
class Weight:
    """`each` in log-odds, up to `most` times; `says` is the reason for a reader, `why` the one for the weight."""

    each: float
    most: float
    says: str
    why: str


BIAS: Final = -0.6
"""So that of all tenths 0.5 has the largest share of hard prompts caught less that of easy ones sent too (Youden's J,
on the half of the labelled prompts in bench/routing that weights were chosen on)."""
WEIGHTS: Final[dict[str, Weight]] = {
    "reasoning": Weight(1.1, 3, "reasoning", "proves, weighs or compares"),
    "hypothetical": Weight(0.5, 2, "what if", "an answer for each case"),
    "planning": Weight(0.7, 2, "planning", "has to hold together as a whole"),
    "expertise": Weight(0.6, 2, "law or medicine", "a plausible wrong answer does harm"),
    "mathematics": Weight(0.9, 3, "mathematics", "small models slip in the middle of a derivation"),
    "signs": Weight(0.5, 3, "formulas", "as mathematics, in any language"),
    "code words": Weight(0.1, 2, "about code", "easy as often as hard"),
    "code": Weight(0.2, 1, "code", "easy as often as hard"),
    "systems": Weight(1.1, 2, "concurrency, faults or speed of code", "what is hard about code"),
    "constraints": Weight(0.6, 4, "{:.0f} conditions", "all must hold at once"),
    "steps": Weight(0.2, 4, "{:.0f} steps", "each may go wrong"),
    "questions": Weight(0.6, 2, "several questions", "as steps"),
    "length": Weight(0.1, 3, "a long instruction", "doublings beyond 100 characters: more is asked for"),
    "simple": Weight(-1.0, 2, "a simple task", "done as well by a small model"),
    "brief": Weight(-0.9, 2, "a short answer", "leaves little to go wrong"),
    "trivial": Weight(-0.6, 2, "small talk or a fact", "known by every model"),
    "opening": Weight(-0.9, 1, "begins with a simple task", "what comes first is what is asked"),
}

_SIGN = re.compile(
    r"[∑∏∫√∞≤≥≠≡∈∉⊂∪∩∀∃∂∇→⇒±]|\\(?:frac|sum|int|sqrt|mathbb|lim)\b|[a-z]\^[\dnk]|\b[OPE]\([\w ]{1,12}\)|\bmod\b"
)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature adds to the log-odds of a prompt being hard; less than nothing speaks against it."""

    feature: str
    value: float
    log_odds: float

    @property
    def says(self) -> str:
        """The reason for a reader, with its number where it has one: "3 steps", "1 condition", "mathematics"."""
        says = WEIGHTS[self.feature].says
        counted = says.format(self.value)
        return counted.removesuffix("s") if counted != says and self.value == 1 else counted


@dataclass(frozen=True, slots=True)
class Complexity:
    """`score` from 0 (a small model will do) to 1 (a strong one is needed), and what it is made of."""

    score: float
    contributions: tuple[Contribution, ...]

    @property
    def why(self) -> tuple[str, ...]:
        """The reasons for and against, the weightiest first."""
        notable = [c for c in self.contributions if abs(c.log_odds) >= NOTABLE]
        return tuple(c.says for c in sorted(notable, key=lambda c: -abs(c.log_odds)))


def complexity(text: str) -> Complexity:
    """The score of the question that a prompt puts; any text has one, in time linear in at most 16,000 characters."""
    found = tuple(
        Contribution(name, value, WEIGHTS[name].each * min(value, WEIGHTS[name].most))
        for name, value in features(text).items()
        if value
    )
    log_odds = BIAS + sum(c.log_odds for c in found)
    return Complexity(1 / (1 + math.exp(-log_odds)), found)


def features(text: str) -> dict[str, float]:
    """The value of every feature, before it is capped and weighed."""
    parted = part(text)
    asked = plain(parted.instruction)
    words = WORD.findall(asked)
    counts = VOCABULARY.count(words, asked)
    opening = VOCABULARY.count(words[:6], asked[:40])
    return {
        "reasoning": counts.get("reasoning", 0),
        "hypothetical": counts.get("hypothetical", 0),
        "planning": counts.get("planning", 0),
        "expertise": counts.get("expertise", 0),
        "mathematics": counts.get("mathematics", 0),
        "signs": len(set(_SIGN.findall(parted.instruction))),
        "code words": counts.get("code", 0),
        "code": float(parted.code_lines > 0),
        "systems": counts.get("systems", 0),
        "constraints": counts.get("constraints", 0),
        "steps": max(parted.items, counts.get("steps", 0), counts.get("tasks", 0) - 1, 0),
        "questions": max(0, asked.count("?") - 1),
        "length": max(0.0, math.log2(max(1, len(asked)) / 100)),
        "simple": counts.get("simple", 0) + counts.get("given", 0),
        "brief": counts.get("brief", 0),
        "trivial": opening.get("trivial", 0),
        "opening": float("simple" in opening or "given" in opening),
    }
