"""OpenAI's HTTP surface: chat completions and models, for clients of which only base_url and key are changed."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import orjson
from fastapi import APIRouter, Request, Response

from bridge import anthropic_models, openai_models
from bridge.anthropic_models import VERSION_HEADER
from bridge.asking import Ask, Run, fits_no_window, refusal
from bridge.bodies import REQUEST_ID_HEADER, json_response, reply_headers, retry_headers, translated
from bridge.callers import caller
from bridge.line import Line
from bridge.openai_answer import completion
from bridge.openai_errors import Refusal, openai_refusal
from bridge.openai_models import Row
from bridge.openai_request import Asked, decode
from bridge.openai_stream import Chunks
from bridge.patience import USUAL_S, patience_ms
from bridge.questions import models_of
from bridge.sse import EventStream, event
from bridge.steering import steering
from processor.errors import ErrorType, RequestError
from processor.reply_bodies import ReplyEvent

_DONE: Final = event(b"[DONE]")
_NOT_SERVED: Final = ("completions", "embeddings", "responses")


class ModelList(Protocol):
    """How a surface lists the models."""

    def models(self, rows: Sequence[Row]) -> dict[str, Any]: ...

    def model(self, rows: Sequence[Row], name: str) -> dict[str, Any] | None: ...


def openai(line: Line) -> APIRouter:
    """The routes under /v1. Those of the models are Anthropic's too, whose clients are told by a header of theirs."""
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Ask a model in OpenAI's form; with `stream`, the answer is chunks."""
        asked = await translated(request, decode)
        run = Run(line, _ask(request, asked), wait_s=USUAL_S)
        if not asked.request.stream:
            return await _answered(request, run, asked)
        return EventStream(
            _chunks(run, asked),
            on_gone=run.client_gone,
            failed=partial(error_response, headers=_shown(run, asked)),
            late=_error_event,
            headers=_shown(run, asked),
        )

    @router.get("/models")
    async def list_models(request: Request) -> Response:
        """The models that can be called now."""
        return json_response(_listing(request).models(await models_of(line, caller(request))))

    @router.get("/models/{name:path}")
    async def retrieve_model(request: Request, name: str) -> Response:
        """One of them, by its alias or its vendor's id."""
        found = _listing(request).model(await models_of(line, caller(request)), name)
        if found is None:
            raise RequestError(ErrorType.NOT_FOUND, f"model: none that can be called now is named {name[:128]!r}")
        return json_response(found)

    async def not_served(request: Request) -> Response:
        served = "of OpenAI's API, POST /v1/chat/completions and GET /v1/models are"
        raise RequestError(ErrorType.NOT_FOUND, f"{request.url.path} is not served here; {served}")

    for path in _NOT_SERVED:
        router.add_api_route(f"/{path}", not_served, methods=["POST"], include_in_schema=False)
    return router


def error_response(
    error: RequestError, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error in OpenAI's form."""
    form = _form(error)
    return json_response(form.body, status or form.status, retry_headers(error) | dict(headers or {}))


def _error_event(error: RequestError) -> bytes:
    """The last event of a stream that has begun: after it comes no [DONE]."""
    return event(orjson.dumps(_form(error).body))


def _form(error: RequestError) -> Refusal:
    return openai_refusal(error, fits_no_window=fits_no_window(error))


def _ask(request: Request, asked: Asked) -> Ask:
    """What the caller may ask for. Its SDK's patience is the deadline where none is named. Raises RequestError."""
    deadline_ms = patience_ms(request.headers, stream=asked.request.stream)
    patient = asked.request.model_copy(update={"deadline_ms": deadline_ms})
    return Ask.of(steering(request.headers, asked.steering), patient, caller(request))


def _shown(run: Run, asked: Asked) -> dict[str, str]:
    """The headers of every answer: the request's id, twice since SDKs look for OpenAI's, and what was not used."""
    moved = {"X-Sidecar-Moved": ", ".join(f"messages.{n}" for n in asked.moved[:32])} if asked.moved else {}
    return {REQUEST_ID_HEADER: run.ask.id, "X-Request-Id": run.ask.id} | asked.ignored.headers() | moved


async def _answered(request: Request, run: Run, asked: Asked) -> Response:
    """The whole answer, or the error; the request is stopped where its client goes away. Raises ClientGone."""
    try:
        reply = await run.while_client_waits(request.receive, run.final())
    except RequestError as error:
        return error_response(error, headers=_shown(run, asked))
    headers = reply_headers(reply) | _shown(run, asked)
    return json_response(completion(reply, created=int(time.time())), headers=headers)


async def _chunks(run: Run, asked: Asked) -> AsyncGenerator[bytes]:
    """The answer as events.

    Raises:
        RequestError: it is an error, or cannot be gone on with; then the request is stopped.
    """
    named = asked.request.model or "auto"
    chunks = Chunks(run.ask.id, named, created=int(time.time()), include_usage=asked.include_usage)
    try:
        async with run.pieces() as pieces:
            async for piece in pieces:
                if piece.event is ReplyEvent.ERROR:
                    raise refusal(piece.body)
                for data in chunks.of(piece):
                    yield event(data)
    except RequestError:
        await run.abandon()
        raise
    yield _DONE


def _listing(request: Request) -> ModelList:
    if VERSION_HEADER in request.headers:
        return anthropic_models
    return openai_models
