"""The bridge's OpenAPI document is true: every route is in it, and no request made from it ends in a fault of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from bridge.openapi_native import OPERATIONS
from processor.errors import ErrorType
from providers.scripted import ScriptedProvider
from tests.bridge.edge import Edge
from tests.conftest import StartProcessor

EXAMPLES = 8
"""Requests made of each operation, that fit the document and that do not."""
ANSWERED_WITHIN_S = 10
OPERATION_WITHIN_S = 60
FAULTS_OF_THE_CLIENT = {ErrorType.DEADLINE_EXCEEDED, ErrorType.UNAVAILABLE}
"""With a status of 5xx all the same: a deadline of a millisecond, and a model that is not configured here."""


@schemathesis.serializer("application/x-ndjson")
def as_lines(_: Any, value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else orjson.dumps(value, default=str)


async def test_every_route_of_the_apps_own_surface_is_described(edge: Edge) -> None:
    async with edge.client.get("/openapi.json") as response:
        document = await response.json()
    listed = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert set(OPERATIONS) <= listed
    own = {one for one in listed if one[1].startswith("/api/")}
    assert own - set(OPERATIONS) == set()
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["responses"]["default"]


async def test_the_documents_own_examples_are_answered(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with edge.client.get("/openapi.json") as response:
        document = await response.json()
    tried = 0
    for path, methods in document["paths"].items():
        for media in methods.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if (example := media.get("example")) is not None:
                sent = example.encode() if isinstance(example, str) else orjson.dumps(example)
                async with edge.client.post(path, data=sent) as response:
                    assert response.status in {200, 202}, await response.text()
                tried += 1
    assert tried >= 3


# The bridge's own thread draws jitter while this one makes a request, and hypothesis takes that for a strategy's doing.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")
async def test_no_request_made_from_the_document_ends_in_a_fault_of_ours_or_hangs(
    edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()}, request_timeout=5.0)
    tried = await asyncio.to_thread(try_all, edge.url)
    assert tried >= set(OPERATIONS)


def try_all(url: str) -> set[tuple[str, str]]:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    tried: set[tuple[str, str]] = set()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        for mode in GenerationMode:
            with suppress(Unsatisfiable):  # nothing that would be wrong
                try_one(operation, mode)()
        tried.add((str(operation.method), str(operation.path)))
    return tried


def try_one(operation: Any, mode: GenerationMode) -> Callable[[], None]:
    checks: list[CheckFunction] = [no_fault_of_ours, content_type_conformance, response_schema_conformance]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: Any) -> None:
        response = case.call(timeout=ANSWERED_WITHIN_S)
        case.validate_response(response, checks=checks)

    return once


def no_fault_of_ours(ctx: Any, response: Any, case: Any) -> None:
    if response.status_code >= 500:
        error = response.json()["error"]
        assert error["type"] in FAULTS_OF_THE_CLIENT, f"{case.as_curl_command()}\n{error}"
