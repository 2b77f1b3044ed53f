"""The JSON lines of a batch: every line checked before any is queued. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from processor.errors import ErrorType, RequestError
from processor.messages import Request, decode_request, encode_fields, encode_request
from processor.subjects import Priority

MAX_LINES = 10_000
MAX_CUSTOM_ID_CHARS = 64


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request of a batch, as it is queued."""

    body: bytes
    tenant: str
    custom_id: str | None


def read_lines(body: bytes, allow: Callable[[Request], Request]) -> list[BatchLine]:
    """The requests of a batch: on each line the body of a request, with a `custom_id` beside it if the client likes.

    Empty lines are left out. `allow` gives the request that the caller may make of one, or raises RequestError.

    Raises:
        RequestError: `invalid_request` or what is wrong with the first wrong line, by its number and the field;
            `too_large` for more than `MAX_LINES`.
    """
    found: list[BatchLine] = []
    names: dict[str, int] = {}
    for number, text in enumerate(body.split(b"\n"), 1):
        if not text.strip():
            continue
        if len(found) == MAX_LINES:
            raise RequestError(ErrorType.TOO_LARGE, f"the batch has more than {MAX_LINES:,} requests")
        try:
            line = _line(text, allow)
            if line.custom_id is not None and (first := names.setdefault(line.custom_id, number)) != number:
                raise RequestError(ErrorType.INVALID_REQUEST, f"custom_id: it is that of line {first} too")
        except RequestError as error:
            raise RequestError(error.type, f"line {number}: {error.message}") from None
        found.append(line)
    if not found:
        raise RequestError(ErrorType.INVALID_REQUEST, "the batch has no requests: each line holds the JSON of one")
    return found


def _line(text: bytes, allow: Callable[[Request], Request]) -> BatchLine:
    custom_id, body = _taken_apart(text)
    request = decode_request(body)
    if request.stream:
        raise RequestError(ErrorType.INVALID_REQUEST, "stream: the answers of a batch are read whole")
    request = allow(request)
    return BatchLine(encode_request(request), request.tenant, custom_id)


def _taken_apart(text: bytes) -> tuple[str | None, bytes]:
    """What a line has beside the request, and the request."""
    if not any(name in text for name in (b'"custom_id"', b'"priority"')):
        return None, text
    try:
        fields: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None, text  # told of as what it is, where the request is decoded
    if not isinstance(fields, dict):
        return None, text
    custom_id = fields.pop("custom_id", None)
    if custom_id is not None and not (isinstance(custom_id, str) and 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARS):
        wanted = f"custom_id: a text of 1 to {MAX_CUSTOM_ID_CHARS} characters"
        raise RequestError(ErrorType.INVALID_REQUEST, wanted)
    if fields.pop("priority", Priority.LOW) != Priority.LOW:
        raise RequestError(ErrorType.INVALID_REQUEST, "priority: a batch runs in the low lane")
    return custom_id, encode_fields(fields)
