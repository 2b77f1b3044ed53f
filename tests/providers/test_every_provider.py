"""What all five providers have in common, told once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from llmock.pytest_plugin import LLMock

from providers.anthropic import AnthropicProvider
from providers.base import Endpoint, Finished, FinishReason, Opened, TextDelta, Tool, ToolCallDelta, UsageSeen
from providers.errors import (
    BadCredentials,
    BadResponse,
    ConnectionFailed,
    InvalidPrompt,
    ModelGone,
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
from providers.groq import GroqProvider
from providers.local import LocalProvider
from tests.providers.stages import OVER_HTTP, PROVIDERS, Stage, stage
from tests.providers.vendor import KEY, Vendor, dropped, events_of, prompt, silent, streamed

RAIN = Tool("rain", "Rain of the last days", {"type": "object", "properties": {"place": {"type": "string"}}})
SENTENCE = "one two three four five six"


@pytest.fixture(params=PROVIDERS)
async def on_stage(request: pytest.FixtureRequest, llmock: LLMock) -> AsyncIterator[Stage]:
    async with stage(request.param, llmock) as made:
        yield made


async def test_a_streamed_answer_comes_in_pieces_between_opened_and_finished(on_stage: Stage) -> None:
    on_stage.reply(SENTENCE)
    events = await events_of(on_stage.provider, prompt(model=on_stage.model, stream=True))
    pieces = [event.text for event in events if isinstance(event, TextDelta)]
    assert len(pieces) == 6
    assert "".join(pieces) == SENTENCE
    assert isinstance(events[0], Opened)
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.model) == (FinishReason.STOP, on_stage.model)
    assert finished.usage.input_tokens > 0
    assert finished.usage.output_tokens > 0


async def test_an_answer_that_nobody_watches_comes_as_one_delta(on_stage: Stage) -> None:
    on_stage.reply(SENTENCE)
    events = await events_of(on_stage.provider, prompt(model=on_stage.model))
    told = [event for event in events if not isinstance(event, UsageSeen)]
    assert [type(event) for event in told] == [Opened, TextDelta, Finished]
    assert told[1] == TextDelta(SENTENCE)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_tool_call_is_joined_from_its_pieces_and_ends_the_turn(on_stage: Stage, stream: bool) -> None:
    on_stage.call_tool("rain", {"place": "Kitui County", "days": 30})
    asked = prompt("How much rain?", model=on_stage.model, stream=stream, tools=(RAIN,))
    events = await events_of(on_stage.provider, asked)
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert {piece.index for piece in pieces} == {0}
    assert (pieces[0].name, bool(pieces[0].id)) == ("rain", True)
    assert orjson.loads("".join(piece.arguments for piece in pieces)) == {"place": "Kitui County", "days": 30}
    assert isinstance(events[-1], Finished)
    assert events[-1].reason is FinishReason.TOOL_CALLS


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidPrompt),
        (401, BadCredentials),
        (404, ModelGone),
        (413, PromptTooLarge),
        (429, RateLimited),
        (500, VendorError),
        (503, Overloaded),
        (529, Overloaded),
    ],
)
async def test_an_error_status_is_raised_as_its_kind_after_one_call(
    on_stage: Stage, status: int, kind: type[ProviderError], stream: bool
) -> None:
    on_stage.fail(status, retry_after_s=7)
    with pytest.raises(ProviderError) as raised:
        await events_of(on_stage.provider, prompt(model=on_stage.model, stream=stream))
    assert type(raised.value) is kind
    assert (raised.value.status, raised.value.retry_after_s, raised.value.unsent) == (status, 7, False)
    assert on_stage.calls == 1


@pytest.mark.parametrize(
    ("how", "kind"), [("cut", StreamCut), ("ended", StreamCut), ("corrupt", BadResponse), ("silent", TimedOut)]
)
async def test_a_broken_stream_never_passes_for_an_answer(on_stage: Stage, how: str, kind: type[ProviderError]) -> None:
    on_stage.break_stream(how)
    with pytest.raises(ProviderError) as raised:
        await events_of(on_stage.provider, prompt(model=on_stage.model, stream=True))
    assert type(raised.value) is kind
    assert on_stage.calls == 1


async def test_a_key_shows_in_no_error_and_no_repr(on_stage: Stage) -> None:
    on_stage.fail(401)
    with pytest.raises(ProviderError) as raised:
        await events_of(on_stage.provider, prompt(model=on_stage.model))
    assert KEY not in f"{raised.value!r} {raised.value.message} {vars(raised.value)} {on_stage.provider!r}"


async def test_a_closed_provider_opens_again(on_stage: Stage) -> None:
    await on_stage.provider.open()
    await on_stage.provider.aclose()
    await on_stage.provider.aclose()
    on_stage.reply(SENTENCE)
    assert isinstance((await events_of(on_stage.provider, prompt(model=on_stage.model)))[-1], Finished)


# --- those that go out over HTTP ------------------------------------------------------------

every_http = pytest.mark.parametrize("make", OVER_HTTP)


@every_http
async def test_a_provider_that_cannot_be_opened_says_so_without_secrets(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(make):  # type: ignore[misc]
        async def connect(self) -> Any:
            raise OSError(f"no certificate at /etc/ca.pem, key {KEY}")

    with pytest.raises(VendorError) as raised:
        await events_of(Broken(Endpoint(api_key=KEY)), prompt())
    assert raised.value.unsent
    assert "OSError" in raised.value.message
    assert "/etc" not in raised.value.message
    assert "/etc/ca.pem" in caplog.text
    assert KEY not in caplog.text + raised.value.message


async def test_an_sdk_that_is_not_there_is_a_vendor_error() -> None:
    class Broken(GroqProvider):
        sdk_name = "no_such_sdk"

    with pytest.raises(VendorError, match="groq cannot be opened"):
        await events_of(Broken(Endpoint(api_key=KEY)), prompt())


@every_http
@pytest.mark.parametrize("key", ["sk-1\n", "sk-ключ"])
async def test_a_key_that_no_header_can_hold_is_refused_as_such(vendor: Vendor, make: Any, key: str) -> None:
    with pytest.raises(BadCredentials, match="key") as raised:
        await events_of(make(vendor.endpoint(api_key=key)), prompt())
    assert raised.value.unsent
    assert vendor.paths == []


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@every_http
@pytest.mark.parametrize("schema", [{"type": "integer", "maximum": 2**70}, nested(300), nested(5000)])
async def test_a_request_that_json_cannot_say_is_refused_before_any_call(
    vendor: Vendor, make: Any, schema: dict[str, Any]
) -> None:
    provider = make(vendor.endpoint())
    tool = Tool("count", "", {"type": "object", "properties": {"a": schema}})
    with pytest.raises(Unsupported) as raised:
        await events_of(provider, prompt(tools=(tool,)))
    assert raised.value.unsent
    assert vendor.paths == []
    await provider.aclose()


async def error_of(make: Any, endpoint: Endpoint, *, stream: bool = True) -> ProviderError:
    provider = make(endpoint)
    with pytest.raises(ProviderError) as raised:
        await events_of(provider, prompt(stream=stream))
    await provider.aclose()
    return raised.value


@every_http
@pytest.mark.parametrize("stream", [True, False])
async def test_a_connection_dropped_before_the_answer_has_failed(vendor: Vendor, make: Any, stream: bool) -> None:
    vendor.play = dropped
    error = await error_of(make, vendor.endpoint(), stream=stream)
    assert (type(error), error.unsent) == (ConnectionFailed, False)
    assert len(vendor.paths) == 1


@every_http
async def test_a_vendor_that_gives_no_connection_in_time_cannot_be_reached(unreachable: str, make: Any) -> None:
    error = await error_of(make, Endpoint(api_key=KEY, base_url=unreachable, connect_timeout_s=0.1))
    assert (type(error), error.unsent) == (ConnectionFailed, True)


@every_http
@pytest.mark.parametrize("fault", ["refused", "no such host", "no TLS"])
async def test_a_vendor_that_cannot_be_connected_to_cannot_be_reached(vendor: Vendor, make: Any, fault: str) -> None:
    urls = {
        "refused": "http://127.0.0.1:9",
        "no such host": "http://nowhere.invalid",
        "no TLS": vendor.url.replace("http:", "https:"),
    }
    error = await error_of(make, vendor.endpoint(base_url=urls[fault]))
    assert (type(error), error.unsent) == (ConnectionFailed, True)


@every_http
@pytest.mark.parametrize("stream", [True, False])
async def test_a_vendor_silent_once_connected_has_timed_out(vendor: Vendor, make: Any, stream: bool) -> None:
    vendor.play = silent
    error = await error_of(make, vendor.endpoint(read_timeout_s=0.1), stream=stream)
    assert (type(error), error.unsent) == (TimedOut, False)


CHAT_ENDED = [{"choices": [{"delta": {"content": "x"}, "finish_reason": "stop"}]}, b"data: [DONE]\n\n"]
ENDED: dict[Any, list[Any]] = {
    AnthropicProvider: [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}],
    GroqProvider: CHAT_ENDED,
    GeminiProvider: [
        {"candidates": [{"content": {"parts": [{"text": "x"}]}}]},
        {"candidates": [{"finishReason": "STOP"}]},
    ],
    LocalProvider: CHAT_ENDED,
}


@every_http
@pytest.mark.parametrize("late", [b"{garbage", b'"\xff"', b'{"type": "error", "error": {"message": "too late"}}'])
async def test_what_comes_after_the_terminal_event_takes_nothing_from_the_answer(
    vendor: Vendor, make: Any, late: bytes
) -> None:
    vendor.play = streamed(*ENDED[make], b"data: " + late + b"\n\n")
    provider = make(vendor.endpoint(api_version="v1beta"))
    finished = (await events_of(provider, prompt(stream=True)))[-1]
    assert isinstance(finished, Finished)
    assert finished.reason is FinishReason.STOP
    await provider.aclose()
