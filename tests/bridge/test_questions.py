"""GET /api/usage and /api/models: what a sidecar says, and to whom how much of it."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from bridge import questions
from bridge.callers import ANYBODY, Caller
from processor.errors import RequestError
from processor.spend import Cell, Unit, pico
from providers.scripted import ScriptedProvider
from tests.bridge.edge import Edge
from tests.conftest import StartProcessor

BUDGETS = "[budgets]\nmonthly_usd = 100\n[budgets.tenants.acme]\nmonthly_usd = 10\n"
OF_ACME = Caller("acme's", tenant="acme", models=frozenset({"haiku"}))
OF_ANY_TENANT = Caller("a backend's")


async def get(edge: Edge, path: str, status: int = 200) -> dict[str, Any]:
    async with edge.client.get(path) as response:
        fields: dict[str, Any] = orjson.loads(await response.read())
        assert response.status == status, fields
        return fields


async def test_usage_is_told_of_all_to_an_operator_and_to_a_tenants_key_of_that_tenant_alone(
    nc: Client, edge: Edge, start: StartProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tenant, dollars in (("acme", 1), ("other", 4)):
        cell = Cell(datetime.now(UTC).date(), tenant, "haiku", Unit.COST)
        await nc.jetstream().publish(cell.subject, b"", headers={"Nats-Incr": f"+{pico(Decimal(dollars))}"})
    catalog = tmp_path / "catalog.toml"
    catalog.write_text(BUDGETS, "utf-8")
    await start({"anthropic": ScriptedProvider()}, sidecar_catalog=catalog)

    everything = await get(edge, "/api/usage?by=tenant")
    assert [(row["key"], row["cost_usd"]) for row in everything["rows"]] == [("other", 4.0), ("acme", 1.0)]
    assert [share["spent_usd"] for share in everything["budgets"]] == [5.0, 1.0]
    assert (await get(edge, "/api/usage?tenant=other"))["total"]["cost_usd"] == 4.0

    monkeypatch.setattr(questions, "caller", lambda _: OF_ACME)
    own = await get(edge, "/api/usage?by=tenant")
    assert [(row["key"], row["cost_usd"]) for row in own["rows"]] == [("acme", 1.0)]
    assert own["total"]["cost_usd"] == 1.0
    assert ["acme" in share["budget"] for share in own["budgets"]] == [True]
    assert own["projection_usd"] < everything["projection_usd"]
    assert (await get(edge, "/api/usage?tenant=other", 403))["error"]["type"] == "forbidden"


@pytest.mark.parametrize(
    ("who", "named", "told"),
    [
        (ANYBODY, None, None),
        (ANYBODY, "acme", "acme"),
        (OF_ACME, None, "acme"),
        (OF_ACME, "acme", "acme"),
        (OF_ACME, "other", RequestError),
        (OF_ANY_TENANT, "acme", "acme"),
        (OF_ANY_TENANT, None, RequestError),
    ],
)
def test_whose_usage_a_caller_is_told(who: Caller, named: str | None, told: Any) -> None:
    if told is RequestError:
        with pytest.raises(RequestError, match="tenant: "):
            questions._tenant(named, who)
    else:
        assert questions._tenant(named, who) == told


async def test_a_wrong_question_is_refused_by_the_field(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    for query, says in (
        ("until=2026-11-01", "until: unknown field"),
        ("by=week", "by: "),
        ("since=soon", "since: "),
        ("tenant=a.b", "tenant: "),
        ("by=task_type", "by: task_type"),
    ):
        fields = await get(edge, f"/api/usage?{query}", 400)
        assert fields["error"]["type"] == "invalid_request"
        assert fields["error"]["message"].startswith(says)


async def test_models_are_those_of_the_catalog_and_to_a_key_the_ones_it_may_name(
    nc: Client, edge: Edge, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start({"anthropic": ScriptedProvider()})
    found = await get(edge, "/api/models")
    assert found == orjson.loads((await nc.request("llm.models", b"", timeout=5)).data)
    assert {"haiku", "sonnet", "gemini"} <= {row["model"] for row in found["models"]}
    monkeypatch.setattr(questions, "caller", lambda _: OF_ACME)
    assert [row["model"] for row in (await get(edge, "/api/models"))["models"]] == ["haiku"]
