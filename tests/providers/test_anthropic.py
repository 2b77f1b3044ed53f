"""Claude: the wire format both ways, as Anthropic's documentation and SDK types have it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from providers.anthropic import AnthropicProvider
from providers.anthropic_answer import AnthropicAnswer, usage_of
from providers.anthropic_codec import encode
from providers.base import (
    Finished,
    FinishReason,
    Image,
    JsonFormat,
    Message,
    Opened,
    Quota,
    Text,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
    UsageSeen,
)
from providers.errors import (
    BadCredentials,
    BadResponse,
    ConnectionFailed,
    InvalidPrompt,
    OutOfCredit,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    StreamCut,
    TimedOut,
    Unsupported,
    VendorError,
)
from tests.providers.vendor import KEY, Vendor, dropped, events_of, prompt, streamed, whole

START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5-20251001",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "cache_creation_input_tokens": 110,
            "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 10},
            "cache_read_input_tokens": 1000,
            "output_tokens": 1,
            "service_tier": "standard",
        },
    },
}
STOP = {"type": "message_stop"}
LIMITS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:00Z",
}
"""Of a limit that is full again by now."""


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def ended(reason: str, output: int = 15) -> dict[str, Any]:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage={"output_tokens": output})


TEXT = [
    START,
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("ping"),
    delta(0, "text_delta", text="Hello"),
    delta(0, "text_delta", text=" there"),
    event("content_block_stop", index=0),
    ended("end_turn"),
    STOP,
]
SPENT = Usage(input_fresh=25, cache_read=1000, cache_write_5m=100, cache_write_1h=10, output_visible=15)


@pytest.fixture
async def claude(vendor: Vendor) -> AsyncIterator[AnthropicProvider]:
    provider = AnthropicProvider(vendor.endpoint(read_timeout_s=0.5))
    yield provider
    await provider.aclose()


# --- answers --------------------------------------------------------------------------------


async def test_a_streamed_answer_with_its_exact_usage(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = streamed(*TEXT)
    assert await events_of(claude, prompt(stream=True)) == [
        Opened(),
        UsageSeen(Usage(25, 1000, 100, 10, output_visible=1)),
        TextDelta("Hello"),
        TextDelta(" there"),
        UsageSeen(SPENT),
        Finished(FinishReason.STOP, SPENT, "claude-haiku-4-5-20251001", "end_turn"),
    ]


async def test_the_vendors_own_figures_are_kept(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = streamed(*TEXT)
    finished = (await events_of(claude, prompt(stream=True)))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage.raw["service_tier"] == "standard"
    assert finished.usage.raw["output_tokens"] == 15


async def test_thinking_signatures_and_parallel_tool_calls(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = streamed(
        START,
        event("content_block_start", index=0, content_block={"type": "thinking", "thinking": "", "signature": ""}),
        delta(0, "thinking_delta", thinking="Two places."),
        delta(0, "signature_delta", signature="c2ln"),
        event("content_block_start", index=1, content_block={"type": "redacted_thinking", "data": "x"}),
        event(
            "content_block_start",
            index=2,
            content_block={"type": "tool_use", "id": "toolu_1", "name": "rain", "input": {}},
        ),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"place": "Ki'),
        delta(2, "input_json_delta", partial_json='tui"}'),
        event(
            "content_block_start",
            index=3,
            content_block={"type": "tool_use", "id": "toolu_2", "name": "rain", "input": {}},
        ),
        delta(3, "input_json_delta", partial_json="{}"),
        ended("tool_use"),
        STOP,
    )
    events = await events_of(claude, prompt(stream=True))
    assert [e for e in events if not isinstance(e, Opened | UsageSeen)] == [
        ThinkingDelta("Two places."),
        ThinkingDelta("", "c2ln"),
        ToolCallDelta(0, "toolu_1", "rain"),
        ToolCallDelta(0, arguments='{"place": "Ki'),
        ToolCallDelta(0, arguments='tui"}'),
        ToolCallDelta(1, "toolu_2", "rain"),
        ToolCallDelta(1, arguments="{}"),
        Finished(FinishReason.TOOL_CALLS, SPENT, "claude-haiku-4-5-20251001", "tool_use"),
    ]


async def test_a_whole_answer_is_one_call_without_stream(vendor: Vendor, claude: AnthropicProvider) -> None:
    message = START["message"] | {
        "content": [
            {"type": "text", "text": "Let me look."},
            {"type": "tool_use", "id": "toolu_1", "name": "rain", "input": {"place": "Kitui"}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 4}},
    }
    vendor.play = whole(message, headers={"request-id": "req_1"} | LIMITS)
    spent = Usage(3, output_visible=5, output_thinking=4)
    assert await events_of(claude, prompt()) == [
        Opened("req_1", (Quota("rpm", 50, 49, 0.0),)),
        TextDelta("Let me look."),
        ToolCallDelta(0, "toolu_1", "rain", '{"place":"Kitui"}'),
        Finished(FinishReason.TOOL_CALLS, spent, "claude-haiku-4-5-20251001", "tool_use"),
    ]
    assert "stream" not in vendor.bodies[0]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("stop_sequence", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("pause_turn", FinishReason.PAUSE),
        ("something_new", FinishReason.OTHER),
    ],
)
async def test_stop_reasons(vendor: Vendor, claude: AnthropicProvider, told: str, reason: FinishReason) -> None:
    vendor.play = streamed(START, ended(told), STOP)
    finished = (await events_of(claude, prompt(stream=True)))[-1]
    assert finished == Finished(reason, SPENT, "claude-haiku-4-5-20251001", told)


def test_unknown_events_deltas_blocks_and_fields_are_ignored() -> None:
    answer = AnthropicAnswer("m")
    for data in (
        b'{"type":"novelty","delta":{"x":1}}',
        b'{"type":"content_block_delta","index":9,"delta":{"type":"novel_delta","text":"no"}}',
        b'{"type":"content_block_delta","index":9,"delta":{"type":"citations_delta","citation":{"a":[1]}}}',
        b'{"type":"content_block_delta","index":9,"delta":{"type":"input_json_delta","partial_json":"{"}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"server_tool_use","id":"s","name":"n","input":{}}}',
        b'{"type":"message_delta","delta":{},"usage":null,"context_management":{}}',
        b"{}",
    ):
        assert answer.feed(data) == []
    assert not answer.complete


def test_a_figure_that_a_later_event_leaves_out_or_nulls_stays() -> None:
    answer = AnthropicAnswer("m")
    answer.feed(
        b'{"type":"message_start","message":{"usage":{"input_tokens":7,"cache_read_input_tokens":3,"output_tokens":1}}}'
    )
    answer.feed(
        b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"input_tokens":null,"output_tokens":5}}'
    )
    assert answer.usage == Usage(7, cache_read=3, output_visible=5)


def test_cache_writes_without_their_split_count_as_five_minute_ones() -> None:
    assert usage_of({"cache_creation_input_tokens": 40}) == Usage(cache_write_5m=40)


# --- requests -------------------------------------------------------------------------------


def encoded(**settings: Any) -> dict[str, Any]:
    return encode(prompt(**settings), lambda schema: schema, stream=False)


def test_a_conversation_with_everything_in_it() -> None:
    conversation = (
        Message("system", (Text("Be brief."),)),
        Message("system", (Text("Answer in English."),)),
        Message("user", (Text("What is this?"), Image("image/png", "aGk="), Image(url="https://x.org/a.jpg"))),
        Message("assistant", (Text(""), ToolCall("call.1", "rain", '{"place":"Kitui"}'), ToolCall("b", "rain", ""))),
        Message("tool", (ToolResult("call.1", "3 mm"),)),
        Message("tool", (ToolResult("b", "no such place", is_error=True),)),
    )
    body = encoded(
        messages=conversation,
        temperature=0.5,
        stop=("END",),
        max_tokens=50,
        tools=(Tool("rain", "Rain", {"properties": {}}),),
        tool_choice=ToolChoice("named", "rain"),
    )
    assert body == {
        "model": "m",
        "max_tokens": 50,
        "system": "Be brief.\n\nAnswer in English.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                    {"type": "image", "source": {"type": "url", "url": "https://x.org/a.jpg"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "call_1", "name": "rain", "input": {"place": "Kitui"}},
                    {"type": "tool_use", "id": "b", "name": "rain", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "call_1", "content": "3 mm"},
                    {"type": "tool_result", "tool_use_id": "b", "content": "no such place", "is_error": True},
                ],
            },
        ],
        "temperature": 0.5,
        "stop_sequences": ["END"],
        "tools": [{"name": "rain", "description": "Rain", "input_schema": {"type": "object", "properties": {}}}],
        "tool_choice": {"type": "tool", "name": "rain"},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"temperature": 0.0, "top_p": 0.9}, {"temperature": 0.0}),
        ({"temperature": 0.2}, {"temperature": 0.2}),
        ({"top_p": 0.9}, {"top_p": 0.9}),
        ({}, {}),
    ],
)
def test_of_temperature_and_top_p_only_one_goes_out(given: dict[str, Any], sent: dict[str, Any]) -> None:
    body = encoded(**given)
    assert {name: body[name] for name in ("temperature", "top_p") if name in body} == sent


@pytest.mark.parametrize(("mode", "told"), [("auto", "auto"), ("none", "none"), ("required", "any")])
def test_tool_choices(mode: Any, told: str) -> None:
    body = encoded(tools=(Tool("rain", "", {}),), tool_choice=ToolChoice(mode))
    assert body["tool_choice"] == {"type": told}


async def test_a_json_schema_goes_out_as_the_sdk_transforms_it(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = whole({**START["message"], "stop_reason": "end_turn"})
    schema = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
    await events_of(claude, prompt(response_format=JsonFormat(schema)))
    sent = vendor.bodies[0]["output_config"]["format"]
    assert sent["type"] == "json_schema"
    assert sent["schema"]["additionalProperties"] is False
    assert "minimum: 1" in sent["schema"]["properties"]["a"]["description"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 1.5}, "temperature"),
        ({"stop": (" \n",)}, "stop sequence"),
        ({"response_format": JsonFormat()}, "response_format"),
        ({"messages": (Message("system", (Text("x"),)),)}, "system"),
        (
            {"messages": (Message("system", (Image("image/png", "aGk="),)), Message("user", (Text("x"),)))},
            "system prompt",
        ),
        ({"messages": (Message("user", (Image("image/bmp", "aGk="),)),)}, "image/bmp"),
        ({"messages": (Message("user", (Image(url="http://x.org/a.png"),)),)}, "https"),
        ({"messages": (Message("user", (Image(url="https://[x"),)),)}, "https"),
        ({"messages": (Message("assistant", (ToolCall("a", "rain", "[]"),)),)}, "rain"),
    ],
)
def test_what_anthropic_cannot_do_is_refused_by_name(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(Unsupported, match=named):
        encoded(**settings)


async def test_a_schema_that_the_sdk_cannot_express_is_refused_before_any_call(
    vendor: Vendor, claude: AnthropicProvider
) -> None:
    with pytest.raises(Unsupported, match="JSON schema"):
        await events_of(claude, prompt(response_format=JsonFormat({"description": "no type"})))
    assert vendor.paths == []


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_a_base_url_with_or_without_its_version(vendor: Vendor, suffix: str) -> None:
    vendor.play = whole({**START["message"], "stop_reason": "end_turn"})
    provider = AnthropicProvider(vendor.endpoint(base_url=vendor.url + suffix))
    await events_of(provider, prompt())
    await provider.aclose()
    assert vendor.paths == ["/v1/messages"]
    assert KEY in vendor.headers[0].get("authorization", "") + vendor.headers[0].get("x-api-key", "")
    assert "anthropic-version" in vendor.headers[0]


# --- errors ---------------------------------------------------------------------------------


def error(kind: str, message: str = "no", **fields: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **fields}}


@pytest.mark.parametrize(
    ("status", "kind", "message", "expected"),
    [
        (400, "invalid_request_error", "messages: at least one", InvalidPrompt),
        (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", PromptTooLarge),
        (400, "invalid_request_error", "Your credit balance is too low to access the API", OutOfCredit),
        (402, "billing_error", "no", OutOfCredit),
        (403, "permission_error", "no", BadCredentials),
        (429, "rate_limit_error", "slow down", RateLimited),
        (429, "rate_limit_error", "You have reached your spend limit", OutOfCredit),
        (504, "timeout_error", "no", TimedOut),
        (529, "overloaded_error", "Overloaded", Overloaded),
        (500, "brand_new_error", "no", VendorError),
    ],
)
async def test_errors_by_their_type(
    vendor: Vendor, claude: AnthropicProvider, status: int, kind: str, message: str, expected: type[ProviderError]
) -> None:
    headers = {"retry-after": "3", "request-id": "req_9"} | LIMITS
    vendor.play = whole(error(kind, message), status=status, headers=headers)
    with pytest.raises(ProviderError) as raised:
        await events_of(claude, prompt())
    told = raised.value
    assert type(told) is expected
    assert (told.status, told.vendor_type, told.vendor_request_id) == (status, kind, "req_9")
    assert (told.message, told.retry_after_s) == (message, 3)
    assert told.quotas == (Quota("rpm", 50, 49, 0.0),)


async def test_retry_after_in_milliseconds_and_as_a_date(vendor: Vendor, claude: AnthropicProvider) -> None:
    headers = {"retry-after-ms": "1500", "retry-after": "9"}
    vendor.play = whole(error("rate_limit_error"), status=429, headers=headers)
    with pytest.raises(RateLimited) as raised:
        await events_of(claude, prompt(stream=True))
    assert raised.value.retry_after_s == 1.5
    vendor.play = whole(error("rate_limit_error"), 429, {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"})
    with pytest.raises(RateLimited) as raised:
        await events_of(claude, prompt(stream=True))
    until = datetime(2100, 1, 1, tzinfo=UTC) - datetime.now(UTC)
    assert raised.value.retry_after_s == pytest.approx(until.total_seconds(), abs=60)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("overloaded_error", Overloaded),
        ("api_error", VendorError),
        ("rate_limit_error", RateLimited),
        ("invalid_request_error", InvalidPrompt),
        ("unheard_of", VendorError),
    ],
)
async def test_an_error_inside_a_200_stream_is_told_by_its_type(
    vendor: Vendor, claude: AnthropicProvider, kind: str, expected: type[ProviderError]
) -> None:
    vendor.play = streamed(*TEXT[:4], error(kind), end="hang")
    with pytest.raises(ProviderError) as raised:
        await events_of(claude, prompt(stream=True))
    assert type(raised.value) is expected


async def test_an_error_page_that_is_no_json_is_told_in_its_own_words(
    vendor: Vendor, claude: AnthropicProvider
) -> None:
    async def page(_: Any) -> Any:
        from aiohttp import web

        return web.Response(status=502, text=f"<html>bad gateway for {KEY}</html>")

    vendor.play = page
    with pytest.raises(VendorError, match="bad gateway") as raised:
        await events_of(claude, prompt(stream=True))
    assert KEY not in raised.value.message


@pytest.mark.parametrize("stream", [True, False])
async def test_a_dropped_connection_failed_before_any_answer(
    vendor: Vendor, claude: AnthropicProvider, stream: bool
) -> None:
    vendor.play = dropped
    with pytest.raises(ConnectionFailed):
        await events_of(claude, prompt(stream=stream))
    assert len(vendor.paths) == 1


async def test_a_refused_connection_failed_at_once() -> None:
    vendor = Vendor()
    vendor.url = "http://127.0.0.1:9"
    provider = AnthropicProvider(vendor.endpoint())
    with pytest.raises(ConnectionFailed):
        await events_of(provider, prompt())
    await provider.aclose()


@pytest.mark.parametrize("end", ["eof", "cut"])
async def test_a_stream_without_message_stop_was_cut(vendor: Vendor, claude: AnthropicProvider, end: str) -> None:
    vendor.play = streamed(*TEXT[:-1], end=end)
    with pytest.raises(StreamCut):
        await events_of(claude, prompt(stream=True))


async def test_a_rough_end_after_message_stop_takes_nothing_from_the_answer(
    vendor: Vendor, claude: AnthropicProvider
) -> None:
    vendor.play = streamed(*TEXT, end="cut")
    assert isinstance((await events_of(claude, prompt(stream=True)))[-1], Finished)


async def test_what_is_not_anthropics_format_is_a_bad_response(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = whole(["a list"])
    with pytest.raises(BadResponse):
        await events_of(claude, prompt())


# --- connections ----------------------------------------------------------------------------


async def test_cancelling_the_task_closes_the_vendors_connection_at_once(
    vendor: Vendor, claude: AnthropicProvider
) -> None:
    vendor.play = streamed(*TEXT[:4], end="hang")
    provider = AnthropicProvider(vendor.endpoint())
    task = asyncio.create_task(events_of(provider, prompt(stream=True)))
    await vendor.asked.wait()
    cancelled = time.monotonic()
    task.cancel()
    await asyncio.wait_for(vendor.gone.wait(), 2)
    assert time.monotonic() - cancelled < 1
    await asyncio.wait({task})
    assert task.cancelled()
    await provider.aclose()


async def test_a_connection_serves_again_after_a_stream_was_read_to_its_end(
    vendor: Vendor, claude: AnthropicProvider
) -> None:
    vendor.play = streamed(*TEXT)
    for _ in range(5):
        await events_of(claude, prompt(stream=True))
    assert (len(vendor.paths), len(vendor.connections)) == (5, 1)


async def test_no_more_connections_than_the_pool_holds(vendor: Vendor) -> None:
    vendor.play = streamed(*TEXT)
    provider = AnthropicProvider(vendor.endpoint(connections=3))
    await asyncio.gather(*(events_of(provider, prompt(stream=True)) for _ in range(12)))
    await provider.aclose()
    assert (len(vendor.paths), len(vendor.connections) <= 3) == (12, True)


async def test_a_body_of_several_megabytes_goes_through(vendor: Vendor, claude: AnthropicProvider) -> None:
    vendor.play = whole({**START["message"], "stop_reason": "end_turn"})
    await events_of(claude, prompt("x" * 3_000_000))
    assert len(vendor.bodies[0]["messages"][0]["content"][0]["text"]) == 3_000_000


async def test_the_events_of_these_tests_are_anthropics_by_its_own_strict_client(vendor: Vendor) -> None:
    """What the tests play is what the vendor says: the official client validates it strictly."""
    import anthropic

    vendor.play = streamed(*TEXT)
    async with anthropic.AsyncAnthropic(
        api_key=KEY, base_url=vendor.url, _strict_response_validation=True, http_client=anthropic.DefaultAioHttpClient()
    ) as client:
        request: Any = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
        async with client.messages.stream(**request) as stream:
            assert await stream.get_final_text() == "Hello there"
