"""Alerts on `llm.alert.<severity>`, in the log and to a webhook, told once in a while and not once a request."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

import nats.errors
import orjson
import structlog
from cachetools import TTLCache
from pydantic import BaseModel, ConfigDict

from processor import subjects
from processor.bus import Bus
from processor.tasks import OwnedTasks
from processor.webhook import Webhook

QUIET_S = 300.0
"""How long the same alert is not repeated."""
MAX_REMEMBERED = 1_000
MAX_SENDING = 100

Severity = Literal["info", "warning", "critical"]

log = structlog.get_logger(__name__)


class Alert(BaseModel):
    """What an operator has to know. `kind` is the same for the same trouble; `at` is UTC."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    severity: Severity
    kind: str
    message: str
    replica: str
    at: datetime


class Alerts:
    """Tells of this replica's troubles."""

    def __init__(self, bus: Bus, replica: str, webhook: Webhook | None = None) -> None:
        self._bus = bus
        self._replica = replica
        self._webhook = webhook
        self._told: TTLCache[str, bool] = TTLCache(MAX_REMEMBERED, QUIET_S)
        self._sending = OwnedTasks()

    @property
    def room(self) -> int:
        """So many more can be sent now; beyond it they stand in the log only."""
        return max(0, MAX_SENDING - len(self._sending))

    def tell(self, severity: Severity, kind: str, message: str) -> None:
        """Publish and log, unless the same `kind` was told within `QUIET_S`."""
        if kind in self._told:
            return
        self._told[kind] = True
        log.warning("alert", severity=severity, kind=kind, message=message, sent=self.room > 0)
        if not self.room:
            return
        now = datetime.now(UTC)
        self._sending.start(
            self._send(Alert(severity=severity, kind=kind, message=message, replica=self._replica, at=now))
        )

    async def drain(self) -> None:
        await self._sending.join(1)

    async def abandon(self) -> None:
        """End what still runs, at once."""
        await self._sending.cancel()

    async def _send(self, alert: Alert) -> None:
        try:
            await self._bus.publish(subjects.alert(alert.severity), alert.model_dump_json().encode())
        except nats.errors.Error as error:
            log.warning("alert not published", error=repr(error))
        if self._webhook is not None:
            # `text` is what the webhooks of Slack, Mattermost and others show.
            shown = f"{alert.severity.upper()} {alert.message} ({alert.kind}, {alert.replica})"
            await self._webhook.post(orjson.dumps(alert.model_dump(mode="json") | {"text": shown}))
