"""Usage read from the broker: the counters and the ledger's book, or for kinds of task the audit log itself."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final

import orjson
from nats.aio.client import Client
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from processor import audit_reading, jetstream, ledger, subjects
from processor.audit_events import Attempt, AuditEntry, Ended, Received, Routed
from processor.book import Book
from processor.budgets import Budget, Period
from processor.errors import ErrorType, RequestError
from processor.grouping import By
from processor.parts import Token
from processor.spend import Cell, Unit, fold
from processor.suggestions import MAX_OPEN
from processor.usage import WINDOW_DAYS, BudgetShare, Tally, UsageRow, budget_shares, grouped, projection

FEW_DAYS: Final = 100
"""So many are asked for one by one; of a longer time all counters are read."""
MAX_ANSWERED: Final = 100_000
"""Counters that one question over NATS may read."""
UNNAMED: Final = "(none)"
"""Where a request named no kind of task, or the log no longer has where it did. No token has brackets."""


class TooMany(Exception):
    """There are more counters than may be read."""


@dataclass(frozen=True, slots=True)
class Report:
    """Usage from `since` to `until`, both days (UTC) included."""

    by: By
    since: date
    until: date
    rows: list[UsageRow]
    total: UsageRow
    projection_usd: Decimal | None
    budgets: list[BudgetShare]
    not_counted: int
    """Calls that the audit log has and the counters do not yet; of a tenant, among the next few hundred of all."""

    def document(self) -> dict[str, Any]:
        """For JSON: dollars as numbers."""
        return {
            "by": self.by,
            "since": self.since.isoformat(),
            "until": self.until.isoformat(),
            "rows": [row.document() for row in self.rows],
            "total": {name: value for name, value in self.total.document().items() if name != "key"},
            "projection_usd": None if self.projection_usd is None else float(self.projection_usd),
            "budgets": [share.document() for share in self.budgets],
            "not_counted": self.not_counted,
        }


async def read_usage(
    nc: Client,
    by: By,
    since: date,
    now: datetime,
    budgets: Sequence[Budget],
    *,
    by_task: ByTask | None = None,
    tenant: str | None = None,
    most: int | None = None,
) -> Report:
    """What the counters say, of one `tenant` alone where it is named: its rows, its projection, its own budgets.

    Rows by kind of task come from `by_task`, which has seen the audit log of all tenants.

    Raises:
        TooMany: there are more counters than `most`.
        JetStreamError, JetStreamUnavailable: they cannot be read.
    """
    today = now.date()
    first = min(since, Period.MONTH.first_day(today), today - timedelta(days=WINDOW_DAYS - 1))
    # First, so that what is counted meanwhile is told twice rather than not at all.
    not_counted = 0 if by_task else await audit_reading.calls_after(nc, await _position(nc), tenant)
    counters: dict[Cell, int] = {}
    seen = 0
    async for cell, amount in ledger.cells(nc, _days(first, today)):
        if cell.day < first:
            continue
        seen += 1
        if most is not None and seen > most:
            raise TooMany(f"more than {most:,} counters since {first}")
        if tenant in {None, cell.tenant}:
            counters[cell] = amount
    costs: Counter[tuple[date, str]] = Counter()
    daily: Counter[date] = Counter()
    for cell, amount in counters.items():
        if cell.unit is Unit.COST:
            costs[cell.day, cell.tenant] += amount
            daily[cell.day] += amount
    tally = by_task.tally if by_task else grouped(((c, n) for c, n in counters.items() if c.day >= since), by)
    return Report(
        by=by,
        since=since,
        until=today,
        rows=tally.rows(in_time=by.is_time),
        total=tally.total(),
        projection_usd=projection(daily, now),
        budgets=budget_shares([one for one in budgets if tenant in {None, one.tenant}], costs, today),
        not_counted=not_counted,
    )


def _days(first: date, last: date) -> list[date] | None:
    """Tomorrow too: another machine's clock may be ahead. None where asking for each would take too long."""
    number = (last - first).days + 2
    return [first + timedelta(days=n) for n in range(number)] if number <= FEW_DAYS else None


async def _position(nc: Client) -> int:
    """How far the audit log is counted; 0 where the ledger has no book of this log yet."""
    message = await jetstream.leaders_message(nc, subjects.LEDGER, {"last_by_subj": subjects.LEDGER_BOOK})
    position = 0 if message is None else Book.decode(message.body).position
    last = (await jetstream.call(nc, f"STREAM.INFO.{subjects.AUDIT}"))["state"]["last_seq"]
    return position if position <= last else 0


class ByTask:
    """Sums up the audit log by the kind of task that the requests named, from a day on. Its memory is bounded."""

    def __init__(self, since: date) -> None:
        self._since = since
        self._named: OrderedDict[str, str] = OrderedDict()
        self.tally = Tally()

    def see(self, entry: AuditEntry) -> None:
        """Take in the next event."""
        match entry:
            case Received():
                if entry.task_type is not None:
                    self._named[entry.id] = entry.task_type
                    if len(self._named) > MAX_OPEN:
                        self._named.popitem(last=False)
            case Attempt():
                self._add(entry.task_type, entry)
            case Ended():
                self._add(self._named.pop(entry.id, None), entry)
            case Routed():
                return

    def _add(self, task_type: str | None, entry: AuditEntry) -> None:
        for cell, amount in fold([entry]).cells.items():
            if cell.day >= self._since:
                self.tally.add(task_type or UNNAMED, cell.unit, amount)


class Question(BaseModel):
    """What `llm.usage` is asked: how to group, from which day (UTC) on (this month's first by itself), and of whom."""

    model_config = ConfigDict(extra="forbid")

    by: By = By.MODEL
    since: Annotated[date, Field(strict=True)] | None = None
    tenant: Token | None = None

    @classmethod
    def decode(cls, body: bytes) -> Question:
        """An empty body asks for what is usual. Raises RequestError, `invalid_request`."""
        try:
            question = cls.model_validate_json(body or b"{}")
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(step) for step in first["loc"])
            what = "unknown field" if first["type"] == "extra_forbidden" else first["msg"]
            raise RequestError(ErrorType.INVALID_REQUEST, f"{where}: {what}" if where else what) from None
        if question.by is By.TASK_TYPE:
            told = "by: task_type is read from the audit log, which takes long: `sidecar usage --by task_type` does it"
            raise RequestError(ErrorType.INVALID_REQUEST, told)
        return question


async def answer(nc: Client, body: bytes, budgets: Sequence[Budget], most_bytes: int) -> bytes:
    """The answer to a question on `llm.usage`.

    Raises:
        RequestError: `invalid_request`; `too_large` where it would not fit; `unavailable`: the broker is in trouble.
    """
    question, now = Question.decode(body), datetime.now(UTC)
    since = question.since or Period.MONTH.first_day(now.date())
    try:
        report = await read_usage(nc, question.by, since, now, budgets, tenant=question.tenant, most=MAX_ANSWERED)
    except TooMany as error:
        raise RequestError(ErrorType.TOO_LARGE, f"{error}: ask for a later `since`") from None
    except (jetstream.JetStreamError, jetstream.JetStreamUnavailable) as error:
        raise RequestError(ErrorType.UNAVAILABLE, f"the counters cannot be read: {error}") from error
    answered = orjson.dumps(report.document())
    if len(answered) > most_bytes:
        many = f"{len(report.rows):,} rows do not fit into one message: ask for a later `since`, or by month"
        raise RequestError(ErrorType.TOO_LARGE, many)
    return answered
