"""Anthropic's HTTP surface as its official SDK sees it, over a whole sidecar with a scripted vendor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import orjson
import pytest
from anthropic import AsyncAnthropic
from nats.aio.client import Client

from providers.base import (
    FinishReason,
    Text,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolResult,
)
from providers.errors import Overloaded
from providers.scripted import Pause, Step
from tests.bridge.anthropic_client import WORDS, answered, answers, says, sdk, streamed
from tests.bridge.edge import Edge
from tests.conftest import StartProcessor
from tests.talk import all_audit_events
from tests.wait import wait_until

TOOL: Any = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "integer"}}}}


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[AsyncAnthropic]:
    async with sdk(edge) as one:
        yield one


CALLS = (
    TextDelta("I look."),
    ToolCallDelta(0, "call_a", "look"),
    ToolCallDelta(0, arguments='{"at"'),
    ToolCallDelta(1, "call_b", "look"),
    ToolCallDelta(0, arguments=": 1}"),
    ToolCallDelta(1, arguments='{"at": 2}'),
)
THOUGHTS: tuple[Step, ...] = (ThinkingDelta("Let me "), ThinkingDelta("see.", "sig"), TextDelta("So."))


# --- whole and streamed ---------------------------------------------------------------------


async def test_a_message_comes_whole(client: AsyncAnthropic, start: StartProcessor) -> None:
    await start({"anthropic": answers(TextDelta(WORDS))})
    response = await client.messages.with_raw_response.create(**says(), extra_body={"top_k": 5})
    message = await response.parse()
    assert [block.model_dump(exclude_unset=True) for block in message.content] == [{"type": "text", "text": WORDS}]
    assert (message.role, message.stop_reason, message.model) == ("assistant", "end_turn", "served-model")
    counted = message.usage
    assert (counted.input_tokens, counted.cache_read_input_tokens, counted.output_tokens) == (9, 4, 7)
    assert counted.output_tokens_details is not None
    assert counted.output_tokens_details.thinking_tokens == 2
    headers = response.headers
    assert message.id == f"msg_{headers['request-id']}" == f"msg_{headers['X-Sidecar-Request-Id']}"
    assert (headers["X-Sidecar-Model"], headers["X-Sidecar-Provider"]) == ("haiku", "anthropic")
    assert headers["X-Sidecar-Ignored"] == "top_k"
    assert float(headers["X-Sidecar-Cost-Usd"]) > 0


async def test_a_stream_has_the_pieces_and_its_final_message_is_the_whole(
    client: AsyncAnthropic, start: StartProcessor
) -> None:
    await start({"anthropic": answers(TextDelta("one "), TextDelta("two"))})
    async with client.messages.stream(**says()) as stream:
        pieces = [piece async for piece in stream.text_stream]
        message = await stream.get_final_message()
    assert pieces == ["one ", "two"]
    assert [block.model_dump(exclude_unset=True) for block in message.content] == [{"type": "text", "text": "one two"}]
    assert (message.stop_reason, message.usage.input_tokens, message.usage.output_tokens) == ("end_turn", 9, 7)


async def test_the_start_of_a_stream_has_an_estimate_and_its_end_has_the_figures_and_the_cost(
    edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": answers(TextDelta("x"))})
    seen = await streamed(edge, says("x" * 400, stream=True))
    assert [event.name for event in seen] == [event.data["type"] for event in seen]
    assert [event.name for event in seen] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    begun, ended = seen[0].data["message"], seen[-2].data
    assert (begun["model"], begun["usage"]["input_tokens"], ended["usage"]["input_tokens"]) == ("haiku", 104, 9)
    assert ended["sidecar"]["cost_usd"] > 0


@pytest.mark.parametrize("way", ["whole", "stream", "beta whole", "beta stream"])
async def test_parallel_tool_calls_arrive_one_after_the_other_and_their_results_go_back(
    client: AsyncAnthropic, start: StartProcessor, way: str
) -> None:
    vendor = answers(*CALLS, reason=FinishReason.TOOL_CALLS)
    await start({"anthropic": vendor})
    said = says(tools=[TOOL], tool_choice={"type": "any"})
    message = await answered(client, way, said)
    assert message.stop_reason == "tool_use"
    assert [block.model_dump(exclude_unset=True) for block in message.content] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_a", "name": "look", "input": {"at": 1}},
        {"type": "tool_use", "id": "call_b", "name": "look", "input": {"at": 2}},
    ]
    results = [{"type": "tool_result", "tool_use_id": id, "content": f"{id}!"} for id in ("call_b", "call_a")]
    history = [*said["messages"], message.to_param(), {"role": "user", "content": results}]
    await answered(client, way, said | {"messages": history})
    turns = vendor.prompts[-1].messages
    assert [turn.role for turn in turns] == ["user", "assistant", "tool"]
    assert turns[2].parts == (ToolResult("call_b", "call_b!"), ToolResult("call_a", "call_a!"))
    assert vendor.prompts[-1].tool_choice.mode == "required"


@pytest.mark.parametrize("way", ["whole", "stream", "beta whole", "beta stream"])
async def test_what_a_model_thinks_is_passed_through_and_does_not_come_back(
    client: AsyncAnthropic, start: StartProcessor, way: str
) -> None:
    vendor = answers(*THOUGHTS)
    await start({"anthropic": vendor})
    said = says(thinking={"type": "enabled", "budget_tokens": 1024})
    message = await answered(client, way, said)
    assert [block.model_dump(exclude_unset=True) for block in message.content] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "So."},
    ]
    history = [*said["messages"], message.to_param(), {"role": "user", "content": "go on"}]
    await answered(client, way, said | {"messages": history})
    assert vendor.prompts[-1].messages[1].parts == (Text("So."),)


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_who_did_not_ask_for_thinking_gets_the_answer_alone(
    client: AsyncAnthropic, start: StartProcessor, way: str
) -> None:
    await start({"anthropic": answers(*THOUGHTS)})
    message = await answered(client, way, says())
    assert [block.model_dump(exclude_unset=True) for block in message.content] == [{"type": "text", "text": "So."}]


async def test_what_was_thought_before_an_answer_began_anew_is_forgotten(
    client: AsyncAnthropic, start: StartProcessor
) -> None:
    await start({"anthropic": answers(ThinkingDelta("Old."), Overloaded("it broke")), "groq": answers(*THOUGHTS)})
    message = await client.messages.create(**says(thinking={"type": "adaptive"}))
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].model_dump()["thinking"] == "Let me see."


async def test_the_beta_client_works_with_flags_that_nobody_knows(
    client: AsyncAnthropic, start: StartProcessor
) -> None:
    await start({"anthropic": answers(TextDelta(WORDS))})
    response = await client.beta.messages.with_raw_response.create(
        **says(system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]),
        betas=["claude-code-20250219", "no-such-beta-2031-01-01"],
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
    )
    assert (await response.parse()).stop_reason == "end_turn"
    assert response.headers["X-Sidecar-Ignored"] == "system.cache_control, context_management"


async def test_the_synchronous_client_works_too(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": answers(TextDelta(WORDS))})

    def ask() -> tuple[str, str]:
        with anthropic.Anthropic(base_url=edge.url, api_key="any", _strict_response_validation=True) as one:
            whole = one.messages.create(**says())
            with one.messages.stream(**says()) as stream:
                streamed = stream.get_final_text()
        return whole.content[0].text, streamed

    assert await asyncio.to_thread(ask) == (WORDS, WORDS)


async def test_models_have_the_catalogs_names_and_their_vendors(client: AsyncAnthropic, start: StartProcessor) -> None:
    vendor = answers(TextDelta(WORDS))
    await start({"anthropic": vendor})
    for name in ("auto", "haiku", "claude-haiku-4-5", "claude-haiku-4-5-20251001"):
        assert (await client.messages.create(**says(model=name))).stop_reason == "end_turn"
    assert {prompt.model for prompt in vendor.prompts} == {"claude-haiku-4-5-20251001"}


async def test_an_answer_in_json_by_a_schema(client: AsyncAnthropic, start: StartProcessor) -> None:
    vendor = answers(TextDelta("{}"))
    await start({"anthropic": vendor})
    schema = {"type": "object", "properties": {}, "additionalProperties": False}
    await client.messages.create(**says(output_config={"format": {"type": "json_schema", "schema": schema}}))
    assert vendor.prompts[-1].response_format is not None
    assert vendor.prompts[-1].response_format.schema == schema


# --- how it is steered ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "metadata", "lane"),
    [
        ({}, {}, "medium"),
        ({"X-Sidecar-Priority": "critical"}, {"sidecar_priority": "low"}, "critical"),
        ({}, {"sidecar_priority": "low", "user_id": "user_1"}, "low"),
    ],
)
async def test_the_priority_comes_in_a_header_or_in_the_metadata(
    nc: Client, client: AsyncAnthropic, start: StartProcessor, headers: Any, metadata: Any, lane: str
) -> None:
    await start({"anthropic": answers(TextDelta(WORDS))})
    message = await client.messages.create(**says(metadata=metadata), extra_headers=headers)
    received = (await wait_until(lambda: all_audit_events(nc, message.id.removeprefix("msg_"), 4)))[0]
    assert received["priority"] == lane


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_a_client_is_as_patient_here_as_with_anthropic(
    client: AsyncAnthropic, start: StartProcessor, way: str
) -> None:
    """Longer than an ask that names no deadline may take."""
    await start({"anthropic": answers(TextDelta("x"), Pause(0.5))}, request_timeout=0.2)
    assert (await answered(client, way, says())).stop_reason == "end_turn"


async def test_a_client_that_waits_less_than_an_answer_takes_has_no_answer_made_for_it(
    edge: Edge, start: StartProcessor
) -> None:
    vendor = answers(TextDelta("x"), Pause(30))
    await start({"anthropic": vendor})
    headers = {"X-Stainless-Timeout": "0.3"}
    async with edge.client.post("/v1/messages", data=orjson.dumps(says()), headers=headers) as response:
        error = orjson.loads(await response.read())
    assert (response.status, error["error"]["type"]) == (504, "timeout_error")
    assert response.headers["x-should-retry"] == "false"
    await wait_until(lambda: vendor.cancelled == 1)


@pytest.mark.parametrize("where", ["client", "call"])
async def test_a_client_that_stops_waiting_has_not_asked_again_by_itself(
    edge: Edge, start: StartProcessor, where: str
) -> None:
    """Each of its calls would be paid."""
    vendor = answers(TextDelta("x"), Pause(30))
    await start({"anthropic": vendor})
    patience: Any = {"timeout": 2.0}
    async with sdk(edge, max_retries=2, **(patience if where == "client" else {})) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**says(), **(patience if where == "call" else {}))
    assert (caught.value.type, vendor.calls) == ("timeout_error", 1)


# --- beside messages ------------------------------------------------------------------------


async def test_tokens_are_counted_by_estimate_without_a_sidecar(client: AsyncAnthropic) -> None:
    said = {"model": "haiku", "messages": [{"role": "user", "content": "x" * 400}]}
    assert (await client.messages.count_tokens(**said)).input_tokens == 104  # type: ignore[arg-type]  # a dict of them
    assert (await client.beta.messages.count_tokens(**said)).input_tokens == 104  # type: ignore[arg-type]


async def test_the_models_are_listed_in_anthropics_form(client: AsyncAnthropic, start: StartProcessor) -> None:
    await start({"anthropic": answers()})
    names = [model.id async for model in client.models.list()]
    assert {"auto", "haiku", "claude-haiku-4-5-20251001"} <= set(names)
    assert (await client.models.retrieve("haiku")).max_input_tokens == 200_000
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.models.retrieve("no-such-model")
    assert caught.value.type == "not_found_error"


async def test_a_coding_agent_that_looks_whether_anybody_is_there_finds_somebody(edge: Edge) -> None:
    async with edge.client.head("/") as response:
        assert (response.status, await response.read()) == (200, b"")


async def test_a_coding_agent_has_its_session(edge: Edge, start: StartProcessor) -> None:
    """As one of them asks: cached system blocks, long descriptions of tools, thinking, edits of the context."""
    vendor = answers(*THOUGHTS, ToolCallDelta(0, "call_a", "Bash", "{}"), reason=FinishReason.TOOL_CALLS)
    await start({"anthropic": vendor})
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    tools = [
        {"name": name, "description": "x" * 12_000, "input_schema": {"type": "object"}, "eager_input_streaming": True}
        for name in ("Bash", "mcp__plugin_jira__search_issues")
    ]
    said = says(
        system=[{"type": "text", "text": "You are an agent."}, {"type": "text", "text": "Rules.", **cached}],
        tools=tools,
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        metadata={"user_id": "user_1_account__session_" + "0" * 600},
        temperature=1,
        stream=True,
    )
    first = await streamed(edge, said)
    assert first[-2].data["delta"]["stop_reason"] == "tool_use"
    history = [
        *said["messages"],
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Let me see.", "signature": ""},
                {"type": "text", "text": "So."},
                {"type": "tool_use", "id": "call_a", "name": "Bash", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_a", "content": "exit 1", "is_error": True},
                {"type": "text", "text": "<system-reminder>Be kind.</system-reminder>", **cached},
            ],
        },
    ]
    second = await streamed(edge, said | {"messages": history})
    assert second[-1].name == "message_stop"
    assert [turn.role for turn in vendor.prompts[-1].messages] == [
        "system",
        "system",
        "user",
        "assistant",
        "tool",
        "user",
    ]
    count = {name: said[name] for name in ("model", "system", "tools", "thinking", "context_management")}
    path = "/v1/messages/count_tokens?beta=true"
    async with edge.client.post(path, data=orjson.dumps(count | {"messages": history})) as response:
        assert orjson.loads(await response.read())["input_tokens"] > 6_000
