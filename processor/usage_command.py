"""What `sidecar usage` prints: what was spent, how the month will end, and what might have cost less."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, Literal

import nats.errors
import orjson
from rich.bar import Bar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from processor import audit_reading
from processor.budgets import configured
from processor.catalog import Catalog, CatalogError
from processor.commands import broker_url, connection
from processor.config import Settings, shown
from processor.exits import Exit, Fatal
from processor.grouping import By
from processor.jetstream import STREAM_NOT_FOUND, JetStreamError, JetStreamUnavailable
from processor.nats_client import Client
from processor.suggestions import Advisor, Suggestion
from processor.usage import COLUMNS, UsageRow, money
from processor.usage_reading import ByTask, Report, read_usage

BAR_WIDTH: Final = 24
WIDE: Final = 110
"""On a narrower terminal the bars are shorter, so that no name is cut."""
NEARLY: Final = 0.8
"""From this share on a budget is shown as a warning."""

Form = Literal["table", "json", "csv"]


@dataclass(frozen=True, slots=True)
class _Advice:
    """`unreadable`: events of the audit log that this version cannot read."""

    suggestions: list[Suggestion]
    unreadable: int = 0


async def report_usage(settings: Settings, *, by: By, since: date | None, form: Form, suggest: bool) -> int:
    """Print the report: a table, a JSON object, or CSV, which has the rows alone."""
    from processor.service import configured_catalog

    now = datetime.now(UTC)
    first = since or now.date().replace(day=1)
    try:
        catalog = configured_catalog(settings)
    except CatalogError as error:
        raise Fatal(str(error)) from error
    budgets = configured(catalog.budgets, settings.monthly_budget_alert)
    by_task = ByTask(first) if by is By.TASK_TYPE else None
    advisor = _advisor(settings, catalog, now.date()) if suggest and form != "csv" else None
    advice = _Advice([])
    async with connection(settings) as nc:
        try:
            if by_task or advisor:
                advice = await _read_log(nc, first, by_task, advisor)
            report = await read_usage(nc, by, first, now, budgets, by_task=by_task)
        except (JetStreamError, JetStreamUnavailable, nats.errors.Error) as error:
            raise _fatal(settings, nc, error) from error
    match form:
        case "json":
            document = report.document() | {"suggestions": [one.document() for one in advice.suggestions]}
            print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        case "csv":
            _print_csv(report.rows)
        case "table":
            _print_table(report)
            _print_suggestions(advice.suggestions)
    if advice.unreadable:
        print(f"{advice.unreadable:,} events of the audit log are of another version: not looked at.", file=sys.stderr)
    return Exit.OK


def _advisor(settings: Settings, catalog: Catalog, today: date) -> Advisor:
    return Advisor(
        catalog,
        default_model=settings.default_model,
        today=today,
        cache_size=settings.cache_max_size,
        cache_ttl=timedelta(seconds=settings.cache_ttl),
    )


async def _read_log(nc: Client, first: date, by_task: ByTask | None, advisor: Advisor | None) -> _Advice:
    """Read the audit log once, for whoever wants to see it. On a terminal, a bar shows how far it is."""
    progress = audit_reading.Progress()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    since = datetime.combine(first, time(), UTC)
    with ProgressBar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading the audit log", total=None)
        async with aclosing(audit_reading.read(nc, since, progress)) as batches:
            async for batch in batches:
                for entry in batch:
                    if by_task:
                        by_task.see(entry)
                    if advisor:
                        advisor.see(entry)
                bar.update(task, total=progress.total, completed=progress.read)
    return _Advice(advisor.suggestions() if advisor else [], progress.unreadable)


def _fatal(settings: Settings, nc: Client, error: Exception) -> Fatal:
    where = shown(broker_url(settings))
    if not nc.is_connected:
        return Fatal(f"{where}: connection lost ({error})", Exit.UNREACHABLE)
    missing = isinstance(error, JetStreamUnavailable) or getattr(error, "err_code", 0) == STREAM_NOT_FOUND
    return Fatal(f"{where}: {error}{': run `sidecar provision`' if missing else ''}")


def _print_csv(rows: Sequence[UsageRow]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (getattr(row, name) for name in COLUMNS)
        writer.writerow([f"{value:f}" if isinstance(value, Decimal) else value for value in values])


def _print_table(report: Report) -> None:
    console = Console(highlight=False)
    if not report.rows:
        print(f"Nothing was spent or saved since {report.since}.")
        _print_not_counted(report)
        return
    head = str(report.by).replace("_", " ")
    table = Table(box=None, pad_edge=False, show_footer=True)
    total = report.total
    table.add_column(head, footer="total", no_wrap=True)
    table.add_column("cost", footer=money(total.cost_usd), justify="right", no_wrap=True)
    bar_width = BAR_WIDTH if console.width >= WIDE else BAR_WIDTH // 3
    table.add_column("", width=bar_width)
    counts: dict[str, tuple[Callable[[Any], str], str]] = {
        "saved": (money, "saved_usd"),
        "calls": (_count, "calls"),
        "failed": (_count, "failed"),
        "cached": (_count, "cached"),
        "in": (_count, "input_tokens"),
        "out": (_count, "output_tokens"),
        "cache read": (_count, "cache_read_tokens"),
    }
    # What is nothing everywhere takes no room from what is something.
    counts = {title: count for title, count in counts.items() if title == "calls" or getattr(total, count[1])}
    for title, (show, column) in counts.items():
        table.add_column(title, footer=show(getattr(total, column)), justify="right", no_wrap=True)
    most = max(row.cost_usd for row in report.rows)
    for row in report.rows:
        bar = Bar(size=float(most) or 1.0, begin=0, end=float(row.cost_usd), width=bar_width, color="cyan")
        shown_counts = (show(getattr(row, column)) for show, column in counts.values())
        table.add_row(Text(row.key), _cost(row), bar, *shown_counts)
    console.print(table)
    print()
    print(f"{money(total.cost_usd)} since {report.since}{_estimated(total)}")
    if report.projection_usd is not None:
        print(f"{money(report.projection_usd)} by the end of {report.until:%B}, if it goes on as in the last days")
    for budget in report.budgets:
        style = "red" if budget.share >= 1 else "yellow" if budget.share >= NEARLY else ""
        text = f"{budget.share:.0%} of {budget.label} is spent ({money(budget.spent_usd)})"
        console.print(text, style=style, markup=False, soft_wrap=True)
    _print_not_counted(report)


def _cost(row: UsageRow) -> str:
    return ("~" if row.estimated_usd else "") + money(row.cost_usd)


def _estimated(total: UsageRow) -> str:
    return f"; {money(total.estimated_usd)} of it is an estimate (~)" if total.estimated_usd else ""


def _count(number: int) -> str:
    return f"{number:,}"


def _print_not_counted(report: Report) -> None:
    if report.not_counted == 1:
        print("1 call is not counted yet.")
    elif report.not_counted:
        print(f"{report.not_counted:,} calls are not counted yet.")


def _print_suggestions(suggestions: Sequence[Suggestion]) -> None:
    if suggestions:
        print("\nComputed from the audit log, by routing and pricing its requests again:")
    for suggestion in suggestions:
        print(f"- {suggestion.text}")
