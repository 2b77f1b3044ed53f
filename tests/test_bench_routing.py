"""The labelled prompts, and what the score of complexity is worth on the half it was not made on."""

from __future__ import annotations

import io
from collections import Counter
from datetime import UTC, datetime
from typing import get_args

import pytest
from rich.console import Console

from bench.routing.evaluate import BAR, SHIPPED, Split, _curve, auc, compare, curve, fastest_s, load, of_4_kb

PROMPTS = load()
HELD = [p for p in PROMPTS if p.split == "held"]
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def test_on_the_held_out_half_the_score_is_better_than_chance_and_than_length_alone() -> None:
    found = compare(HELD)
    assert found.score > 0.7
    assert found.above_chance[0] > 0.1
    assert found.better[0] > 0.05


@pytest.mark.parametrize("split", get_args(Split))
def test_both_halves_are_balanced_and_not_separable_by_length(split: str) -> None:
    half = [p for p in PROMPTS if p.split == split]
    assert len(half) >= 100
    assert 0.35 < sum(p.hard for p in half) / len(half) < 0.55
    by_length = auc([len(p.text) for p in half if p.hard], [len(p.text) for p in half if not p.hard])
    assert 0.35 < by_length < 0.65
    assert sum(p.lang != "en" for p in half) >= len(half) // 12


def test_no_text_is_in_the_set_twice() -> None:
    texts = Counter(" ".join(p.text.lower().split()) for p in PROMPTS)
    assert [text for text, times in texts.items() if times > 1] == []
    assert len({p.id for p in PROMPTS}) == len(PROMPTS)


def test_the_shipped_threshold_catches_most_hard_prompts_for_less_than_always_strong() -> None:
    [point] = curve(HELD, [SHIPPED], NOW)
    assert point.caught > 0.6
    assert point.sent_too < 0.4
    assert point.of_strong < 0.8


def test_the_curve_goes_from_always_strong_to_never() -> None:
    points = curve(HELD, [0.0, 0.25, 0.5, 0.75, 1.01], NOW)
    assert (points[0].caught, points[0].sent_too, points[0].of_strong) == (1, 1, 1)
    assert (points[-1].caught, points[-1].sent_too) == (0, 0)
    assert [p.cost for p in points] == sorted((p.cost for p in points), reverse=True)


def test_the_curve_is_whole_and_marks_the_shipped_threshold_in_a_pipe_too() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(_curve(HELD, "held", NOW))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split()[1] for line in lines if "*" in line and "%" in line] == [f"{SHIPPED:.1f}"]
    assert not any("…" in line for line in lines)
    assert max(line.count("█") for line in lines) == BAR


def test_auc_is_the_share_of_pairs_in_order_with_ties_for_half() -> None:
    assert auc([2, 3], [0, 1]) == 1
    assert auc([0, 1], [2, 3]) == 0
    assert auc([1, 1], [1, 1]) == 0.5
    assert auc([1, 3], [1, 2]) == (0.5 + 0 + 1 + 1) / 4


def test_4_kb_of_one_prompt_take_about_as_long_as_4_kb_of_another() -> None:
    times = [fastest_s(text, runs=30) for text in of_4_kb(PROMPTS)[:10]]
    assert max(times) < 15 * min(times)
