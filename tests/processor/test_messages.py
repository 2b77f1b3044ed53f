"""Any bytes give a request or one error that names the field."""

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.errors import ErrorType, RequestError
from processor.messages import MAX_BODY_BYTES, Request, decode_request, encode_request
from processor.parts import MAX_TEXT_CHARS

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
USER = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "content": [{"type": "tool_call", "id": "c1", "name": "rain", "arguments": "{}"}]}
RESULT = {"role": "tool", "content": [{"type": "tool_result", "tool_call_id": "c1", "content": "5 mm"}]}


def image(**fields: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": [{"type": "image", **fields}]}]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "messages: Field required"),
        ({"messages": []}, "messages:"),
        ({"messages": "hi"}, "messages:"),
        ({"messages": [USER], "colour": 1}, "colour: unknown field"),
        ({"messages": [USER | {"name": "x"}]}, "messages.0.name: unknown field"),
        ({"messages": [USER], "max_tokens": "5"}, "max_tokens:"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens:"),
        ({"messages": [USER], "temperature": 3}, "temperature:"),
        ({"messages": [USER], "stream": 1}, "stream:"),
        ({"messages": [USER], "deadline_ms": -1}, "deadline_ms:"),
        ({"messages": [USER], "tenant": "a.b"}, "tenant:"),
        ({"messages": [USER], "model": "a b"}, "model:"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages.0.role:"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: the content is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages.0.content.0:"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages.0: the first message"),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages.1: a system message"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages.1: the last message"),
        ({"messages": [USER, CALL, USER]}, "messages.2: tool call c1 has no tool_result yet"),
        ({"messages": [USER, RESULT]}, "messages.1: tool_result answers no open tool call"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0: the last message"),
        (image(media_type="image/png", data="%%%"), "messages.0.content.0: image data is not base64"),
        (image(media_type="image/png", data="aGVsbG8="), "messages.0.content.0: the data is not a image/png"),
        (image(media_type="image/jpeg", data=PNG), "messages.0.content.0: the data is not a image/jpeg"),
        (image(media_type="text/html", data=PNG), "messages.0.content.0.media_type:"),
        (image(url="file:///etc/passwd"), "messages.0.content.0: an image url starts with http"),
        (image(url="https://"), "messages.0.content.0: an image url"),
        (image(), "messages.0.content.0: an image has either data or url"),
        ({"messages": [USER], "tools": [{"name": "a"}, {"name": "a"}]}, "tools: two tools have one name"),
        ({"messages": [USER], "tool_choice": "auto"}, "tool_choice: there are no tools"),
        (
            {"messages": [USER], "tools": [{"name": "a"}], "tool_choice": {"name": "b"}},
            "tool_choice: there is no tool b",
        ),
        ({"messages": [USER], "response_format": {"type": "json_schema"}}, "response_format: a schema goes with"),
    ],
)
def test_a_wrong_body_is_an_invalid_request_that_names_the_field(fields: dict[str, object], named: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(orjson.dumps(fields))
    assert caught.value.type is ErrorType.INVALID_REQUEST
    assert caught.value.message.startswith(named)


def test_a_number_that_no_vendor_could_read_is_refused() -> None:
    schema = b'{"type": "integer", "maximum": 99999999999999999999}'
    with pytest.raises(RequestError, match="more than 64 bits"):
        decode_request(
            b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "schema": '
            + schema
            + b"}}"
        )


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b'{"messages": NaN}', b'"\\ud800"'])
def test_what_is_not_a_json_object_is_an_invalid_request(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(body)
    assert caught.value.type is ErrorType.INVALID_REQUEST


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "x" * 2_000_000}],
        [{"role": "user", "content": "x" * (MAX_TEXT_CHARS // 2 + 1)} for _ in range(2)],
        [{"role": "user", "content": [{"type": "text", "text": "x" * 2_000_000}]}],
    ],
)
def test_two_megabytes_of_text_are_too_large(messages: list[object]) -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(orjson.dumps({"messages": messages}))
    assert caught.value.type is ErrorType.TOO_LARGE
    assert caught.value.message.startswith("messages")


def test_a_body_over_the_limit_is_too_large_before_it_is_read() -> None:
    with pytest.raises(RequestError) as caught:
        decode_request(b" " * (MAX_BODY_BYTES + 1))
    assert caught.value.type is ErrorType.TOO_LARGE


def test_openais_nesting_of_tools_and_schemas_is_understood() -> None:
    schema = {"type": "object"}
    request = decode_request(
        orjson.dumps(
            {
                "messages": [USER],
                "tools": [{"type": "function", "function": {"name": "rain", "parameters": schema}}],
                "tool_choice": {"type": "function", "function": {"name": "rain"}},
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": schema, "strict": True},
                },
                "stop": "END",
            }
        )
    )
    assert request.tools[0].parameters == schema
    assert request.response_format is not None
    assert request.response_format.json_schema == schema
    assert request.stop == ("END",)


def test_a_whole_conversation_with_image_and_tools_is_accepted() -> None:
    look = {
        "role": "user",
        "content": [{"type": "text", "text": "?"}, {"type": "image", "media_type": "image/png", "data": PNG}],
    }
    request = decode_request(orjson.dumps({"messages": [{"role": "system", "content": "s"}, look, CALL, RESULT]}))
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "tool"]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
token = st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True)
part = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, text),
    st.just({"type": "image", "media_type": "image/png", "data": PNG}),
    st.just({"type": "image", "url": "https://example.org/a.png"}),
)
user = st.builds(lambda c: {"role": "user", "content": c}, st.one_of(text, st.lists(part, min_size=1, max_size=3)))
exchange = st.one_of(
    st.just([CALL, RESULT]), st.builds(lambda t, u: [{"role": "assistant", "content": t}, u], text, user)
)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
options = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["auto", "haiku", "openai/gpt-oss-120b"]),
        "prefer": st.sampled_from(["cost", "speed", "quality"]),
        "stream": st.booleans(),
        "max_tokens": st.integers(1, 200_000),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1),
        "stop": st.lists(text, max_size=4),
        "tools": st.lists(
            st.fixed_dictionaries({"name": token, "parameters": st.dictionaries(text, json_value, max_size=3)}),
            max_size=3,
            unique_by=lambda tool: str(tool["name"]),
        ),
        "response_format": st.sampled_from(
            [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema", "schema": {"type": "object"}}]
        ),
        "cache": st.sampled_from(["use", "skip", "refresh"]),
        "fallback": st.booleans(),
        "only": st.lists(st.sampled_from(["haiku", "openai/gpt-oss-120b"]), min_size=1, max_size=3),
        "deadline_ms": st.integers(1, 1000),
        "tenant": token,
        "metadata": st.dictionaries(token, text, max_size=3),
    },
)
requests = st.builds(
    lambda first, turns, rest: {"messages": [first, *(m for turn in turns for m in turn)], **rest},
    user,
    st.lists(exchange, max_size=3),
    options,
)


@given(requests)
def test_decoding_what_was_encoded_gives_the_same_request(fields: dict[str, object]) -> None:
    request = Request.model_validate_json(orjson.dumps(fields))
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=300))
def test_any_bytes_at_all_raise_nothing_but_the_one_error(body: bytes) -> None:
    _decode_or_refuse(body)


@given(
    st.recursive(
        json_value,
        lambda inner: st.dictionaries(st.sampled_from(["messages", "role", "content", "tools", "type"]), inner),
    )
)
def test_any_json_at_all_raises_nothing_but_the_one_error(value: object) -> None:
    _decode_or_refuse(orjson.dumps(value))


def _decode_or_refuse(body: bytes) -> None:
    refused = None
    try:
        decode_request(body)
    except RequestError as error:
        refused = error
    assert refused is None or (refused.type in {ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE} and refused.message)
