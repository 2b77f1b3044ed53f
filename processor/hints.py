"""What replicas tell each other on `llm.status.<replica>`: a breaker that opened for one opens for all."""

from __future__ import annotations

import nats.errors
import structlog
from nats.aio.msg import Msg
from pydantic import BaseModel, ConfigDict, ValidationError

from processor import subjects
from processor.alerts import Alerts
from processor.breaker import BreakerState
from processor.bus import Bus
from processor.catalog import Catalog
from processor.health import Health, Transition, places
from processor.tasks import OwnedTasks

MAX_HINT_S = 600.0
"""The longest a replica believes another one."""
MAX_SENDING = 100

log = structlog.get_logger(__name__)


class BreakerStatus(BaseModel):
    """A replica's circuit breaker changed its state. `model` is empty where the whole provider is meant."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    replica: str
    provider: str
    model: str
    before: BreakerState
    after: BreakerState
    open_s: float
    why: str


class Hints:
    """Sends this replica's breaker transitions, and hears the others'."""

    def __init__(self, bus: Bus, catalog: Catalog, health: Health, alerts: Alerts, replica: str) -> None:
        self._bus = bus
        self._known = {place for model in catalog.models.values() for place in places(model)}
        self._health = health
        self._alerts = alerts
        self._replica = replica
        self._sending = OwnedTasks()
        health.on_change(self._on_change)

    async def start(self) -> None:
        await self._bus.nc.subscribe("llm.status.*", cb=self._on_status)

    async def drain(self) -> None:
        await self._sending.join(1)

    async def abandon(self) -> None:
        """End what still runs, at once."""
        await self._sending.cancel()

    def _on_change(self, change: Transition) -> None:
        if change.after is BreakerState.OPEN:
            whose = change.model or "every model"
            kind = f"breaker:{change.provider}:{change.model}"
            self._alerts.tell("warning", kind, f"{change.provider}, {whose}: {change.why}")
        if len(self._sending) < MAX_SENDING:
            self._sending.start(self._send(change))

    async def _send(self, change: Transition) -> None:
        status = BreakerStatus(
            replica=self._replica,
            provider=change.provider,
            model=change.model,
            before=change.before,
            after=change.after,
            open_s=change.open_s,
            why=change.why,
        )
        try:
            await self._bus.publish(subjects.status(self._replica), status.model_dump_json().encode())
        except nats.errors.Error as error:
            log.warning("status not published", error=repr(error))

    async def _on_status(self, msg: Msg) -> None:
        try:
            status = BreakerStatus.model_validate_json(msg.data)
        except ValidationError:
            return  # another kind of status, or not ours
        place = (status.provider, status.model)
        if status.replica != self._replica and status.after == BreakerState.OPEN and place in self._known:
            self._health.hinted(place, min(max(status.open_s, 0.0), MAX_HINT_S))
