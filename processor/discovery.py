"""The replica in the NATS services API: `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS` with its load, and its endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from importlib.metadata import version
from typing import Any

import nats.micro
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import Request as ServiceRequest
from nats.micro.service import EndpointConfig, EndpointStats, Service

from processor import subjects, usage_reading
from processor.budgets import Budget
from processor.bus import HEADER_RESERVE, Bus
from processor.catalog import Catalog, CatalogModel
from processor.errors import RequestError
from processor.explain import explanation
from processor.introspection import MAX_LISTED
from processor.messages import Request, decode_request
from processor.nats_client import Client
from processor.pricing import Rates
from processor.replies import error_body, error_headers
from processor.router import Route

MODELS = "models"
"""The endpoint whose statistics hold all figures: each endpoint's are sent with every answer."""
STATISTICS_BYTES = 128 * 1024
"""What statistics take beside the list of requests in flight, with a catalog of a hundred models."""
LISTED_BYTES = 512
"""One of these, at most."""

log = structlog.get_logger(__name__)

Callback = Callable[[Msg], Awaitable[None]]


class _OnlyInboxes:
    """The client, for nats-py's services: a question is handed on only where its answer goes to an inbox.

    The answer is published with our own rights. To `llm.reply.<id>`, it would be kept as that request's reply.
    """

    def __init__(self, nc: Client) -> None:
        self._nc = nc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nc, name)

    async def subscribe(self, subject: str, queue: str = "", cb: Callback | None = None) -> Subscription:
        async def hand_on(msg: Msg) -> None:
            if subjects.is_inbox(msg.reply):
                assert cb is not None
                await cb(msg)
            else:
                log.warning("question not answered: its reply subject is no inbox", subject=subject, reply=msg.reply)

        return await self._nc.subscribe(subject, queue, cb=hand_on)


async def announce(
    bus: Bus,
    catalog: Catalog,
    providers: Collection[str],
    replica: str,
    load: Callable[[], Mapping[str, Any]],
    figures: Callable[[int], Mapping[str, Any]],
    outlook: Callable[[CatalogModel, date], Mapping[str, Any]],
    route: Callable[[Request], Route],
    budgets: Sequence[Budget],
) -> Service:
    """Register this replica; its endpoint `llm.models` lists the catalog with the `outlook` of each.

    Its endpoint `llm.route` takes the body of an ask, and says by `route` which models would answer it and why.

    Its endpoint `llm.usage` says what was spent, and how much of `budgets`; one question at a time is answered.

    What `load` counts stands in the endpoints' statistics as `data`, and all `figures` in those of `models`.
    """

    async def models(asked: ServiceRequest) -> None:
        await asked.respond(_models(catalog, providers, outlook))

    async def decide(body: bytes) -> bytes:
        request = decode_request(body)
        return orjson.dumps(explanation(request, route(request)))

    async def usage(body: bytes) -> bytes:
        return await usage_reading.answer(bus.nc, body, budgets, bus.nc.max_payload - HEADER_RESERVE)

    def statistics(endpoint: EndpointStats) -> dict[str, Any]:
        if endpoint.name != MODELS:
            return dict(load())
        room = bus.nc.max_payload - HEADER_RESERVE - STATISTICS_BYTES
        return dict(figures(max(0, min(MAX_LISTED, room // LISTED_BYTES))))

    service = await nats.micro.add_service(
        _OnlyInboxes(bus.nc),  # type: ignore[arg-type]  # it is one, but for what it subscribes
        name="sidecar",
        version=version("ckcias-sidecar"),
        description="LLM gateway: llm.request.<priority>",
        metadata={"replica": replica},
        stats_handler=statistics,
    )
    await service.add_endpoint(EndpointConfig(name=MODELS, subject="llm.models", handler=models))
    await service.add_endpoint(EndpointConfig(name="route", subject="llm.route", handler=_answering(decide)))
    await service.add_endpoint(EndpointConfig(name="usage", subject="llm.usage", handler=_answering(usage)))
    return service


def _answering(answer: Callable[[bytes], Awaitable[bytes]]) -> Callable[[ServiceRequest], Awaitable[None]]:
    """An endpoint that answers a body with `answer`, and what it refuses as the contract's error."""

    async def respond(asked: ServiceRequest) -> None:
        headers = None
        try:
            body = await answer(asked.data)
        except RequestError as error:
            body, headers = error_body("", error), error_headers(error)
        await asked.respond(body, headers)

    return respond


def _models(
    catalog: Catalog, providers: Collection[str], outlook: Callable[[CatalogModel, date], Mapping[str, Any]]
) -> bytes:
    today = datetime.now(UTC).date()
    rows = [
        {
            "model": alias,
            "id": model.id,
            "also": list(model.also),
            "provider": model.provider,
            "context": model.context,
            "max_output": model.max_output,
            "abilities": sorted(model.abilities),
            "cannot": sorted(model.cannot),
            "description": model.description,
            "tier": model.tier,
            "demo": model.demo,
            "usd_per_million": _price(catalog.price_lists[alias].rates(0, today)),
            "retires": model.retires.isoformat() if model.retires else None,
            "successor": model.successor,
            "answered_by": answering.alias,
            "available": answering.provider in providers,
            **outlook(answering, today),
        }
        for alias, model in catalog.models.items()
        for answering in (catalog.resolve(alias, today).model,)
    ]
    return orjson.dumps({"models": rows})


def _price(rates: Rates) -> dict[str, float]:
    """Of the shortest prompts: a few models cost more for long ones."""
    return {
        "input": float(rates.input),
        "output": float(rates.output),
        "cache_read": float(rates.cache_read),
        "cache_write": float(rates.cache_write_5m),
    }
