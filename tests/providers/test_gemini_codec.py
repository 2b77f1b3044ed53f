"""Gemini's wire format, both ways, and its errors: pure functions."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers.base import (
    Image,
    JsonFormat,
    Message,
    Part,
    Prompt,
    Text,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
)
from providers.boundary import error_body
from providers.errors import (
    BadCredentials,
    BadResponse,
    InvalidPrompt,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    Unsupported,
)
from providers.exchange import Refused, joined
from providers.gemini_answer import GeminiAnswer, error_in, usage_of
from providers.gemini_codec import FOREIGN_SIGNATURE, calls_so_far, encode, method_path
from providers.gemini_errors import kind_of, status_of, wait_of
from providers.gemini_schema import gemini_schema

CALL = ToolCall("c1", "weather", '{"city": "Oslo"}', signature="c2ln")


def turn(role: Any, *parts: Part | str) -> Message:
    return Message(role, tuple(Text(p) if isinstance(p, str) else p for p in parts))


def encoded(*messages: Message, **settings: Any) -> dict[str, Any]:
    return encode(Prompt(**{"model": "gemini-2.5-flash", "messages": messages, "max_tokens": 4096, **settings}))


def contents(*messages: Message, **settings: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = encoded(*messages, **settings)["contents"]
    return found


# --- requests -------------------------------------------------------------------------------


def test_system_messages_join_into_one_instruction() -> None:
    body = encoded(turn("system", "Be brief."), turn("user", "hi"), turn("system", "Be kind."))
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief.\n\nBe kind."}]}
    assert body["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]


def test_turns_of_one_role_are_joined_and_empty_text_left_out() -> None:
    assert contents(turn("user", "a", ""), turn("user", "b"), turn("assistant", ""), turn("assistant", "c")) == [
        {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]},
        {"role": "model", "parts": [{"text": "c"}]},
    ]


def test_tool_results_name_the_function_and_answer_with_an_object() -> None:
    second = ToolCall("c2", "time", "")
    got = contents(
        turn("user", "?"),
        turn("assistant", "Let me look.", CALL, second),
        turn("tool", ToolResult("c1", '{"sky": "grey"}')),
        turn("tool", ToolResult("c2", "noon")),
        turn("user", "and?"),
    )
    assert got[1]["parts"] == [
        {"text": "Let me look."},
        {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Oslo"}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "c2", "name": "time", "args": {}}},
    ]
    assert got[2] == {
        "role": "user",
        "parts": [
            {"functionResponse": {"id": "c1", "name": "weather", "response": {"sky": "grey"}}},
            {"functionResponse": {"id": "c2", "name": "time", "response": {"output": "noon"}}},
        ],
    }
    assert got[3] == {"role": "user", "parts": [{"text": "and?"}]}


def test_a_failed_tool_says_so() -> None:
    got = contents(turn("assistant", CALL), turn("tool", ToolResult("c1", '{"no": 1}', is_error=True)))
    assert got[1]["parts"][0]["functionResponse"]["response"] == {"error": '{"no": 1}'}


def test_a_result_without_its_call_is_refused() -> None:
    with pytest.raises(Unsupported, match="c9"):
        contents(turn("user", "?"), turn("tool", ToolResult("c9", "x")))


@pytest.mark.parametrize(("model", "signature"), [("gemini-2.5-flash", None), ("gemini-3.8-flash", FOREIGN_SIGNATURE)])
def test_calls_of_another_vendor_get_a_stand_in_signature_where_one_is_demanded(
    model: str, signature: str | None
) -> None:
    calls = [ToolCall("a", "weather", "{}"), ToolCall("b", "weather", "{}")]
    parts = contents(turn("assistant", *calls), model=model)[0]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == [signature, None]


def test_a_signature_is_returned_unchanged() -> None:
    parts = contents(turn("assistant", CALL, ToolCall("b", "weather", "{}")), model="gemini-3.8-flash")[0]["parts"]
    assert [part.get("thoughtSignature") for part in parts] == ["c2ln", None]


@pytest.mark.parametrize("arguments", ["[1]", "{broken"])
def test_a_call_whose_arguments_are_no_object_is_refused(arguments: str) -> None:
    with pytest.raises(Unsupported, match="arguments"):
        contents(turn("assistant", ToolCall("a", "weather", arguments)))


def test_images_go_by_value_or_by_address() -> None:
    got = contents(
        turn(
            "user",
            Image("image/png", data="AAAA"),
            Image(url="https://x.example/a.jpg?sig=1"),
            Image("image/webp", url="https://x.example/b"),
        )
    )
    assert got[0]["parts"] == [
        {"inlineData": {"mimeType": "image/png", "data": "AAAA"}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.example/a.jpg?sig=1"}},
        {"fileData": {"mimeType": "image/webp", "fileUri": "https://x.example/b"}},
    ]


@pytest.mark.parametrize(
    "image",
    [
        Image(data="AAAA"),
        Image(url="http://x.example/a.png"),
        Image(url="https://x.example/a"),
        Image(),
        Image(url="https://[x"),
    ],
)
def test_an_image_that_gemini_cannot_take_is_refused(image: Image) -> None:
    with pytest.raises(Unsupported):
        contents(turn("user", image))


def test_an_image_in_the_system_message_is_refused() -> None:
    with pytest.raises(Unsupported, match="text only"):
        encoded(turn("system", Image("image/png", data="AAAA")), turn("user", "hi"))


def test_a_prompt_of_system_messages_alone_is_refused() -> None:
    with pytest.raises(Unsupported, match="system"):
        encoded(turn("system", "Be brief."))


@pytest.mark.parametrize(
    ("choice", "config"),
    [
        (ToolChoice(), {"mode": "AUTO"}),
        (ToolChoice("none"), {"mode": "NONE"}),
        (ToolChoice("required"), {"mode": "ANY"}),
        (ToolChoice("named", "weather"), {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
def test_tools_are_declared_with_their_choice(choice: ToolChoice, config: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = (Tool("weather", "Tells it", schema), Tool("time", "Tells it", {"type": "object", "properties": {}}))
    body = encoded(turn("user", "hi"), tools=tools, tool_choice=choice)
    assert body["tools"] == [
        {
            "functionDeclarations": [
                {"name": "weather", "description": "Tells it", "parametersJsonSchema": schema},
                {"name": "time", "description": "Tells it"},
            ]
        }
    ]
    assert body["toolConfig"] == {"functionCallingConfig": config}


def test_json_beside_tools_is_refused_before_the_third_generation() -> None:
    asked: dict[str, Any] = {"tools": (Tool("t", "", {}),), "response_format": JsonFormat()}
    with pytest.raises(Unsupported, match="JSON"):
        encoded(turn("user", "hi"), **asked)
    body = encoded(turn("user", "hi"), model="gemini-3.8-flash", **asked)
    assert body["generationConfig"]["responseMimeType"] == "application/json"


@pytest.mark.parametrize(
    ("model", "max_tokens", "thinking"),
    [
        ("gemini-2.5-flash", 2047, {"thinkingBudget": 0}),
        ("gemini-2.5-flash-lite", 100, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", 2048, None),
        ("gemini-2.5-pro", 100, None),
        ("gemini-2.5-flash-image", 100, None),
        ("gemini-2.0-flash", 100, None),
        ("gemini-3.8-flash", 100, {"thinkingLevel": "LOW"}),
        ("gemini-3-flash-preview", 100, {"thinkingLevel": "LOW"}),
        ("gemini-3.5-flash-lite", 100, None),
        ("gemini-3.1-pro-preview", 100, None),
        ("gemini-flash-latest", 100, None),
    ],
)
def test_thinking_is_held_down_where_a_short_answer_would_starve(
    model: str, max_tokens: int, thinking: dict[str, Any] | None
) -> None:
    config = encoded(turn("user", "hi"), model=model, max_tokens=max_tokens)["generationConfig"]
    assert config.get("thinkingConfig") == thinking


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gemini-2.5-flash", "models/gemini-2.5-flash:generateContent"),
        ("tunedModels/mine-1", "tunedModels/mine-1:generateContent"),
    ],
)
def test_the_address_names_the_model(model: str, path: str) -> None:
    assert method_path(model, stream=False) == path


@pytest.mark.parametrize("model", ["", "../x", "a?b", "a/b/c", "a b", "a:b", "é/../b"])
def test_a_name_that_would_change_the_address_is_refused(model: str) -> None:
    with pytest.raises(Unsupported):
        method_path(model, stream=True)


# --- schemas --------------------------------------------------------------------------------


def test_a_schema_keeps_what_gemini_takes_and_tells_the_rest_in_words() -> None:
    assert gemini_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {
                "pattern": {"type": "string", "pattern": "^a+$", "maxLength": 5, "description": "A name"},
                "kind": {"const": "cat"},
                "owner": {"allOf": [{"$ref": "#/definitions/Owner"}], "description": "Whose"},
                "any": True,
                "age": {"nullable": True, "type": "integer"},
                "tags": {
                    "type": "array",
                    "items": {"type": "string", "examples": ["x"], "default": ""},
                    "uniqueItems": True,
                },
            },
            "required": ["pattern"],
            "additionalProperties": False,
            "definitions": {"Owner": {"anyOf": [{"type": "string"}, {"type": "null"}], "x-order": 1}},
        }
    ) == {
        "type": "object",
        "properties": {
            "pattern": {"type": "string", "description": "A name (pattern: ^a+$, maxLength: 5)"},
            "kind": {"enum": ["cat"]},
            "owner": {"$ref": "#/$defs/Owner"},
            "any": {},
            "age": {"type": ["integer", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}, "description": "(uniqueItems: True)"},
        },
        "required": ["pattern"],
        "additionalProperties": False,
        "$defs": {"Owner": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
    }


keywords = st.sampled_from(
    ["type", "anyOf", "allOf", "properties", "$defs", "items", "$ref", "const", "nullable", "pattern", "description"]
)


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"type": "string"}},
        {"if": {}, "then": {}},
        {"allOf": [{"type": "string"}, {"minLength": 1}]},
        {"patternProperties": {"^x": {}}},
        {"properties": {"a": {"dependentSchemas": {}}}},
        {"$ref": "#/$defs/A", "minimum": 1},
        {"properties": {"a": False}},
        {"properties": []},
    ],
)
def test_what_a_schema_cannot_say_to_gemini_is_refused_by_name(schema: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="keyword"):
        gemini_schema(schema)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keywords, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keywords, json, max_size=4))
def test_any_schema_is_translated_or_refused(schema: dict[str, Any]) -> None:
    with contextlib.suppress(Unsupported):
        assert isinstance(gemini_schema(schema), dict)


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "usage"),
    [
        ({}, Usage()),
        (
            {"promptTokenCount": 100, "cachedContentTokenCount": 40, "candidatesTokenCount": 7, "totalTokenCount": 107},
            Usage(input_fresh=60, cache_read=40, output_visible=7),
        ),
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 20, "totalTokenCount": 35},
            Usage(input_fresh=10, output_visible=5, output_thinking=20),
        ),
        (
            {"promptTokenCount": 10, "candidatesTokenCount": 25, "thoughtsTokenCount": 20, "totalTokenCount": 35},
            Usage(input_fresh=10, output_visible=5, output_thinking=20),
        ),
        (
            {"promptTokenCount": 10, "toolUsePromptTokenCount": 8, "candidatesTokenCount": 5, "totalTokenCount": 23},
            Usage(input_fresh=10, tool_input=8, output_visible=5),
        ),
        ({"promptTokenCount": None, "candidatesTokenCount": 3, "thoughtsTokenCount": 2}, Usage(0, 0, 0, 0, 0, 3, 2)),
    ],
    ids=["none", "cached", "thoughts apart", "thoughts within", "tool use", "nulls"],
)
def test_usage_is_taken_apart_into_what_is_billed(raw: dict[str, Any], usage: Usage) -> None:
    assert usage_of(raw) == usage
    assert usage_of(raw).raw == raw


def test_minted_ids_count_on_from_the_calls_of_the_conversation() -> None:
    prompt = Prompt("gemini-2.5-flash", (turn("assistant", CALL), turn("tool", ToolResult("c1", "x"))), 100)
    answer = GeminiAnswer("gemini-2.5-flash", calls_so_far(prompt))
    events = answer.feed(
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"a","args":{"x":1.0}}},'
        b'{"functionCall":{"name":"b","args":null}}]}}]}'
    )
    assert events == [
        ToolCallDelta(0, "call_1", "a", '{"x":1.0}'),
        ToolCallDelta(1, "call_2", "b", "{}"),
    ]


@pytest.mark.parametrize("args", [b"[1]", b'"x"', b"1"])
def test_arguments_that_are_no_object_are_a_bad_response(args: bytes) -> None:
    with pytest.raises(BadResponse):
        GeminiAnswer("m").feed(
            b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"a","args":' + args + b"}}]}}]}"
        )


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"candidates":{}}', b'"x"'])
def test_a_chunk_of_another_shape_is_a_bad_response(data: bytes) -> None:
    with pytest.raises(BadResponse):
        GeminiAnswer("m").feed(data)


@pytest.mark.parametrize(
    "tail",
    [
        b'{"error": {"code": 503}}',
        b'[{"error": {"code": 503}}]\n',
        b'data: {"candidates":[]}\r\n\r\n[{\n  "error": {"code": 503}\n}\n]\n',
    ],
)
def test_an_error_in_plain_json_at_a_streams_end_is_found(tail: bytes) -> None:
    found = error_in(tail)
    assert found is not None
    with pytest.raises(Refused) as raised:
        GeminiAnswer("m").feed(found)
    assert raised.value.body == {"code": 503}


@pytest.mark.parametrize("tail", [b"", b'data: {"text": "{\\"error\\": 1}"}\n\n', b'data: {"error": {}}\n\n'])
def test_no_error_is_found_in_the_text_of_an_event(tail: bytes) -> None:
    assert error_in(tail) is None


def test_runs_of_text_and_of_thinking_join() -> None:
    call = ToolCallDelta(0, "a", "b", "{}")
    assert joined(
        [ThinkingDelta("a"), ThinkingDelta("b", "s"), ThinkingDelta("c"), TextDelta("d"), TextDelta("e"), call]
    ) == [ThinkingDelta("ab", "s"), ThinkingDelta("c"), TextDelta("de"), call]


# --- errors ---------------------------------------------------------------------------------

NOON = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
"""Noon in Los Angeles, in winter."""
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [
        {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"},
        {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"},
    ],
}


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "Invalid value at 'contents'", InvalidPrompt),
        (400, "API key not valid. Please pass a valid API key.", BadCredentials),
        (400, "User location is not supported for the API use.", BadCredentials),
        (400, "The input token count (1200293) exceeds the maximum number of tokens allowed.", PromptTooLarge),
        (400, "Request payload size exceeds the limit: 20971520 bytes.", PromptTooLarge),
        (402, "Your prepayment credits are depleted.", OutOfCredit),
        (418, "teapot", InvalidPrompt),
        (429, "You exceeded your current quota, please check your plan and billing details.", RateLimited),
        (429, "Your project has exceeded its monthly spending cap.", OutOfCredit),
        (429, "Your prepayment credits are depleted.", OutOfCredit),
    ],
)
def test_an_error_is_told_by_status_and_message(status: int, message: str, kind: type[ProviderError]) -> None:
    assert kind_of(status, {"message": message}) is kind


def test_an_error_is_told_by_its_reason() -> None:
    assert kind_of(400, {"details": [{"reason": "API_KEY_INVALID"}]}) is BadCredentials
    assert kind_of(429, {"details": [{"reason": "MODEL_CAPACITY_EXHAUSTED"}]}) is Overloaded
    assert kind_of(429, {"details": "none"}) is RateLimited


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({}, None),
        ({"details": [RETRY]}, 7),
        ({"details": [{**RETRY, "retryDelay": "45.57s"}]}, 45.57),
        ({"details": [{**RETRY, "retryDelay": "soon"}]}, None),
        ({"details": [{**RETRY, "retryDelay": "1.2.3s"}]}, None),
        ({"details": [{**RETRY, "retryDelay": "9" * 400 + "s"}]}, None),
        ({"message": "Please retry in 45.5s."}, 45.5),
        ({"details": [PER_DAY, RETRY]}, 12 * 3600),
        ({"details": [RETRY, PER_DAY]}, 12 * 3600),
    ],
)
def test_the_wait_is_the_bodys_own_word_or_midnight_pacific_for_a_daily_quota(
    body: dict[str, Any], seconds: float | None
) -> None:
    assert wait_of(body, NOON) == seconds


def test_midnight_is_right_across_the_change_to_summer_time() -> None:
    # Saturday 2027-03-13 23:30 in Los Angeles; the clocks change in the night after the coming midnight.
    assert wait_of({"details": [PER_DAY]}, datetime(2027, 3, 14, 7, 30, tzinfo=UTC)) == 1800
    # Sunday 01:00: that day has 23 hours.
    assert wait_of({"details": [PER_DAY]}, datetime(2027, 3, 14, 9, 0, tzinfo=UTC)) == 22 * 3600


@pytest.mark.parametrize(
    ("body", "status"),
    [({"code": 503}, 503), ({"status": "RESOURCE_EXHAUSTED"}, 429), ({"code": 14}, 500), ({}, 500)],
)
def test_an_error_inside_an_answer_has_a_status(body: dict[str, Any], status: int) -> None:
    assert status_of(body) == status


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b'{"error": {"code": 1}}', {"code": 1}),
        (b'[{"error": {"code": 1}}]', {"code": 1}),
        (b" <html> ", {"message": "<html>"}),
        (b'{"error": "bare"}', {"message": "bare"}),
        (b"", {"message": ""}),
    ],
)
def test_an_error_body_is_unwrapped(data: bytes, body: dict[str, Any]) -> None:
    assert error_body(data) == body
