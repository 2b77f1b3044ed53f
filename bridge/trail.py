"""`GET /api/requests/{id}/trail`: every step of one request, as the audit log keeps it."""

from __future__ import annotations

from typing import Final

import orjson
from fastapi import APIRouter, Request, Response

from bridge.bodies import json_response
from bridge.callers import caller
from bridge.line import BrokerAway, Line
from processor import jetstream, subjects
from processor.errors import ErrorType, RequestError
from processor.jetstream import JetStreamError, JetStreamUnavailable

MAX_EVENTS: Final = 200
MAX_BYTES: Final = 2 * 1024 * 1024


def trail(line: Line) -> APIRouter:
    """The audit trail of one request, for whoever may see its tenant."""
    router = APIRouter(prefix="/api")

    @router.get("/requests/{request_id}/trail")
    async def steps(request: Request, request_id: str) -> Response:
        """Its audit events in order, as they are kept; `more`: there are still others."""
        unknown = RequestError(ErrorType.NOT_FOUND, f"the audit log has no request {request_id[:128]}")
        if not subjects.is_request_id(request_id):
            raise unknown
        bodies, more = await _read(line, request_id)
        events = [orjson.loads(body) for body in bodies]
        if not events or not caller(request).may_see(events[0]["tenant"]):
            raise unknown
        return json_response({"id": request_id, "events": events, "more": more})

    return router


async def _read(line: Line, request_id: str) -> tuple[list[bytes], bool]:
    """Raises BrokerAway."""
    bus = line.bus
    if not bus.is_connected:
        raise BrokerAway
    query = {"seq": 1, "next_by_subj": f"llm.audit.*.{request_id}", "batch": MAX_EVENTS, "max_bytes": MAX_BYTES}
    try:
        found, after = await jetstream.batch(bus.nc, subjects.AUDIT, query)
    except (JetStreamError, JetStreamUnavailable):
        raise BrokerAway from None
    return [message.body for message in found], after > 0
