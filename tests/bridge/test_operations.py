"""The files in ops/: rules and dashboard ask only for series, labels and values that /metrics has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import promql_parser
import pytest
import yaml
from nats.aio.client import Client

from providers.base import Prompt, Text
from providers.errors import VendorError
from providers.scripted import ScriptedProvider
from tests.bridge.edge import bridging
from tests.bridge.test_observing import hurry, scrape, spend
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body
from tests.wait import wait_until

OPS = Path(__file__).resolve().parents[2] / "ops"
PROMETHEUS_ADDS = {"le", "instance", "job"}


def expressions() -> Iterator[tuple[str, str]]:
    """Every query in ops/, with where it stands."""
    rules = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text("utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    board = orjson.loads((OPS / "grafana" / "sidecar.json").read_bytes())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def parts(node: Any) -> Iterator[Any]:
    """A parsed query and all that it is made of."""
    yield node
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (below := getattr(node, name, None)) is not None:
            yield from parts(below)
    for below in getattr(node, "args", ()):
        yield from parts(below)


@pytest.fixture
async def series(
    nc: Client, nats_url: str, start: StartProcessor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, dict[str, set[str]]]:
    """The values of every label of every series, of a sidecar to which all sorts of things have happened."""
    hurry(monkeypatch)
    own = tmp_path / "own.toml"
    own.write_text("[limits.anthropic]\nrpm = 100\ntpm = 1000000\n[budgets]\nmonthly_usd = 50\n")

    def by_text(prompt: Prompt) -> list[Any]:
        said = next(part.text for part in prompt.messages[-1].parts if isinstance(part, Text))
        return [VendorError("broken", status=500)] if said == "fail" else answer()

    await start({"anthropic": ScriptedProvider(by_text)}, sidecar_catalog=own, max_retries=0)
    async with bridging(nats_url) as edge:
        await ask(nc, body())
        await ask(nc, body("fail", fallback=False))
        await ask(nc, body(modle="haiku"))
        await wait_until(lambda: spend(edge))
        return _by_label(await scrape(edge))


def _by_label(samples: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> dict[str, dict[str, set[str]]]:
    found: dict[str, dict[str, set[str]]] = {}
    for name, labels in samples:
        mine = found.setdefault(name, {})
        for label, value in labels:
            mine.setdefault(label, set()).add(value)
    return found


async def test_every_query_asks_for_what_there_is(series: dict[str, dict[str, set[str]]]) -> None:
    queries = dict(expressions())
    assert len(queries) > 20
    for where, query in queries.items():
        asked = list(parts(promql_parser.parse(query)))
        selectors = [part for part in asked if isinstance(part, promql_parser.VectorSelector)]
        assert selectors, where
        labels = set[str]()
        for selector in selectors:
            assert selector.name in series, f"{where}: there is no {selector.name}"
            labels |= series[selector.name].keys()
            for matcher in selector.matchers.matchers:
                assert matcher.name in series[selector.name], f"{where}: {selector.name} has no {matcher.name}"
        for part in asked:
            if isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
                assert set(part.modifier.labels) <= labels | PROMETHEUS_ADDS, where


def test_every_alert_says_how_grave_it_is_and_what_to_do() -> None:
    rules = yaml.safe_load((OPS / "prometheus" / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"].keys() == {"summary", "description"}
