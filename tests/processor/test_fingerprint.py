"""The key changes with everything that changes an answer, and with nothing else; only whole answers enter."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import RequestError
from processor.fingerprint import MAX_ENTRY_BYTES, cache_use, decode_entry, encode_entry, fingerprint, may_enter
from processor.messages import Request, decode_request
from processor.parts import ImagePart, TextPart, ToolCallPart, ToolResultPart
from processor.reply_bodies import FinalReply, ReplyRoute, ReplyToolCall, ReplyUsage, Timing

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff" + b"\0" * 16).decode()

FULL: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image", "media_type": "image/png", "data": PNG},
                {"type": "image", "url": "https://example.org/a.png"},
            ],
        },
        {
            "role": "assistant",
            "content": [{"type": "tool_call", "id": "c1", "name": "rain", "arguments": '{"a":1}', "signature": "s"}],
        },
        {
            "role": "tool",
            "content": [{"type": "tool_result", "tool_call_id": "c1", "content": "5 mm", "is_error": False}],
        },
    ],
    "tenant": "acme",
    "max_tokens": 100,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["END", "STOP"],
    "tools": [
        {"name": "rain", "description": "how much", "parameters": {"type": "object", "properties": {"a": {}, "b": {}}}},
        {"name": "snow"},
    ],
    "tool_choice": {"name": "rain"},
    "response_format": {"type": "json_schema", "name": "answer", "schema": {"type": "object", "title": "x"}},
}


def key(fields: dict[str, Any], model_class: str = "haiku") -> str:
    return fingerprint(decode_request(orjson.dumps(fields)), model_class)


def changed(change: Callable[[Any], Any]) -> dict[str, Any]:
    fields = copy.deepcopy(FULL)
    change(fields)
    return fields


def put(*path: str | int, to: Any) -> Callable[[Any], Any]:
    def change(fields: Any) -> None:
        for step in path[:-1]:
            fields = fields[step]
        fields[path[-1]] = to

    return change


def without(*path: str | int) -> Callable[[Any], Any]:
    def change(fields: Any) -> None:
        for step in path[:-1]:
            fields = fields[step]
        del fields[path[-1]]

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "tenant": put("tenant", to="other"),
    "no tenant": without("tenant"),
    "text": put("messages", 1, "content", 0, "text", to="what is that?"),
    "role": put("messages", 0, "role", to="user"),
    "a message less": without("messages", 0),
    "order of parts": lambda f: f["messages"][1]["content"].reverse(),
    "a text in two": lambda f: f["messages"][1]["content"].__setitem__(
        slice(0, 1), [{"type": "text", "text": "what "}, {"type": "text", "text": "is this?"}]
    ),
    "image data": put("messages", 1, "content", 1, "data", to=PNG[:-4] + "AAA="),
    "image type": put("messages", 1, "content", 1, to={"type": "image", "media_type": "image/jpeg", "data": JPEG}),
    "image url": put("messages", 1, "content", 2, "url", to="https://example.org/b.png"),
    "media type of a url": put("messages", 1, "content", 2, "media_type", to="image/png"),
    "call id": lambda f: [
        put("messages", 2, "content", 0, "id", to="c2")(f),
        put("messages", 3, "content", 0, "tool_call_id", to="c2")(f),
    ],
    "call name": put("messages", 2, "content", 0, "name", to="snow"),
    "call arguments": put("messages", 2, "content", 0, "arguments", to='{"a":2}'),
    "call signature": put("messages", 2, "content", 0, "signature", to="t"),
    "no signature": without("messages", 2, "content", 0, "signature"),
    "result": put("messages", 3, "content", 0, "content", to="6 mm"),
    "result is an error": put("messages", 3, "content", 0, "is_error", to=True),
    "max_tokens": put("max_tokens", to=101),
    "no max_tokens": without("max_tokens"),
    "temperature": put("temperature", to=0.6),
    "temperature 0": put("temperature", to=0),
    "no temperature": without("temperature"),
    "top_p": put("top_p", to=0.8),
    "top_p 0": put("top_p", to=0),
    "no top_p": without("top_p"),
    "order of stop": put("stop", to=["STOP", "END"]),
    "stop as one": put("stop", to=["END,STOP"]),
    "no stop": without("stop"),
    "order of tools": lambda f: f["tools"].reverse(),
    "a tool less": without("tools", 1),
    "tool name": put("tools", 1, "name", to="hail"),
    "tool description": put("tools", 0, "description", to="how little"),
    "tool parameters": put("tools", 0, "parameters", "properties", "a", to={"type": "string"}),
    "tool_choice by name": put("tool_choice", to={"name": "snow"}),
    "tool_choice auto": put("tool_choice", to="auto"),
    "tool_choice none": put("tool_choice", to="none"),
    "no tool_choice": without("tool_choice"),
    "schema": put("response_format", "schema", "title", to="y"),
    "schema name": put("response_format", "name", to="reply"),
    "json_object": put("response_format", to={"type": "json_object"}),
    "format text": put("response_format", to={"type": "text"}),
    "no response_format": without("response_format"),
}


def test_each_thing_that_changes_an_answer_gives_a_key_of_its_own() -> None:
    keys = {name: key(changed(change)) for name, change in CHANGES.items()}
    keys |= {"as it is": key(FULL), "another model": key(FULL, "sonnet")}
    assert len(set(keys.values())) == len(keys)
    assert all(len(bytes.fromhex(digits)) == 32 for digits in keys.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"stream": True},
        {"deadline_ms": 5},
        {"metadata": {"user": "7"}},
        {"cache": "refresh"},
        {"fallback": False},
        {"task_type": "code"},
        {"prefer": "cost"},
        {"model": "haiku"},
    ],
)
def test_what_changes_no_answer_changes_no_key(fields: dict[str, Any]) -> None:
    assert key(FULL | fields) == key(FULL)


def test_every_field_of_a_request_and_of_its_parts_is_decided_on() -> None:
    counted = {
        *("messages", "tenant", "max_tokens", "temperature", "top_p", "stop", "tools", "tool_choice"),
        "response_format",
    }
    left_out = {"model", "task_type", "prefer", "stream", "cache", "fallback", "deadline_ms", "metadata"}
    left_out |= {"only"}  # the route's own words say it, by the ids that the names mean on that day
    assert set(Request.model_fields) == counted | left_out
    fields = [set(part.model_fields) - {"type"} for part in (TextPart, ImagePart, ToolCallPart, ToolResultPart)]
    assert fields == [
        {"text"},
        {"media_type", "data", "url"},
        {"id", "name", "arguments", "signature"},
        {"tool_call_id", "content", "is_error"},
    ]


def test_a_text_is_a_list_of_one_text_part() -> None:
    parts = put("messages", 0, "content", to=[{"type": "text", "text": "be brief"}])
    assert key(changed(parts)) == key(FULL)


def test_a_schema_is_the_same_in_any_order_of_keys() -> None:
    other = put("tools", 0, "parameters", to={"properties": {"b": {}, "a": {}}, "type": "object"})
    assert key(changed(other)) == key(FULL)
    other = put("response_format", "schema", to={"title": "x", "type": "object"})
    assert key(changed(other)) == key(FULL)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[list[str]]:
    """The text in messages of parts, each at least a character long."""
    cuts = sorted(draw(st.sets(st.integers(1, len(text) - 1))))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    ends = sorted(draw(st.sets(st.integers(1, len(parts) - 1)))) if len(parts) > 1 else []
    return [parts[a:b] for a, b in zip([0, *ends], [*ends, len(parts)], strict=True)]


@given(st.data(), st.text(alphabet='ab",[]\\\0é', min_size=2, max_size=12))
def test_no_two_ways_to_cut_a_text_into_messages_and_parts_share_a_key(data: st.DataObject, text: str) -> None:
    one, other = data.draw(cut(text)), data.draw(cut(text))

    def asked(talk: list[list[str]]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ts]} for ts in talk]}

    assert (key(asked(one)) == key(asked(other))) == (one == other)


def test_the_deepest_schema_that_a_request_may_have_has_a_key() -> None:
    def nested(depth: int) -> bytes:
        inner = b'{"x":' * depth + b"1" + b"}" * depth
        return b'{"messages":[{"role":"user","content":"hi"}],"tools":[{"name":"t","parameters":' + inner + b"}]}"

    depth = 1
    while True:
        try:
            request = decode_request(nested(depth))
        except RequestError:
            break
        assert fingerprint(request, "haiku")
        depth += 1
    assert depth > 100


# --- whether it is used ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "temperature", "sampled", "use"),
    [
        (None, None, False, "use"),
        (None, 0.0, False, "use"),
        (None, 0.1, False, "skip"),
        (None, 0.1, True, "use"),
        ("use", 0.1, False, "use"),
        ("refresh", 0.1, False, "refresh"),
        ("refresh", None, False, "refresh"),
        ("skip", None, True, "skip"),
    ],
)
def test_a_sampled_answer_is_repeated_only_where_somebody_asks_for_it(
    asked: Any, temperature: float | None, sampled: bool, use: str
) -> None:
    fields = {"messages": [{"role": "user", "content": "hi"}], "cache": asked, "temperature": temperature}
    request = decode_request(orjson.dumps(fields))
    assert cache_use(request, enabled=True, sampled=sampled) == use
    assert cache_use(request, enabled=False, sampled=sampled) == "skip"


# --- what may enter -------------------------------------------------------------------------


def answer(**changes: Any) -> FinalReply:
    fields: dict[str, Any] = {
        "id": "r1",
        "model": "haiku",
        "provider": "anthropic",
        "served_by": "claude-haiku-4-5",
        "response": "hello",
        "finish_reason": "stop",
        "usage": ReplyUsage(input_tokens=3, output_tokens=1),
        "cost_usd": Decimal("0.000047"),
        "attempts": 1,
        "route": ReplyRoute(reason="asked"),
        "timing": Timing(queued_ms=1, first_token_ms=None, total_ms=9.5),
    }
    return FinalReply(**fields | changes)


CALLED = (ReplyToolCall(id="c1", name="rain", arguments="{}", signature="s"),)


@pytest.mark.parametrize(
    ("reply", "may"),
    [
        (answer(), True),
        (answer(response="", tool_calls=CALLED, finish_reason="tool_calls"), True),
        (answer(cost_estimated=True, attempts=2), True),
        (answer(cost_usd=Decimal(0)), True),
        (answer(finish_reason="length"), False),
        (answer(finish_reason="content_filter"), False),
        (answer(finish_reason="pause"), False),
        (answer(finish_reason="other"), False),
        (answer(response=""), False),
        (answer(cached=True), False),
    ],
)
def test_only_a_whole_answer_of_a_vendors_enters(reply: FinalReply, may: bool) -> None:
    assert may_enter(reply) is may


def test_an_answer_enters_up_to_its_size_in_bytes() -> None:
    room = MAX_ENTRY_BYTES - len(encode_entry(answer(response="")))
    assert may_enter(answer(response="x" * room))
    assert not may_enter(answer(response="x" * (room + 1)))
    assert not may_enter(answer(response="é" * (room // 2 + 1)))


@given(st.decimals(min_value=0, max_value=1000, places=18), st.text(max_size=20))
def test_what_is_stored_comes_back_as_it_was_to_the_last_digit_of_its_cost(cost: Decimal, text: str) -> None:
    reply = answer(cost_usd=cost, response=text, tool_calls=CALLED)
    assert decode_entry(encode_entry(reply)) == reply


@pytest.mark.parametrize("entry", [b"", b"nonsense", b"{}", b"[1]", b"\xff\xfe", b'{"id": 5}', b"null"])
def test_what_cannot_be_read_is_no_answer(entry: bytes) -> None:
    assert decode_entry(entry) is None
