"""/metrics and /ready over whole sidecars with scripted vendors: the values are what was done."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from bridge import snapshot as snapshot_module
from bridge import spend as spend_module
from processor.bus import Bus
from processor.service import Processor
from providers.base import Opened, TextDelta
from providers.errors import ModelGone
from providers.scripted import Pause, ScriptedProvider
from tests.bridge.edge import Edge, bridging
from tests.conftest import StartProcessor, nats_server, running_processor
from tests.processor.test_end_to_end import answer, slow
from tests.talk import ask, body, listen
from tests.wait import wait_until

Series = tuple[str, frozenset[tuple[str, str]]]


@pytest.fixture
async def edge(nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    hurry(monkeypatch)
    async with bridging(nats_url) as one:
        yield one


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than once a second, and forget sooner."""
    for name, seconds in (("EVERY_S", 0.05), ("GATHER_S", 0.05), ("GONE_S", 0.5)):
        monkeypatch.setattr(snapshot_module, name, seconds)
    monkeypatch.setattr(spend_module, "EVERY_S", 0.1)
    monkeypatch.setattr(spend_module, "SHARE_OF_TIME", 1.0)


async def scrape(edge: Edge, accept: str = "text/plain") -> dict[Series, float]:
    """All samples, by name and labels, not older than this call."""
    await fresh(edge)
    async with edge.client.get("/metrics", headers={"Accept": accept}) as response:
        text = (await response.read()).decode()
        assert response.status == 200, text
    parse = openmetrics if accept.startswith("application/openmetrics") else parser
    families = parse.text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


async def fresh(edge: Edge) -> dict[str, Any]:
    """A snapshot of which all was asked after this call."""
    before = await snapshot(edge)

    async def newer() -> dict[str, Any] | None:
        now = await snapshot(edge)
        return now if now["at"] > before["at"] else None

    await wait_until(newer)
    before = await snapshot(edge)
    found: dict[str, Any] = await wait_until(newer)
    return found


async def snapshot(edge: Edge) -> dict[str, Any]:
    async with edge.client.get("/api/snapshot") as response:
        found: dict[str, Any] = orjson.loads(await response.read())
        assert response.status == 200, found
        return found


def total(series: dict[Series, float], name: str, by: str) -> dict[str, float]:
    """The sums of a series by one of its labels, without what is 0."""
    sums: defaultdict[str, float] = defaultdict(float)
    for (named, labels), value in series.items():
        if named == name:
            sums[dict(labels)[by]] += value
    return {key: value for key, value in sums.items() if value}


async def ready(edge: Edge) -> tuple[int, dict[str, Any]]:
    async with edge.client.get("/ready") as response:
        return response.status, orjson.loads(await response.read())


async def at_rest(*processors: Processor) -> None:
    await wait_until(lambda: not any(processor.load()["held"] for processor in processors))


# --- /metrics -------------------------------------------------------------------------------


async def test_the_values_are_the_sums_of_what_was_done_by_two_replicas(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    one = await start({"anthropic": slow(0.05)}, max_workers=1, critical_workers=0, replica="one")
    two = await start({"anthropic": slow(0.05)}, max_workers=1, critical_workers=0, replica="two")
    await asyncio.gather(*(ask(nc, body(), lane) for lane in ("high", "high", "low") for _ in range(4)))
    await ask(nc, body(model="gemini", fallback=False), "high")
    await ask(nc, body(modle="haiku"), "critical")
    await at_rest(one, two)

    series = await scrape(edge)
    assert total(series, "sidecar_requests_ended_total", "outcome") == {"completed": 12, "failed": 1}
    assert total(series, "sidecar_requests_ended_total", "lane") == {"high": 9, "low": 4}
    assert total(series, "sidecar_requests_failed_total", "error") == {"unavailable": 1}
    assert total(series, "sidecar_requests_refused_total", "lane") == {"critical": 1}
    assert total(series, "sidecar_requests_answered_total", "source") == {"call": 12}
    assert total(series, "sidecar_calls_total", "model") == {"haiku": 12}
    assert total(series, "sidecar_calls_total", "replica").keys() == {"one", "two"}
    assert total(series, "sidecar_tokens_total", "kind") == {"input": 120, "output": 60}
    assert total(series, "sidecar_cost_usd_total", "provider") == {"anthropic": pytest.approx(12 * 0.000035)}
    assert total(series, "sidecar_call_duration_seconds_count", "model") == {"haiku": 12}
    assert total(series, "sidecar_queue_wait_seconds_count", "lane") == {"high": 9, "low": 4}
    assert series["sidecar_replicas", frozenset()] == 2
    assert series["sidecar_broker_up", frozenset()] == 1
    assert series["sidecar_queue_queued", frozenset({("lane", "low")})] == 0

    shown = await fresh(edge)
    assert [lane["outcomes"]["completed"] for lane in shown["lanes"]] == [0, 8, 0, 4]
    haiku = shown["providers"][0]["models"][0]
    assert (haiku["model"], haiku["calls"], haiku["recent"]["calls"], haiku["recent"]["error_rate"]) == (
        "haiku",
        12,
        12,
        0,
    )
    assert 0.05 <= haiku["recent"]["duration"]["p50_s"] <= 5
    assert [replica["replica"] for replica in shown["replicas"]] == ["one", "two"]

    two.stop()
    await wait_until(lambda: is_left(edge, ["one"]))
    series = await scrape(edge)
    assert total(series, "sidecar_calls_total", "replica").keys() == {"one"}


async def is_left(edge: Edge, names: list[str]) -> bool:
    return [replica["replica"] for replica in (await snapshot(edge))["replicas"]] == names


async def test_both_formats_of_prometheus_are_spoken(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    plain = await scrape(edge)
    for accept in ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"):
        assert {name for name, _ in plain} <= {name for name, _ in await scrape(edge, accept)}
    async with edge.client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=x"}) as response:
        assert (response.status, response.content_type) == (200, "text/plain")


async def test_requests_to_the_bridge_are_counted_by_route_and_nobody_makes_up_labels(edge: Edge) -> None:
    for path in ("/api/requests/one/events", "/api/requests/two/events", "/made-up-1", "/made-up-2"):
        async with edge.client.get(path) as response:
            assert response.status == 404
    async with edge.client.request("PROPFIND", "/health") as response:
        assert response.status == 405
    series = await scrape(edge)
    name, labels = "sidecar_http_requests_total", ("route", "method", "status")
    counted = {
        tuple(dict(found)[label] for label in labels): value
        for (named, found), value in series.items()
        if named == name
    }
    assert counted["/api/requests/{request_id}/events", "GET", "404"] == 2
    assert counted["other", "GET", "404"] == 2
    assert counted["/health", "other", "405"] == 1
    assert not any("made-up" in route for route, _, _ in counted)


async def test_an_open_stream_is_seen_while_it_is_open(edge: Edge, start: StartProcessor) -> None:
    endless = ScriptedProvider([Opened(), TextDelta("Hello"), Pause(60), *answer()])
    await start({"anthropic": endless})
    streams = "sidecar_http_streams_open", frozenset[tuple[str, str]]()

    async def are_open(number: int) -> bool:
        return (await scrape(edge))[streams] == number

    async with edge.client.post("/api/chat", data=body(stream=True)):
        await wait_until(lambda: are_open(1))
    await wait_until(lambda: are_open(0))


async def test_without_metrics_there_is_no_page_and_it_says_why(nats_url: str, nc: Client) -> None:
    async with bridging(nats_url, enable_metrics=False) as edge, edge.client.get("/metrics") as response:
        assert response.status == 404
        assert "ENABLE_METRICS is false" in (await response.text())


async def test_replicas_that_count_nothing_are_shown_as_such(edge: Edge, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()}, enable_metrics=False)
    shown = await fresh(edge)
    assert (shown["metrics"], shown["state"], len(shown["replicas"])) == (False, "ok", 1)
    assert shown["providers"][0]["models"][0]["callable"] is True
    series = await scrape(edge)
    assert not total(series, "sidecar_calls_total", "replica")
    assert series["sidecar_running", frozenset({("replica", "test")})] == 0


async def test_a_broken_model_shows_its_breaker_its_errors_and_an_alert(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    await snapshot(edge)  # the bridge hears alerts from its start on
    await start({"anthropic": ScriptedProvider([ModelGone("gone", status=404)])}, max_retries=0)
    await ask(nc, body(fallback=False))
    shown = await fresh(edge)
    haiku = next(model for model in shown["providers"][0]["models"] if model["model"] == "haiku")
    assert (haiku["breaker"]["state"], haiku["breaker"]["replicas"], haiku["callable"]) == ("open", 1, False)
    assert (haiku["errors"], haiku["recent"]["error_rate"]) == ({"model_gone": 1}, 1.0)
    assert [(alert["kind"], alert["severity"]) for alert in shown["alerts"]] == [("breaker:anthropic:haiku", "warning")]
    series = await scrape(edge)
    labels = {("replica", "test"), ("provider", "anthropic"), ("model", "haiku")}
    assert series["sidecar_breaker_state", frozenset(labels)] == 2
    assert series["sidecar_alerts_total", frozenset({("severity", "warning")})] == 1


async def test_what_waits_in_the_queue_and_what_was_spent_are_shown(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    processor = await start({"anthropic": ScriptedProvider(answer())}, monthly_budget_alert=50)
    await ask(nc, body())
    await at_rest(processor)
    shown = await wait_until(lambda: spend(edge))
    assert (shown["today_usd"], shown["month_usd"]) == (0.000035, 0.000035)
    assert shown["budgets"] == [
        {"budget": "the monthly budget of $50.00", "limit_usd": 50.0, "spent_usd": 0.000035, "share": 0.000035 / 50}
    ]
    series = await scrape(edge)
    assert series["sidecar_spend_usd", frozenset({("period", "month")})] == 0.000035
    processor.stop()
    await wait_until(lambda: is_left(edge, []))
    for number in range(3):
        await nc.jetstream().publish(f"llm.request.low.job-{number}", body())
    shown = await fresh(edge)
    assert [lane["queued"] for lane in shown["lanes"]] == [0, 0, 0, 3]
    assert shown["state"] == "no_sidecar"


async def spend(edge: Edge) -> Any:
    """What was spent, once the ledger has counted it and it was read."""
    shown = (await snapshot(edge))["spend"]
    return shown if shown is not None and shown["month_usd"] else None


# --- /ready ---------------------------------------------------------------------------------


async def test_it_is_ready_while_a_sidecar_is_there_that_can_call_somebody(
    nc: Client, edge: Edge, start: StartProcessor
) -> None:
    status, said = await ready(edge)
    assert (status, said["ready"]) == (503, False)
    assert said["checks"]["nats"] == {"ok": True, "why": None}
    assert "sidecar processor" in said["checks"]["processor"]["why"]
    assert not said["checks"]["provider"]["ok"]

    unconfigured = await start({}, replica="none")
    await fresh(edge)
    status, said = await ready(edge)
    assert (status, said["checks"]["processor"]["ok"]) == (503, True)
    assert "no provider is configured" in said["checks"]["provider"]["why"]
    unconfigured.stop()

    await start({"local": ScriptedProvider([ModelGone("gone", status=404)])}, max_retries=0)
    await fresh(edge)
    assert (await ready(edge))[0] == 200
    await ask(nc, body(model="local"))
    await fresh(edge)
    status, said = await ready(edge)
    assert (status, "circuits of local are open" in said["checks"]["provider"]["why"]) == (503, True)

    await start({"anthropic": ScriptedProvider()}, replica="well")
    await fresh(edge)
    status, said = await ready(edge)
    assert (status, said["checks"]["provider"]) == (200, {"ok": True, "why": None, "callable": ["anthropic"]})


async def test_a_busy_sidecar_that_answers_late_is_not_taken_for_gone(nc: Client, nats_url: str) -> None:
    async with running_processor(nats_url, {"anthropic": ScriptedProvider()}):
        told = await nc.request("$SRV.STATS.sidecar", b"", timeout=5)

    async def late(msg: Msg) -> None:
        await asyncio.sleep(2 * snapshot_module.GATHER_S)
        await nc.publish(msg.reply, told.data)

    await listen(nc, "$SRV.STATS.sidecar", late)
    async with bridging(nats_url) as edge:
        assert (await ready(edge))[0] == 200


async def test_without_a_broker_it_is_not_ready_and_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    with nats_server(tmp_path) as url:
        async with bridging(url) as edge:
            assert (await ready(edge))[1]["checks"]["nats"]["ok"]
            broker = max(psutil.Process().children(), key=lambda child: (child.create_time(), child.pid))
            broker.suspend()  # the connection still looks well
            try:
                await fresh(edge)
                status, said = await ready(edge)
                assert (status, said["checks"]["nats"]["ok"]) == (503, False)
                assert all("not known" in said["checks"][check]["why"] for check in ("processor", "provider"))
                async with edge.client.get("/health") as response:
                    assert response.status == 200
                assert (await snapshot(edge))["state"] == "no_broker"
            finally:
                broker.resume()


async def test_what_cannot_be_found_out_in_time_is_not_ready(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(collector: snapshot_module.Collector) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(snapshot_module.Collector, "_round", hangs)
    monkeypatch.setattr(snapshot_module, "LATEST_WITHIN_S", 0.1)
    async with bridging(nats_url) as edge:
        status, said = await ready(edge)
        assert (status, said["ready"], said["checks"]["nats"]["ok"]) == (503, False, False)
        async with edge.client.get("/metrics") as response:
            assert (response.status, orjson.loads(await response.read())["error"]["type"]) == (503, "unavailable")


async def test_a_connection_that_was_lost_for_good_is_looked_through_anew(
    nc: Client, nats_url: str, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    buses: list[Bus] = []
    connect = Bus.connect

    async def noted(bus: Bus, *args: Any, **named: Any) -> None:
        buses.append(bus)
        await connect(bus, *args, **named)

    monkeypatch.setattr(Bus, "connect", noted)
    async with bridging(nats_url) as other:
        await start({"anthropic": ScriptedProvider()})
        await wait_until(lambda: is_left(other, ["test"]))
        await buses[0].nc.close()
        await wait_until(lambda: len(buses) > 2)
        await fresh(other)
        await wait_until(lambda: is_left(other, ["test"]))
