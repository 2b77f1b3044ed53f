"""The replica in the NATS services API: `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS` with its load, and its endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import nats.micro
import orjson
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.micro.request import Request as ServiceRequest
from nats.micro.service import EndpointConfig, Service

from processor import subjects, usage_reading
from processor.budgets import Budget
from processor.bus import HEADER_RESERVE, Bus
from processor.catalog import Catalog
from processor.errors import RequestError
from processor.explain import explanation
from processor.messages import Request, decode_request
from processor.nats_client import Client
from processor.replies import error_body, error_headers
from processor.router import Route

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
    route: Callable[[Request], Route],
    budgets: Sequence[Budget],
) -> Service:
    """Register this replica; its endpoint `llm.models` lists the catalog and what can be called now.

    Its endpoint `llm.route` takes the body of an ask, and says by `route` which models would answer it and why.

    Its endpoint `llm.usage` says what was spent, and how much of `budgets`; one question at a time is answered.

    What `load` counts stands in the endpoint's statistics as `data`.
    """

    async def models(asked: ServiceRequest) -> None:
        await asked.respond(_models(catalog, providers))

    async def decide(body: bytes) -> bytes:
        request = decode_request(body)
        return orjson.dumps(explanation(request, route(request)))

    async def usage(body: bytes) -> bytes:
        return await usage_reading.answer(bus.nc, body, budgets, bus.nc.max_payload - HEADER_RESERVE)

    service = await nats.micro.add_service(
        _OnlyInboxes(bus.nc),  # type: ignore[arg-type]  # it is one, but for what it subscribes
        name="sidecar",
        version=version("ckcias-sidecar"),
        description="LLM gateway: llm.request.<priority>",
        metadata={"replica": replica},
        stats_handler=lambda _: dict(load()),
    )
    await service.add_endpoint(EndpointConfig(name="models", subject="llm.models", handler=models))
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


def _models(catalog: Catalog, providers: Collection[str]) -> bytes:
    today = datetime.now(UTC).date()
    rows = [
        {
            "model": alias,
            "id": model.id,
            "provider": model.provider,
            "context": model.context,
            "max_output": model.max_output,
            "abilities": sorted(model.abilities),
            "retires": model.retires.isoformat() if model.retires else None,
            "successor": model.successor,
            "answered_by": answering.alias,
            "available": answering.provider in providers,
        }
        for alias, model in catalog.models.items()
        for answering in (catalog.resolve(alias, today).model,)
    ]
    return orjson.dumps({"models": rows})
