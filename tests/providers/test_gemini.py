"""Gemini through the real SDK over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest
from llmock.pytest_plugin import LLMock

from providers.base import (
    Endpoint,
    Event,
    Finished,
    FinishReason,
    JsonFormat,
    Message,
    Opened,
    Prompt,
    Text,
    TextDelta,
    ThinkingDelta,
    Tool,
    ToolCallDelta,
    Usage,
    UsageSeen,
)
from providers.errors import (
    BadCredentials,
    BadResponse,
    ConnectionFailed,
    InvalidPrompt,
    ModelGone,
    ModelNoise,
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
from providers.gemini import GeminiProvider
from providers.gemini_errors import wait_of
from providers.gemini_wire import RawWire
from tests.providers.vendor import (
    KEY,
    Vendor,
    dropped,
    events_of,
    silent,
    streamed,
    whole,
)

USAGE = {"promptTokenCount": 10, "candidatesTokenCount": 4, "totalTokenCount": 14}
SPENT = Usage(input_fresh=10, output_visible=4)
WEATHER = Tool("weather", "Tells the weather", {"type": "object", "properties": {"city": {"type": "string"}}})


def prompt(text: str = "hello", **settings: Any) -> Prompt:
    return Prompt(
        **{"model": "gemini-2.5-flash", "messages": (Message("user", (Text(text),)),), "max_tokens": 4096, **settings}
    )


def chunk(*parts: dict[str, Any], finish: str | None = None, usage: dict[str, int] | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    body: dict[str, Any] = {"candidates": [candidate], "modelVersion": "gemini-served", "responseId": "r1"}
    return body if usage is None else {**body, "usageMetadata": usage}


def error(code: int, message: str, status: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


async def collect(events: AsyncIterator[Event], into: list[Event]) -> None:
    async for event in events:
        into.append(event)


@pytest.fixture
async def gemini(vendor: Vendor) -> AsyncIterator[GeminiProvider]:
    provider = GeminiProvider(vendor.endpoint())
    yield provider
    await provider.aclose()


@pytest.fixture
async def mocked(llmock: LLMock) -> AsyncIterator[GeminiProvider]:
    provider = GeminiProvider(
        Endpoint(api_key=KEY, base_url=llmock.base_url("gemini"), api_version="v1beta", read_timeout_s=1.0)
    )
    yield provider
    await provider.aclose()


@pytest.fixture(params=["raw", "typed"])
async def either(
    request: pytest.FixtureRequest, vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[GeminiProvider]:
    """The provider over its own wire, and over the SDK's typed calls as with an SDK of another make."""
    if request.param == "typed":
        monkeypatch.setattr(RawWire, "fits", staticmethod(lambda client: False))
    provider = GeminiProvider(vendor.endpoint())
    yield provider
    await provider.aclose()


# --- against llmock -------------------------------------------------------------------------


async def test_a_streamed_answer_comes_in_pieces_and_ends_with_its_usage(
    llmock: LLMock, mocked: GeminiProvider
) -> None:
    llmock.reply("one two three four five six seven eight")
    events = await events_of(mocked, prompt(stream=True))
    pieces = [e.text for e in events if isinstance(e, TextDelta)]
    assert isinstance(events[0], Opened)
    assert len(pieces) > 1
    assert "".join(pieces) == "one two three four five six seven eight"
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.STOP
    assert events[-1].usage.output_visible > 0


async def test_an_answer_that_nobody_watches_comes_whole_in_one_unstreamed_call(
    llmock: LLMock, mocked: GeminiProvider
) -> None:
    llmock.reply("one two three four five six seven eight")
    events = await events_of(mocked, prompt())
    assert [type(e) for e in events] == [Opened, TextDelta, Finished]
    assert [r.path for r in llmock.requests] == ["/gemini/v1beta/models/gemini-2.5-flash:generateContent"]


async def test_a_large_answer_is_streamed_even_when_nobody_watches(llmock: LLMock, mocked: GeminiProvider) -> None:
    llmock.reply("one two three four")
    events = await events_of(mocked, prompt(max_tokens=8193))
    assert isinstance(events[-1], Finished)
    assert llmock.last_request.path.endswith(":streamGenerateContent")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_call_comes_whole_with_an_id(llmock: LLMock, mocked: GeminiProvider, stream: bool) -> None:
    llmock.call_tool("weather", {"city": "Paris"})
    events = await events_of(mocked, prompt(stream=stream, tools=(WEATHER,)))
    calls = [e for e in events if isinstance(e, ToolCallDelta)]
    assert [(c.index, c.id, c.name, c.arguments) for c in calls] == [(0, "call_0", "weather", '{"city":"Paris"}')]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidPrompt),
        (401, BadCredentials),
        (402, OutOfCredit),
        (403, BadCredentials),
        (404, ModelGone),
        (413, PromptTooLarge),
        (429, RateLimited),
        (500, VendorError),
        (502, VendorError),
        (503, Overloaded),
        (504, TimedOut),
    ],
)
async def test_an_error_status_is_raised_as_its_kind_after_one_request(
    llmock: LLMock, mocked: GeminiProvider, status: int, kind: type[ProviderError], stream: bool
) -> None:
    llmock.fail(status, times=None, retry_after=7)
    with pytest.raises(ProviderError) as raised:
        await events_of(mocked, prompt(stream=stream))
    assert type(raised.value) is kind
    assert raised.value.status == status
    assert raised.value.retry_after_s == 7
    assert len(llmock.requests) == 1


async def test_a_context_overflow_is_a_prompt_too_large(llmock: LLMock, mocked: GeminiProvider) -> None:
    llmock.context_overflow()
    with pytest.raises(PromptTooLarge):
        await events_of(mocked, prompt())


@pytest.mark.parametrize("fault", ["disconnect", "truncate"])
async def test_a_stream_that_ends_early_is_cut_and_not_asked_for_again(
    llmock: LLMock, mocked: GeminiProvider, fault: str
) -> None:
    getattr(llmock, fault)(after_chunks=2, times=None)
    llmock.reply("one two three four five six", times=None)
    with pytest.raises(StreamCut):
        await events_of(mocked, prompt(stream=True))
    assert len(llmock.requests) == 1


async def test_a_chunk_that_is_not_json_is_a_bad_response(llmock: LLMock, mocked: GeminiProvider) -> None:
    llmock.corrupt().reply("one two three four five six")
    with pytest.raises(BadResponse):
        await events_of(mocked, prompt(stream=True))


async def test_a_stream_that_falls_silent_times_out(llmock: LLMock, mocked: GeminiProvider) -> None:
    llmock.stall(seconds=3).reply("one two three four five six")
    with pytest.raises(TimedOut):
        await events_of(mocked, prompt(stream=True))


# --- what the request carries ---------------------------------------------------------------


@pytest.mark.parametrize(("version", "path"), [(None, "/v1/"), ("v1beta", "/v1beta/"), ("v1alpha", "/v1alpha/")])
async def test_the_api_version_is_the_endpoints_or_the_sdks(vendor: Vendor, version: str | None, path: str) -> None:
    provider = GeminiProvider(vendor.endpoint(api_version=version))
    vendor.play = whole(chunk({"text": "hi"}, finish="STOP"))
    await events_of(provider, prompt())
    await provider.aclose()
    assert vendor.paths == [f"{path}models/gemini-2.5-flash:generateContent"]


async def test_a_request_carries_the_key_in_its_header_and_everything_that_was_asked(
    vendor: Vendor, either: GeminiProvider
) -> None:
    vendor.play = whole(chunk({"text": "hi"}, finish="STOP"))
    await events_of(
        either,
        prompt(
            temperature=0.3,
            top_p=0.9,
            stop=("END",),
            max_tokens=100,
            response_format=JsonFormat({"type": "object", "properties": {"a": {"type": "integer"}}}),
        ),
    )
    assert vendor.headers[0]["x-goog-api-key"] == KEY
    assert "x-server-timeout" not in vendor.headers[0]
    assert KEY not in vendor.paths[0]
    assert vendor.bodies == [
        {
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
            "generationConfig": {
                "maxOutputTokens": 100,
                "temperature": 0.3,
                "topP": 0.9,
                "stopSequences": ["END"],
                "responseMimeType": "application/json",
                "responseJsonSchema": {"type": "object", "properties": {"a": {"type": "integer"}}},
                "thinkingConfig": {"thinkingBudget": 0},
            },
        }
    ]


async def test_a_body_of_several_megabytes_goes_through(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = whole(chunk({"text": "hi"}, finish="STOP"))
    await events_of(gemini, prompt("x" * 3_000_000))
    assert len(vendor.bodies[0]["contents"][0]["parts"][0]["text"]) == 3_000_000


async def test_what_gemini_cannot_do_is_refused_before_any_call(vendor: Vendor, gemini: GeminiProvider) -> None:
    six = prompt(stop=tuple("abcdef"))
    with pytest.raises(Unsupported, match="stop sequences"):
        await events_of(gemini, six)
    with pytest.raises(Unsupported, match="name of a Gemini model"):
        await events_of(gemini, prompt(model="x?key=1"))
    assert vendor.paths == []


async def test_the_installed_sdk_is_spoken_to_below_its_typed_layer(vendor: Vendor, gemini: GeminiProvider) -> None:
    await gemini.open()
    await gemini.open()
    assert gemini.raw


async def test_a_missing_key_is_bad_credentials(vendor: Vendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(BadCredentials):
        await GeminiProvider(vendor.endpoint(api_key="")).open()


# --- answers --------------------------------------------------------------------------------


async def test_the_last_usage_counts_and_earlier_ones_are_seen_on_the_way(
    vendor: Vendor, either: GeminiProvider
) -> None:
    vendor.play = streamed(
        chunk({"text": "a"}, usage={"promptTokenCount": 10, "totalTokenCount": 10}),
        chunk({"text": "b"}, usage={"promptTokenCount": 10, "candidatesTokenCount": 2, "totalTokenCount": 12}),
        chunk({"text": "c"}, finish="STOP"),
        {"usageMetadata": USAGE},
    )
    events = await events_of(either, prompt(stream=True))
    assert events[1:] == [
        TextDelta("a"),
        UsageSeen(Usage(input_fresh=10)),
        TextDelta("b"),
        UsageSeen(Usage(input_fresh=10, output_visible=2)),
        TextDelta("c"),
        Finished(FinishReason.STOP, SPENT, "gemini-served", "STOP"),
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_thoughts_calls_and_signatures_arrive_as_they_are(
    vendor: Vendor, either: GeminiProvider, stream: bool
) -> None:
    body = chunk(
        {"text": "hmm", "thought": True},
        {"text": "Let me look."},
        {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}, "thoughtSignature": "c2ln"},
        {"functionCall": {"id": "own", "name": "time"}},
        finish="STOP",
        usage=USAGE,
    )
    vendor.play = streamed(body) if stream else whole(body)
    events = await events_of(either, prompt(stream=stream, tools=(WEATHER,)))
    assert events[1:] == [
        ThinkingDelta("hmm"),
        TextDelta("Let me look."),
        ToolCallDelta(0, "call_0", "weather", '{"city":"Oslo"}', "c2ln"),
        ToolCallDelta(1, "own", "time", "{}"),
        Finished(FinishReason.TOOL_CALLS, SPENT, "gemini-served", "STOP"),
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_blocked_prompt_is_a_completed_answer_without_text(
    vendor: Vendor, either: GeminiProvider, stream: bool
) -> None:
    body = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 10}}
    vendor.play = streamed(body) if stream else whole(body)
    events = await events_of(either, prompt(stream=stream))
    assert events[1:] == [
        Finished(FinishReason.CONTENT_FILTER, Usage(input_fresh=10), "gemini-2.5-flash", "PROHIBITED_CONTENT")
    ]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_safety_stop_without_content_is_a_completed_answer(
    vendor: Vendor, gemini: GeminiProvider, stream: bool
) -> None:
    body = {"candidates": [{"finishReason": "SAFETY", "index": 0, "content": None}], "usageMetadata": USAGE}
    vendor.play = streamed(body) if stream else whole(body)
    events = await events_of(gemini, prompt(stream=stream))
    assert events[1:] == [Finished(FinishReason.CONTENT_FILTER, SPENT, "gemini-2.5-flash", "SAFETY")]


async def test_thinking_that_ate_the_whole_answer_is_a_completed_answer(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = whole(
        {
            "candidates": [{"finishReason": "MAX_TOKENS"}],
            "usageMetadata": {"promptTokenCount": 10, "thoughtsTokenCount": 100, "totalTokenCount": 110},
        }
    )
    events = await events_of(gemini, prompt())
    assert isinstance(events[-1], Finished)
    assert (events[-1].reason, events[-1].usage) == (
        FinishReason.LENGTH,
        Usage(input_fresh=10, output_thinking=100),
    )


async def test_a_botched_call_is_model_noise_and_its_usage_is_not_lost(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = streamed(chunk(finish="MALFORMED_FUNCTION_CALL", usage=USAGE))
    seen: list[Event] = []
    with pytest.raises(ModelNoise, match="MALFORMED_FUNCTION_CALL"):
        await collect(gemini.stream(prompt(stream=True)), seen)
    assert seen[-1] == UsageSeen(SPENT)


async def test_unknown_fields_parts_and_events_are_ignored(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = streamed(
        b": comment\n\n",
        {"fresh": {"news": 1}},
        chunk({"executableCode": {"code": "1"}}, {"text": "a", "novel": []}),
        {"candidates": [{"content": {"parts": None}, "index": None}], "usageMetadata": {"promptTokenCount": None}},
        {"candidates": [{"index": 1, "content": {"parts": [{"text": "other"}]}}]},
        chunk({"text": "b"}, finish="BRAND_NEW", usage=USAGE),
    )
    events = await events_of(gemini, prompt(stream=True))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "ab"
    assert events[-1] == Finished(FinishReason.OTHER, SPENT, "gemini-served", "BRAND_NEW")


# --- things that break ----------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_dropped_before_any_answer_is_not_tried_again(
    vendor: Vendor, either: GeminiProvider, stream: bool
) -> None:
    vendor.play = dropped
    with pytest.raises(ConnectionFailed):
        await events_of(either, prompt(stream=stream))
    assert len(vendor.paths) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_status_is_not_tried_again(vendor: Vendor, either: GeminiProvider, stream: bool) -> None:
    vendor.play = whole(error(503, "overloaded", "UNAVAILABLE"), status=503)
    with pytest.raises(Overloaded):
        await events_of(either, prompt(stream=stream))
    assert len(vendor.paths) == 1


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7.5s"}
PER_DAY = {
    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}],
}


@pytest.mark.parametrize("stream", [True, False])
async def test_the_wait_that_a_429s_body_names_is_the_errors(
    vendor: Vendor, either: GeminiProvider, stream: bool
) -> None:
    exhausted = "You exceeded your current quota.", "RESOURCE_EXHAUSTED"
    vendor.play = whole(error(429, *exhausted, RETRY_INFO), 429, {"x-ratelimit-remaining-tokens": "1"})
    with pytest.raises(RateLimited) as raised:
        await events_of(either, prompt(stream=stream))
    assert (raised.value.retry_after_s, raised.value.quotas) == (7.5, ())
    vendor.play = whole(error(429, *exhausted, RETRY_INFO, PER_DAY), 429)
    before = wait_of({"details": [PER_DAY]}, datetime.now(UTC))
    with pytest.raises(RateLimited) as raised:
        await events_of(either, prompt(stream=stream))
    assert raised.value.retry_after_s in (pytest.approx(before, abs=60), pytest.approx(86400, abs=3660))


@pytest.mark.parametrize("end", ["eof", "cut"])
async def test_a_stream_without_a_finish_reason_was_cut(vendor: Vendor, either: GeminiProvider, end: str) -> None:
    vendor.play = streamed(chunk({"text": "a"}, usage=USAGE), end=end)
    with pytest.raises(StreamCut):
        await events_of(either, prompt(stream=True))
    assert len(vendor.paths) == 1


async def test_a_rough_end_after_the_finish_reason_takes_nothing_from_the_answer(
    vendor: Vendor, gemini: GeminiProvider
) -> None:
    vendor.play = streamed(chunk({"text": "a"}), chunk({"text": "b"}, finish="STOP", usage=USAGE), end="cut")
    events = await events_of(gemini, prompt(stream=True))
    assert events[-1] == Finished(FinishReason.STOP, SPENT, "gemini-served", "STOP")


async def test_a_finish_reason_with_every_chunk_ends_nothing_before_the_stream_does(
    vendor: Vendor, gemini: GeminiProvider
) -> None:
    pieces = [chunk({"text": text}, finish="STOP", usage=USAGE) for text in "abc"]
    vendor.play = streamed(*pieces)
    events = await events_of(gemini, prompt(stream=True))
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["a", "b", "c"]
    vendor.play = streamed(*pieces, end="cut")
    with pytest.raises(StreamCut):
        await events_of(gemini, prompt(stream=True))


async def test_a_whole_answer_without_a_finish_reason_is_a_bad_response(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = whole(chunk({"text": "a"}))
    with pytest.raises(BadResponse):
        await events_of(gemini, prompt())


@pytest.mark.parametrize("body", [b"<html>", [1], {"candidates": "none"}], ids=["html", "list", "shape"])
async def test_an_answer_of_another_shape_is_a_bad_response(vendor: Vendor, gemini: GeminiProvider, body: Any) -> None:
    vendor.play = whole(body) if not isinstance(body, bytes) else streamed(body)
    with pytest.raises(BadResponse):
        await events_of(gemini, prompt())


OVERLOAD = error(503, "The model is overloaded.", "UNAVAILABLE")


@pytest.mark.parametrize(
    "last",
    [OVERLOAD, b'[{"error": {"code": 503,\n "message": "The model is overloaded.",\n "status": "UNAVAILABLE"}}]\n'],
    ids=["as an event", "as plain JSON"],
)
async def test_an_error_inside_a_stream_is_raised_as_its_kind(
    vendor: Vendor, gemini: GeminiProvider, last: Any
) -> None:
    vendor.play = streamed(chunk({"text": "a"}), last)
    with pytest.raises(Overloaded, match="overloaded") as raised:
        await events_of(gemini, prompt(stream=True))
    assert raised.value.vendor_type == "UNAVAILABLE"


async def test_an_error_never_shows_the_key(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = whole(error(400, f"API key not valid: {KEY}. Please pass a valid API key.", "INVALID_ARGUMENT"), 400)
    with pytest.raises(BadCredentials) as raised:
        await events_of(gemini, prompt())
    assert KEY not in raised.value.message
    assert KEY not in repr(gemini)
    assert len(raised.value.message) <= 500


async def test_an_error_that_is_not_json_keeps_its_status(vendor: Vendor, gemini: GeminiProvider) -> None:
    async def html(request: Any) -> Any:
        from aiohttp import web

        return web.Response(status=502, text="<html>bad gateway", content_type="application/json")

    vendor.play = html
    with pytest.raises(VendorError, match="bad gateway") as raised:
        await events_of(gemini, prompt())
    assert raised.value.status == 502


async def test_a_refused_connection_is_a_failed_one() -> None:
    provider = GeminiProvider(Endpoint(api_key=KEY, base_url="http://127.0.0.1:9"))
    with pytest.raises(ConnectionFailed):
        await events_of(provider, prompt())
    await provider.aclose()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_vendor_that_never_answers_times_out(vendor: Vendor, stream: bool) -> None:
    provider = GeminiProvider(vendor.endpoint(read_timeout_s=0.1))
    vendor.play = silent
    with pytest.raises(TimedOut):
        await events_of(provider, prompt(stream=stream))
    await provider.aclose()


# --- cancelling -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_closes_the_vendors_connection_within_a_second(
    vendor: Vendor, either: GeminiProvider, stream: bool
) -> None:
    vendor.play = streamed(chunk({"text": "a"}), end="hang") if stream else silent
    for _ in range(6):
        vendor.asked.clear()
        vendor.gone.clear()
        began = asyncio.Event()

        async def call(began: asyncio.Event = began) -> None:
            async with aclosing(either.stream(prompt(stream=stream))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        began.set()

        task = asyncio.create_task(call())
        await (began if stream else vendor.asked).wait()
        task.cancel()
        async with asyncio.timeout(1):
            await vendor.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(vendor.paths) == 6


async def test_closing_the_stream_between_two_deltas_closes_the_vendors_connection(
    vendor: Vendor, gemini: GeminiProvider
) -> None:
    vendor.play = streamed(chunk({"text": "a"}), end="hang")
    for _ in range(6):
        vendor.gone.clear()
        async with aclosing(gemini.stream(prompt(stream=True))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        async with asyncio.timeout(1):
            await vendor.gone.wait()


async def test_answers_read_to_their_end_share_one_connection(vendor: Vendor, gemini: GeminiProvider) -> None:
    peers = set()
    play = streamed(chunk({"text": "a"}, finish="STOP", usage=USAGE))

    async def watched(request: Any) -> Any:
        peers.add(request.transport.get_extra_info("peername"))
        return await play(request)

    vendor.play = watched
    for _ in range(5):
        await events_of(gemini, prompt(stream=True))
    assert len(peers) == 1


async def test_no_more_connections_are_open_than_the_endpoint_allows(vendor: Vendor) -> None:
    provider = GeminiProvider(vendor.endpoint(connections=2))
    peers = set()
    play = whole(chunk({"text": "a"}, finish="STOP"))

    async def watched(request: Any) -> Any:
        peers.add(request.transport.get_extra_info("peername"))
        return await play(request)

    vendor.play = watched
    await asyncio.gather(*(events_of(provider, prompt()) for _ in range(10)))
    await provider.aclose()
    assert len(vendor.paths) == 10
    assert len(peers) <= 2


async def test_a_closed_provider_opens_again_at_the_next_call(vendor: Vendor, gemini: GeminiProvider) -> None:
    vendor.play = whole(chunk({"text": "a"}, finish="STOP"))
    await events_of(gemini, prompt())
    await gemini.aclose()
    assert isinstance((await events_of(gemini, prompt()))[-1], Finished)
