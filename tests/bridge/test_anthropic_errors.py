"""What goes wrong on Anthropic's HTTP surface, as its SDK sees it: before an answer begins, and in its middle."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest
from anthropic import AsyncAnthropic
from nats.aio.client import Client
from nats.aio.msg import Msg

from bridge import sse
from processor.errors import ErrorType, RequestError
from processor.keys import hashed
from processor.messages import MAX_BODY_BYTES
from processor.replies import error_body, error_headers
from providers.base import TextDelta
from providers.errors import Overloaded
from providers.scripted import Pause
from tests.bridge.anthropic_client import answers, says, sdk, streamed
from tests.bridge.edge import Edge, bridging, leave_when
from tests.conftest import StartProcessor
from tests.talk import listen
from tests.wait import wait_until


@pytest.fixture
async def client(edge: Edge) -> AsyncIterator[AsyncAnthropic]:
    async with sdk(edge) as one:
        yield one


REFUSALS = [
    (ErrorType.INVALID_REQUEST, anthropic.BadRequestError, "invalid_request_error"),
    (ErrorType.UNAUTHORIZED, anthropic.AuthenticationError, "authentication_error"),
    (ErrorType.BUDGET_EXCEEDED, anthropic.APIStatusError, "billing_error"),
    (ErrorType.FORBIDDEN, anthropic.PermissionDeniedError, "permission_error"),
    (ErrorType.NOT_FOUND, anthropic.NotFoundError, "not_found_error"),
    (ErrorType.TOO_LARGE, anthropic.BadRequestError, "invalid_request_error"),
    (ErrorType.RATE_LIMITED, anthropic.RateLimitError, "rate_limit_error"),
    (ErrorType.CANCELLED, anthropic.APIStatusError, "api_error"),
    (ErrorType.INTERNAL, anthropic.InternalServerError, "api_error"),
    (ErrorType.QUEUE_FULL, anthropic.APIStatusError, "overloaded_error"),
    (ErrorType.UNAVAILABLE, anthropic.APIStatusError, "api_error"),
    (ErrorType.DEADLINE_EXCEEDED, anthropic.APIStatusError, "timeout_error"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_every_refusal_is_the_exception_that_the_sdk_has_for_it(
    nc: Client, client: AsyncAnthropic, stream: bool
) -> None:
    refused = [RequestError(kind, "no", retry_after_s=7) for kind, *_ in REFUSALS]
    await listen(nc, "llm.request.medium", refusing(refused))
    for kind, raised, named in REFUSALS:
        with pytest.raises(raised) as caught:
            await client.messages.create(**says(stream=stream))
        error = caught.value
        assert (error.type, error.response.headers["Retry-After"]) == (named, "7")
        assert isinstance(error.body, dict)
        assert error.request_id == error.body["request_id"]
        too_long = "prompt is too long: " if kind is ErrorType.TOO_LARGE else ""
        assert error.body["error"]["message"] == f"{too_long}no"
    assert {kind for kind, *_ in REFUSALS} == set(ErrorType)


@pytest.mark.parametrize("why", ["the answer does not fit the bus: 9000000 bytes", "body: 9000000 bytes"])
async def test_what_the_bus_has_no_room_for_is_no_long_prompt(nc: Client, edge: Edge, why: str) -> None:
    """A coding agent would shorten its talk, and ask for the same answer again."""
    await listen(nc, "llm.request.medium", refusing([RequestError(ErrorType.TOO_LARGE, why) for _ in range(2)]))
    for path, named in (("/v1/messages", "request_too_large"), ("/v1/chat/completions", "invalid_request_error")):
        async with edge.client.post(path, data=orjson.dumps(says())) as response:
            error = orjson.loads(await response.read())["error"]
        assert (response.status, error["type"], error["message"]) == (413, named, why)


async def test_the_sdk_tries_again_where_that_can_help(nc: Client, edge: Edge) -> None:
    again = {ErrorType.RATE_LIMITED: 2, ErrorType.QUEUE_FULL: 2, ErrorType.UNAVAILABLE: 2}
    never = {
        ErrorType.DEADLINE_EXCEEDED: 1,
        ErrorType.INTERNAL: 1,
        ErrorType.BUDGET_EXCEEDED: 1,
        ErrorType.NOT_FOUND: 1,
    }
    left = [RequestError(kind, "no") for kind, tries in (again | never).items() for _ in range(tries)]
    await listen(nc, "llm.request.medium", refusing(left))
    async with sdk(edge, max_retries=1) as client:
        for _ in again | never:
            with pytest.raises(anthropic.APIStatusError):
                await client.messages.create(**says())
    assert not left


async def test_a_model_that_is_unknown_is_not_found(client: AsyncAnthropic, start: StartProcessor) -> None:
    await start({"anthropic": answers()})
    with pytest.raises(anthropic.NotFoundError, match="claude-haiku-4-5"):
        await client.messages.create(**says(model="claude-haiku-4-6"))


WRONG = [
    ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
    ("POST", "/v1/messages/count_tokens", b"{}", 400, "invalid_request_error"),
    ("GET", "/v1/messages", None, 405, "invalid_request_error"),
    ("POST", "/v1/messages/batches", b"{}", 404, "not_found_error"),
    ("POST", "/v1/messages", bytes(MAX_BODY_BYTES + 1), 413, "request_too_large"),
]


async def test_what_goes_wrong_below_v1_messages_is_told_in_anthropics_form(edge: Edge) -> None:
    for method, path, sent, status, kind in WRONG:
        async with edge.client.request(method, path, data=sent) as response:
            fields = orjson.loads(await response.read())
        assert (response.status, fields["type"], fields["error"]["type"]) == (status, "error", kind)
        assert fields.keys() == {"type", "error", "request_id"}


async def test_a_key_is_checked_and_counted_but_counting_tokens_is_free(
    nc: Client, nats_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.agent]\nsha256 = "{hashed("known")}"\nrpm = 1\n')
    said = {name: says()[name] for name in ("model", "messages")}
    async with bridging(nats_url, sidecar_api_keys=str(file)) as edge:
        async with sdk(edge, api_key="unknown") as stranger:
            with pytest.raises(anthropic.AuthenticationError) as caught:
                await stranger.messages.create(**says())
        assert caught.value.type == "authentication_error"
        for keys in ({"api_key": "known"}, {"api_key": None, "auth_token": "known"}):
            async with sdk(edge, **keys) as client:
                assert (await client.messages.count_tokens(**said)).input_tokens > 0
        async with sdk(edge, api_key="known") as client:
            with pytest.raises(anthropic.APIStatusError, match="no sidecar runs"):
                await client.messages.create(**says())
            with pytest.raises(anthropic.RateLimitError) as refused:
                await client.messages.create(**says())
        assert int(refused.value.response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("translation", "path"),
    [
        ("anthropic_routes.asked", "/v1/messages"),
        ("anthropic_routes.count", "/v1/messages/count_tokens"),
        ("openai_routes.decode", "/v1/chat/completions"),
        ("native.read_chat", "/api/chat"),
        ("questions.decode_request", "/api/route"),
    ],
)
async def test_a_large_body_keeps_nobody_waiting_while_it_is_read(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, translation: str, path: str
) -> None:
    readers: list[threading.Thread] = []

    def read(*_: object) -> None:
        readers.append(threading.current_thread())
        raise RequestError(ErrorType.INVALID_REQUEST, "no")

    monkeypatch.setattr(f"bridge.{translation}", read)
    for size in (1, 100_000):
        async with edge.client.post(path, data=bytes(size)) as response:
            assert response.status == 400
    small, large = readers
    assert small is threading.current_thread() is not large


# --- what cannot be told in the middle of a stream ------------------------------------------


async def test_an_answer_that_begins_anew_in_the_middle_ends_the_stream_and_is_stopped(
    nc: Client, client: AsyncAnthropic, start: StartProcessor
) -> None:
    second = answers(TextDelta("new "), Pause(5))
    await start({"anthropic": answers(TextDelta("old "), Overloaded("it broke")), "groq": second})
    pieces = []
    with pytest.raises(anthropic.APIStatusError, match="void") as caught:
        async with client.messages.stream(**says()) as stream:
            pieces += [piece async for piece in stream.text_stream]
    assert pieces == []
    assert (caught.value.type, caught.value.status_code) == ("api_error", 200)
    await wait_until(lambda: second.cancelled == 1)


async def test_a_detached_answer_goes_on_though_its_stream_cannot(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": answers(TextDelta("old "), Overloaded("it broke")), "groq": answers(TextDelta("new"))})
    seen = await streamed(edge, says(stream=True), **{"X-Sidecar-Detach": "true"})
    assert [event.name for event in seen][-2:] == ["content_block_delta", "error"]
    request_id = seen[-1].data["request_id"]
    kept = await wait_until(lambda: look_up(edge, request_id))
    assert kept["response"] == "new"


async def test_an_answer_that_begins_anew_before_anything_was_sent_goes_on_silently(
    client: AsyncAnthropic, start: StartProcessor
) -> None:
    await start({"anthropic": answers(Overloaded("it broke")), "groq": answers(TextDelta("new"))})
    async with client.messages.stream(**says()) as stream:
        assert await stream.get_final_text() == "new"


async def test_an_error_before_anything_was_sent_is_an_http_error(
    client: AsyncAnthropic, start: StartProcessor
) -> None:
    await start({"anthropic": answers(Overloaded("it broke"))}, max_retries=0)
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client.messages.stream(**says(model="claude-haiku-4-5")) as stream:
            await stream.get_final_text()
    assert caught.value.status_code == 503


async def test_an_error_after_the_line_was_kept_warm_is_an_event(
    edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_S", 0.05)
    await start({"anthropic": answers(Pause(0.3), Overloaded("it broke"))}, max_retries=0)
    seen = await streamed(edge, says(model="claude-haiku-4-5", stream=True))
    assert [(event.name, event.data["error"]["type"]) for event in seen] == [("error", "api_error")]


async def test_an_error_in_the_middle_is_the_last_event(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": answers(TextDelta("old "), Overloaded("it broke"))}, max_retries=0)
    seen = await streamed(edge, says(model="claude-haiku-4-5", stream=True))
    assert [event.name for event in seen] == [
        *("message_start", "ping", "content_block_start", "content_block_delta", "error")
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request(edge: Edge, start: StartProcessor, stream: bool) -> None:
    vendor = answers(TextDelta("x"), Pause(30))
    await start({"anthropic": vendor})
    await leave_when(edge, vendor, orjson.dumps(says(stream=stream)), "/v1/messages")
    await wait_until(lambda: vendor.cancelled == 1, timeout_s=2)


# --- what the tests do ----------------------------------------------------------------------


def refusing(left: list[RequestError]) -> Any:
    """A sidecar that refuses, with each of the errors once."""

    async def refuse(msg: Msg) -> None:
        error = left.pop(0)
        headers = error_headers(error) | {"Sidecar-Event": "error", "Sidecar-Attempt": "1", "Sidecar-Seq": "0"}
        await msg._client.publish(msg.reply, error_body("x", error), headers=headers)

    return refuse


async def look_up(edge: Edge, request_id: str) -> dict[str, Any] | None:
    """The answer, once there is one."""
    async with edge.client.get(f"/api/requests/{request_id}") as response:
        kept: dict[str, Any] | None = orjson.loads(await response.read())["reply"]
        return kept
