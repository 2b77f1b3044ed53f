"""The app's own HTTP surface: ask, look up, re-attach, cancel."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from functools import partial

import orjson
from fastapi import APIRouter, Request, Response

from bridge.asking import Ask, Refused, Run, refusal
from bridge.bodies import (
    REQUEST_ID_HEADER,
    decode_object,
    error_response,
    json_response,
    reply_headers,
    translated,
)
from bridge.callers import caller
from bridge.cancelling import cancel
from bridge.follow import following
from bridge.line import BrokerAway, Line
from bridge.sequence import BEGINNING, Mark, Piece
from bridge.sse import EventStream, event
from bridge.standing import Standing, standing
from bridge.steering import Steering, steering
from processor import subjects
from processor.errors import ErrorType, RequestError
from processor.messages import Request as Asked
from processor.messages import decode_request, encode_fields
from processor.replies import Ending, error_body
from processor.reply_bodies import ReplyEvent
from processor.subjects import Priority

LAST_EVENT_ID = "last-event-id"
LOOK_AFTER_S = 60.0
"""How long a reader waits until it is looked whether an answer can still come."""
NOTHING_MORE = 204
"""Told to an EventSource, which would come back for ever after the end of a stream."""


def native(line: Line, *, wait_s: float) -> APIRouter:
    """The routes under /api. `wait_s`: the deadline of a request that names none."""
    router = APIRouter(prefix="/api")

    @router.post("/chat")
    async def chat(request: Request) -> Response:
        """Ask a model. The body is the contract's request, and `priority`; with `stream`, its answer is events."""
        steer, asked = await translated(request, lambda body: read_chat(body, request))
        run = Run(line, Ask.of(steer, asked, caller(request)), wait_s=wait_s)
        if asked.stream:
            shown = {REQUEST_ID_HEADER: run.ask.id}
            late = _late(run.ask.id)
            return EventStream(_events(run), on_gone=run.client_gone, failed=_failed(run), late=late, headers=shown)
        return await answered(request, run)

    @router.get("/requests/{request_id}")
    async def look_up(request: Request, request_id: str) -> Response:
        """Where a request stands, and its answer once it has one."""
        found = await _of_caller(line, request, request_id)
        kept = orjson.loads(found.ending.body) if found.ending is not None else None
        has_answer = found.ending is not None and found.ending.event is ReplyEvent.FINAL
        return json_response(
            {
                "id": request_id,
                "state": found.state,
                "tenant": found.tenant,
                "priority": found.priority,
                "received_at": found.received_at,
                "reply": kept if has_answer else None,
                "error": kept["error"] if kept is not None and not has_answer else None,
            }
        )

    @router.get("/requests/{request_id}/events")
    async def attach(request: Request, request_id: str) -> Response:
        """The answer as events, from its beginning, or after the event that Last-Event-ID names."""
        after = _last_seen(request)
        found = await _of_caller(line, request, request_id)
        if found.ending is not None and str(after) == _mark_of(found.ending):
            return Response(status_code=NOTHING_MORE)
        _check_kept(found, request_id)
        shown = {REQUEST_ID_HEADER: request_id}
        chunks, late = _attached(line, request_id, after), _late(request_id)
        return EventStream(chunks, on_gone=_let_go, failed=error_response, late=late, headers=shown)

    @router.delete("/requests/{request_id}")
    async def stop(request: Request, request_id: str) -> Response:
        """Cancel a request. 202: it will be stopped; 200: it had ended before, as its state says."""
        found = await _of_caller(line, request, request_id)
        if not found.has_ended:
            await cancel(line, request_id)
        return json_response({"id": request_id, "state": found.state}, 200 if found.has_ended else 202)

    return router


def read_chat(body: bytes, request: Request) -> tuple[Steering, Asked]:
    """What a body and its headers ask for; the headers win. Raises RequestError."""
    fields = decode_object(body)
    steer = steering(request.headers)
    named = fields.pop("priority", None)
    asked = decode_request(encode_fields(fields) if named is not None else body)
    if named is not None and steer.priority is None:
        steer = steer.model_copy(update={"priority": _priority(named)})
    return steer, asked


def _priority(named: object) -> Priority:
    try:
        return Priority(str(named))
    except ValueError:
        raise RequestError(ErrorType.INVALID_REQUEST, f"priority: one of {', '.join(Priority)}") from None


async def answered(request: Request, run: Run) -> Response:
    """The whole answer, or the error; the request is stopped where its client goes away.

    Raises:
        ClientGone: it has gone.
    """
    try:
        reply = await run.while_client_waits(request.receive, run.final())
    except RequestError as error:
        return _failed(run)(error)
    return json_response(reply.model_dump_json().encode(), headers=reply_headers(reply))


def _failed(run: Run) -> Callable[[RequestError], Response]:
    return partial(error_response, request_id=run.ask.id)


async def _events(run: Run) -> AsyncGenerator[bytes]:
    """An ask's answer as events. Raises RequestError where it is an error before anything else."""
    begun = False
    async with run.pieces() as pieces:
        async for piece in pieces:
            if not begun and piece.event is ReplyEvent.ERROR:
                raise refusal(piece.body)
            begun = True
            yield _event(piece)


async def _attached(line: Line, request_id: str, after: Mark) -> AsyncGenerator[bytes]:
    """Raises RequestError where there will be no ending any more."""
    async with following(line, request_id, after) as follower:
        while not follower.has_ended:
            async with aclosing(follower.pieces(LOOK_AFTER_S)) as pieces:
                async for piece in pieces:
                    yield _event(piece)
            if not follower.has_ended:
                with suppress(BrokerAway):  # the follower waits for it, and tells when that takes too long
                    _check_kept(await standing(line, request_id), request_id)


def _check_kept(found: Standing | None, request_id: str) -> None:
    """Raises RequestError, `not_found`, for a request whose ending will never be read."""
    if found is None or (found.has_ended and found.ending is None):
        raise Refused(ErrorType.NOT_FOUND, f"the answer of {request_id} is no longer kept")


def _event(piece: Piece) -> bytes:
    return event(piece.body, name=piece.event, id=str(piece.mark))


def _late(request_id: str) -> Callable[[RequestError], bytes]:
    """An error in a stream that has begun; `broken` where the request goes on, so that it can be re-attached."""

    def event_of(error: RequestError) -> bytes:
        name = ReplyEvent.ERROR if isinstance(error, Refused) else "broken"
        return event(error_body(request_id, error), name=name)

    return event_of


async def _let_go() -> None:
    """A reader has gone; the request is not its."""


def _last_seen(request: Request) -> Mark:
    """Raises RequestError."""
    said = request.headers.get(LAST_EVENT_ID)
    if not said:
        return BEGINNING
    try:
        return Mark.parse(said)
    except ValueError as error:
        raise RequestError(ErrorType.INVALID_REQUEST, f"Last-Event-ID: {error}") from None


def _mark_of(ending: Ending) -> str:
    return f"{ending.headers['Sidecar-Attempt']}.{ending.headers['Sidecar-Seq']}"


async def _of_caller(line: Line, request: Request, request_id: str) -> Standing:
    """Where a request of this caller's stands; another tenant's is as unknown as one that never was."""
    unknown = RequestError(ErrorType.NOT_FOUND, f"no request {request_id[:128]} is known")
    if not subjects.is_request_id(request_id):
        raise unknown
    found = await standing(line, request_id)
    if found is None or not caller(request).may_see(found.tenant):
        raise unknown
    return found
