"""Groq and local servers: OpenAI's format both ways, and where the two differ from it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

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
from providers.chat_completions import ChatAnswer, encode, usage_of
from providers.errors import (
    BadCredentials,
    BadResponse,
    InvalidPrompt,
    ModelGone,
    ModelNoise,
    Overloaded,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    StreamCut,
    Unsupported,
    VendorError,
)
from providers.groq import GroqProvider
from providers.local import LocalProvider, completions_url
from tests.providers.vendor import KEY, Vendor, events_of, prompt, streamed, whole

FIGURES = {
    "queue_time": 0.01,
    "prompt_tokens": 100,
    "completion_tokens": 40,
    "total_tokens": 140,
    "prompt_tokens_details": {"cached_tokens": 64},
    "completion_tokens_details": {"reasoning_tokens": 30},
}
SPENT = Usage(input_fresh=36, cache_read=64, output_visible=10, output_thinking=30)
DONE = b"data: [DONE]\n\n"
LIMITS = {
    "x-ratelimit-limit-requests": "14400",
    "x-ratelimit-remaining-requests": "14399",
    "x-ratelimit-reset-requests": "6s",
    "x-ratelimit-limit-tokens": "18000",
    "x-ratelimit-remaining-tokens": "17997",
    "x-ratelimit-reset-tokens": "7.66s",
}


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "openai/gpt-oss-120b",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
    }


def call(index: int | None = 0, arguments: str = "", **named: Any) -> dict[str, Any]:
    function = {"arguments": arguments} | ({"name": named.pop("name")} if "name" in named else {})
    return {"function": function, **named} | ({} if index is None else {"index": index})


def usage_chunk(**where: Any) -> dict[str, Any]:
    return {**chunk(), "choices": [], **where}


TEXT = [chunk(role="assistant", content=""), chunk(content="Hello"), chunk(content=" there"), chunk("stop")]


@pytest.fixture
async def groq(vendor: Vendor) -> AsyncIterator[GroqProvider]:
    provider = GroqProvider(vendor.endpoint(read_timeout_s=0.5))
    yield provider
    await provider.aclose()


@pytest.fixture
async def local(vendor: Vendor) -> AsyncIterator[LocalProvider]:
    provider = LocalProvider(vendor.endpoint(read_timeout_s=0.5))
    yield provider
    await provider.aclose()


# --- answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last",
    [
        [usage_chunk(x_groq={"id": "req_1", "usage": FIGURES})],
        [usage_chunk(usage=FIGURES)],
        [usage_chunk(usage=FIGURES, x_groq={"usage": FIGURES})],
    ],
    ids=["in x_groq", "at the top", "in both"],
)
async def test_usage_is_taken_once_wherever_it_stands(
    vendor: Vendor, groq: GroqProvider, last: list[dict[str, Any]]
) -> None:
    vendor.play = streamed(*TEXT, *last, DONE)
    assert await events_of(groq, prompt(stream=True)) == [
        Opened(),
        TextDelta("Hello"),
        TextDelta(" there"),
        UsageSeen(SPENT),
        Finished(FinishReason.STOP, SPENT, "openai/gpt-oss-120b", "stop"),
    ]


async def test_reasoning_and_parallel_tool_calls_in_pieces(vendor: Vendor, groq: GroqProvider) -> None:
    vendor.play = streamed(
        chunk(role="assistant", reasoning="Two places."),
        chunk(tool_calls=[call(0, id="a", type="function", name="rain")]),
        chunk(tool_calls=[call(0, '{"place":'), call(1, "{}", id="b", type="function", name="rain")]),
        chunk(tool_calls=[call(0, '"Kitui"}')]),
        chunk("tool_calls"),
        DONE,
    )
    assert (await events_of(groq, prompt(stream=True)))[1:] == [
        ThinkingDelta("Two places."),
        ToolCallDelta(0, "a", "rain"),
        ToolCallDelta(0, arguments='{"place":'),
        ToolCallDelta(1, "b", "rain", "{}"),
        ToolCallDelta(0, arguments='"Kitui"}'),
        Finished(FinishReason.TOOL_CALLS, Usage(), "openai/gpt-oss-120b", "tool_calls"),
    ]


def test_calls_without_an_index_are_told_apart_by_their_ids() -> None:
    answer = ChatAnswer("m", "The server")
    pieces = [call(None, '{"a":', id="x", name="f"), call(None, "1}"), call(None, "{}", id="y", name="g")]
    events = [e for piece in pieces for e in answer.feed(orjson.dumps(chunk(tool_calls=[piece])))]
    assert [e.index for e in events if isinstance(e, ToolCallDelta)] == [0, 0, 1]


async def test_a_whole_answer(vendor: Vendor, groq: GroqProvider) -> None:
    message = {
        "role": "assistant",
        "content": "Hi",
        "reasoning": "hm",
        "tool_calls": [call(None, "{}", id="a", name="f")],
    }
    vendor.play = whole(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "openai/gpt-oss-120b",
            "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
            "usage": FIGURES,
            "x_groq": {"id": "req_1"},
        },
        headers={"x-request-id": "req_1"} | LIMITS,
    )
    assert await events_of(groq, prompt()) == [
        Opened("req_1", (Quota("rpd", 14400, 14399, 6.0), Quota("tpm", 18000, 17997, 7.66))),
        ThinkingDelta("hm"),
        TextDelta("Hi"),
        ToolCallDelta(0, "a", "f", "{}"),
        UsageSeen(SPENT),
        Finished(FinishReason.TOOL_CALLS, SPENT, "openai/gpt-oss-120b", "tool_calls"),
    ]


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("function_call", FinishReason.TOOL_CALLS),
        ("novel", FinishReason.OTHER),
    ],
)
async def test_finish_reasons(vendor: Vendor, local: LocalProvider, told: str, reason: FinishReason) -> None:
    vendor.play = streamed(chunk(told), DONE)
    finished = (await events_of(local, prompt(stream=True)))[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is reason


@pytest.mark.parametrize("end", [[DONE], []], ids=["[DONE]", "no [DONE]"])
async def test_a_stream_without_a_finish_reason_was_cut(vendor: Vendor, groq: GroqProvider, end: list[Any]) -> None:
    vendor.play = streamed(*TEXT[:-1], *end)
    with pytest.raises(StreamCut):
        await events_of(groq, prompt(stream=True))


@pytest.mark.parametrize("end", [b"", b"data: [DONE]", b"data: [DONE]\n"])
async def test_a_finish_reason_and_an_orderly_end_make_an_answer(
    vendor: Vendor, groq: GroqProvider, end: bytes
) -> None:
    vendor.play = streamed(*TEXT, end)
    assert isinstance((await events_of(groq, prompt(stream=True)))[-1], Finished)


async def test_a_connection_that_breaks_before_done_cuts_the_stream(vendor: Vendor, groq: GroqProvider) -> None:
    vendor.play = streamed(*TEXT, end="cut")
    with pytest.raises(StreamCut):
        await events_of(groq, prompt(stream=True))


@pytest.mark.parametrize(
    ("pieces", "indexes"),
    [
        ([(0, "a", "rain"), (0, None, None), (0, "b", "rain"), (0, None, None)], [0, 0, 1, 1]),
        ([(None, "a", "rain"), (None, None, None), (None, "b", "rain")], [0, 0, 1]),
        ([(0, "a", "rain"), (0, "x", None), (0, "y", None), (1, "b", "rain")], [0, 0, 0, 1]),
    ],
    ids=["one index for all", "no index", "an id for every piece"],
)
def test_calls_are_told_apart_whatever_the_server_numbers(
    pieces: list[tuple[int | None, str | None, str | None]], indexes: list[int]
) -> None:
    answer = ChatAnswer("m", "The server")
    found: list[int] = []
    for index, call_id, name in pieces:
        piece = {"index": index, "id": call_id, "function": {"name": name, "arguments": "{}"}}
        events = answer.feed(orjson.dumps({"choices": [{"delta": {"tool_calls": [piece]}}]}))
        found += [event.index for event in events if isinstance(event, ToolCallDelta)]
    assert found == indexes


def test_unknown_fields_and_choices_are_ignored() -> None:
    answer = ChatAnswer("m", "The server")
    assert answer.feed(b'{"novel": 1}') == []
    assert answer.feed(b'{"choices": [{"index": 1, "delta": {"content": "other"}}]}') == []
    assert answer.feed(b'{"choices": [{"delta": {"content": "a", "novel": {}}, "novel": 2}], "usage": null}') == [
        TextDelta("a")
    ]


def test_usage_without_details_is_all_fresh_and_visible() -> None:
    assert usage_of({"prompt_tokens": 3, "completion_tokens": 4}) == Usage(3, output_visible=4)
    assert usage_of({"prompt_tokens": 3, "prompt_tokens_details": None, "completion_tokens": "x"}) == Usage(3)


# --- requests -------------------------------------------------------------------------------


def test_a_conversation_with_everything_in_it() -> None:
    conversation = (
        Message("system", (Text("Be brief."),)),
        Message("user", (Text("What is this?"), Image("image/png", "aGk="), Image(url="https://x.org/a.jpg"))),
        Message(
            "assistant", (Text("Let me look."), ToolCall("a", "rain", '{"place":"Kitui"}'), ToolCall("b", "rain", ""))
        ),
        Message("tool", (ToolResult("a", "3 mm"), ToolResult("b", "4 mm"))),
        Message("user", (Text("So? "), Text("Tell."))),
    )
    asked = prompt(
        messages=conversation,
        temperature=0.5,
        top_p=0.9,
        stop=("END",),
        max_tokens=50,
        tools=(Tool("rain", "Rain", {"type": "object"}),),
        tool_choice=ToolChoice("named", "rain"),
        response_format=JsonFormat({"type": "object"}, "weather"),
    )
    assert encode(asked, stream=True, limit_name="max_tokens") == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                    {"type": "image_url", "image_url": {"url": "https://x.org/a.jpg"}},
                ],
            },
            {
                "role": "assistant",
                "content": "Let me look.",
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "rain", "arguments": '{"place":"Kitui"}'}},
                    {"id": "b", "type": "function", "function": {"name": "rain", "arguments": "{}"}},
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "3 mm"},
            {"role": "tool", "tool_call_id": "b", "content": "4 mm"},
            {"role": "user", "content": "So? Tell."},
        ],
        "max_tokens": 50,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "top_p": 0.9,
        "stop": ["END"],
        "tools": [
            {"type": "function", "function": {"name": "rain", "description": "Rain", "parameters": {"type": "object"}}}
        ],
        "tool_choice": {"type": "function", "function": {"name": "rain"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "weather", "schema": {"type": "object"}}},
    }


def test_json_without_a_schema_and_a_plain_tool_choice() -> None:
    asked = prompt(tools=(Tool("f", "", {}),), tool_choice=ToolChoice("required"), response_format=JsonFormat())
    body = encode(asked, stream=False, limit_name="max_tokens")
    assert (body["tool_choice"], body["response_format"]) == ("required", {"type": "json_object"})
    assert "stream" not in body


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"stop": tuple("abcde")}, "stop sequences"),
        ({"tools": (Tool("f", "", {}),), "response_format": JsonFormat()}, "tools"),
        ({"messages": (Message("system", (Image("image/png", "aGk="),)),)}, "images"),
    ],
)
async def test_what_groq_cannot_do_is_refused_by_name_before_any_call(
    vendor: Vendor, groq: GroqProvider, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(Unsupported, match=named):
        await events_of(groq, prompt(**settings))
    assert vendor.paths == []


@pytest.mark.parametrize("suffix", ["", "/", "/openai/v1", "/openai/v1/"])
async def test_groqs_base_url_with_or_without_its_path(vendor: Vendor, suffix: str) -> None:
    vendor.play = streamed(*TEXT, DONE)
    provider = GroqProvider(vendor.endpoint(base_url=vendor.url + suffix))
    await events_of(provider, prompt(stream=True))
    await provider.aclose()
    assert vendor.paths == ["/openai/v1/chat/completions"]
    assert vendor.headers[0]["authorization"] == f"Bearer {KEY}"
    assert vendor.bodies[0]["max_completion_tokens"] == 4096


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("http://localhost:11434", "http://localhost:11434/v1/chat/completions"),
        ("http://localhost:11434/", "http://localhost:11434/v1/chat/completions"),
        ("http://gpu:8000/v1/", "http://gpu:8000/v1/chat/completions"),
        ("https://host/api/v3", "https://host/api/v3/chat/completions"),
    ],
)
def test_a_local_address_without_a_path_means_its_v1(base_url: str, url: str) -> None:
    assert completions_url(base_url) == url


async def test_a_local_server_is_sent_a_key_only_where_one_is_set(vendor: Vendor, local: LocalProvider) -> None:
    vendor.play = streamed(*TEXT, DONE)
    await events_of(local, prompt(stream=True))
    keyless = LocalProvider(vendor.endpoint(api_key=""))
    await events_of(keyless, prompt(stream=True))
    await keyless.aclose()
    assert [headers.get("authorization") for headers in vendor.headers] == [f"Bearer {KEY}", None]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_local_servers_limits_are_both_of_a_minute(vendor: Vendor, local: LocalProvider, stream: bool) -> None:
    vendor.play = whole({"error": {"message": "slow down"}}, status=429, headers=LIMITS)
    with pytest.raises(RateLimited) as raised:
        await events_of(local, prompt(stream=stream))
    assert raised.value.quotas == (Quota("rpm", 14400, 14399, 6.0), Quota("tpm", 18000, 17997, 7.66))


# --- errors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (400, "tool_use_failed", "Failed to call a function", ModelNoise),
        (400, "json_validate_failed", "Failed to generate JSON", ModelNoise),
        (400, "context_length_exceeded", "Please reduce the length of the messages", PromptTooLarge),
        (400, "model_decommissioned", "The model has been decommissioned", ModelGone),
        (400, None, "bad field", InvalidPrompt),
        (400, "organization_restricted", "Organization has been restricted.", BadCredentials),
        (400, "model_terms_required", "The model requires terms acceptance", ModelGone),
        (401, "invalid_api_key", "Invalid API Key", BadCredentials),
        (403, "model_permission_blocked_org", "The model is blocked at the organization level", ModelGone),
        (403, "model_permission_blocked_project", "The model is blocked at the project level", ModelGone),
        (404, "model_not_found", "no such model", ModelGone),
        (413, "rate_limit_exceeded", "Request too large: please reduce your message size", PromptTooLarge),
        (422, None, "semantic", InvalidPrompt),
        (429, "rate_limit_exceeded", "Rate limit reached", RateLimited),
        (498, None, "flex tier capacity exceeded", Overloaded),
        (500, None, "Internal", VendorError),
    ],
)
async def test_groqs_errors(
    vendor: Vendor, groq: GroqProvider, status: int, code: str | None, message: str, expected: type[ProviderError]
) -> None:
    body = {"error": {"message": message, "type": "invalid_request_error"} | ({"code": code} if code else {})}
    vendor.play = whole(body, status=status, headers={"retry-after": "2"} | LIMITS)
    with pytest.raises(ProviderError) as raised:
        await events_of(groq, prompt(stream=True))
    assert type(raised.value) is expected
    assert (raised.value.message, raised.value.status, raised.value.retry_after_s) == (message, status, 2)
    assert [quota.metric for quota in raised.value.quotas] == ["rpd", "tpm"]


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ({"error": {"message": "over capacity", "type": "server_error", "code": "over_capacity"}}, Overloaded),
        ({"error": {"message": "boom", "type": "internal_server_error"}}, VendorError),
        ({**chunk(), "x_groq": {"error": "stream stopped early"}}, VendorError),
    ],
)
async def test_an_error_inside_a_200_stream(
    vendor: Vendor, groq: GroqProvider, frame: dict[str, Any], expected: type[ProviderError]
) -> None:
    vendor.play = streamed(*TEXT[:2], frame, end="hang")
    with pytest.raises(ProviderError) as raised:
        await events_of(groq, prompt(stream=True))
    assert type(raised.value) is expected


async def test_a_local_context_overflow_is_a_prompt_too_large(vendor: Vendor, local: LocalProvider) -> None:
    message = "request (6031 tokens) exceeds the available context size (4096 tokens)"
    vendor.play = whole({"error": {"code": 400, "message": message, "type": "exceed_context_size_error"}}, status=400)
    with pytest.raises(PromptTooLarge, match="6031"):
        await events_of(local, prompt())


@pytest.mark.parametrize("body", [[1], "text", {"choices": "none"}])
async def test_what_is_not_the_format_is_a_bad_response(vendor: Vendor, groq: GroqProvider, body: Any) -> None:
    vendor.play = whole(body)
    with pytest.raises(BadResponse):
        await events_of(groq, prompt())


@pytest.mark.parametrize("which", ["groq", "local"])
async def test_cancelling_the_task_closes_the_connection_at_once(vendor: Vendor, which: str) -> None:
    vendor.play = streamed(*TEXT[:2], end="hang")
    provider = {"groq": GroqProvider, "local": LocalProvider}[which](vendor.endpoint())
    task = asyncio.create_task(events_of(provider, prompt(stream=True)))
    await vendor.asked.wait()
    task.cancel()
    await asyncio.wait_for(vendor.gone.wait(), 1)
    await asyncio.wait({task})
    await provider.aclose()


async def test_the_chunks_of_these_tests_are_openais_by_its_own_strict_client(vendor: Vendor) -> None:
    """What the tests play is what vendors say: the official client validates it strictly."""
    import openai

    vendor.play = streamed(*TEXT, usage_chunk(usage=FIGURES), DONE)
    async with openai.AsyncOpenAI(api_key=KEY, base_url=vendor.url, _strict_response_validation=True) as client:
        messages: Any = [{"role": "user", "content": "x"}]
        stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
        said = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
    assert "".join(said) == "Hello there"
