"""What the routes of the app's own surface take and give, for its OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from bridge.batch_lines import MAX_LINES
from bridge.ended import TERMINAL
from bridge.recent import MAX_ROWS, MAX_SEARCH_CHARS, MAX_SEQ, ROWS
from bridge.standing import State
from processor.messages import MAX_BODY_BYTES, MAX_DEADLINE_MS, Request
from processor.parts import TOKEN
from processor.reply_bodies import ErrorReply, FinalReply
from processor.subjects import Priority

Json = dict[str, Any]

_PRIORITY: Json = {"enum": [str(one) for one in Priority]}
_TENANT: Json = {"type": "string", "pattern": TOKEN}
_QUESTION: Json = {
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "model": "auto",
    "priority": "high",
}
_LINES = (
    '{"custom_id": "sky", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}\n'
    '{"custom_id": "sea", "messages": [{"role": "user", "content": "Why is the sea blue?"}]}\n'
)


def schemas() -> Json:
    """The components: the contract's models, and a request with its priority."""
    models: list[tuple[type[Any], Any]] = [
        (Request, "validation"),
        (FinalReply, "serialization"),
        (ErrorReply, "serialization"),
    ]
    found: Json = models_json_schema(models, ref_template="#/components/schemas/{model}")[1]["$defs"]
    chat = found["Request"] | {
        "title": "ChatRequest",
        "properties": found["Request"]["properties"] | {"priority": _PRIORITY},
    }
    return found | {"ChatRequest": chat, "RequestState": _standing(), "EndedRequests": _ended(), "BatchState": _batch()}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _either(*schemas: Json) -> Json:
    return {"anyOf": list(schemas)}


_NULL: Json = {"type": "null"}
_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer", "minimum": 1}


def _object(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _standing() -> Json:
    return _object(
        id=_TEXT,
        state={"enum": [str(one) for one in State]},
        tenant=_either(_TEXT, _NULL),
        priority=_either(_TEXT, _NULL),
        received_at=_either({"type": "string", "format": "date-time"}, _NULL),
        reply=_either(_ref("FinalReply"), _NULL),
        error=_either(_ref("ErrorBody"), _NULL),
    )


def _ended() -> Json:
    number: Json = {"type": "number"}
    row = _object(
        id=_TEXT,
        ended_at={"type": "string", "format": "date-time"},
        outcome={"enum": sorted(TERMINAL)},
        priority=_PRIORITY,
        tenant=_TEXT,
        model=_either(_TEXT, _NULL),
        provider=_either(_TEXT, _NULL),
        attempts={"type": "integer"},
        finish_reason=_either(_TEXT, _NULL),
        cost_usd=_either(number, _NULL),
        cached={"type": "boolean"},
        coalesced={"type": "boolean"},
        took_ms=_either(number, _NULL),
        error=_either(_object(kind=_TEXT, message=_TEXT), _NULL),
    )
    return _object(
        requests={"type": "array", "items": row},
        events_read={"type": "integer", "description": "How much of the audit log was looked at"},
        next_before=_either(_WHOLE, _NULL),
    )


def _batch() -> Json:
    states = [*(str(one) for one in State), "missing"]
    row = _object(id=_TEXT, state={"enum": states})
    row["properties"]["custom_id"] = _either(_TEXT, _NULL)
    return _object(
        id=_TEXT,
        created_at={"type": "string", "format": "date-time"},
        count={"type": "integer"},
        ended={"type": "integer", "description": "Requests that nothing more will come of"},
        states=_object(**{one: {"type": "integer"} for one in states}),
        requests={"type": "array", "items": row},
    )


def _body(schema: Json, example: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _parameter(where: str, name: str, schema: Json, description: str) -> Json:
    return {"in": where, "name": name, "schema": schema, "description": description}


_STEERING = [
    _parameter("header", "X-Sidecar-Priority", _PRIORITY, "The lane; medium where nothing is said"),
    _parameter("header", "X-Sidecar-Tenant", _TENANT, "Whose cost, cache and budget"),
    _parameter(
        "header",
        "X-Sidecar-Deadline-Ms",
        {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS},
        "Counts from acceptance",
    ),
    _parameter("header", "X-Sidecar-Cache", {"enum": ["use", "skip", "refresh"]}, "Whether a kept answer will do"),
    _parameter("header", "X-Sidecar-Detach", {"enum": ["true", "false"]}, "Go on when the client has gone"),
    _parameter(
        "header",
        "Idempotency-Key",
        {"type": "string", "minLength": 1, "maxLength": 255},
        "One request, however often it is sent",
    ),
]
_OF_BATCHES = [one for one in _STEERING if one["name"] not in {"X-Sidecar-Priority", "X-Sidecar-Detach"}]
_EVENTS = {"text/event-stream": {"schema": _TEXT}}

OPERATIONS: dict[tuple[str, str], Json] = {
    ("post", "/api/chat"): {
        "parameters": _STEERING,
        "requestBody": _body(_ref("ChatRequest"), _QUESTION),
        "responses": {
            "200": {
                "description": "The final reply; with `stream`, events",
                "content": {"application/json": {"schema": _ref("FinalReply")}} | _EVENTS,
            }
        },
    },
    ("get", "/api/requests"): {
        "parameters": [
            _parameter("query", "search", _TEXT | {"maxLength": MAX_SEARCH_CHARS}, "Words that are all in a row"),
            _parameter("query", "limit", _WHOLE | {"maximum": MAX_ROWS, "default": ROWS}, "The most that are listed"),
            _parameter("query", "before", _WHOLE | {"maximum": MAX_SEQ}, "`next_before` of the page before"),
        ],
        "responses": {"200": _json("Ended requests, newest first", _ref("EndedRequests"))},
    },
    ("get", "/api/requests/{request_id}/trail"): {
        "responses": {
            "200": _json(
                "Its audit events, in order",
                _object(id=_TEXT, events={"type": "array", "items": {"type": "object"}}, more={"type": "boolean"}),
            )
        }
    },
    ("get", "/api/requests/{request_id}"): {"responses": {"200": _json("Where it stands", _ref("RequestState"))}},
    ("delete", "/api/requests/{request_id}"): {
        "responses": {
            "200": _json("It had ended before", _object(id=_TEXT, state=_TEXT)),
            "202": _json("It will be stopped", _object(id=_TEXT, state=_TEXT)),
        }
    },
    ("get", "/api/requests/{request_id}/events"): {
        "parameters": [_parameter("header", "Last-Event-ID", _TEXT, "The id of the last event that was seen")],
        "responses": {
            "200": {"description": "The answer as events", "content": _EVENTS},
            "204": {"description": "There is nothing after that event"},
        },
    },
    ("post", "/api/batch"): {
        "parameters": _OF_BATCHES,
        "requestBody": {
            "required": True,
            "description": f"JSON lines: at most {MAX_LINES:,} requests, and {MAX_BODY_BYTES:,} bytes in all",
            "content": {"application/x-ndjson": {"schema": _TEXT, "example": _LINES}},
        },
        "responses": {
            "202": _json(
                "All are queued", _object(id=_TEXT, count={"type": "integer"}, ids={"type": "array", "items": _TEXT})
            )
        },
    },
    ("get", "/api/batch/{batch}"): {
        "parameters": [_parameter("query", "results", {"type": "boolean"}, "The answers, as JSON lines")],
        "responses": {
            "200": {
                "description": "Where its requests stand; with `results`, a line for each",
                "content": {
                    "application/json": {"schema": _ref("BatchState")},
                    "application/x-ndjson": {"schema": _TEXT},
                },
            }
        },
    },
    ("post", "/api/route"): {
        "requestBody": _body(_ref("Request"), {k: v for k, v in _QUESTION.items() if k != "priority"}),
        "responses": {
            "200": _json("The decision", _object(rule=_TEXT, candidates={"type": "array"}, refusals={"type": "array"}))
        },
    },
    ("get", "/api/usage"): {
        "parameters": [
            _parameter("query", "by", {"enum": ["day", "month", "model", "tenant"]}, "What a row stands for"),
            _parameter("query", "since", {"type": "string", "format": "date"}, "A day (UTC); this month's first"),
            _parameter("query", "tenant", _TENANT, "Of one tenant alone"),
        ],
        "responses": {
            "200": _json(
                "Money and tokens", _object(by=_TEXT, since=_TEXT, rows={"type": "array"}, total={"type": "object"})
            )
        },
    },
    ("get", "/api/models"): {
        "responses": {"200": _json("The catalog", _object(models={"type": "array", "items": {"type": "object"}}))}
    },
    ("get", "/api/snapshot"): {"responses": {"200": _json("What the dashboard shows", {"type": "object"})}},
    ("get", "/ready"): {
        "responses": {
            "200": _json("A request would be answered", {"type": "object"}),
            "503": _json("It would not: which check fails", {"type": "object"}),
        }
    },
    ("get", "/health"): {"responses": {"200": _json("The process is alive", _object(status=_TEXT))}},
}
"""By method and path. A route that is not here is described as an object in and out."""
