"""Claude's prompt cache: what comes again carries one mark at its end, and what the cache held is told apart."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from providers.anthropic import AnthropicProvider
from providers.anthropic_codec import encode
from providers.base import Finished, Image, Message, Part, Prompt, Text, Tool, ToolCall, ToolResult, Usage
from providers.chat_completions import encode as encode_chat
from providers.gemini_codec import encode as encode_gemini
from tests.providers.vendor import Vendor, events_of, whole

MARK = {"type": "ephemeral"}
TALK = (
    Message("system", (Text("Be brief."),)),
    Message("system", (Text("Answer in English."),)),
    Message("user", (Text("What is this?"), Image("image/png", "aGk="))),
    Message("assistant", (Text(""), ToolCall("a", "look", "{}"))),
    Message("tool", (ToolResult("a", "A hill."),)),
    Message("user", (Text("Which?"),)),
)
TOOLS = (Tool("look", "Looks", {}),)


def sent(stable: int, messages: tuple[Message, ...] = TALK, **settings: Any) -> dict[str, Any]:
    prompt = Prompt("m", messages, 100, tools=TOOLS, stable_messages=stable, **settings)
    return encode(prompt, lambda schema: schema, stream=False)


def marked(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks that carry a mark."""
    system = body["system"] if isinstance(body["system"], list) else []
    blocks = [*body["tools"], *system, *(block for turn in body["messages"] for block in turn["content"])]
    return [block for block in blocks if "cache_control" in block]


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}


@pytest.mark.parametrize(
    ("stable", "last"),
    [
        (2, {"type": "text", "text": "Be brief.\n\nAnswer in English."}),
        (3, IMAGE),
        (4, {"type": "tool_use", "id": "a", "name": "look", "input": {}}),
        (5, {"type": "tool_result", "tool_use_id": "a", "content": "A hill."}),
        (6, {"type": "text", "text": "Which?"}),
    ],
)
def test_the_last_block_of_what_comes_again_is_marked_and_no_other(stable: int, last: dict[str, Any]) -> None:
    assert marked(sent(stable)) == [last | {"cache_control": MARK}]


def test_without_anything_that_comes_again_nothing_is_marked() -> None:
    body = sent(0)
    assert body["system"] == "Be brief.\n\nAnswer in English."
    assert b"cache_control" not in orjson.dumps(body)


def test_a_marks_place_changes_nothing_else() -> None:
    bodies = [sent(stable) for stable in range(2, 7)]
    for body in bodies:
        for block in marked(body):
            del block["cache_control"]
    assert all(body == bodies[0] for body in bodies)


def test_a_system_message_of_one_request_alone_is_not_written_with_those_that_come_again() -> None:
    assert sent(1)["system"] == [
        {"type": "text", "text": "Be brief.", "cache_control": MARK},
        {"type": "text", "text": "Answer in English."},
    ]


@pytest.mark.parametrize("empty", [(Text(""),), ()])
def test_an_empty_text_is_never_marked_but_what_stands_before_it(empty: tuple[Part, ...]) -> None:
    messages = (*TALK[:3], Message("assistant", empty), Message("user", (Text("Go on."),)))
    assert marked(sent(4, messages)) == [IMAGE | {"cache_control": MARK}]


def test_without_a_system_prompt_nothing_but_a_message_is_marked() -> None:
    messages = (Message("user", (Text(""), Text("one"))), Message("user", (Text("two"),)))
    body = encode(Prompt("m", messages, 100, stable_messages=1), lambda schema: schema, stream=False)
    assert "system" not in body
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "one", "cache_control": MARK},
        {"type": "text", "text": "two"},
    ]


def test_other_vendors_get_no_marks() -> None:
    plain, again = (Prompt("m", TALK, 100, stable_messages=stable) for stable in (0, 5))
    assert encode_gemini(plain) == encode_gemini(again)
    chat = [encode_chat(prompt, stream=False, limit_name="max_tokens") for prompt in (plain, again)]
    assert chat[0] == chat[1]


async def test_what_the_cache_wrote_and_read_comes_back_apart(vendor: Vendor) -> None:
    claude = AnthropicProvider(vendor.endpoint())
    told = {
        "input_tokens": 12,
        "cache_creation_input_tokens": 700,
        "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 100},
        "cache_read_input_tokens": 5_000,
        "output_tokens": 3,
    }
    vendor.play = whole({"type": "message", "model": "m", "content": [], "stop_reason": "end_turn", "usage": told})
    finished = (await events_of(claude, Prompt("m", TALK, 100, stable_messages=2)))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage == Usage(12, 5_000, 600, 100, output_visible=3)
    assert vendor.bodies[0]["system"][-1]["cache_control"] == MARK
    await claude.aclose()
