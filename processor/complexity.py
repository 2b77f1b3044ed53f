"""How hard a prompt looks at a glance: a score from features that can be read without a model. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_SIGNS: Final = (
    ("code", 0.35, re.compile(r"```|\bdef |\bclass |\bfunction\b|\bSELECT\b|[{};]\s*$", re.MULTILINE)),
    ("mathematics", 0.35, re.compile(r"\bprove\b|\bproof\b|\btheorem\b|\bintegral\b|[∑∫√≤≥]", re.IGNORECASE)),
    (
        "reasoning",
        0.3,
        re.compile(r"\bstep by step\b|\btrade-?offs?\b|\bwhy\b|\banaly[sz]e\b|\bdesign\b", re.IGNORECASE),
    ),
    ("steps", 0.2, re.compile(r"^\s*(?:[0-9]{1,2}[.)]|[-*])\s", re.MULTILINE)),
)
"""What is looked for, and what it adds."""


@dataclass(frozen=True, slots=True)
class Complexity:
    """From 0 (anything can answer it) to 1, and what was found."""

    score: float
    why: tuple[str, ...] = ()


def complexity(text: str) -> Complexity:
    """The score of a prompt's text."""
    found = [(name, weight) for name, weight, pattern in _SIGNS if pattern.search(text)]
    return Complexity(min(1.0, sum(weight for _, weight in found)), tuple(name for name, _ in found))
