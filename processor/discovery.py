"""The replica in the NATS services API: `$SRV.PING`, `$SRV.INFO`, `$SRV.STATS` with its load, and `llm.models`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from importlib.metadata import version

import nats.micro
import orjson
from nats.micro.request import Request as ServiceRequest
from nats.micro.service import EndpointConfig, Service

from processor.bus import Bus
from processor.catalog import Catalog


async def announce(
    bus: Bus, catalog: Catalog, providers: Collection[str], replica: str, load: Callable[[], Mapping[str, int]]
) -> Service:
    """Register this replica; its endpoint `llm.models` lists the catalog and what can be called now.

    What `load` counts stands in the endpoint's statistics as `data`.
    """

    async def models(request: ServiceRequest) -> None:
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
        await request.respond(orjson.dumps({"models": rows}))

    service = await nats.micro.add_service(
        bus.nc,
        name="sidecar",
        version=version("ckcias-sidecar"),
        description="LLM gateway: llm.request.<priority>",
        metadata={"replica": replica},
        stats_handler=lambda _: dict(load()),
    )
    await service.add_endpoint(EndpointConfig(name="models", subject="llm.models", handler=models))
    return service
