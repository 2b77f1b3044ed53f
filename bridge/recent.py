"""`GET /api/requests`: ended requests, newest first, searched in the audit log by reading it backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson
from fastapi import APIRouter, Request, Response

from bridge.bodies import json_response
from bridge.callers import caller
from bridge.ended import Gathering, Row
from bridge.line import BrokerAway, Line
from processor import jetstream, subjects
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable, StoredMessage
from processor.nats_client import Client
from processor.subjects import AuditEvent

MAX_ROWS: Final = 200
ROWS: Final = 50
MAX_SEARCH_CHARS: Final = 200
MAX_READ: Final = 10_000
"""Events that one question reads; `next_before` says where the next one goes on."""
WINDOW: Final = 500
READ_WITHIN_S: Final = 10.0
READERS: Final = 4
"""Questions that one bridge reads for at once; the others wait."""
_ALL: Final = "llm.audit.*.*"
MAX_SEQ: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """`next_before` is None where the log has nothing older."""

    rows: list[Row]
    events_read: int
    next_before: int | None


def recent(line: Line) -> APIRouter:
    """The list of ended requests: a caller's own tenant's, or for an operator all."""
    router = APIRouter(prefix="/api")
    readers = asyncio.Semaphore(READERS)

    @router.get("/requests")
    async def ended(request: Request) -> Response:
        """Ended requests, newest first. `search`: words that are all in the id, tenant, model, outcome or error."""
        search, limit, before = _question(request)
        who = caller(request)
        if who.tenant is None and not who.operator:
            raise RequestError(ErrorType.FORBIDDEN, "this lists a tenant's requests: it takes a tenant's key")
        gathering = Gathering(search, limit, who.may_see)
        try:
            async with asyncio.timeout(READ_WITHIN_S), readers:
                page = await _read(line, gathering, before)
        except TimeoutError:
            raise RequestError(
                ErrorType.DEADLINE_EXCEEDED, f"the audit log could not be read within {READ_WITHIN_S:g} s"
            ) from None
        return json_response(
            {
                "requests": [row.document() for row in page.rows],
                "events_read": page.events_read,
                "next_before": page.next_before,
            }
        )

    return router


def _question(request: Request) -> tuple[str, int, int | None]:
    """Raises RequestError."""
    query = request.query_params
    search = query.get("search", "")
    if len(search) > MAX_SEARCH_CHARS:
        raise RequestError(ErrorType.INVALID_REQUEST, f"search: at most {MAX_SEARCH_CHARS} characters")
    before = _whole(query.get("before"), "before", MAX_SEQ)
    return search, _whole(query.get("limit"), "limit", MAX_ROWS) or ROWS, before


def _whole(text: str | None, name: str, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 1 <= int(text) <= most):
        raise RequestError(ErrorType.INVALID_REQUEST, f"{name}: a whole number from 1 to {most}")
    return int(text)


async def _read(line: Line, gathering: Gathering, before: int | None) -> Page:
    """Read backwards until there are enough, the log begins, or `MAX_READ` events were read. Raises BrokerAway."""
    bus = line.bus
    if not bus.is_connected:
        raise BrokerAway
    try:
        state = (await jetstream.call(bus.nc, f"STREAM.INFO.{subjects.AUDIT}"))["state"]
        first, newest = int(state["first_seq"]), int(state["last_seq"])
        last = newest if before is None else min(newest, before - 1)
        read = 0
        while last >= first and not gathering.is_full and read < MAX_READ:
            start = max(first, last - WINDOW + 1)
            window = await _window(bus.nc, start, last)
            for message in reversed(window):
                gathering.take(message.subject, message.seq, message.body)
            read += last - start + 1
            last = start - 1
        if gathering.is_full:
            last = gathering.rows[-1].seq - 1
        rows = gathering.timed(await _received(bus.nc, [row.ended.id for row in gathering.rows]))
    except (JetStreamError, JetStreamUnavailable):
        raise BrokerAway from None
    return Page(rows, read, last + 1 if last >= first else None)


async def _window(nc: Client, start: int, last: int) -> list[StoredMessage]:
    async with aclosing(_forward(nc, start, last)) as messages:
        return [message async for message in messages]


async def _forward(nc: Client, seq: int, last: int) -> AsyncGenerator[StoredMessage]:
    while seq <= last:
        query = {"seq": seq, "next_by_subj": _ALL, "batch": last - seq + 1, "max_bytes": 4 * 1024 * 1024}
        found, _ = await jetstream.batch(nc, subjects.AUDIT, query)
        for message in found:
            if message.seq <= last:
                yield message
        seq = found[-1].seq + 1 if found else last + 1


async def _received(nc: Client, ids: list[str]) -> dict[str, datetime]:
    """When workers took the requests up."""
    if not ids:
        return {}
    asked = [subjects.audit(AuditEvent.RECEIVED, request_id) for request_id in ids]
    found, _ = await jetstream.batch(nc, subjects.AUDIT, {"multi_last": asked, "batch": len(asked)})
    return {
        message.subject.split(".")[3]: datetime.fromisoformat(orjson.loads(message.body)["at"]) for message in found
    }
