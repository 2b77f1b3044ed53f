"""What one sidecar is asked on behalf of an HTTP client: which model, what was spent, which models there are."""

from __future__ import annotations

from typing import Any

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from nats.aio.msg import Msg

from bridge.bodies import json_response, translated
from bridge.callers import Caller, caller
from bridge.line import Line
from bridge.rights import permitted
from processor.errors import ErrorType, RequestError
from processor.messages import decode_request, encode_request

_SERVICE_ERROR = "Nats-Service-Error-Code"
_USAGE_FIELDS = ("by", "since", "tenant")

log = structlog.get_logger(__name__)


def questions(line: Line) -> APIRouter:
    """The routes under /api that a sidecar's endpoints answer."""
    router = APIRouter(prefix="/api")

    @router.post("/route")
    async def route(request: Request) -> Response:
        """Which models would answer the body of a request, and why. No model is called."""
        asked = permitted(await translated(request, decode_request), caller(request))
        return json_response(_answer(await line.ask("llm.route", encode_request(asked))))

    @router.get("/usage")
    async def usage(request: Request) -> Response:
        """What was spent since a day (UTC), by day, month, model or tenant; of its own to a tenant's key."""
        question = _usage_question(request)
        return json_response(_answer(await line.ask("llm.usage", orjson.dumps(question))))

    @router.get("/models")
    async def models(request: Request) -> Response:
        """The models of the catalog that the caller may name: their abilities, and whether they can be called now."""
        return json_response({"models": await models_of(line, caller(request))})

    return router


async def models_of(line: Line, who: Caller) -> list[dict[str, Any]]:
    """The rows of `llm.models` that the caller may ask for, by any of their names. Raises RequestError."""
    rows: list[dict[str, Any]] = orjson.loads(_answer(await line.ask("llm.models", b"")))["models"]
    if (allowed := who.models) is None:
        return rows
    return [row for row in rows if not allowed.isdisjoint((row["model"], row["id"], *row.get("also", ())))]


def _answer(msg: Msg) -> bytes:
    """A sidecar's answer. Raises RequestError where it is an error, or nothing that could be shown."""
    code = (msg.headers or {}).get(_SERVICE_ERROR)
    if code is None:
        return msg.data
    try:
        error = orjson.loads(msg.data)["error"]
        raise RequestError(ErrorType(error["type"]), error["message"], retry_after_s=error["retry_after_s"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        log.error("a sidecar failed", code=code, error=(msg.headers or {}).get("Nats-Service-Error"))
        raise RequestError(ErrorType.INTERNAL, "the sidecar failed at this; its log says why") from None


def _usage_question(request: Request) -> dict[str, str]:
    """Raises RequestError for a field that is none, and for what is not the caller's business."""
    question = dict(request.query_params)
    if unknown := sorted(question.keys() - set(_USAGE_FIELDS)):
        raise RequestError(ErrorType.INVALID_REQUEST, f"{unknown[0][:64]}: unknown field; there are by, since, tenant")
    tenant = _tenant(question.get("tenant"), caller(request))
    return question | ({} if tenant is None else {"tenant": tenant})


def _tenant(named: str | None, who: Caller) -> str | None:
    """Whose usage is told: of all (None) to an operator alone."""
    if who.operator:
        return named
    if who.tenant is None and named is None:
        raise RequestError(ErrorType.FORBIDDEN, "tenant: name one; only an operator's key sees what all have spent")
    if who.tenant is not None and named not in {None, who.tenant}:
        raise RequestError(ErrorType.FORBIDDEN, f"tenant: this key sees what {who.tenant} has spent, and no other's")
    return who.tenant or named
