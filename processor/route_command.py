"""What `sidecar route` prints: which models would answer, and why, as a running sidecar sees it or the settings say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import nats.errors
import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from processor.catalog import CatalogError
from processor.commands import connection
from processor.config import Settings
from processor.errors import RequestError
from processor.exits import Exit, Fatal
from processor.explain import explanation
from processor.messages import decode_request
from processor.replies import error_body
from processor.router import Conditions, route

WAIT_S = 5.0
"""For a sidecar's answer: it calls nobody for it."""


async def route_and_print(settings: Settings, body: dict[str, Any], *, as_json: bool) -> int:
    """Print the decision on stdout; 1 where it is refused, or no model can answer."""
    asked = orjson.dumps(body)
    try:
        decision = await _of_a_sidecar(settings, asked)
    except Fatal as unreachable:
        decision = _of_the_settings(settings, asked)
        unknown = "decided by the settings of this terminal, while health, latency and room are unknown"
        typer.echo(f"{unreachable}; {unknown}", err=True)
    if as_json:
        typer.echo(orjson.dumps(decision, option=orjson.OPT_INDENT_2))
    elif "error" in decision:
        error = decision["error"]
        Console(stderr=True, highlight=False).print(f"{error['type']}: {error['message']}", style="red", markup=False)
    else:
        _show(decision)
    return Exit.OK if decision.get("candidates") else Exit.FAILED


async def _of_a_sidecar(settings: Settings, asked: bytes) -> dict[str, Any]:
    """Raises Fatal where none answers."""
    async with connection(settings) as nc:
        try:
            answer = await nc.request("llm.route", asked, timeout=WAIT_S)
        except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
            raise Fatal("no sidecar answers on this broker", Exit.UNREACHABLE) from None
        except nats.errors.Error as error:
            raise Fatal(f"the broker does not take the question ({error})", Exit.UNREACHABLE) from None
    try:
        decision: dict[str, Any] = orjson.loads(answer.data)
    except orjson.JSONDecodeError:
        said = (answer.headers or {}).get("Nats-Service-Error", "no JSON")
        raise Fatal(f"the sidecar has no answer ({said})", Exit.UNREACHABLE) from None
    return decision


def _of_the_settings(settings: Settings, asked: bytes) -> dict[str, Any]:
    from processor.service import configured_catalog, configured_providers

    try:
        catalog = configured_catalog(settings)
    except CatalogError as error:
        raise Fatal(str(error)) from error
    conditions = Conditions(
        datetime.now(UTC),
        configured_providers(settings).providers.keys(),
        settings.default_model,
        by_quality=not settings.cost_optimization,
    )
    try:
        request = decode_request(asked)
        return explanation(request, route(request, catalog, conditions))
    except RequestError as error:
        refusal: dict[str, Any] = orjson.loads(error_body("", error))
        return refusal


def _show(decision: dict[str, Any]) -> None:
    out = Console(highlight=False)
    looks = decision["complexity"]
    why = f" ({', '.join(looks['why'])})" if looks.get("why") else ""
    out.print(
        f"rule {decision['rule']} · about {decision['input_tokens']} tokens · complexity {looks['score']:.2f}{why}",
        markup=False,
    )
    table = Table("", "model", "provider", "score", "about $", "reason", box=None, pad_edge=False)
    for place, one in enumerate(decision["candidates"], 1):
        figures = f"{one['score']:.1f}", f"{one['cost_usd']:.6f}"
        table.add_row(str(place), *map(escape, (one["model"], one["provider"], *figures, one["reason"])))
    out.print(table)
    alike: dict[str, list[str]] = {}
    for one in decision["refusals"]:
        alike.setdefault(one["reason"], []).append(one["model"])
    for reason, models in alike.items():
        out.print(f"refused: {reason}: {', '.join(models)}", style="dim", markup=False, soft_wrap=True)
    if not decision["candidates"]:
        Console(stderr=True, highlight=False).print("no model can answer this", style="red")
    for one in decision["candidates"]:
        for warning in one["warnings"]:
            Console(stderr=True, highlight=False).print(warning, style="yellow", markup=False)
