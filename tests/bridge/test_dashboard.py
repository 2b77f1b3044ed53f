"""The dashboard in a real browser, over a whole sidecar with scripted vendors."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from axe_playwright_python.async_playwright import Axe
from nats.aio.client import Client
from playwright.async_api import Page, expect
from prometheus_client.parser import text_string_to_metric_families

from providers.base import Finished, FinishReason, Opened, Prompt, Text, TextDelta, Usage
from providers.errors import Overloaded
from providers.scripted import Pause, ScriptedProvider, Step, echo
from tests.bridge.browser import Viewed, browsing, viewing
from tests.bridge.edge import Edge, bridging
from tests.conftest import StartProcessor
from tests.talk import body
from tests.wait import wait_until

PHONE = {"viewport": {"width": 360, "height": 740}}
SLOW = "take your time"
FAIL = "fail"
MARKUP = "<b>bold</b> <img src=x onerror=alert(1)> &amp;"


def script(prompt: Prompt) -> Sequence[Step]:
    """Echoes; fails where the text says so; or says one word and then nothing for long."""
    text = next(p.text for m in reversed(prompt.messages) for p in m.parts if isinstance(p, Text))
    if text.startswith(FAIL):
        return [Overloaded("too busy")]
    if text.startswith(SLOW):
        usage = Usage(input_fresh=3, output_visible=2, raw={})
        return [Opened(), TextDelta("Begun"), Pause(60), Finished(FinishReason.STOP, usage, prompt.model)]
    return echo(prompt)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with browsing(tmp_path_factory.mktemp("chromium")) as driven_at:
        yield driven_at


@pytest.fixture
async def viewed(chromium: str, edge: Edge) -> AsyncIterator[Viewed]:
    async with viewing(chromium, edge.url) as page:
        yield page


async def live(page: Page) -> None:
    await expect(page.locator("#state")).to_have_text("live")


async def metrics(edge: Edge) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """The series of /metrics by name and labels, summed over replicas."""
    async with edge.client.get("/metrics") as response:
        text = await response.text()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "replica"))
            series = found.setdefault(sample.name, {})
            series[labels] = series.get(labels, 0.0) + sample.value
    return found


# --- what it shows --------------------------------------------------------------------------


async def test_its_figures_are_those_of_metrics_its_graphs_are_drawn_and_it_complains_of_nothing(
    edge: Edge, viewed: Viewed, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(script)}, max_retries=0)
    for text in ("one", "one two", "one two three", FAIL):
        await edge.post(body(text, priority="high", fallback=False), "/api/chat")
    await live(viewed.page)
    await expect(viewed.page.locator("#lanes [data-lane=high] td").nth(5)).to_have_text("3")
    await expect(viewed.page.locator("#lanes [data-lane=high] td").nth(7)).to_have_text("1")
    shown, said = await viewed.table("#lanes"), await metrics(edge)
    for lane, row in shown.items():
        ended = {
            dict(k)["outcome"]: n for k, n in said["sidecar_requests_ended_total"].items() if dict(k)["lane"] == lane
        }
        assert int(row["Completed"]) == ended.get("completed", 0)
        assert int(row["Failed"]) == ended.get("failed", 0)
    models = await viewed.table(".provider table.models")
    calls = {dict(k)["model"]: n for k, n in said["sidecar_calls_total"].items()}
    assert int(models["haiku"]["Calls"]) == calls["haiku"] == 4
    for name in ("rate", "queue"):
        await expect(viewed.page.locator(f"#{name}-chart canvas")).to_be_visible()
        said_in_words = await viewed.page.locator(f"#{name}-chart").get_attribute("aria-label")
        assert "Now: critical" in (said_in_words or "")
    assert viewed.errors == []


async def test_without_the_graphs_library_it_says_so_and_shows_the_rest(
    chromium: str, edge: Edge, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with viewing(chromium, "about:blank") as viewed:
        await viewed.page.route("**/vendor/*", lambda route: route.fulfill(status=404))
        await viewed.page.goto(edge.url)
        await live(viewed.page)
        await expect(viewed.page.get_by_text("python hatch_build.py")).to_be_visible()
        assert (await viewed.table("#lanes"))["low"]["Queued"] == "0"


async def test_after_the_bridge_has_restarted_it_goes_on_by_itself(
    chromium: str, nc: Client, nats_url: str, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    async with bridging(nats_url) as first:
        port = int(first.url.rpartition(":")[2])
        context = viewing(chromium, first.url)
        viewed = await context.__aenter__()
        await live(viewed.page)
        assert viewed.errors == []
    try:
        await expect(viewed.page.locator("#state")).to_have_text("reconnecting")
        await expect(viewed.page.locator("body")).to_have_class("stale")
        await expect(viewed.page.locator("#banner")).to_contain_text("taken up again by itself")
        async with bridging(nats_url, sidecar_port=port) as second:
            await live(viewed.page)
            await expect(viewed.page.locator("body")).not_to_have_class("stale")
            await second.post(body("one", priority="low"), "/api/chat")
            await expect(viewed.page.locator("#lanes [data-lane=low] td").nth(5)).to_have_text("1")
            await expect(viewed.page.locator("#request-rows tr")).to_have_count(1)
    finally:
        await context.__aexit__(None, None, None)


async def test_it_says_that_no_sidecar_runs_and_when_one_does(viewed: Viewed, start: StartProcessor) -> None:
    await expect(viewed.page.locator("#banner")).to_contain_text("No sidecar answers")
    await start({"anthropic": ScriptedProvider()})
    await expect(viewed.page.locator("#banner")).to_be_hidden()
    await expect(viewed.page.locator("#replicas")).to_have_text("1 replica")
    assert viewed.errors == []


# --- what it does ---------------------------------------------------------------------------


async def test_a_request_in_flight_is_cancelled_with_its_button_which_keeps_the_focus_while_others_go(
    nc: Client, edge: Edge, viewed: Viewed, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(script)
    await start({"anthropic": vendor})
    for number in (1, 2):
        text, headers = body(f"{SLOW} {number}"), {"Nats-Msg-Id": f"order-{number}"}
        await nc.publish("llm.request.high", text, reply=nc.new_inbox(), headers=headers)
        await expect(viewed.page.get_by_role("button", name=f"Cancel order-{number}")).to_be_visible()
    cancel = viewed.page.get_by_role("button", name="Cancel order-2")
    await cancel.focus()
    async with edge.client.delete("/api/requests/order-1") as response:
        assert response.status == 202
    await expect(viewed.page.locator("#in-flight-rows tr")).to_have_count(1)
    await expect(cancel).to_be_focused()
    await viewed.page.keyboard.press("Enter")
    await wait_until(lambda: vendor.cancelled == 2)
    await expect(cancel).to_have_count(0)
    await expect(viewed.page.locator("#request-rows tr[data-outcome=cancelled]")).to_have_count(2)
    assert viewed.errors == []


async def test_trying_it_streams_and_tells_of_the_route_the_cost_and_the_time(
    edge: Edge, viewed: Viewed, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(script)})
    await live(viewed.page)
    await viewed.page.fill("#try-text", MARKUP)
    await viewed.page.press("#try-text", "Control+Enter")
    await expect(viewed.page.locator("#try-state")).to_have_text("done")
    await expect(viewed.page.locator("#try-answer")).to_have_text(MARKUP)
    assert await viewed.page.locator("#try-answer *").count() == 0
    facts = await viewed.text("#try-facts")
    for fact in ("haiku · anthropic", "Route", "Cost", "first token"):
        assert fact in facts
    await viewed.page.locator("#try-route summary").click()
    await viewed.page.locator("#try-route button").click()
    await expect(viewed.page.locator("#trail-steps > li")).to_have_count(4)
    assert viewed.errors == []


async def test_text_of_an_attempt_that_broke_is_taken_back(viewed: Viewed, start: StartProcessor) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("lost "), Overloaded("it broke")])
    await start({"anthropic": broken, "groq": ScriptedProvider()})
    await live(viewed.page)
    seen = await viewed.page.evaluate_handle(
        """() => {
            const seen = [], answer = document.getElementById("try-answer");
            new MutationObserver(() => seen.push(answer.textContent)).observe(answer, {childList: true});
            return seen;
        }"""
    )
    await viewed.page.fill("#try-text", "found again")
    await viewed.page.click("#try-send")
    await expect(viewed.page.locator("#try-state")).to_have_text("done")
    texts = await seen.json_value()
    assert any(text.startswith("lost") for text in texts)
    assert texts[-1] == "found again"
    assert not any("lost" in text and "found" in text for text in texts)


async def test_stop_ends_the_call_and_keeps_what_has_come_and_a_refusal_is_shown_as_it_was_said(
    viewed: Viewed, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(script)
    await start({"anthropic": vendor}, max_retries=0)
    await live(viewed.page)
    await viewed.page.fill("#try-text", SLOW)
    await viewed.page.click("#try-send")
    await expect(viewed.page.locator("#try-answer")).to_have_text("Begun")
    await viewed.page.click("#try-stop")
    await expect(viewed.page.locator("#try-state")).to_have_text("stopped")
    await wait_until(lambda: vendor.cancelled == 1)
    await expect(viewed.page.locator("#try-answer")).to_have_text("Begun")
    await viewed.page.fill("#try-text", FAIL)
    await viewed.page.click("#try-send")
    await expect(viewed.page.locator("#try-state")).to_contain_text("too busy")


async def test_recent_requests_are_searched_and_one_opens_its_trail_by_keyboard(
    edge: Edge, viewed: Viewed, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(script)})
    _, one = await edge.post(body("one", tenant="shop"), "/api/chat")
    await edge.post(body("two", tenant="bank"), "/api/chat")
    rows = viewed.page.locator("#request-rows tr")
    await expect(rows).to_have_count(2)
    await viewed.page.fill("#search-input", "shop")
    await expect(rows).to_have_count(1)
    await expect(viewed.page.locator("#search-said")).to_contain_text("1 request found")
    button = viewed.page.get_by_role("button", name=one["id"])
    await button.focus()
    await viewed.page.keyboard.press("Enter")
    steps = viewed.page.locator("#trail-steps > li")
    await expect(steps).to_have_count(4)
    assert [await step.get_attribute("data-event") for step in await steps.all()] == [
        *("received", "routed", "attempt", "completed")
    ]
    assert viewed.page.url.endswith(f"#request={one['id']}")
    await viewed.page.keyboard.press("Escape")
    await expect(viewed.page.locator("#trail")).to_be_hidden()
    await expect(button).to_be_focused()
    assert viewed.errors == []


# --- for whom -------------------------------------------------------------------------------


async def faults(page: Page) -> list[str]:
    """What axe finds, as it would say it, and whether the page is wider than its screen."""
    found = (await Axe().run(page)).response["violations"]
    said = [
        f"{fault['id']}: {node['html'][:120]}: {node['failureSummary']}" for fault in found for node in fault["nodes"]
    ]
    width, screen = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return said + ([f"{width} wide on a screen of {screen}"] if width > screen else [])


@pytest.mark.parametrize(
    "context", [{"color_scheme": "light"}, {"color_scheme": "dark", **PHONE}], ids=["light desktop", "dark phone"]
)
async def test_it_is_readable_named_and_no_wider_than_the_screen(
    chromium: str, nc: Client, edge: Edge, start: StartProcessor, context: dict[str, Any]
) -> None:
    await start({"anthropic": ScriptedProvider(script)}, max_retries=0, monthly_budget_alert=1.0, shutdown_grace=0)
    for text in ("one", FAIL):
        await edge.post(body(text, priority="high", fallback=False, tenant="t" * 64), "/api/chat")
    await nc.publish("llm.request.low", body(SLOW), reply=nc.new_inbox(), headers={"Nats-Msg-Id": "x" * 128})
    async with viewing(chromium, edge.url, **context) as viewed:
        await nc.publish("llm.alert.critical", orjson.dumps(ALERT))
        await expect(viewed.page.locator("#in-flight-rows tr")).to_have_count(1)
        await expect(viewed.page.locator("#request-rows tr")).to_have_count(2)
        await expect(viewed.page.locator("#alert-rows li")).not_to_have_count(0)
        assert await faults(viewed.page) == []
        await viewed.page.locator("#request-rows button").first.click()
        await expect(viewed.page.locator("#trail-steps > li")).not_to_have_count(0)
        assert await faults(viewed.page) == []
        assert viewed.errors == []


ALERT = {
    "v": 1,
    "at": "2026-11-30T07:44:51Z",
    "severity": "critical",
    "kind": "k",
    "message": "m" * 300,
    "replica": "r",
}


async def test_everything_can_be_reached_by_keyboard(viewed: Viewed, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    await live(viewed.page)
    await viewed.page.keyboard.press("Tab")
    await expect(viewed.page.locator(".skip")).to_be_focused()
    await viewed.page.keyboard.press("Enter")
    await expect(viewed.page.locator("#main")).to_be_focused()
    await viewed.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    seen = list[str]()
    for _ in range(40):
        await viewed.page.keyboard.press("Tab")
        seen.append(await viewed.page.evaluate("document.activeElement.id || document.activeElement.className"))
        ring = await viewed.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or seen[-1] == "", seen
    assert {"theme", "search-input", "refresh", "try-text", "try-model", "try-lane", "try-send"} <= set(seen)


async def test_the_theme_is_the_systems_until_it_is_chosen_and_the_choice_stays(viewed: Viewed) -> None:
    async def background() -> str:
        return str(await viewed.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    await viewed.page.emulate_media(color_scheme="light")
    light = await background()
    await viewed.page.emulate_media(color_scheme="dark")
    dark = await background()
    assert dark != light
    await viewed.page.click("#theme")
    await expect(viewed.page.locator("#theme")).to_have_text("Theme: light")
    assert await background() == light
    await viewed.page.reload()
    await expect(viewed.page.locator("#theme")).to_have_text("Theme: light")
    assert await background() == light


async def test_a_key_is_asked_for_until_it_is_known_and_one_that_is_no_operators_still_tries_and_lists_its_own(
    chromium: str, nc: Client, nats_url: str, start: StartProcessor, tmp_path: Path
) -> None:
    await start({"anthropic": ScriptedProvider(script)})
    keys = {name: f"sk-sidecar-{name}-{'x' * 40}" for name in ("boss", "shop", "unknown")}
    hashes = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}
    (tmp_path / "keys.toml").write_text(
        f'[keys.boss]\nsha256 = "{hashes["boss"]}"\noperator = true\n'
        f'[keys.shop]\nsha256 = "{hashes["shop"]}"\ntenant = "shop"\n',
        "utf-8",
    )
    async with (
        bridging(nats_url, sidecar_api_keys=str(tmp_path / "keys.toml")) as edge,
        viewing(chromium, edge.url) as viewed,
    ):
        asked = {"Authorization": f"Bearer {keys['boss']}"}
        async with edge.client.post("/api/chat", data=body("not the shop's", tenant="bank"), headers=asked) as response:
            assert response.status == 200
        for name, why in (("unknown", "valid API key"), ("shop", "valid API key"), (None, "an operator's")):
            await expect(viewed.page.locator("#key-why")).to_contain_text(why)
            if name is not None:
                await viewed.page.get_by_label("Key", exact=True).fill(keys[name])
                await viewed.page.keyboard.press("Enter")
        await viewed.page.keyboard.press("Escape")
        await expect(viewed.page.locator("#banner")).to_contain_text("not an operator's")
        await viewed.page.fill("#try-text", "one two")
        await viewed.page.click("#try-send")
        await expect(viewed.page.locator("#try-state")).to_have_text("done")
        await viewed.page.click("#refresh")
        await expect(viewed.page.locator("#search-said")).to_contain_text("1 request, all")
        await viewed.page.click("#key-button")
        await viewed.page.get_by_label("Key", exact=True).fill(keys["boss"])
        await viewed.page.keyboard.press("Enter")
        await live(viewed.page)
        await expect(viewed.page.locator("#request-rows tr")).to_have_count(2)
        page = await viewed.page.content()
        assert not any(key in page for key in keys.values())
