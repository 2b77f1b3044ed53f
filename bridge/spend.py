"""What was spent today and this month, asked of a sidecar once in a while, as a snapshot shows it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog

from bridge.heard_alerts import instant
from bridge.line import Line
from processor.errors import RequestError
from processor.tasks import OwnedTasks

EVERY_S = 10.0
AGAIN_S: Final = 2.0
"""After a question without an answer."""
SHARE_OF_TIME = 0.05
"""At most, that reading the counters may take of a sidecar: where there are many, they are read less often."""
MAX_BUDGETS: Final = 20
_QUESTION: Final = orjson.dumps({"by": "day"})
_SERVICE_ERROR: Final = "Nats-Service-Error-Code"

log = structlog.get_logger(__name__)


class Spend:
    """The newest answer of `llm.usage`; `now` is in seconds of a clock that does not go back."""

    def __init__(self, line: Line, now: Callable[[], float] = time.monotonic) -> None:
        self._line = line
        self._now = now
        self._due = 0.0
        self._asking = OwnedTasks()
        self.shown: dict[str, Any] | None = None
        """None until there was an answer."""

    def renew(self) -> None:
        """Ask again if it is time, beside whoever calls this, and once at a time."""
        if not self._asking and self._now() >= self._due:
            self._asking.start(self._ask())

    async def close(self) -> None:
        await self._asking.cancel()

    async def _ask(self) -> None:
        began = self._now()
        pause_s = AGAIN_S
        try:
            answer = await self._line.ask("llm.usage", _QUESTION)
            if _SERVICE_ERROR not in (answer.headers or {}):
                self.shown = spent(orjson.loads(answer.data), datetime.now(UTC))
                pause_s = EVERY_S
        except (RequestError, ValueError, KeyError, TypeError) as error:
            log.debug("spending not read", error=repr(error))
        took_s = self._now() - began
        self._due = began + max(pause_s, took_s / SHARE_OF_TIME)


def spent(report: dict[str, Any], now: datetime) -> dict[str, Any]:
    """A snapshot's part of a report by day, of this month. Raises KeyError or TypeError for what is none."""
    today = now.date().isoformat()
    budgets = sorted(report["budgets"], key=lambda budget: (-float(budget["share"]), str(budget["budget"])))
    return {
        "as_of": instant(now),
        "today_usd": sum(float(row["cost_usd"]) for row in report["rows"] if row["key"] == today),
        "month_usd": float(report["total"]["cost_usd"]),
        "saved_month_usd": float(report["total"]["saved_usd"]),
        "projection_usd": report["projection_usd"],
        "not_counted": int(report["not_counted"]),
        "budgets": [
            {what: budget[what] for what in ("budget", "limit_usd", "spent_usd", "share")}
            for budget in budgets[:MAX_BUDGETS]
        ],
    }
