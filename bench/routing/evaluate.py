"""How well complexity tells hard prompts from easy ones, and what that saves: `python -m bench.routing.evaluate`.

Two halves of one labelled set: features and weights were chosen on `dev`; `held` only measures.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Final, Literal

import msgspec
import orjson
from rich.console import Console
from rich.table import Table

from processor.catalog import load_catalog
from processor.complexity import complexity
from processor.estimate import base_tokens
from processor.messages import decode_request
from providers.base import Usage

PROMPTS: Final = Path(__file__).with_name("prompts.jsonl")
SHIPPED: Final = next(rule.complexity_from for rule in load_catalog().routing.rules if rule.complexity_from is not None)
"""From this score on a prompt goes to the strong model: as the catalog's rules say."""
ANSWER_TOKENS: Final = 300
"""Taken as the usual answer of both models."""
THRESHOLDS: Final = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
RESAMPLED: Final = 2_000
BAR: Final = 10
"""Characters of the longest: the tables fit a terminal of 80, and a pipe, which has no more."""

Split = Literal["dev", "held"]
Scorer = Callable[[str], float]


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hard`: a person judged that the strong model is needed to answer it well."""

    id: str
    split: Split
    hard: bool
    kind: str
    lang: str
    text: str


def load(path: Path = PROMPTS) -> list[Prompt]:
    """Raises msgspec.ValidationError where a line is not a labelled prompt."""
    return [msgspec.json.decode(line, type=Prompt) for line in path.read_bytes().splitlines()]


def score(text: str) -> float:
    return complexity(text).score


def length(text: str) -> float:
    return len(text)


def auc(hard: Sequence[float], easy: Sequence[float]) -> float:
    """The chance that a hard prompt scores above an easy one, ties counting half (Mann and Whitney's U)."""
    wins, below = 0.0, 0
    ordered = sorted([(s, True) for s in hard] + [(s, False) for s in easy])
    for _, tied in groupby(ordered, key=lambda pair: pair[0]):
        labels = [label for _, label in tied]
        hards, easies = sum(labels), len(labels) - sum(labels)
        wins += hards * (below + easies / 2)
        below += easies
    return wins / (len(hard) * len(easy))


class Comparison(msgspec.Struct, frozen=True):
    """`better`: by how much the score's AUC is above length's, with the 95 % interval; `above_chance`: above 0.5."""

    score: float
    length: float
    better: tuple[float, float]
    above_chance: tuple[float, float]


def compare(prompts: Sequence[Prompt], *, seed: int = 7) -> Comparison:
    """By a bootstrap that draws hard and easy prompts anew, each with replacement; the seed is fixed."""
    rng = random.Random(seed)
    hard = [(score(p.text), length(p.text)) for p in prompts if p.hard]
    easy = [(score(p.text), length(p.text)) for p in prompts if not p.hard]

    def both(hards: list[tuple[float, float]], easies: list[tuple[float, float]]) -> tuple[float, float]:
        return tuple(auc([h[i] for h in hards], [e[i] for e in easies]) for i in (0, 1))  # type: ignore[return-value]

    drawn = [both(rng.choices(hard, k=len(hard)), rng.choices(easy, k=len(easy))) for _ in range(RESAMPLED)]
    ours, by_length = both(hard, easy)
    return Comparison(ours, by_length, _middle_95([s - n for s, n in drawn]), _middle_95([s - 0.5 for s, _ in drawn]))


def _middle_95(values: list[float]) -> tuple[float, float]:
    values = sorted(values)
    return values[len(values) * 25 // 1000], values[len(values) * 975 // 1000 - 1]


class Point(msgspec.Struct, frozen=True):
    """What a threshold does. `cost`: US dollars a prompt on average; `of_strong`: as a share of always strong."""

    threshold: float
    caught: float
    sent_too: float
    cost: Decimal
    of_strong: float


def curve(prompts: Sequence[Prompt], thresholds: Sequence[float], at: datetime) -> list[Point]:
    """Cost against the share of hard prompts caught, at the catalog's prices on that day."""
    costs = [tuple(_cost(p.text, alias, at) for alias in ("haiku", "sonnet")) for p in prompts]
    scores = [score(p.text) for p in prompts]
    strong = sum(dear for _, dear in costs)
    hard = sum(p.hard for p in prompts)
    points = []
    for threshold in thresholds:
        sent = [s >= threshold for s in scores]
        caught = sum(p.hard for p, up in zip(prompts, sent, strict=True) if up)
        cost = sum((dear if up else cheap for (cheap, dear), up in zip(costs, sent, strict=True)), Decimal(0))
        points.append(
            Point(
                threshold,
                caught / hard,
                (sum(sent) - caught) / (len(prompts) - hard),
                cost / len(prompts),
                float(cost / strong),
            )
        )
    return points


CATALOG: Final = load_catalog()


def _cost(text: str, alias: str, at: datetime) -> Decimal:
    """US dollars for the prompt by the estimate before a call, and the usual answer."""
    model = CATALOG.resolve(alias, at.date()).model
    tokens = base_tokens(decode_request(orjson.dumps({"messages": [{"role": "user", "content": text}]})))
    return CATALOG.price_lists[model.alias].cost(Usage(input_fresh=tokens, output_visible=ANSWER_TOKENS), at.date())


def fastest_s(text: str, runs: int = 200) -> float:
    """Seconds that the score of `text` takes, the least of many runs."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        complexity(text)
        times.append(time.perf_counter() - begun)
    return min(times)


def of_4_kb(prompts: Sequence[Prompt]) -> list[str]:
    """Texts of 4,096 characters: the set's own, one after the other."""
    whole = "\n\n".join(p.text for p in prompts)
    return [whole[start : start + 4096] for start in range(0, len(whole) - 4096, 4096)]


def by_topic(prompts: Sequence[Prompt]) -> dict[str, float]:
    """The share of hard prompts among the dev half's of each kind: what knowing the topic alone would tell."""
    kinds = {p.kind for p in prompts}
    return {k: statistics.mean(p.hard for p in prompts if p.kind == k and p.split == "dev") for k in kinds}


def _aucs(prompts: Sequence[Prompt]) -> Table:
    table = Table("half", "prompts", "hard", "AUC: score", "length", "topic", "score - length", "score - 0.5 (chance)")
    topics = by_topic(prompts)
    halves = {split: [p for p in prompts if p.split == split] for split in ("dev", "held")}
    halves["held, not English"] = [p for p in halves["held"] if p.lang != "en"]
    for name, half in halves.items():
        found = compare(half)
        hard, easy = ([topics[p.kind] for p in half if p.hard is label] for label in (True, False))
        table.add_row(
            name,
            str(len(half)),
            str(len(hard)),
            f"{found.score:.3f}",
            f"{found.length:.3f}",
            "" if name == "dev" else f"{auc(hard, easy):.3f}",
            *(f"{low:+.3f} … {high:+.3f}" for low, high in (found.better, found.above_chance)),
        )
    table.caption = f"the last two: 95 % of {RESAMPLED:,} resamples; topic: the kind's share of hard prompts in dev"
    return table


def _curve(prompts: Sequence[Prompt], split: Split, at: datetime) -> Table:
    table = Table("from score", "hard caught", title=split)
    table.add_column("", min_width=BAR)
    for head in ("easy sent too", "$ a prompt", "of always strong"):
        table.add_column(head)
    for point in curve([p for p in prompts if p.split == split], THRESHOLDS, at):
        bar = "█" * round(point.caught * BAR)
        table.add_row(
            "never" if point.threshold > 1 else f"{point.threshold:.1f}{' *' * (point.threshold == SHIPPED)}",
            f"{point.caught:.0%}",
            bar,
            f"{point.sent_too:.0%}",
            f"{point.cost:.5f}",
            f"{point.of_strong:.0%}",
            style="bold" if point.threshold == SHIPPED else None,
        )
    table.caption = f"*: as shipped; {' and '.join(_priced(at))}, answers of {ANSWER_TOKENS} tokens"
    return table


def _priced(at: datetime) -> list[str]:
    models = [CATALOG.resolve(alias, at.date()).model for alias in ("haiku", "sonnet")]
    rates = [CATALOG.price_lists[m.alias].rates(0, at.date()) for m in models]
    return [
        f"{m.alias} at ${r.input.normalize():f}/${r.output.normalize():f}" for m, r in zip(models, rates, strict=True)
    ]


def main() -> None:
    console = Console(width=max(110, Console().width))
    prompts = load()
    now = datetime.now(UTC)
    console.print(_aucs(prompts))
    for split in ("dev", "held"):
        console.print(_curve(prompts, split, now))
    times = [fastest_s(text, 50) * 1e3 for text in of_4_kb(prompts)]
    console.print(
        f"time for 4 KB: {min(times):.2f} to {max(times):.2f} ms over {len(times)} texts, each the least of 50 runs"
    )


if __name__ == "__main__":
    main()
