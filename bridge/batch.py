"""The batch surface: many requests in one body, answered when there is room, looked at from any bridge."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from bridge.asking import Ask
from bridge.batch_lines import BatchLine, read_lines
from bridge.batch_queue import KEY_HEADER, find, put
from bridge.batch_standing import Standing, standings
from bridge.bodies import error_response, json_response, read_body
from bridge.callers import Caller, caller
from bridge.line import Line
from bridge.sse import EventStream
from bridge.standing import State
from bridge.steering import Steering, steering
from processor.batches import Batch, batch_id, digest
from processor.errors import ErrorType, RequestError
from processor.messages import Request as Asked
from processor.replies import error_body
from processor.subjects import Priority, is_request_id

MAX_AT_ONCE = 4
"""Batches that are checked and queued; more of them wait."""
RESULTS_PAGE = 20
"""Replies that are held at once while they are read."""
MISSING = "missing"
"""A request that was never queued, or whose reply is no longer kept."""


def batches(line: Line) -> APIRouter:
    """The routes under /api/batch."""
    router = APIRouter(prefix="/api/batch")
    free = asyncio.Semaphore(MAX_AT_ONCE)

    @router.post("")
    async def enqueue(request: Request) -> Response:
        """Queue many requests in the low lane: on each line the body of one, and a `custom_id` if you like."""
        steer, who = _low(steering(request.headers)), caller(request)
        body = await read_body(request)
        async with free:
            lines = await asyncio.to_thread(read_lines, body, lambda asked: _allowed(steer, asked, who))
            await request.app.state.rates.count(who, len(lines) - 1, counted=1)  # one at the door
            key = steer.key or secrets.token_urlsafe(18)
            batch = await asyncio.to_thread(_batch, lines, who, key)
            shown = {KEY_HEADER: key}
            try:
                await put(line, batch, [one.body for one in lines])
            except RequestError as error:
                return error_response(error, headers=shown, request_id=batch.id)
        return json_response({"id": batch.id, "count": batch.count, "ids": batch.request_ids}, 202, shown)

    @router.get("/{batch}")
    async def look_up(request: Request, batch: str) -> Response:
        """Where the requests of a batch stand; with `results=true` their answers as JSON lines."""
        wants_results = _flag(request.query_params, "results")
        found = await _of_caller(line, batch, caller(request))
        if wants_results:
            return EventStream(
                _results(line, found),
                on_gone=_let_go,
                failed=error_response,
                late=lambda error: error_body("", error) + b"\n",
                headers={"Content-Type": "application/x-ndjson"},
                heartbeat=b"",
            )
        return json_response(await _overview(line, found))

    return router


def _low(steer: Steering) -> Steering:
    if steer.priority not in {None, Priority.LOW}:
        raise RequestError(ErrorType.INVALID_REQUEST, "X-Sidecar-Priority: a batch runs in the low lane")
    return steer.model_copy(update={"priority": Priority.LOW})


def _allowed(steer: Steering, asked: Asked, who: Caller) -> Asked:
    return Ask.of(steer.model_copy(update={"key": None}), asked, who).request


def _batch(lines: list[BatchLine], who: Caller, key: str) -> Batch:
    named = any(one.custom_id is not None for one in lines)
    return Batch(
        id=batch_id(who.name, key),
        created_at=datetime.now(UTC),
        count=len(lines),
        tenants=tuple(sorted({one.tenant for one in lines})),
        custom_ids=tuple(one.custom_id for one in lines) if named else (),
        digest=digest((one.custom_id, one.body) for one in lines),
    )


def _flag(query: Mapping[str, str], name: str) -> bool:
    said = query.get(name, "false").lower()
    if said not in {"true", "false", "1", "0"}:
        raise RequestError(ErrorType.INVALID_REQUEST, f"{name}: true or false")
    return said in {"true", "1"}


async def _of_caller(line: Line, batch: str, who: Caller) -> Batch:
    """The batch, if all its requests are this caller's business; another is as unknown as one that never was."""
    found = await find(line, batch) if is_request_id(batch) else None
    if found is None or not all(who.may_see(tenant) for tenant in found.tenants):
        raise RequestError(ErrorType.NOT_FOUND, f"no batch {batch[:128]} is known; batches are kept for eight days")
    return found


async def _overview(line: Line, batch: Batch) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    requests: list[dict[str, Any]] = []
    async with aclosing(standings(line, batch.request_ids)) as pages:
        async for page in pages:
            for standing in page:
                row = _row(batch, len(requests), standing)
                counts[row["state"]] += 1
                requests.append(row)
    names = [*State, MISSING]
    return {
        "id": batch.id,
        "created_at": batch.created_at,
        "count": batch.count,
        "ended": batch.count - counts[State.QUEUED] - counts[State.RUNNING] - counts[MISSING],
        "states": {str(name): counts[name] for name in names},
        "requests": requests,
    }


async def _results(line: Line, batch: Batch) -> AsyncGenerator[bytes]:
    number = 0
    async with aclosing(standings(line, batch.request_ids, page=RESULTS_PAGE)) as pages:
        async for page in pages:
            text = bytearray()
            for standing in page:
                text += orjson.dumps(
                    _row(batch, number, standing) | _result(standing), option=orjson.OPT_APPEND_NEWLINE
                )
                number += 1
            yield bytes(text)


def _row(batch: Batch, index: int, standing: Standing) -> dict[str, Any]:
    named = {"custom_id": batch.custom_id(index)} if batch.custom_ids else {}
    return {"id": standing.id, **named, "state": standing.state or MISSING}


def _result(standing: Standing) -> dict[str, Any]:
    if standing.body is None:
        return {}
    if standing.state is State.COMPLETED:
        return {"reply": orjson.Fragment(standing.body)}
    return {"error": orjson.loads(standing.body)["error"]}


async def _let_go() -> None:
    """A reader has gone; the batch goes on."""
