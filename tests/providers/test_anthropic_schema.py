"""JSON schemas on their way to Claude: through the SDK's own transform, or refused by name."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers.anthropic_codec import SchemaTransform, encode
from providers.base import Image, JsonFormat, Message, Prompt, Text, Tool, ToolCall, ToolChoice, ToolResult
from providers.codec import to_bytes
from providers.errors import ProviderError, Unsupported
from tests.providers.vendor import prompt


@pytest.fixture(scope="module")
def transform() -> SchemaTransform:
    import anthropic

    return anthropic.transform_schema


def sent(schema: Any, transform: SchemaTransform) -> Any:
    body = encode(prompt(response_format=JsonFormat(schema)), transform, stream=False)
    return body["output_config"]["format"]["schema"]


@pytest.mark.parametrize(
    ("given_schema", "expected"),
    [
        (
            {"type": ["string", "null"], "description": "A name", "format": "date"},
            {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "description": "A name"},
        ),
        (
            {"type": ["array", "null"], "items": {"type": ["integer"]}, "title": "Days"},
            {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}], "title": "Days"},
        ),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"enum": ["a", None]}),
        (
            {"type": ["object", "null"], "properties": {"b": {"type": "string"}}, "required": ["b"]},
            {
                "anyOf": [
                    {
                        "type": "object",
                        "properties": {"b": {"type": "string"}},
                        "additionalProperties": False,
                        "required": ["b"],
                    },
                    {"type": "null"},
                ]
            },
        ),
    ],
)
@pytest.mark.parametrize("place", ["property", "definition", "branch", "item"])
def test_a_nullable_schema_goes_out_as_its_branches(
    transform: SchemaTransform, given_schema: Any, expected: Any, place: str
) -> None:
    match place:
        case "property":
            got = sent({"type": "object", "properties": {"a": given_schema}}, transform)["properties"]["a"]
        case "definition":
            got = sent({"$ref": "#/$defs/A", "$defs": {"A": given_schema}}, transform)["$defs"]["A"]
        case "branch":
            got = sent({"anyOf": [given_schema, {"type": "boolean"}]}, transform)["anyOf"][0]
        case _:
            got = sent({"type": "array", "items": given_schema}, transform)["items"]
    assert got == expected


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": []},
        {"type": ["string", 1]},
        {"type": ["string", "null"], "anyOf": [{"type": "string"}]},
        {"type": "text"},
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": []},
        {"$defs": []},
        nested(5000),
    ],
)
def test_what_the_sdk_cannot_transform_is_refused_by_the_fields_name(transform: SchemaTransform, schema: Any) -> None:
    with pytest.raises(Unsupported, match="response_format"):
        sent(schema, transform)


words = st.text(st.characters(), max_size=4)
types = st.sampled_from(["object", "array", "string", "integer", "null", "text"])
json = st.recursive(
    st.none() | st.booleans() | st.integers() | types | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=3,
)


def schemas_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(words, inner, max_size=2)
    several = st.lists(inner, max_size=2)
    told: dict[str, st.SearchStrategy[Any]] = {
        "type": types | st.lists(types, max_size=2) | json,
        "properties": named | json,
        "$defs": named,
        "items": inner,
        "anyOf": several,
        "allOf": several,
        "enum": json,
        "required": json,
    }
    return st.fixed_dictionaries({}, optional=told)


schemas = schemas_of(st.recursive(json, schemas_of, max_leaves=3))
urls = st.sampled_from(["https://x.org/a.png", "https://[x", "http://x.org", "//", ""]) | words
parts = st.one_of(
    st.builds(Text, words),
    st.builds(Image, st.sampled_from(["image/png", "image/bmp", None]), st.just("aGk=") | st.none(), urls),
    st.builds(ToolCall, words, words, st.sampled_from(["", "{}", "[]", "{", '{"a": 1}', "null"]) | words),
    st.builds(ToolResult, words, words, st.booleans()),
)
messages = st.builds(
    Message, st.sampled_from(["system", "user", "assistant", "tool"]), st.lists(parts, max_size=2).map(tuple)
)
prompts = st.builds(
    Prompt,
    model=words,
    messages=st.lists(messages, max_size=2).map(lambda more: (Message("user", (Text("x"),)), *more)),
    max_tokens=st.integers(1, 9000),
    temperature=st.none() | st.floats(0, 2),
    top_p=st.none() | st.floats(0, 1),
    stop=st.lists(words, max_size=1).map(tuple),
    tools=st.lists(st.builds(Tool, words, words, schemas), max_size=1).map(tuple),
    tool_choice=st.builds(ToolChoice, st.sampled_from(["auto", "none", "required", "named"]), words),
    response_format=st.builds(JsonFormat, schemas),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=prompts, stream=st.booleans())
def test_any_request_has_a_body_or_is_refused(transform: SchemaTransform, asked: Prompt, stream: bool) -> None:
    with contextlib.suppress(ProviderError):
        assert to_bytes(encode(asked, transform, stream=stream)).startswith(b"{")
