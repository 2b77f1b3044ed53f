"""Bodies in and out: bounded reading, and the bridge's own form of answers and errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from bridge.client_gone import ClientGone
from bridge.line import BrokerLost
from processor.errors import ErrorType, RequestError
from processor.messages import MAX_BODY_BYTES
from processor.replies import error_body
from processor.reply_bodies import FinalReply

T = TypeVar("T")

BODY_WITHIN_S = 30.0
"""For a whole body to arrive."""
AT_ONCE_BYTES = 64 * 1024
"""Of a body that is translated within a few milliseconds, whatever is in it."""
REQUEST_ID_HEADER = "X-Sidecar-Request-Id"
_AGAIN = frozenset({ErrorType.RATE_LIMITED, ErrorType.QUEUE_FULL, ErrorType.UNAVAILABLE})


async def read_body(request: Request) -> bytes:
    """The body, never more of it than a request may have.

    Raises:
        RequestError: `too_large`, before all of it was read; `invalid_request` where it does not come to its end
            within `BODY_WITHIN_S`.
        ClientGone: the client has gone.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_BODY_BYTES:
                    raise _too_large()
                body += chunk
    except TimeoutError:
        raise RequestError(ErrorType.INVALID_REQUEST, f"the body did not arrive within {BODY_WITHIN_S:g} s") from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)


async def translated(request: Request, translate: Callable[[bytes], T]) -> T:
    """What `translate` makes of the body; of a large one in a thread, since it may take seconds, and no other client's
    answer would go on meanwhile.

    Raises:
        RequestError, ClientGone: as `read_body`, and what `translate` raises.
    """
    body = await read_body(request)
    return translate(body) if len(body) <= AT_ONCE_BYTES else await asyncio.to_thread(translate, body)


def _too_large() -> RequestError:
    return RequestError(ErrorType.TOO_LARGE, f"the body has more than {MAX_BODY_BYTES} bytes")


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises RequestError."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(ErrorType.INVALID_REQUEST, f"body: not JSON: {error}"[:300]) from None
    if not isinstance(fields, dict):
        raise RequestError(ErrorType.INVALID_REQUEST, "body: it has to be a JSON object")
    return fields


def json_response(fields: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`fields` as JSON; bytes are JSON already."""
    body = fields if isinstance(fields, bytes) else orjson.dumps(fields)
    return Response(body, status, headers=headers, media_type="application/json")


def reply_headers(reply: FinalReply) -> dict[str, str]:
    """What answered, why, and what it cost."""
    return {
        REQUEST_ID_HEADER: header_text(reply.id),
        "X-Sidecar-Model": header_text(reply.model),
        "X-Sidecar-Provider": header_text(reply.provider),
        "X-Sidecar-Cost-Usd": f"{reply.cost_usd:f}",
        "X-Sidecar-Route": header_text(reply.route.reason),
        "X-Sidecar-Cached": str(reply.cached).lower(),
        "X-Sidecar-Attempts": str(reply.attempts),
    }


def header_text(text: str, limit: int = 500) -> str:
    """Any text as the value of a header: one line of printable ASCII."""
    line = " ".join(text.split()).encode("ascii", "replace").decode()
    return "".join(c if " " <= c <= "~" else "?" for c in line)[:limit]


def retry_headers(error: RequestError) -> dict[str, str]:
    """Retry-After in whole seconds, where the error says when; and whether the vendors' SDKs shall try again, which
    they do twice by themselves: not where that cannot help, nor where what was asked may be paid for already.
    """
    after = {} if error.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    may_help = error.type in _AGAIN and not isinstance(error, BrokerLost)
    return after if may_help else after | {"X-Should-Retry": "false"}


def error_response(
    error: RequestError, status: int | None = None, headers: Mapping[str, str] | None = None, *, request_id: str = ""
) -> Response:
    """An error in the contract's own form."""
    shown = {REQUEST_ID_HEADER: header_text(request_id)} if request_id else {}
    return Response(
        error_body(request_id, error),
        status or error.type.code,
        headers=retry_headers(error) | shown | dict(headers or {}),
        media_type="application/json",
    )
