"""Anthropic's HTTP surface: messages and count_tokens, for clients of which only base_url and key are changed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from bridge.anthropic_answer import message
from bridge.anthropic_blocks import Event
from bridge.anthropic_errors import anthropic_error, error_fields
from bridge.anthropic_request import Asked, asked, count
from bridge.anthropic_stream import MessageStream
from bridge.asking import Ask, Run, refusal
from bridge.bodies import REQUEST_ID_HEADER, json_response, reply_headers, translated
from bridge.callers import caller
from bridge.line import Line
from bridge.patience import USUAL_S, patience_ms
from bridge.sequence import Piece
from bridge.sse import EventStream, event
from bridge.steering import steering
from processor.errors import RequestError
from processor.estimate import base_tokens
from processor.reply_bodies import FinalReply, ReplyEvent


def anthropic(line: Line) -> APIRouter:
    """The routes under /v1/messages."""
    router = APIRouter()

    @router.post("/v1/messages")
    async def messages(request: Request) -> Response:
        """Ask a model in Anthropic's form; with `stream`, the answer is events."""
        wanted = await translated(request, asked)
        run = Run(line, _ask(request, wanted), wait_s=USUAL_S)
        shown = {REQUEST_ID_HEADER: run.ask.id, "request-id": run.ask.id} | wanted.ignored.headers()
        failed = partial(anthropic_error, headers=shown, request_id=run.ask.id)
        if wanted.request.stream:
            late = partial(_error_event, request_id=run.ask.id)
            return EventStream(_events(run, wanted), on_gone=run.client_gone, failed=failed, late=late, headers=shown)
        try:
            reply, thinking = await run.while_client_waits(request.receive, _whole(run))
        except RequestError as error:
            return failed(error)
        return json_response(message(reply, thinking=thinking), headers=reply_headers(reply) | shown)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(request: Request) -> Response:
        """How many tokens a body will take, by estimate: no vendor is asked."""
        return json_response({"input_tokens": await translated(request, count)})

    return router


def _ask(request: Request, wanted: Asked) -> Ask:
    """What the caller may ask for. Its SDK's patience is the deadline where none is named. Raises RequestError."""
    stream = wanted.request.stream
    # Thinking comes in deltas alone.
    changes = {"deadline_ms": patience_ms(request.headers, stream=stream), "stream": stream or wanted.thinks}
    patient = wanted.request.model_copy(update=changes)
    return Ask.of(steering(request.headers, wanted.metadata), patient, caller(request))


async def _whole(run: Run) -> tuple[FinalReply, str]:
    """The answer, and what its model was seen to think. Raises RequestError."""
    thoughts: list[str] = []
    async with run.pieces() as pieces:
        async for piece in pieces:
            match piece.event:
                case ReplyEvent.DELTA:
                    thoughts.append(orjson.loads(piece.body).get("thinking") or "")
                case ReplyEvent.RESTARTED:
                    thoughts.clear()
                case ReplyEvent.FINAL:
                    return FinalReply.model_validate_json(piece.body), "".join(thoughts)
                case ReplyEvent.ERROR:
                    raise refusal(piece.body)
    raise AssertionError("the pieces end with an ending")


async def _events(run: Run, wanted: Asked) -> AsyncGenerator[bytes]:
    """The answer as events.

    Raises:
        RequestError: it is an error, or cannot be gone on with; then the request is stopped.
    """
    told = MessageStream(run.ask.id, wanted.model, base_tokens(wanted.request), thinks=wanted.thinks)
    try:
        async with run.pieces() as pieces:
            async for piece in pieces:
                for one in _told(told, piece):
                    yield _sent(one)
    except RequestError:
        await run.abandon()
        raise


def _told(told: MessageStream, piece: Piece) -> list[Event]:
    match piece.event:
        case ReplyEvent.DELTA:
            return told.delta(piece.body)
        case ReplyEvent.RESTARTED:
            return told.restarted()
        case ReplyEvent.FINAL:
            return told.final(FinalReply.model_validate_json(piece.body))
        case ReplyEvent.ERROR:
            raise refusal(piece.body)


def _sent(one: Event) -> bytes:
    return event(orjson.dumps(one), name=one["type"])


def _error_event(error: RequestError, *, request_id: str) -> bytes:
    return _sent(error_fields(error, request_id=request_id))
