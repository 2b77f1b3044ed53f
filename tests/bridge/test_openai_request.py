"""What clients of OpenAI's format send, as a request of the contract's, or an error with the client's own words."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.ignored import MAX_NAME_CHARS, MAX_NAMES
from bridge.openai_request import Asked, decode
from processor.errors import ErrorType, RequestError
from processor.messages import NamedTool
from processor.parts import ImagePart, TextPart, ToolCallPart, ToolResultPart

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
USER = {"role": "user", "content": "hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": '{"in":"Rome"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "5 mm"}
TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}


def asked(*messages: Any, **fields: Any) -> Asked:
    return decode(orjson.dumps({"model": "haiku", "messages": list(messages) or [USER]} | fields))


def refused(*messages: Any, **fields: Any) -> str:
    with pytest.raises(RequestError) as caught:
        asked(*messages, **fields)
    assert caught.value.type in {ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE}
    return caught.value.message


def image(url: object) -> dict[str, object]:
    return {"role": "user", "content": [{"type": "image_url", "image_url": url}]}


# --- messages -------------------------------------------------------------------------------


def test_a_talk_with_tools_is_the_same_talk() -> None:
    said = asked({"role": "developer", "content": "Be brief."}, USER, CALLS, RESULT).request.messages
    assert [message.role for message in said] == ["system", "user", "assistant", "tool"]
    assert said[2].parts == (ToolCallPart(type="tool_call", id="c1", name="rain", arguments='{"in":"Rome"}'),)
    assert said[3].parts == (ToolResultPart(type="tool_result", tool_call_id="c1", content="5 mm"),)


def test_text_beside_tool_calls_stays_before_them_and_empty_text_is_left_out() -> None:
    said = asked(USER, CALLS | {"content": "I look."}, RESULT).request.messages[1].parts
    assert [part.type for part in said] == ["text", "tool_call"]
    assert [part.type for part in asked(USER, CALLS | {"content": ""}, RESULT).request.messages[1].parts] == [
        "tool_call"
    ]


def test_what_the_sdk_dumps_of_an_answer_is_taken_back() -> None:
    dumped = {"content": None, "refusal": None, "role": "assistant", "annotations": None, "audio": None}
    answer = dumped | {"function_call": None, "tool_calls": [CALL | {"signature": "s1"}]}
    found = asked(USER, answer, RESULT)
    (call,) = found.request.messages[1].parts
    assert isinstance(call, ToolCallPart)
    assert (call.signature, list(found.ignored)) == ("s1", [])


def test_results_of_parallel_calls_follow_each_other_and_may_be_parts() -> None:
    second = CALL | {"id": "c2"}
    result = {
        "role": "tool",
        "tool_call_id": "c2",
        "content": [{"type": "text", "text": "6"}, {"type": "text", "text": " mm"}],
    }
    said = asked(USER, CALLS | {"tool_calls": [CALL, second]}, RESULT, result).request.messages
    assert said[3].parts == (ToolResultPart(type="tool_result", tool_call_id="c2", content="6 mm"),)


def test_system_messages_of_the_middle_are_moved_to_the_front_in_order_and_that_is_told() -> None:
    found = asked({"role": "system", "content": "a"}, USER, {"role": "system", "content": "b"}, USER)
    assert [(m.role, m.content) for m in found.request.messages] == [
        ("system", "a"), ("system", "b"), ("user", "hi"), ("user", "hi")
    ]  # fmt: skip
    assert found.moved == (2,)


def test_one_between_a_call_and_its_result_is_no_obstacle() -> None:
    said = asked(USER, CALLS, {"role": "system", "content": "Mind the units."}, RESULT).request.messages
    assert [message.role for message in said] == ["system", "user", "assistant", "tool"]


def test_where_only_the_system_speaks_its_last_message_is_the_question() -> None:
    found = asked({"role": "system", "content": "a"}, {"role": "system", "content": "b"})
    assert [(m.role, m.content) for m in found.request.messages] == [("system", "a"), ("user", "b")]
    assert found.moved == (1,)


def test_an_empty_system_message_says_nothing() -> None:
    assert [m.role for m in asked({"role": "system", "content": ""}, USER).request.messages] == ["user"]


def test_images_come_by_value_and_by_address() -> None:
    by_value = asked(image({"url": f"data:image/png;base64,{PNG}", "detail": "low"}))
    assert by_value.request.messages[0].parts == (ImagePart(type="image", media_type="image/png", data=PNG),)
    assert list(by_value.ignored) == ["messages.content.image_url.detail"]
    address = "https://example.org/a.png"
    assert asked(image({"url": address})).request.messages[0].parts == (ImagePart(type="image", url=address),)


def test_a_refusal_in_the_history_is_what_was_said() -> None:
    refusal = {"role": "assistant", "content": None, "refusal": "I cannot."}
    assert asked(USER, refusal, USER).request.messages[1].parts == (TextPart(type="text", text="I cannot."),)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "robot", "content": "x"}], "messages.0.role: system, developer, user, assistant or tool"),
        ([{"role": "function", "name": "f", "content": "x"}], "messages.0.role: "),
        ([{"role": ["user"], "content": "x"}], "messages.0.role: "),
        (["hi"], "messages.0: a message is an object"),
        ([{"role": "user", "content": ""}], "messages.0: the content is empty"),
        ([{"role": "user"}], "messages.0: the content is empty"),
        ([{"role": "user", "content": 5}], "messages.0.content: a string or a list"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content.0.type: "),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text: "),
        ([USER, image({"url": f"data:image/png;base64,{'%%%%'}"})], "messages.1.content.0: image data is not base64"),
        ([image({"url": "data:image/png,abc"})], "messages.0.content.0.image_url.url: a data URL"),
        ([image({"url": "data:text/html;base64,abc"})], "messages.0.content.0.image_url.url: images are"),
        ([image({"url": "file:///etc/passwd"})], "messages.0.content.0: an image url starts with http"),
        ([image({})], "messages.0.content.0.image_url.url: "),
        ([{"role": "assistant", "content": "Hello!"}, USER], "messages.0: the first message after the system's"),
        ([USER, {"role": "assistant", "content": "It is"}], "messages.1: the last message is the user's"),
        # the number is the client's, though the system's message stands first with us
        ([USER, {"role": "system", "content": "x"}, CALLS, USER], "messages.3: tool call c1 has no tool_result"),
        ([USER, RESULT], "messages.1: tool_result answers no open tool call"),
        ([USER, {"role": "tool", "content": "5 mm"}], "messages.1.tool_call_id: "),
        ([USER, CALLS | {"tool_calls": [CALL | {"id": None}]}, RESULT], "messages.1.tool_calls.0.id: "),
        ([USER, CALLS | {"tool_calls": [CALL, {"type": "custom"}]}, RESULT], "messages.1.tool_calls.1: "),
        (
            [USER, CALLS | {"content": "x", "tool_calls": [CALL | {"function": {"name": "a b"}}]}, RESULT],
            "messages.1.tool_calls.0.function.name: ",
        ),
        ([USER, {"role": "assistant", "function_call": {"name": "f"}}], "messages.1.function_call: "),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named_as_the_client_wrote_it(messages: list[Any], says: str) -> None:
    assert refused(*messages).startswith(says)


# --- options --------------------------------------------------------------------------------


def test_options_are_passed_on() -> None:
    found = asked(
        temperature=1, top_p=0.5, stop="END", max_tokens=9, stream=True, stream_options={"include_usage": True}
    )
    request = found.request
    assert (request.temperature, request.top_p, request.stop, request.max_tokens) == (1, 0.5, ("END",), 9)
    assert (request.stream, found.include_usage, found.ignored.headers()) == (True, True, {})


def test_the_newer_name_of_the_limit_counts_and_errors_name_what_was_sent() -> None:
    found = asked(max_completion_tokens=5, max_tokens=9)
    assert (found.request.max_tokens, list(found.ignored)) == (5, ["max_tokens"])
    assert refused(max_completion_tokens=0).startswith("max_completion_tokens: ")
    assert refused(max_tokens=0).startswith("max_tokens: ")


def test_tools_and_the_choice_among_them() -> None:
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True, "description": None}}  # type: ignore[operator]
    found = asked(tools=[strict], tool_choice={"type": "function", "function": {"name": "rain"}})
    assert (found.request.tools[0].name, found.request.tool_choice) == ("rain", NamedTool(name="rain"))
    assert list(found.ignored) == ["tools.strict"]
    assert asked(tools=[TOOL], tool_choice="required").request.tool_choice == "required"
    assert asked(tools=[], tool_choice="auto").request.tool_choice is None


def test_a_schema_for_the_answer() -> None:
    inner = {"name": "rain", "schema": {"type": "object"}, "strict": True}
    found = asked(response_format={"type": "json_schema", "json_schema": inner})
    wanted = found.request.response_format
    assert wanted is not None
    assert (wanted.name, wanted.json_schema) == ("rain", {"type": "object"})
    assert list(found.ignored) == ["response_format.json_schema.strict"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"n": 2}, "n: "),
        ({"functions": [{"name": "f"}]}, "functions: "),
        ({"messages": "hi"}, "messages: "),
        ({"messages": []}, "messages: "),
        ({"stream": "yes"}, "stream: "),
        ({"temperature": 3}, "temperature: "),
        ({"tools": {"a": 1}}, "tools: "),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: "),
        ({"tools": [{"type": "function"}]}, "tools.0.function: "),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "a b"}}]}, "tools.1.function.name: "),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice: "),
        ({"tool_choice": "required"}, "tool_choice: there are no tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type: "),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: "),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format: a schema goes"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema: ",
        ),
    ],
)
def test_a_wrong_option_is_named_as_the_client_wrote_it(fields: dict[str, Any], says: str) -> None:
    assert refused(**fields).startswith(says)


@pytest.mark.parametrize("body", [b"", b"model=haiku", b"[1]", b"\xff", b"[" * 5_000, b'{"messages":NaN}'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="body: "):
        decode(body)


def test_what_is_nested_too_deeply_to_be_passed_on_is_refused() -> None:
    nested = b'{"a":' * 500 + b"1" + b"}" * 500
    tool = b'{"type":"function","function":{"name":"f","parameters":' + nested + b"}}"
    with pytest.raises(RequestError, match="nested too deeply"):
        decode(b'{"messages":[{"role":"user","content":"hi"}],"tools":[' + tool + b"]}")


# --- what is not used -----------------------------------------------------------------------


def test_fields_that_are_not_used_are_named_once_each_and_null_is_nothing() -> None:
    found = asked(USER | {"name": "Ann"}, USER | {"name": "Bob"}, seed=7, logprobs=True, logit_bias=None, store=False)
    assert found.ignored.headers() == {"X-Sidecar-Ignored": "seed, logprobs, store, messages.name"}


def test_the_list_of_what_is_not_used_is_bounded_and_only_printable() -> None:
    names = {f"x{number}\r\nSet-Cookie: a=b, é" + "y" * 200: 1 for number in range(100)}
    said = list(asked(**names).ignored)
    assert (len(said), said[-1]) == (MAX_NAMES + 1, "...")
    assert said[0] == "x0??Set-Cookie??a?b???" + "y" * (MAX_NAME_CHARS - 22)


def test_metadata_is_kept_as_far_as_it_fits_and_never_a_reason_to_refuse() -> None:
    metadata = {"job": "x" * 600, "a b": "c", "number": 5} | {f"k{n}": "v" for n in range(40)}
    found = asked(metadata=metadata, user="ann")
    kept = found.request.metadata
    assert (kept["job"], len(kept), kept.keys() & {"a b", "number", "user"}) == ("x" * 512, 32, set())
    assert {"metadata.job", "metadata.a?b", "metadata.number", "metadata.k39", "user"} <= set(found.ignored)
    assert asked(metadata=["no"], user="ann").request.metadata == {"user": "ann"}


def test_metadata_that_steers_is_taken_out() -> None:
    found = asked(metadata={"sidecar_priority": "low", "sidecar_deadline_ms": 5_000, "job": "7"})
    assert found.steering == {"sidecar_priority": "low", "sidecar_deadline_ms": 5_000}
    assert (found.request.metadata, found.ignored.headers()) == ({"job": "7"}, {})


# --- any bytes ------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "refusal"]) | JSON},
    optional={"text": st.text(max_size=9) | JSON, "image_url": JSON | st.fixed_dictionaries({"url": st.text()})},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.text(max_size=9) | st.lists(PARTS, max_size=3) | JSON,
        "tool_calls": st.lists(st.just(CALL) | JSON, max_size=2) | JSON,
        "tool_call_id": st.just("c1") | JSON,
        "name": JSON,
        "refusal": JSON,
    },
)
BODIES = st.fixed_dictionaries(
    {"messages": st.lists(st.just(USER) | MESSAGES | JSON, max_size=6) | JSON},
    optional={
        "model": JSON,
        "stream": st.booleans() | JSON,
        "stream_options": JSON,
        "max_tokens": JSON,
        "stop": JSON,
        "tools": st.lists(st.just(TOOL) | JSON, max_size=2) | JSON,
        "tool_choice": st.sampled_from(["auto", "none", "required"]) | JSON,
        "response_format": JSON,
        "metadata": JSON,
        "user": JSON,
        "n": JSON,
        "functions": JSON,
    },
)


@given(st.one_of(st.binary(max_size=40), JSON.map(orjson.dumps), BODIES.map(orjson.dumps)))
def test_any_body_is_a_request_or_one_error_that_says_where(body: bytes) -> None:
    found = decoded(body)
    if isinstance(found, RequestError):
        assert found.type in {ErrorType.INVALID_REQUEST, ErrorType.TOO_LARGE}
        assert ": " in found.message
    else:
        assert all(name.isascii() and name.isprintable() for name in found.ignored)


@given(st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=8))
def test_whatever_the_order_of_roles_no_word_is_lost(roles: list[str]) -> None:
    sent = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    found = decoded(orjson.dumps({"messages": sent}))
    if isinstance(found, RequestError):
        assert found.message.startswith("messages.")
        return
    said = found.request.messages
    assert sorted(str(m.content) for m in said) == sorted(m["content"] for m in sent)
    if set(roles) != {"system"}:
        assert [m.content for m in said if m.role != "system"] == [m["content"] for m in sent if m["role"] != "system"]


def decoded(body: bytes) -> Asked | RequestError:
    try:
        return decode(body)
    except RequestError as error:
        return error
