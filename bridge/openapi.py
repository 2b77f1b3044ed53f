"""The bridge's OpenAPI document: FastAPI's own list of routes, with what each takes and gives."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bridge.openapi_native import OPERATIONS, Json, schemas

DESCRIPTION = (
    "An LLM gateway on a NATS bus, over HTTP. bridge/README.md explains the app's own surface; /v1 is that of OpenAI "
    "and of Anthropic, whose own documents describe it."
)
_LOOSE: Json = {"content": {"application/json": {"schema": {"type": "object"}}}}
_METHODS = ("get", "post", "put", "patch", "delete", "head")


def describe(app: FastAPI) -> None:
    """Make `app` answer at its `openapi_url` with the document; it is put together at the first question."""

    def document() -> Json:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _document(app: FastAPI) -> Json:
    found: Json = get_openapi(
        title=app.title, version=version("ckcias-sidecar"), description=DESCRIPTION, routes=app.routes
    )
    for path, operations in found["paths"].items():
        for method in operations.keys() & set(_METHODS):
            _fill_in(path, method, operations[method])
    key = {"type": "http", "scheme": "bearer", "description": "A key of SIDECAR_API_KEYS, where any are set"}
    found["components"] = {"schemas": schemas(), "securitySchemes": {"key": key}}
    found["security"] = [{}, {"key": []}]
    return found


def _fill_in(path: str, method: str, operation: Json) -> None:
    """What FastAPI cannot know: routes read their bodies themselves, since these are bounded while they arrive."""
    said: dict[str, Any] = OPERATIONS.get((method, path), {})
    operation["responses"] = said.get("responses") or {"200": {"description": "The answer"}}
    operation["responses"].setdefault("default", _errors(path))
    parameters = operation.setdefault("parameters", [])
    parameters.extend(said.get("parameters", []))
    if method == "post":
        operation["requestBody"] = said.get("requestBody") or _LOOSE | {"required": True}


def _errors(path: str) -> Json:
    """The app's own form of errors; other surfaces have theirs."""
    schema: Json = {"type": "object"} if path.startswith("/v1/") else {"$ref": "#/components/schemas/ErrorReply"}
    return {"description": "Why there is no answer", "content": {"application/json": {"schema": schema}}}
