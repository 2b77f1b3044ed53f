"""The OpenAI surface as its official SDK sees it: strict about every answer, over a whole sidecar."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import nats
import openai
import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import BaseModel

from bridge import follow, sse
from processor.errors import ErrorType, RequestError
from processor.messages import MAX_BODY_BYTES
from processor.replies import error_body
from providers.base import (
    Finished,
    FinishReason,
    Image,
    JsonFormat,
    Opened,
    Prompt,
    Text,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
)
from providers.errors import InvalidPrompt, Overloaded
from providers.scripted import Pause, ScriptedProvider, Step, echo
from tests.bridge.edge import Edge, bridging, leave_when, our_broker
from tests.conftest import StartProcessor, nats_server
from tests.talk import listen
from tests.wait import wait_until

ASKED: list[Any] = [{"role": "user", "content": "one two three"}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"\0" * 16).decode()
RAIN: Any = {
    "type": "function",
    "function": {
        "name": "rain",
        "description": "mm of rain in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK with only its address changed, and every answer held to OpenAI's types."""
    async with openai.AsyncOpenAI(
        base_url=f"{edge.url}/v1", api_key="any", max_retries=0, _strict_response_validation=True
    ) as one:
        yield one


def calling(prompt: Prompt) -> Sequence[Step]:
    """Calls the tool for two cities, and says what the results are once they are there."""
    results = [part.content for message in prompt.messages for part in message.parts if isinstance(part, ToolResult)]
    usage = Usage(input_fresh=5, output_visible=5)
    if results:
        return [Opened(), TextDelta(" and ".join(results)), Finished(FinishReason.STOP, usage, prompt.model)]
    return [
        Opened(),
        TextDelta("I look."),
        ToolCallDelta(0, "c1", "rain", ""),
        ToolCallDelta(0, arguments='{"city":'),
        ToolCallDelta(0, arguments='"Rome"}'),
        ToolCallDelta(1, "c2", "rain", '{"city":"Oslo"}'),
        Finished(FinishReason.TOOL_CALLS, usage, prompt.model),
    ]


def saying(*steps: Step, reason: FinishReason = FinishReason.STOP, usage: Usage | None = None) -> list[Step]:
    return [Opened(), *steps, Finished(reason, usage or Usage(input_fresh=3, output_visible=3), "claude-haiku-4-5")]


async def raw(edge: Edge, **fields: Any) -> list[str]:
    """The lines of a stream as they are on the wire."""
    body = orjson.dumps({"model": "haiku", "messages": ASKED, "stream": True} | fields)
    async with edge.client.post("/v1/chat/completions", data=body) as response:
        assert response.content_type == "text/event-stream"
        return [line for line in (await response.text()).splitlines() if line]


# --- whole answers --------------------------------------------------------------------------


async def test_an_answer_has_its_text_usage_and_cost(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    usage = Usage(input_fresh=10, cache_read=90, cache_write_5m=5, output_visible=7, output_thinking=4)
    await start({"anthropic": ScriptedProvider(saying(TextDelta("Blue."), usage=usage))})
    got = await client.chat.completions.with_raw_response.create(model="haiku", messages=ASKED)
    answer = got.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Blue.", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (105, 11, 116)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 90
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    assert answer.model == "claude-haiku-4-5"
    assert answer.id == f"chatcmpl-{got.headers['X-Sidecar-Request-Id']}"
    assert got.headers["X-Request-Id"] == got.headers["X-Sidecar-Request-Id"]
    assert got.headers["X-Sidecar-Route"] == "haiku was asked for"
    told = (answer.model_extra or {})["sidecar"]
    assert float(got.headers["X-Sidecar-Cost-Usd"]) == told["cost_usd"] > 0


async def test_the_synchronous_sdk_works_as_well(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})

    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{edge.url}/v1", api_key="any", _strict_response_validation=True) as sync:
            whole = sync.chat.completions.create(model="haiku", messages=ASKED)
            pieces = sync.chat.completions.create(model="haiku", messages=ASKED, stream=True)
            return whole.choices[0].message.content, "".join(p.choices[0].delta.content or "" for p in pieces)

    assert await asyncio.to_thread(talk) == ("one two three", "one two three")


async def test_an_image_a_schema_and_a_named_tool_reach_the_vendor(
    client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    class Weather(BaseModel):
        city: str

    vendor = ScriptedProvider(saying(TextDelta('{"city":"Rome"}')))
    await start({"anthropic": vendor})
    content: Any = [
        {"type": "text", "text": "Which city?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
    ]
    asked: Any = [{"role": "user", "content": content}]
    answer = await client.chat.completions.parse(model="haiku", messages=asked, response_format=Weather)
    assert answer.choices[0].message.parsed == Weather(city="Rome")
    choice: Any = {"type": "function", "function": {"name": "rain"}}
    await client.chat.completions.create(model="haiku", messages=ASKED, tools=[RAIN], tool_choice=choice)
    with_images, with_tool = vendor.prompts
    assert with_images.messages[0].parts == (
        Text("Which city?"), Image("image/png", PNG), Image(url="https://example.org/a.png")
    )  # fmt: skip
    assert isinstance(with_images.response_format, JsonFormat)
    assert (with_images.response_format.schema or {})["required"] == ["city"]
    assert (with_tool.tool_choice, with_tool.tools[0].name) == (ToolChoice("named", "rain"), "rain")


async def test_parallel_tool_calls_go_round(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(calling)})
    talk: list[Any] = [*ASKED]
    first = await client.chat.completions.create(model="haiku", messages=talk, tools=[RAIN])
    (choice,) = first.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    talk.append(choice.message)
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        city = orjson.loads(call.function.arguments)["city"]
        talk.append({"role": "tool", "tool_call_id": call.id, "content": f"5 mm in {city}"})
    second = await client.chat.completions.create(model="haiku", messages=talk, tools=[RAIN])
    assert second.choices[0].message.content == "5 mm in Rome and 5 mm in Oslo"


@pytest.mark.parametrize("name", ["auto", "haiku", "claude-haiku-4-5", "claude-haiku-4-5-20251001"])
async def test_every_name_of_a_model_works(client: openai.AsyncOpenAI, start: StartProcessor, name: str) -> None:
    await start({"anthropic": ScriptedProvider()})
    answer = await client.chat.completions.create(model=name, messages=ASKED)
    assert answer.choices[0].message.content == "one two three"


async def test_what_is_not_used_is_named_and_more_than_one_choice_refused(
    client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    got = await client.chat.completions.with_raw_response.create(
        model="haiku", messages=[*ASKED, {"role": "system", "content": "Be brief."}], seed=7, reasoning_effort="low"
    )
    assert set(got.headers["X-Sidecar-Ignored"].split(", ")) == {"seed", "reasoning_effort"}
    assert got.headers["X-Sidecar-Moved"] == "messages.1"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="haiku", messages=ASKED, n=2)
    assert refused.value.param == "n"


async def test_headers_and_metadata_steer_and_headers_win(
    edge: Edge, client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    got = await client.chat.completions.with_raw_response.create(
        model="haiku",
        messages=ASKED,
        metadata={"sidecar_priority": "low", "sidecar_tenant": "shop"},
        extra_headers={"X-Sidecar-Priority": "critical"},
    )
    async with edge.client.get(f"/api/requests/{got.headers['X-Sidecar-Request-Id']}") as response:
        stands = orjson.loads(await response.read())
    assert (stands["tenant"], stands["priority"]) == ("shop", "critical")


# --- streams --------------------------------------------------------------------------------


async def test_a_stream_is_openais_to_the_letter(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    lines = await raw(edge, stream_options={"include_usage": True})
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {(chunk["object"], chunk["id"], chunk["created"]) for chunk in chunks} == {
        ("chat.completion.chunk", chunks[0]["id"], chunks[0]["created"])
    }
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "one"},
        {"content": " two"},
        {"content": " three"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * 5
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 6)
    assert (chunks[0]["model"], chunks[-2]["sidecar"]["model"]) == ("haiku", "haiku")


async def test_usage_comes_only_where_it_is_wanted(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    stream = await client.chat.completions.create(model="haiku", messages=ASKED, stream=True)
    chunks = [chunk async for chunk in stream]
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two three"


async def test_parallel_tool_calls_are_put_together_from_a_stream(
    client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(calling)})
    async with client.chat.completions.stream(model="haiku", messages=ASKED, tools=[RAIN]) as stream:
        async for _ in stream:
            pass
        (choice,) = (await stream.get_final_completion()).choices
    calls = choice.message.tool_calls or []
    assert [(call.id, call.function.name, call.function.parsed_arguments) for call in calls] == [
        ("c1", "rain", {"city": "Rome"}),
        ("c2", "rain", {"city": "Oslo"}),
    ]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")


async def test_thinking_is_beside_the_text_and_never_in_it(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(saying(ThinkingDelta("Hm."), TextDelta("Blue.")))})
    stream = await client.chat.completions.create(model="haiku", messages=ASKED, stream=True)
    deltas = [chunk.choices[0].delta async for chunk in stream]
    assert "".join(delta.content or "" for delta in deltas) == "Blue."
    assert "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "Hm."


# --- another attempt ------------------------------------------------------------------------


async def test_an_answer_that_begins_anew_in_the_middle_ends_the_stream_with_an_error(
    edge: Edge, start: StartProcessor
) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("lost "), Overloaded("it broke")])
    other = ScriptedProvider(saying(TextDelta("found"), Pause(60)))
    await start({"anthropic": broken, "groq": other})
    *chunks, last = [orjson.loads(line.removeprefix("data: ")) for line in await raw(edge)]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "lost "]
    assert (last.keys(), last["error"]["code"]) == ({"error"}, "unavailable")
    assert "began anew" in last["error"]["message"]
    await wait_until(lambda: other.cancelled == 1)


async def test_one_that_begins_anew_before_anything_was_said_goes_on_silently(
    client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider([Opened(), Overloaded("it broke")]), "groq": ScriptedProvider()})
    stream = await client.chat.completions.create(model="haiku", messages=ASKED, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "one two three"


async def test_one_that_is_detached_goes_on_for_who_looks_it_up(
    edge: Edge, client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("lost "), Overloaded("it broke")])
    await start({"anthropic": broken, "groq": ScriptedProvider(saying(TextDelta("found")))})
    stream = await client.chat.completions.create(
        model="haiku", messages=ASKED, stream=True, extra_headers={"X-Sidecar-Detach": "true"}
    )
    with pytest.raises(openai.APIError, match="began anew"):
        async for _ in stream:
            pass
    request_id = stream.response.headers["X-Sidecar-Request-Id"]

    async def is_answered() -> bool:
        async with edge.client.get(f"/api/requests/{request_id}") as response:
            reply = orjson.loads(await response.read())["reply"]
        return reply is not None and reply["response"] == "found"

    await wait_until(is_answered)


# --- errors ---------------------------------------------------------------------------------


async def test_what_is_wrong_with_a_stream_is_an_http_error_before_it_begins(
    client: openai.AsyncOpenAI, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider([InvalidPrompt("no such thing")])})
    with pytest.raises(openai.BadRequestError, match="no such thing") as refused:
        await client.chat.completions.create(model="claude-haiku-4-5", messages=ASKED, stream=True)
    assert refused.value.request_id


async def test_what_goes_wrong_after_a_long_silence_is_the_streams_last_event(
    client: openai.AsyncOpenAI, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    await start({"anthropic": ScriptedProvider([Pause(0.3), InvalidPrompt("no such thing")])})
    stream = await client.chat.completions.create(model="claude-haiku-4-5", messages=ASKED, stream=True)
    with pytest.raises(openai.APIError, match="no such thing") as caught:
        async for _ in stream:
            pass
    assert caught.value.type == "invalid_request_error"


async def test_an_unknown_model_is_not_found(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    with pytest.raises(openai.NotFoundError, match="haiku") as caught:
        await client.chat.completions.create(model="haikku", messages=ASKED)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_fits_no_window_is_what_openai_calls_it(
    client: openai.AsyncOpenAI, start: StartProcessor, stream: bool
) -> None:
    await start({"anthropic": ScriptedProvider()})
    long: Any = [{"role": "user", "content": "word " * 190_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="claude-haiku-4-5", messages=long, stream=stream)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("kind", "retry_after_s", "raised", "code", "calls"),
    [
        (ErrorType.UNAUTHORIZED, None, openai.AuthenticationError, "invalid_api_key", 1),
        (ErrorType.FORBIDDEN, None, openai.PermissionDeniedError, "insufficient_permissions", 1),
        (ErrorType.BUDGET_EXCEEDED, 9, openai.RateLimitError, "insufficient_quota", 1),
        (ErrorType.RATE_LIMITED, 0.3, openai.RateLimitError, "rate_limit_exceeded", 2),
        (ErrorType.QUEUE_FULL, None, openai.InternalServerError, "queue_full", 2),
        (ErrorType.INTERNAL, None, openai.InternalServerError, "internal_error", 1),
        (ErrorType.DEADLINE_EXCEEDED, None, openai.InternalServerError, "deadline_exceeded", 1),
    ],
)
async def test_the_sdk_tries_again_only_where_that_may_help(
    nc: Client,
    edge: Edge,
    kind: ErrorType,
    retry_after_s: float | None,
    raised: type[openai.APIStatusError],
    code: str,
    calls: int,
) -> None:
    asked: list[Msg] = []
    refusal = RequestError(kind, "no", retry_after_s=retry_after_s)

    async def refuse(msg: Msg) -> None:
        asked.append(msg)
        await nc.publish(msg.reply, error_body("r1", refusal), headers={"Sidecar-Event": "error"})

    await listen(nc, "llm.request.medium", refuse)
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=1) as client:
        with pytest.raises(raised) as caught:
            await client.chat.completions.create(model="haiku", messages=ASKED)
    assert (caught.value.code, len(asked)) == (code, calls)
    assert ("Retry-After" in caught.value.response.headers) == (retry_after_s is not None)


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/v1/chat/completions", 405, "POST is"),
        ("POST", "/v1/embeddings", 404, "POST /v1/chat/completions"),
        ("POST", "/v1/responses", 404, "POST /v1/chat/completions"),
        ("GET", "/v1/nothing", 404, "nothing is served"),
    ],
)
async def test_what_is_not_served_says_so_in_openais_form(
    edge: Edge, method: str, path: str, status: int, says: str
) -> None:
    async with edge.client.request(method, path, data=b"{}") as response:
        error = orjson.loads(await response.read())["error"]
    assert (response.status, error.keys()) == (status, {"message", "type", "param", "code"})
    assert says in error["message"]


async def test_a_body_that_is_too_large_says_so_in_openais_form(edge: Edge) -> None:
    async with edge.client.post("/v1/chat/completions", data=bytes(MAX_BODY_BYTES + 1)) as response:
        error = orjson.loads(await response.read())["error"]
    assert (response.status, error["code"]) == (413, "request_too_large")


# --- a client that goes away ----------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(edge: Edge, start: StartProcessor, stream: bool) -> None:
    vendor = ScriptedProvider(saying(TextDelta("one "), Pause(60)))
    await start({"anthropic": vendor})
    body = orjson.dumps({"model": "haiku", "messages": ASKED, "stream": stream})
    await leave_when(edge, vendor, body, "/v1/chat/completions")
    await wait_until(lambda: vendor.cancelled == 1)


# --- how long it may take -------------------------------------------------------------------


async def test_an_answer_may_take_as_long_as_the_sdk_waits_for_it(
    nats_url: str, nc: Client, start: StartProcessor
) -> None:
    """Not the few seconds that an ask has on the bus."""
    await start(
        {"anthropic": ScriptedProvider([Opened(), Pause(1.5), *saying(TextDelta("late"))[1:]])}, request_timeout=1
    )
    async with (
        bridging(nats_url, request_timeout=1) as edge,
        openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(model="haiku", messages=ASKED)
    assert answer.choices[0].message.content == "late"


async def test_a_client_that_stops_waiting_has_not_asked_again_by_itself(edge: Edge, start: StartProcessor) -> None:
    """Each of its calls would be paid."""
    vendor = ScriptedProvider(saying(TextDelta("x"), Pause(60)))
    await start({"anthropic": vendor})
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=2, timeout=2) as client:
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model="haiku", messages=ASKED)
    assert (caught.value.code, vendor.calls) == ("deadline_exceeded", 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_under_way_is_not_asked_anew_where_the_bridge_loses_its_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(follow, "AWAY_S", 0.1)
    asked: list[Msg] = []

    async def keep(msg: Msg) -> None:
        asked.append(msg)
        await sidecar.publish(msg.reply, b'{"stream": "LLM_REQUESTS", "seq": 1}')

    with nats_server(tmp_path) as url:
        sidecar = await nats.connect(url)
        await listen(sidecar, "llm.request.medium", keep)
        async with (
            bridging(url) as edge,
            openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key="any", max_retries=0) as client,
        ):
            said: Any = {"model": "haiku", "messages": ASKED, "stream": stream}
            asking = asyncio.create_task(client.chat.completions.create(**said))
            await wait_until(lambda: asked)
            our_broker().kill()
            with pytest.raises(openai.InternalServerError, match="all the same") as caught:
                await asking
        await sidecar.close()
    headers = caught.value.response.headers
    assert (headers["X-Should-Retry"], "Retry-After" in headers) == ("false", False)


# --- models ---------------------------------------------------------------------------------


async def test_models_are_those_that_can_be_called(client: openai.AsyncOpenAI, start: StartProcessor) -> None:
    await start({"groq": ScriptedProvider(echo)})
    listed = [model async for model in await client.models.list()]
    assert [model.id for model in listed][:1] == ["auto"]
    assert {model.owned_by for model in listed[1:]} == {"groq"}
    assert "gpt-oss-120b" in {model.id for model in listed}
    assert (await client.models.retrieve("openai/gpt-oss-120b")).owned_by == "groq"
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("haiku")
    assert caught.value.code == "model_not_found"
