"""What a replica counts of itself, compared with what was done: every request in one outcome, every call once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from processor import subjects
from processor.jetstream import JetStreamUnavailable
from processor.replies import Ending, Replies
from processor.service import Processor
from providers.base import Opened, Prompt, Text
from providers.errors import ModelGone, VendorError
from providers.scripted import Pause, ScriptedProvider, Step
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer, slow
from tests.talk import ask, ask_stream, body, read
from tests.wait import wait_until


def lane(processor: Processor, name: str = "high") -> dict[str, Any]:
    counted: dict[str, Any] = processor.figures()["metrics"]["lanes"][name]
    return counted


def model(processor: Processor, name: str = "haiku") -> dict[str, Any]:
    counted: dict[str, Any] = processor.figures()["metrics"]["models"][name]
    return counted


def nobody_is_missing(processor: Processor) -> bool:
    """Of every lane: what was received has an outcome, was given back, or is in work."""
    figures = processor.figures()
    lanes = figures["metrics"]["lanes"].values()
    settled = sum(sum(one["outcomes"].values()) + one["given_back"] for one in lanes)
    return bool(sum(one["received"] for one in lanes) == settled + figures["running"])


async def test_every_request_is_counted_in_one_outcome_and_every_call_once(nc: Client, start: StartProcessor) -> None:
    def by_text(prompt: Prompt) -> Sequence[Step]:
        said = next(part.text for part in prompt.messages[-1].parts if isinstance(part, Text))
        if said == "fail":
            return [VendorError("broken", status=500)]
        return [Opened(), Pause(60)] if said == "hang" else answer()

    processor = await start({"anthropic": ScriptedProvider(by_text)}, enable_cache=True, max_retries=0)
    await ask(nc, body("one"))
    await ask(nc, body("one"))  # from the cache
    await ask_stream(nc, body("two", stream=True))
    await ask(nc, body("fail", fallback=False))
    await ask(nc, body("hang", deadline_ms=200))
    hanging = asyncio.create_task(ask(nc, body("hang"), Nats_Msg_Id="job-1"))
    await wait_until(lambda: [one["state"] for one in processor.figures()["in_flight"]] == ["calling"])
    await nc.publish("llm.cancel.job-1", b"")
    await hanging
    await ask(nc, body(temperature=9))  # not let in
    await nc.jetstream().publish("llm.request.high.job-2", b"no json")
    await wait_until(lambda: lane(processor)["outcomes"]["dead"] == 1)
    await wait_until(lambda: processor.load()["running"] == 0)

    counted = lane(processor)
    assert counted["outcomes"] == {"completed": 3, "failed": 1, "cancelled": 1, "expired": 1, "dead": 1}
    assert counted["answered_from"] == {"call": 2, "cached": 1, "coalesced": 0}
    assert counted["failed_by"] == {"unavailable": 1, "invalid_request": 1}
    assert counted["refused"] == {"invalid_request": 1}
    assert (counted["received"], sum(counted["wait"]["counts"]), sum(counted["recent_wait"])) == (7, 7, 7)
    assert nobody_is_missing(processor)

    called = model(processor)
    assert (called["calls"], called["errors"]) == (5, {"vendor_error": 1, "cancelled": 2})
    assert called["tokens"] == {"input": 20, "output": 10, "cache_read": 0, "cache_write": 0} | {
        "input": called["tokens"]["input"]  # what was cut off is charged by estimate
    }
    assert (called["recent"]["calls"], called["recent"]["errors"]) == (5, 1)
    assert (sum(called["duration"]["counts"]), sum(called["first_token"]["counts"])) == (2, 2)
    assert called["last_minute"]["requests"] == 5
    assert called["cost_usd"] > 0
    assert processor.figures()["metrics"]["models"].keys() == {"haiku"}


async def test_what_goes_on_elsewhere_is_given_back_and_not_lost(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": slow(60)}, shutdown_grace=0)
    await nc.jetstream().publish("llm.request.high.job-1", body())
    await wait_until(lambda: processor.load()["running"] == 1)
    processor.stop()
    await wait_until(lambda: processor.load()["running"] == 0)
    assert (lane(processor)["received"], lane(processor)["given_back"]) == (1, 1)
    assert nobody_is_missing(processor)


async def test_an_ending_whose_acknowledgement_was_lost_is_counted_all_the_same(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.worker._STORE_AGAIN_S", 0.01)
    store, tries = Replies.store, list[str]()

    async def stored_in_silence(replies: Replies, request_id: str, ending: Ending) -> bool:
        tries.append(request_id)
        first = await store(replies, request_id, ending)
        if len(tries) == 1:
            raise JetStreamUnavailable("no answer")
        return first

    monkeypatch.setattr(Replies, "store", stored_in_silence)
    processor = await start({"anthropic": ScriptedProvider(answer())})
    assert (await ask(nc, body()))["response"]
    await wait_until(lambda: processor.load()["running"] == 0)
    assert len(tries) == 2
    assert (lane(processor)["outcomes"]["completed"], lane(processor)["given_back"]) == (1, 0)


async def test_a_request_that_is_withdrawn_from_the_queue_has_an_outcome_too(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": slow(60)}, max_workers=1, critical_workers=0)
    first = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await wait_until(lambda: processor.load()["running"] == 1)
    refused = await ask(nc, body(deadline_ms=100), "low")
    assert refused["error"]["type"] == "deadline_exceeded"
    await wait_until(lambda: lane(processor, "low")["outcomes"]["expired"] == 1)
    assert lane(processor, "low")["received"] == 1
    await nc.publish("llm.cancel.job-1", b"")
    await first


async def test_requests_in_flight_are_listed_oldest_first_with_what_they_do(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text("[limits.anthropic]\nrpm = 1\ntpm = 1000000\n")
    processor = await start({"anthropic": slow(60)}, sidecar_catalog=own, rate_limit_buffer=0)
    for number in (1, 2):
        request = body(tenant=f"shop-{number}", stream=number == 1, fallback=False)
        await nc.jetstream().publish(f"llm.request.low.job-{number}", request)
        await wait_until(lambda: len(processor.figures()["in_flight"]) == number)  # noqa: B023  it is awaited here
    await wait_until(lambda: processor.load()["parked"] == 1)
    calling, waiting = processor.figures()["in_flight"]
    assert calling.pop("age_s") >= waiting.pop("age_s") >= 0
    seen: dict[str, Any] = {"lane": "low", "id": "job-1", "tenant": "shop-1", "model": "haiku"}
    assert calling == seen | {"state": "calling", "attempt": 1, "stream": True}
    seen = {"lane": "low", "id": "job-2", "tenant": "shop-2", "model": None}
    assert waiting == seen | {"state": "waiting", "attempt": 0, "stream": False}

    def taken() -> dict[str, Any]:
        anthropic = next(one for one in processor.figures()["providers"] if one["provider"] == "anthropic")
        return {limit.pop("metric"): limit for limit in anthropic["limits"]}

    await wait_until(lambda: taken()["rpm"] == {"used": 1, "limit": 1, "window_s": 60})
    assert (taken()["tpm"]["used"] > 0, taken()["tpm"]["limit"]) == (True, 1000000)
    assert [one["id"] for one in processor.figures(most_listed=1)["in_flight"]] == ["job-1"]
    for number in (1, 2):
        await nc.publish(subjects.cancel(f"job-{number}"), b"")
    await wait_until(lambda: processor.load()["running"] == 0)


async def test_an_open_breaker_is_shown_of_its_model_and_no_call_may_start(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": ScriptedProvider([ModelGone("gone", status=404)])}, max_retries=0)
    await ask(nc, body(fallback=False))
    shown = {one["provider"]: one for one in processor.figures()["providers"]}
    haiku = next(one for one in shown["anthropic"]["models"] if one["model"] == "haiku")
    assert (haiku["callable"], haiku["breaker"]["state"]) == (False, "open")
    assert 0 < haiku["breaker"]["ready_in_s"] <= 300
    assert shown["anthropic"]["breaker"] == {"state": "closed", "ready_in_s": 0}
    assert (shown["groq"]["configured"], shown["groq"]["models"]) == (False, [])
    rows = {row["model"]: row for row in read(await nc.request("llm.models", b"", timeout=2))["models"]}
    assert (rows["haiku"]["callable"], rows["haiku"]["why_not"]) == (False, "its circuit is open after failures")
    assert (rows["haiku-5.5"]["callable"], rows["haiku-5.5"]["why_not"]) == (True, None)
    assert (rows["haiku"]["first_token_s"], rows["haiku"]["room"]) == (None, None)  # nobody answered, and no limits
    assert rows["gemini"]["why_not"] == "provider gemini is not configured"
    assert (rows["haiku"]["cannot"], rows["haiku"]["tier"]) == (["json_object"], 3)
    assert rows["haiku"]["usd_per_million"] == {"input": 1, "output": 5, "cache_read": 0.1, "cache_write": 1.25}


async def test_without_metrics_nothing_is_counted_and_the_rest_is_shown(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": ScriptedProvider(answer())}, enable_metrics=False)
    assert (await ask(nc, body()))["response"] == "Hello."
    figures = processor.figures()
    assert figures["metrics"] is None
    assert {one["provider"] for one in figures["providers"] if one["configured"]} == {"anthropic"}


async def test_statistics_hold_all_figures_once(nc: Client, start: StartProcessor) -> None:
    processor = await start({"anthropic": ScriptedProvider()})
    told = read(await nc.request("$SRV.STATS.sidecar", b"", timeout=2))["endpoints"]
    by_name = {endpoint["name"]: endpoint["data"] for endpoint in told}
    assert by_name["models"].keys() == processor.figures().keys()
    assert by_name["route"].keys() == by_name["usage"].keys() == processor.load().keys()
