"""Beginnings of prompts that come again: what is found, of whom, for how long, and what a vendor's cache saves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from processor.estimate import base_tokens
from processor.messages import Request
from processor.prefixes import LIFETIME_S, MAX_PREFIXES, Prefix, Prefixes
from providers.anthropic import AnthropicProvider
from providers.errors import Overloaded
from providers.scripted import ScriptedProvider, echo
from tests.conftest import StartProcessor
from tests.providers.vendor import Vendor, serving, whole
from tests.talk import ask, body

LONG = "Answer as a botanist would, and say where you are not sure. " * 100
"""About 1,500 tokens."""
SYSTEM = {"role": "system", "content": LONG}


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def request(*messages: dict[str, Any], **fields: Any) -> Request:
    return Request.model_validate({"messages": tuple(messages), **fields}, strict=False)


class Memory:
    """A memory on a clock of the test's own, asked as a call is made: looked up, answered, kept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.prefixes = Prefixes(lambda: self.now)

    def look(self, asked: Request, model: str = "m") -> Prefix:
        return self.prefixes.of(asked, model, base_tokens(asked))

    def send(self, asked: Request, model: str = "m") -> int:
        prefix = self.look(asked, model)
        self.prefixes.answered(prefix)
        return prefix.stable_messages


@pytest.fixture
def memory() -> Memory:
    return Memory()


# --- what is found --------------------------------------------------------------------------


def test_a_system_prompt_is_stable_from_its_second_request_on(memory: Memory) -> None:
    stable = [memory.send(request(SYSTEM, *turns(text))) for text in ("Oak?", "Elm?", "Ash?")]
    assert stable == [0, 1, 1]


def test_a_conversation_is_stable_up_to_the_end_of_its_last_turn(memory: Memory) -> None:
    said = turns("Oak?", "Quercus.", "Elm?", "Ulmus.", "Ash?")
    assert [memory.send(request(SYSTEM, *said[:n])) for n in (1, 3, 5)] == [0, 2, 4]


def test_examples_before_a_question_are_stable(memory: Memory) -> None:
    examples = turns("Oak?", LONG, "Elm?", "Ulmus.")
    stable = [memory.send(request(*examples, *turns(text))) for text in ("Ash?", "Fir?")]
    assert stable == [0, 4]


def test_the_same_request_again_is_stable_as_a_whole(memory: Memory) -> None:
    assert [memory.send(request(SYSTEM, *turns("Oak?"))) for _ in range(2)] == [0, 2]


def test_a_text_alone_is_the_same_as_one_part_with_it(memory: Memory) -> None:
    memory.send(request(SYSTEM, *turns("Oak?")))
    parts = {"role": "system", "content": ({"type": "text", "text": LONG},)}
    assert memory.send(request(parts, *turns("Elm?"))) == 1


def test_what_anthropic_would_not_cache_is_not_even_kept(memory: Memory) -> None:
    short = request({"role": "system", "content": "Be brief."}, *turns("Oak?"))
    assert [memory.send(short), memory.send(short), len(memory.prefixes)] == [0, 0, 0]
    for text in ("Oak? ", "Elm? "):  # a long question after a short system prompt
        assert memory.send(request({"role": "system", "content": "Be brief."}, *turns(text * 1_000))) == 0


def test_tools_count_towards_what_is_long_enough(memory: Memory) -> None:
    tools = ({"name": "look", "description": LONG},)
    brief = {"role": "system", "content": "Be brief."}
    stable = [memory.send(request(brief, *turns(text), tools=tools)) for text in ("Oak?", "Elm?")]
    assert stable == [0, 1]


# --- what is told apart -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "somebody-else"},
        {"tools": ({"name": "look"},)},
        {"tools": ({"name": "none", "description": "Nothing"},)},
        {"tools": ()},
        {"tool_choice": "none"},
        {"tool_choice": {"name": "none"}},
        {"response_format": {"type": "json_object"}},
    ],
)
def test_a_beginning_counts_only_for_its_tenant_tools_and_format(memory: Memory, other: dict[str, Any]) -> None:
    common = {"tools": ({"name": "none"},)}
    memory.send(request(SYSTEM, *turns("Oak?"), **common))
    assert memory.send(request(SYSTEM, *turns("Oak?"), **common | other)) == 0
    assert memory.send(request(SYSTEM, *turns("Oak?"), **common | other)) == 2


def test_a_tool_named_none_is_not_the_choice_of_none(memory: Memory) -> None:
    tools = ({"name": "none"},)
    memory.send(request(SYSTEM, *turns("Oak?"), tools=tools, tool_choice="none"))
    assert memory.send(request(SYSTEM, *turns("Oak?"), tools=tools, tool_choice={"name": "none"})) == 0


def test_each_model_has_a_cache_of_its_own(memory: Memory) -> None:
    asked = request(SYSTEM, *turns("Oak?"))
    assert [memory.send(asked, "haiku"), memory.send(asked, "sonnet"), memory.send(asked, "haiku")] == [0, 0, 2]


def test_what_does_not_change_a_prompt_does_not_matter(memory: Memory) -> None:
    memory.send(request(SYSTEM, *turns("Oak?")))
    assert memory.send(request(SYSTEM, *turns("Oak?"), stream=True, max_tokens=5, metadata={"a": "b"})) == 2


texts = st.text("aTu", min_size=1, max_size=3)
conversations = st.lists(st.lists(texts, min_size=1, max_size=3), min_size=1, max_size=3)


@given(conversations, conversations)
@example([["a", "b"]], [["aTb"]])
def test_only_the_same_beginning_is_ever_found(before: list[list[str]], after: list[list[str]]) -> None:
    """Whatever stands where: a text that is cut elsewhere, in other parts or messages, is another one."""

    def talk(said: list[list[str]]) -> list[dict[str, Any]]:
        parts = [tuple({"type": "text", "text": text} for text in texts) for texts in said]
        return [{"role": "user", "content": part} for part in parts]

    memory = Memory()
    memory.send(request(SYSTEM, *talk(before)))
    common = next((i for i, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), None)
    shared = min(len(before), len(after)) if common is None else common
    remembered = {0, len(before) - 1, len(before)}
    assert memory.send(request(SYSTEM, *talk(after))) == 1 + max(n for n in remembered if n <= shared)


# --- for how long -----------------------------------------------------------------------------


def test_five_minutes_after_its_last_use_it_is_new_again(memory: Memory) -> None:
    found = []
    for pause in (0.0, LIFETIME_S - 1, LIFETIME_S - 1, LIFETIME_S):
        memory.now += pause
        found.append(memory.send(request(SYSTEM, *turns(f"Oak {memory.now}?"))))
    assert found == [0, 1, 1, 0]


def test_the_part_that_is_used_again_lives_on_with_its_conversation(memory: Memory) -> None:
    said = turns("Oak?", "Quercus.", "Elm?")
    memory.send(request(SYSTEM, *said[:1]))
    memory.now = LIFETIME_S - 1
    assert memory.send(request(SYSTEM, *said)) == 2
    memory.now += LIFETIME_S - 1
    assert memory.send(request(SYSTEM, *said[:1], *turns("Oak?", "An oak.", "Fir?")[1:])) == 2


def test_of_a_call_that_failed_nothing_is_kept(memory: Memory) -> None:
    asked = request(SYSTEM, *turns("Oak?"))
    assert [memory.look(asked).stable_messages for _ in range(3)] == [0, 0, 0]
    assert memory.send(asked) == 0


def test_the_memory_is_bounded(memory: Memory) -> None:
    for number in range(MAX_PREFIXES + 10):
        memory.prefixes.answered(Prefix(0, (number.to_bytes(16, "big"),)))
    assert len(memory.prefixes) == MAX_PREFIXES


# --- through the whole sidecar ------------------------------------------------------------------


def long_body(question: str, **fields: Any) -> bytes:
    return body(messages=[SYSTEM, *turns(question)], **fields)


async def test_a_vendor_is_told_what_came_before_for_the_same_tenant(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    for asked in (long_body("Oak?"), long_body("Elm?"), long_body("Oak?", tenant="other"), long_body("Ash?")):
        await ask(nc, asked)
    assert [prompt.stable_messages for prompt in vendor.prompts] == [0, 1, 0, 1]


async def test_a_retry_is_no_prompt_that_comes_again(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider(lambda prompt: [Overloaded("busy")] if vendor.calls == 1 else echo(prompt))
    await start({"anthropic": vendor})
    assert (await ask(nc, long_body("Oak?", fallback=False)))["attempts"] == 2
    assert len({prompt.model for prompt in vendor.prompts}) == 1
    assert [prompt.stable_messages for prompt in vendor.prompts] == [0, 0]


@pytest.fixture
async def claude() -> AsyncIterator[tuple[Vendor, AnthropicProvider]]:
    async with serving() as vendor:
        provider = AnthropicProvider(vendor.endpoint())
        yield vendor, provider
        await provider.aclose()


def message(**usage: int) -> dict[str, Any]:
    content = [{"type": "text", "text": "Quercus."}]
    model = "claude-haiku-4-5-20251001"
    return {"type": "message", "model": model, "content": content, "stop_reason": "end_turn", "usage": usage}


async def test_the_second_request_writes_the_cache_the_third_reads_it_and_each_is_priced_so(
    nc: Client, start: StartProcessor, claude: tuple[Vendor, AnthropicProvider]
) -> None:
    vendor, provider = claude
    await start({"anthropic": provider})
    replies = []
    for number, told in enumerate(
        [
            message(input_tokens=5_010, output_tokens=10),
            message(input_tokens=10, cache_creation_input_tokens=5_000, output_tokens=10),
            message(input_tokens=10, cache_read_input_tokens=5_000, output_tokens=10),
        ]
    ):
        vendor.play = whole(told)
        replies.append(await ask(nc, long_body(f"Oak {number}?")))
    assert [sent["system"] for sent in vendor.bodies] == [
        LONG,
        *[[{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]] * 2,
    ]
    assert [reply["cost_usd"] for reply in replies] == [0.00506, 0.00631, 0.00056]
    assert [(r["usage"]["cache_write_tokens"], r["usage"]["cache_read_tokens"]) for r in replies] == [
        (0, 0),
        (5_000, 0),
        (0, 5_000),
    ]
