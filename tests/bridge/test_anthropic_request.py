"""Anthropic's bodies as the contract's requests: what goes on, what is named as ignored, what is refused."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.anthropic_request import Asked, asked, count
from bridge.ignored import HEADER, MAX_NAMES
from processor.errors import ErrorType, RequestError
from processor.messages import MAX_PARTS, MAX_TOKENS

PNG = "iVBORw0KGgo="
TOOL = {
    "name": "look",
    "description": "Looks.",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}


def body(*messages: Any, **fields: Any) -> bytes:
    said = list(messages) or [user("hi")]
    return orjson.dumps({"model": "haiku", "max_tokens": 100, "messages": said} | fields)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def call(id: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "look", "input": arguments}


def result(id: str, content: Any = "seen", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def image(**source: str) -> dict[str, Any]:
    return {"type": "image", "source": source}


def wire(one: Asked) -> list[dict[str, Any]]:
    """The contract's messages."""
    return [message.model_dump(exclude_defaults=True) for message in one.request.messages]


def ignored(one: Asked) -> set[str]:
    return set(one.ignored)


def test_every_field_that_the_contract_knows_goes_on() -> None:
    one = asked(
        body(
            system="Be short.",
            stream=True,
            temperature=0.5,
            top_p=0.9,
            stop_sequences=["END"],
            tools=[TOOL],
            tool_choice={"type": "tool", "name": "look"},
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        )
    )
    assert one.request.model_dump(exclude_defaults=True, mode="json", by_alias=True) == {
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
        "model": "haiku",
        "stream": True,
        "max_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "tools": [{"name": "look", "description": "Looks.", "parameters": TOOL["input_schema"]}],
        "tool_choice": {"name": "look"},
        "response_format": {"type": "json_schema", "schema": {"type": "object"}},
    }
    assert (one.ignored.headers(), one.thinks) == ({}, False)


@pytest.mark.parametrize(
    ("given", "ours"), [("auto", "auto"), ("any", "required"), ("none", "none")], ids=["auto", "any", "none"]
)
def test_the_choice_of_tools_has_our_names(given: str, ours: str) -> None:
    assert asked(body(tools=[TOOL], tool_choice={"type": given})).request.tool_choice == ours


def test_a_choice_that_asks_for_nothing_needs_no_tools() -> None:
    assert asked(body(tool_choice={"type": "auto"})).request.tool_choice is None


def test_system_blocks_are_system_messages_each() -> None:
    one = asked(body(system=[text("One.", cache_control={"type": "ephemeral"}), text("Two.")]))
    assert [(m["role"], m["content"]) for m in wire(one)][:2] == [("system", "One."), ("system", "Two.")]
    assert ignored(one) == {"system.cache_control"}


def test_a_system_message_in_the_middle_stands_where_it_stood_as_the_users() -> None:
    middle = {"role": "system", "content": "From here on in French."}
    first = {"role": "system", "content": "Be short."}, {"role": "system", "content": "Be kind."}
    one = asked(body(*first, user("hi"), assistant(text("Yes?")), middle, user("go")))
    assert [(m["role"], m["content"]) for m in wire(one)] == [
        ("system", "Be short."),
        ("system", "Be kind."),
        ("user", "hi"),
        ("assistant", "Yes?"),
        ("user", (text("<system>\nFrom here on in French.\n</system>"), text("go"))),
    ]


def test_results_of_tools_stand_before_what_the_user_says_beside_them() -> None:
    one = asked(
        body(
            user("look twice"),
            assistant(text("I look."), call("a", at=[1, {"x": None}]), call("b")),
            user([text("first:"), result("a", is_error=True), text("then:"), result("b", [text("one"), text("two")])]),
        )
    )
    assert wire(one)[1:] == [
        {
            "role": "assistant",
            "content": (
                text("I look."),
                {"type": "tool_call", "id": "a", "name": "look", "arguments": '{"at":[1,{"x":null}]}'},
                {"type": "tool_call", "id": "b", "name": "look"},
            ),
        },
        {
            "role": "tool",
            "content": (
                {"type": "tool_result", "tool_call_id": "a", "content": "seen", "is_error": True},
                {"type": "tool_result", "tool_call_id": "b", "content": "one\ntwo"},
            ),
        },
        {"role": "user", "content": (text("first:"), text("then:"))},
    ]


def test_consecutive_messages_of_a_role_are_one_turn() -> None:
    one = asked(
        body(user("look"), assistant(call("a")), assistant(call("b")), user([result("b")]), user([result("a")]))
    )
    assert [m["role"] for m in wire(one)] == ["user", "assistant", "tool"]


def test_an_image_in_a_result_is_shown_after_the_results_and_the_result_says_so() -> None:
    shot = image(type="base64", media_type="image/png", data=PNG)
    one = asked(body(user("look"), assistant(call("a")), user([result("a", [text("here:"), shot]), text("well?")])))
    said, shown = wire(one)[2:]
    assert said["content"][0]["content"] == "here:\n[an image, shown after the tool results]"
    assert shown == {
        "role": "user",
        "content": (
            text("Image in the result of tool call a:"),
            {"type": "image", "media_type": "image/png", "data": PNG},
            text("well?"),
        ),
    }


def test_a_tool_that_a_result_refers_to_is_named() -> None:
    found = [{"type": "tool_reference", "tool_name": "look"}]
    one = asked(body(user("which?"), assistant(call("a")), user([result("a", found)]), tools=[TOOL]))
    assert wire(one)[2]["content"][0]["content"] == "look"


def test_images_come_by_value_and_by_address() -> None:
    one = asked(
        body(user([image(type="base64", media_type="image/png", data=PNG), image(type="url", url="https://a.b/c.png")]))
    )
    assert wire(one)[0]["content"] == (
        {"type": "image", "media_type": "image/png", "data": PNG},
        {"type": "image", "url": "https://a.b/c.png"},
    )


def test_thinking_in_the_history_goes_nowhere_and_is_named() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "abc"}
    hidden = {"type": "redacted_thinking", "data": "abc"}
    one = asked(body(user("hi"), assistant(thought), user("and?"), assistant(hidden, thought, text("so.")), user("go")))
    assert [m["role"] for m in wire(one)] == ["user", "user", "assistant", "user"]
    assert ignored(one) == {"messages.content.thinking", "messages.content.redacted_thinking"}


def test_what_is_not_obeyed_is_named_once_whatever_coding_agents_send() -> None:
    one = asked(
        body(
            user([text("a", cache_control={"type": "ephemeral"}), text("b", cache_control={"type": "ephemeral"})]),
            top_k=40,
            thinking={"type": "adaptive"},
            metadata={"user_id": "user_abc", "sidecar_priority": "low"},
            service_tier="auto",
            container=None,
            context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
            output_config={"effort": "high"},
            tools=[TOOL | {"type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}],
            tool_choice={"type": "auto", "disable_parallel_tool_use": True},
        )
    )
    assert ignored(one) == {
        *("messages.content.cache_control", "top_k", "thinking", "metadata.user_id", "service_tier"),
        *("context_management", "output_config.effort", "tools.strict", "tools.cache_control"),
        "tool_choice.disable_parallel_tool_use",
    }
    assert one.metadata == {"sidecar_priority": "low"}
    assert one.thinks


def test_the_names_of_ignored_fields_fit_a_header_whatever_they_are() -> None:
    fields = {"ä\r\nX: y" * 100 + str(n): 1 for n in range(3)} | {f"field_{n}": 1 for n in range(100)}
    header = asked(body(**fields)).ignored.headers()[HEADER]
    assert header.isascii()
    assert header.isprintable()
    assert ":" not in header
    assert len(header.split(", ")) <= MAX_NAMES + 1


def test_an_answer_may_be_asked_for_that_is_longer_than_any() -> None:
    assert asked(body(max_tokens=10**9)).request.max_tokens == MAX_TOKENS


def test_a_turn_with_very_many_results_is_divided() -> None:
    many = [f"c{n}" for n in range(MAX_PARTS)]
    one = asked(body(user("look"), assistant(*map(call, many)), user([*map(result, many), *[text("x")] * 150])))
    assert [(m["role"], len(m["content"])) for m in wire(one)[2:]] == [("tool", 100), ("user", 100), ("user", 50)]


# --- what is refused ------------------------------------------------------------------------

SERVER_TOOL = {"type": "web_search_20250305", "name": "web_search"}


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"", "body: not JSON"),
        (b"[]", "body: it has to be an object"),
        (body(model=None), "model: Field required"),
        (body(max_tokens=None), "max_tokens: Field required"),
        (body(max_tokens=True), "max_tokens: it has to be an integer"),
        (body(max_tokens=0), "max_tokens: "),
        (body(messages=[]), "messages: Field required"),
        (body(messages="hi"), "messages: it has to be a list"),
        (body({"role": "tool", "content": "x"}), "messages.0.role: "),
        (body({"role": "user"}), "messages.0.content: Field required"),
        (body(user("")), "messages.0: the content is empty"),
        (body(user([text("a"), {"type": "text"}])), "messages.0.content.1.text: Field required"),
        (body(user("hi"), {"role": "assistant", "content": "The answer is"}), "messages: prefill is not served"),
        (body({"role": "assistant", "content": "x"}, user("hi")), "messages.0: the first message"),
        (body(user("hi"), assistant(call("a")), user("and?")), "messages.2: tool call a has no tool_result"),
        (body(user([result("zz")])), "messages.0: "),
        (body(user("hi"), assistant(call("a b")), user([result("a b")])), "messages.1: id: "),
        (body(user([{"type": "document", "source": {}}])), "messages.0.content.0: document blocks are not served"),
        (body(user([{"type": "container_upload"}])), "messages.0.content.0: container_upload blocks have no place"),
        (body(user([image(type="file", file_id="f")])), "messages.0.content.0.source: an image comes as base64"),
        (body(user([image(type="base64", media_type="image/png", data="AAAA")])), "messages.0: "),
        (body(tools=[TOOL, SERVER_TOOL]), "tools.1: web_search_20250305 is a tool of Anthropic's own"),
        (body(tools=[TOOL | {"name": "a b"}]), "tools.0.name: "),
        (body(tools=[TOOL], tool_choice={"type": "tool", "name": "no"}), "tool_choice: there is no tool no"),
        (body(tool_choice={"type": "any"}), "tool_choice: there are no tools"),
        (body(temperature=1.5), "temperature: it is a number from 0 to 1"),
        (body(top_p="high"), "top_p: it is a number from 0 to 1"),
        (body(stop_sequences=[""]), "stop_sequences.0: "),
        (body(stream="yes"), "stream: it has to be true or false"),
        (body(output_config={"format": {"type": "xml"}}), "output_config.format.type: it is json_schema"),
        (body(system=[image(type="url", url="https://a.b/c")]), "system.0: a text block is wanted here, not image"),
    ],
)
def test_what_is_wrong_is_named_as_the_client_wrote_it(sent: bytes, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        asked(sent)
    assert (caught.value.type, caught.value.message[: len(says)]) == (ErrorType.INVALID_REQUEST, says)


def test_a_talk_that_is_too_long_is_told_so_that_a_coding_agent_shortens_it() -> None:
    for said in ("x" * 1_000_001, [text("x" * 500_000), text("x" * 500_001)]):
        with pytest.raises(RequestError) as caught:
            asked(body(user(said)))
        assert caught.value.type is ErrorType.INVALID_REQUEST
        assert caught.value.message.startswith("prompt is too long: messages")


def test_an_image_that_is_too_large_is_named() -> None:
    with pytest.raises(RequestError, match="image data of over") as caught:
        asked(body(user([image(type="base64", media_type="image/png", data="A" * (6 * 1024 * 1024 + 4))])))
    assert caught.value.type is ErrorType.TOO_LARGE


@pytest.mark.parametrize(
    "where", ['"tools":[{"name":"a","input_schema":%s}]', '"messages":[{"role":"user","content":%s}]']
)
@pytest.mark.parametrize("depth", [220, 600])
def test_a_body_that_is_nested_too_deeply_is_an_error_like_others(where: str, depth: int) -> None:
    deep = '{"a":' * depth + "1" + "}" * depth
    base = '{"model":"haiku","max_tokens":1,"messages":[{"role":"user","content":"hi"}],%s}'
    for read in (asked, count):
        with pytest.raises(RequestError) as caught:
            read((base % (where % deep)).encode())
        assert caught.value.type is ErrorType.INVALID_REQUEST


@pytest.mark.parametrize("kind", [[], {}, 1, None, "no-such-kind"])
def test_a_type_that_is_none_is_an_error_like_others(kind: Any) -> None:
    picture = {"type": "image", "source": {"type": kind, "data": "x"}}
    for wrong in ([user("hi"), assistant({"type": kind})], [user({"type": kind})], [user(picture)]):
        for read in (asked, count):
            with pytest.raises(RequestError) as caught:
                read(orjson.dumps({"model": "haiku", "max_tokens": 1, "messages": wrong}))
            assert caught.value.type is ErrorType.INVALID_REQUEST
    assert not asked(body(user("hi"), thinking={"type": kind})).thinks


NAMES = [
    *("type", "text", "content", "role", "messages", "system", "source", "input", "id", "name", "tool_use_id"),
    *("tools", "input_schema", "metadata", "max_tokens", "model", "thinking", "output_config", "format", "schema"),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner),
    max_leaves=5,
)
KINDS = ["text", "image", "tool_use", "tool_result", "thinking", "document", "base64", "url"]
BLOCK = st.fixed_dictionaries({"type": st.sampled_from(KINDS) | JSON}, optional=dict.fromkeys(NAMES[1:], JSON))
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "system"]),
        "content": st.text(max_size=5) | st.lists(BLOCK | JSON, max_size=3),
    }
)
BODY = st.fixed_dictionaries(
    {
        "model": JSON | st.just("haiku"),
        "max_tokens": JSON | st.just(5),
        "messages": st.lists(MESSAGE | JSON, max_size=4),
    },
    optional={"system": JSON, "tools": JSON, "tool_choice": JSON, "metadata": JSON, "output_config": JSON}
    | {"thinking": st.fixed_dictionaries({"type": JSON})},
)


@given(BODY)
def test_any_json_is_a_request_or_one_named_error(said: dict[str, Any]) -> None:
    try:
        sent = orjson.dumps(said)
    except TypeError:  # integers beyond 64 bits
        return
    for read in (asked, count):
        with contextlib.suppress(RequestError):
            read(sent)


SAID = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)


@given(st.lists(st.lists(SAID, min_size=1, max_size=3), min_size=1, max_size=9))
def test_all_that_was_said_goes_on_in_its_order(turns: list[list[str]]) -> None:
    turns = turns if len(turns) % 2 else turns[:-1] or [["hi"]]
    roles = ["user", "assistant"] * len(turns)
    sent = [{"role": role, "content": [text(said) for said in turn]} for role, turn in zip(roles, turns, strict=False)]
    if len(sent) % 2 == 0:
        sent.append(user("go"))
        turns = [*turns, ["go"]]
    found = asked(body(*sent)).request.messages
    assert [[part.text for part in message.parts if part.type == "text"] for message in found] == turns


# --- count_tokens ---------------------------------------------------------------------------


def test_any_history_can_be_counted_and_more_of_it_counts_more() -> None:
    sent = orjson.dumps({"model": "claude-haiku-4-5", "messages": [user("x" * 400)]})
    assert count(sent) == 104
    unanswered = [user("hi"), assistant(call("a"))]
    assert 0 < count(orjson.dumps({"model": "haiku", "messages": unanswered})) < 104
    assert count(orjson.dumps({"model": "haiku", "messages": [user("x" * 400)], "tools": [TOOL]})) > 104


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ({"messages": [user("hi")]}, "model: Field required"),
        ({"model": "haiku"}, "messages: Field required"),
        ({"model": "haiku", "messages": [user("hi"), assistant(call("a b"))]}, "messages.1: "),
        ({"model": "haiku", "messages": [user("hi")], "tools": [TOOL | {"name": "a b"}]}, "tools.0: "),
    ],
)
def test_what_cannot_be_counted_is_named(sent: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        count(orjson.dumps(sent))
    assert caught.value.message.startswith(says)
