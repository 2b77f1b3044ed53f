"""Folding a provider's events into an answer, and what a broken one is charged."""

from __future__ import annotations

from processor.transcript import Transcript
from providers.base import (
    Event,
    Finished,
    FinishReason,
    Opened,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageSeen,
)


def transcript(*events: Event) -> Transcript:
    made = Transcript()
    for second, event in enumerate(events):
        made.add(event, float(second))
    return made


def test_text_and_tool_calls_are_joined_in_order() -> None:
    made = transcript(
        Opened(),
        TextDelta("a"),
        ToolCallDelta(1, "y", "g"),
        ToolCallDelta(0, "x", "f", '{"a":', signature="s"),
        ToolCallDelta(0, arguments="1}"),
        TextDelta("b"),
    )
    assert made.text == "ab"
    assert [(c.id, c.name, c.arguments, c.signature) for c in made.tool_calls] == [
        ("x", "f", '{"a":1}', "s"),
        ("y", "g", "{}", None),
    ]
    assert made.first_token_at == 1.0


def test_a_complete_answer_is_charged_by_the_vendors_figures() -> None:
    used = Usage(10, output_visible=5)
    made = transcript(Opened(), UsageSeen(Usage(10)), TextDelta("x" * 4000), Finished(FinishReason.STOP, used, "m"))
    assert made.settled(prompt_tokens=9999, at_work=True) == (used, False)


def test_an_attempt_that_was_never_opened_costs_nothing() -> None:
    assert transcript().settled(prompt_tokens=100, at_work=False) == (Usage(), False)


def test_a_vendor_that_was_at_work_on_an_answer_charges_for_the_prompt() -> None:
    assert transcript().settled(prompt_tokens=100, at_work=True) == (Usage(100), True)


def test_a_cut_answer_is_charged_by_what_was_told_and_what_was_written() -> None:
    made = transcript(Opened(), UsageSeen(Usage(10, output_visible=1)), ThinkingDelta("y" * 40), TextDelta("x" * 40))
    assert made.settled(prompt_tokens=100, at_work=False) == (Usage(10, output_visible=20), True)


def test_where_nothing_was_told_the_prompt_is_estimated_too() -> None:
    made = transcript(Opened(), TextDelta("x" * 9))
    assert made.settled(prompt_tokens=101, at_work=True) == (Usage(101, output_visible=3), True)


def test_an_estimate_never_lowers_what_the_vendor_told() -> None:
    made = transcript(Opened(), UsageSeen(Usage(10, output_visible=500)), TextDelta("x"))
    assert made.settled(prompt_tokens=1, at_work=True) == (Usage(10, output_visible=500), True)
