"""What routing looks at in a request."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from processor.complexity import complexity
from processor.estimate import base_tokens
from processor.messages import Request, decode_request
from processor.traits import QUESTION_CHARS, question, traits

USER = {"role": "user", "content": "hi"}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
PICTURE = {"type": "image", "url": "https://x.y/z.png"}


def request(*messages: Any, **fields: Any) -> Request:
    return decode_request(orjson.dumps({"messages": messages or [USER], **fields}))


def test_a_plain_request_needs_nothing() -> None:
    plain = traits(request())
    assert (plain.needs, plain.model, plain.prefer, plain.max_tokens, plain.stream) == ((), None, None, None, False)


def test_auto_is_no_model() -> None:
    assert [traits(request(model=auto)).model for auto in ("auto", "Auto", "AUTO")] == [None, None, None]
    assert traits(request(model="haiku")).model == "haiku"


def test_a_request_needs_the_abilities_that_it_uses() -> None:
    seen = {"role": "user", "content": [{"type": "text", "text": "What?"}, PICTURE]}
    everything = request(seen, tools=[{"name": "f"}], response_format=SCHEMA)
    assert traits(everything).needs == ("images", "json", "json_with_tools", "tools")
    assert traits(request(response_format=SCHEMA)).needs == ("json",)
    assert traits(request(response_format={"type": "json_object"})).needs == ("json", "json_object")
    assert traits(request(response_format={"type": "text"})).needs == ()


def test_an_earlier_picture_is_still_a_picture() -> None:
    seen = {"role": "user", "content": [PICTURE]}
    assert traits(request(seen, {"role": "assistant", "content": "A dam."}, USER)).needs == ("images",)


def test_tools_that_were_used_earlier_are_needed_too() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_call", "id": "1", "name": "f"}]}
    result = {"role": "tool", "content": [{"type": "tool_result", "tool_call_id": "1", "content": "12"}]}
    assert traits(request(USER, call, result)).needs == ("tools",)
    assert traits(request(USER, call, result, response_format=SCHEMA)).needs == ("json", "tools")


def test_the_size_is_that_of_the_whole_prompt() -> None:
    asked = request({"role": "system", "content": "x" * 4_000}, USER)
    assert traits(asked).input_tokens == base_tokens(asked) > 1_000


def test_the_question_is_the_users_last_turn() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_call", "id": "1", "name": "f"}]}
    result = {"role": "tool", "content": [{"type": "tool_result", "tool_call_id": "1", "content": "prove it"}]}
    rules = {"role": "system", "content": "Prove everything."}
    assert (
        question(request(rules, USER, {"role": "assistant", "content": "Hello."}, {**USER, "content": "Bye"})) == "Bye"
    )
    assert question(request(rules, USER, call, result, tools=[{"name": "f"}])) == "hi"


def test_a_picture_alone_is_an_empty_question() -> None:
    assert question(request({"role": "user", "content": [PICTURE]})) == ""


@given(st.integers(0, 3 * QUESTION_CHARS))
def test_of_a_long_question_its_beginning_and_its_end_are_looked_at(more: int) -> None:
    text = question(request({"role": "user", "content": f"begin{'x' * more}end"}))
    assert len(text) <= QUESTION_CHARS
    assert (text[:5], text[-3:]) == ("begin", "end")


def test_the_complexity_is_that_of_the_question() -> None:
    asked = request({"role": "system", "content": "Prove the theorem."}, {**USER, "content": "Prove it, step by step."})
    assert traits(asked).complexity == complexity("Prove it, step by step.").score
