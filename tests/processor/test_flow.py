"""Between a lane and a vendor: limits, Retry-After, breakers, parking, and what the reply says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from processor import worker
from processor.admission import Admission
from processor.breaker import DEFAULT
from processor.service import Processor
from processor.worker import Worker
from providers.base import Finished, FinishReason, Opened, Prompt, Quota, TextDelta, Usage, UsageSeen
from providers.errors import (
    BadCredentials,
    InvalidPrompt,
    ModelNoise,
    Overloaded,
    RateLimited,
    StreamCut,
    VendorError,
)
from providers.scripted import Pause, ScriptedProvider, Step
from tests.conftest import StartProcessor, running_processor
from tests.processor.test_end_to_end import answer, slow
from tests.talk import all_audit_events, ask, ask_stream, body, stored
from tests.wait import wait_until


def overlay(tmp_path: Path, text: str) -> dict[str, Any]:
    """The setting for a catalog with `text` laid over the shipped one."""
    path = tmp_path / "catalog.toml"
    path.write_text(text, "utf-8")
    return {"sidecar_catalog": path}


def failing_first(times: int, error: Exception, then: Sequence[Step] = ()) -> ScriptedProvider:
    """Fails so many times, then answers."""
    calls = 0

    def script(prompt: Prompt) -> Sequence[Step]:
        nonlocal calls
        calls += 1
        return [error] if calls <= times else then or answer()  # type: ignore[list-item]

    return ScriptedProvider(script)


async def queued(nc: Client) -> int:
    return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages


async def called(vendor: ScriptedProvider) -> None:
    await wait_until(lambda: vendor.calls)


async def at_rest(processor: Processor) -> None:
    await wait_until(lambda: not processor._worker.running)


# --- limits ---------------------------------------------------------------------------------


async def test_a_limited_model_is_passed_over_at_once_and_the_reply_says_why(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    groq = ScriptedProvider(answer(model="openai/gpt-oss-20b"))
    providers = {"anthropic": ScriptedProvider(answer()), "groq": groq}
    await start(providers, **overlay(tmp_path, "[limits.anthropic]\nrpm = 1"))
    assert (await ask(nc, body()))["model"] == "haiku"
    second = await ask(nc, body())
    assert (second["provider"], second["attempts"]) == ("groq", 1)
    considered = {c["model"]: c["reason"] for c in second["route"]["considered"]}
    assert "1 request a minute" in considered["haiku"] or "1 requests a minute" in considered["haiku"]


async def test_over_the_limit_and_no_time_to_wait_is_told_at_once_with_the_time_to_come_back(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    await start({"anthropic": ScriptedProvider(answer())}, **overlay(tmp_path, "[limits.anthropic]\nrpm = 1"))
    await ask(nc, body(fallback=False))
    error = (await ask(nc, body(fallback=False, deadline_ms=5000)))["error"]
    assert error["type"] == "rate_limited"
    assert 50 <= error["retry_after_s"] <= 63


async def test_critical_may_use_what_is_kept_for_it(nc: Client, start: StartProcessor, tmp_path: Path) -> None:
    limits = overlay(tmp_path, "[limits.anthropic]\nrpm = 2")
    await start({"anthropic": ScriptedProvider(answer())}, rate_limit_buffer=0.5, **limits)
    await ask(nc, body(fallback=False))
    assert (await ask(nc, body(fallback=False)))["error"]["type"] == "rate_limited"
    assert "response" in await ask(nc, body(fallback=False), "critical")


async def test_a_request_larger_than_its_limit_is_told_so_and_not_queued_for_ever(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor}, **overlay(tmp_path, "[limits.anthropic]\ntpm = 100"))
    error = (await ask(nc, body("word " * 1000, fallback=False)))["error"]
    assert (error["type"], vendor.calls) == ("too_large", 0)


async def test_no_reservation_is_left_over_whatever_happened(nc: Client, start: StartProcessor) -> None:
    broken = ScriptedProvider([Opened(), TextDelta("x"), VendorError("boom")])
    processor = await start({"anthropic": broken, "groq": ScriptedProvider(answer())}, max_retries=1)
    endless = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await ask_stream(nc, body(stream=True))
    await ask(nc, body(fallback=False, deadline_ms=300))
    await endless
    await wait_until(lambda: processor.limits.outstanding == 0)


async def test_a_cancelled_call_leaves_no_reservation(nc: Client, start: StartProcessor) -> None:
    vendor = slow(60)
    processor = await start({"anthropic": vendor})
    asking = asyncio.create_task(ask(nc, body(), Nats_Msg_Id="job-1"))
    await wait_until(lambda: vendor.calls)
    assert processor.limits.outstanding == 1
    await nc.publish("llm.cancel.job-1")
    assert (await asking)["error"]["type"] == "cancelled"
    assert processor.limits.outstanding == 0


async def test_an_answer_that_the_deadline_cut_off_is_charged_and_counted_by_its_prompt(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    vendor = ScriptedProvider([Pause(60), *answer()])
    await start({"anthropic": vendor}, **overlay(tmp_path, "[limits.anthropic]\ntpm = 1000"))
    prompt = "word " * 400  # about 500 tokens
    error = (await ask(nc, body(prompt, fallback=False, deadline_ms=300), Nats_Msg_Id="job-1"))["error"]
    assert error["type"] == "deadline_exceeded"
    events = await wait_until(lambda: all_audit_events(nc, "job-1", 4))
    attempt = next(event for event in events if event["event"] == "attempt")
    assert (attempt["cost_estimated"], attempt["usage"]["input_fresh"] >= 500) == (True, True)
    assert attempt["cost_usd"] > 0
    again = (await ask(nc, body(prompt, fallback=False, deadline_ms=5000)))["error"]
    assert (again["type"], vendor.calls) == ("rate_limited", 1)


async def test_what_a_vendor_refused_costs_nothing(nc: Client, start: StartProcessor) -> None:
    providers = {"anthropic": ScriptedProvider([Overloaded("busy", status=529)]), "groq": ScriptedProvider(answer())}
    await start(providers)
    reply = await ask(nc, body("word " * 400))
    attempts = [e for e in await wait_until(lambda: all_audit_events(nc, reply["id"], 5)) if e["event"] == "attempt"]
    assert (attempts[0]["cost_usd"], attempts[0]["cost_estimated"]) == (0, False)


async def test_a_broken_attempt_is_in_the_replys_cost(nc: Client, start: StartProcessor) -> None:
    cut: list[Step] = [Opened(), UsageSeen(Usage(10_000)), TextDelta("x"), StreamCut("cut")]
    await start({"anthropic": ScriptedProvider(cut), "groq": ScriptedProvider(answer(model="openai/gpt-oss-20b"))})
    reply = await ask(nc, body())
    attempts = [e for e in await wait_until(lambda: all_audit_events(nc, reply["id"], 5)) if e["event"] == "attempt"]
    first, second = (attempt["cost_usd"] for attempt in attempts)
    assert first > 0.009
    assert reply["cost_usd"] == pytest.approx(first + second)
    assert reply["cost_estimated"] is True


async def test_a_provider_that_fails_in_a_way_of_its_own_is_replaced_like_any_other(
    nc: Client, start: StartProcessor
) -> None:
    def script(prompt: Prompt) -> Sequence[Step]:
        raise AssertionError("something in an SDK")

    await start({"anthropic": ScriptedProvider(script), "groq": ScriptedProvider(answer(model="openai/gpt-oss-20b"))})
    replies = [await ask(nc, body()) for _ in range(7)]
    assert {reply["provider"] for reply in replies} == {"groq"}
    assert "circuit is open" in str(replies[-1]["route"]["considered"])


async def test_what_a_vendors_cache_holds_takes_nothing_of_the_limits(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    cached: list[Step] = [Opened(), TextDelta("x"), Finished(FinishReason.STOP, Usage(10, cache_read=490), "m")]
    await start({"anthropic": ScriptedProvider(cached)}, **overlay(tmp_path, "[limits.anthropic]\ntpm = 2000"))
    for _ in range(10):
        reply = await ask(nc, body("word " * 400, fallback=False, max_tokens=10))
        assert reply["usage"]["cache_read_tokens"] == 490


# --- Retry-After ----------------------------------------------------------------------------


async def test_a_parked_request_holds_no_worker(nc: Client, start: StartProcessor) -> None:
    throttled = failing_first(1, RateLimited("slow down", retry_after_s=1.0))
    groq = ScriptedProvider(answer(model="openai/gpt-oss-20b"))
    await start({"anthropic": throttled, "groq": groq}, max_workers=1)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    parked = asyncio.create_task(ask(nc, body(fallback=False)))
    await wait_until(lambda: throttled.calls)
    assert (await ask(nc, body(model="gpt-oss-20b", fallback=False)))["provider"] == "groq"
    assert loop.time() - begun < 1.0
    assert (await parked)["attempts"] == 2
    assert loop.time() - begun >= 1.0


async def test_nobody_calls_a_vendor_that_asked_to_wait(nc: Client, start: StartProcessor) -> None:
    throttled = failing_first(1, RateLimited("slow down", retry_after_s=0.8))
    await start({"anthropic": throttled})
    first = asyncio.create_task(ask(nc, body(fallback=False)))
    await wait_until(lambda: throttled.calls)
    others = [asyncio.create_task(ask(nc, body(model=m, fallback=False))) for m in ("haiku", "sonnet")]
    await asyncio.wait({first, *others}, timeout=0.5)
    assert throttled.calls == 1
    assert all("response" in reply for reply in await asyncio.gather(first, *others))


async def test_a_retry_after_of_hours_fails_over_and_freezes_no_other_model_of_the_provider(
    nc: Client, start: StartProcessor
) -> None:
    def script(prompt: Prompt) -> Sequence[Step]:
        if "haiku-4-5" in prompt.model:
            return [RateLimited("a day's limit", retry_after_s=7200)]
        return answer(model=prompt.model)

    vendor = ScriptedProvider(script)
    await start({"anthropic": vendor})
    first = await ask(nc, body())
    assert (first["provider"], first["attempts"]) == ("anthropic", 2)
    assert (await ask(nc, body(model="sonnet", fallback=False)))["attempts"] == 1
    error = (await ask(nc, body(fallback=False)))["error"]
    assert (error["type"], 7100 < error["retry_after_s"] <= 7201) == ("rate_limited", True)


async def test_a_pinned_model_whose_vendor_asks_for_hours_is_told_as_limited_the_first_time_too(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider([RateLimited("a day's limit", retry_after_s=7200)])})
    error = (await ask(nc, body(fallback=False)))["error"]
    assert (error["type"], 7100 < error["retry_after_s"] <= 7201) == ("rate_limited", True)


async def test_what_a_vendor_says_is_left_counts_from_when_it_said_so(nc: Client, start: StartProcessor) -> None:
    def script(prompt: Prompt) -> Sequence[Step]:
        long = "long" in str(prompt.messages)
        left = Quota("rpm", None, 40 if long else 0, 30.0)
        return [Opened("r", (left,)), Pause(1.0 if long else 0), *answer()[1:]]

    vendor = ScriptedProvider(script)
    await start({"anthropic": vendor})
    first = asyncio.create_task(ask(nc, body("long", fallback=False)))
    await wait_until(lambda: vendor.calls)
    await ask(nc, body("short", fallback=False))
    await first  # its older word comes to its end last, and lifts nothing
    error = (await ask(nc, body("third", fallback=False, deadline_ms=5_000)))["error"]
    assert (error["type"], "the vendor says" in error["message"]) == ("rate_limited", True)


async def test_what_a_fallback_calls_wrong_does_not_end_the_request(nc: Client, start: StartProcessor) -> None:
    providers = {
        "anthropic": ScriptedProvider([Overloaded("busy", status=529)]),
        "groq": ScriptedProvider([InvalidPrompt("property 'x' is unsupported", status=400)]),
        "gemini": ScriptedProvider(answer(model="gemini-2.5-flash")),
    }
    await start(providers)
    assert (await ask(nc, body()))["provider"] == "gemini"


async def test_a_request_without_a_deadline_rests_in_the_queue_for_hours_and_is_not_lost(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.outcome.HAND_BACK_S", 0.3)
    monkeypatch.setattr("processor.outcome.LONGEST_PARK_S", 0.1)
    throttled = failing_first(1, RateLimited("a day's limit", retry_after_s=1.5))
    await start({"anthropic": throttled})
    await nc.jetstream().publish("llm.request.low.job-1", body(fallback=False))
    reply = await wait_until(lambda: stored(nc, "job-1"))
    assert reply["response"] == "Hello."
    assert throttled.calls == 2
    await wait_until(lambda: none_queued(nc))


async def none_queued(nc: Client) -> bool:
    return await queued(nc) == 0


async def test_parked_requests_are_bounded_and_the_lane_pulls_no_more(nc: Client, start: StartProcessor) -> None:
    throttled = failing_first(1, RateLimited("slow down", retry_after_s=2.0))
    processor = await start({"anthropic": throttled}, max_parked=3, max_workers=2)
    ids = [f"job-{n}" for n in range(20)]
    for request_id in ids:
        await nc.jetstream().publish(f"llm.request.low.{request_id}", body(fallback=False))
    await wait_until(lambda: throttled.calls and len(processor._worker.running) >= 3)
    most = 0

    async def all_answered() -> bool:
        nonlocal most
        most = max(most, len(processor._worker.running))
        return None not in [await stored(nc, request_id) for request_id in ids]

    await wait_until(all_answered, timeout_s=20)
    assert most <= 3 + 2
    assert processor._admission.parked == 0


async def test_a_parked_request_can_be_cancelled(nc: Client, start: StartProcessor) -> None:
    throttled = failing_first(1, RateLimited("slow down", retry_after_s=60))
    processor = await start({"anthropic": throttled})
    asking = asyncio.create_task(ask(nc, body(fallback=False, deadline_ms=100_000), Nats_Msg_Id="job-1"))
    await wait_until(lambda: processor._admission.parked)
    await nc.publish("llm.cancel.job-1")
    assert (await asking)["error"]["type"] == "cancelled"
    assert processor._admission.parked == 0


async def test_a_stopping_sidecar_hands_parked_requests_to_the_next_one_at_once(
    nc: Client, start: StartProcessor
) -> None:
    throttled = failing_first(1, RateLimited("slow down", retry_after_s=60))
    first = await start({"anthropic": throttled}, replica="first")
    asking = asyncio.create_task(ask(nc, body(deadline_ms=100_000, fallback=False)))
    await wait_until(lambda: first._admission.parked)
    await start({"groq": ScriptedProvider(answer()), "anthropic": throttled}, replica="second")
    first.stop()
    await wait_until(lambda: not first._worker.running, timeout_s=5)
    asking.cancel()


# --- breakers -------------------------------------------------------------------------------


async def test_after_five_failures_a_model_is_passed_over_without_a_call(nc: Client, start: StartProcessor) -> None:
    broken = ScriptedProvider([VendorError("boom")])
    groq = ScriptedProvider(answer(model="openai/gpt-oss-20b"))
    await start({"anthropic": broken, "groq": groq})
    replies = [await ask(nc, body()) for _ in range(8)]
    assert {reply["provider"] for reply in replies} == {"groq"}
    assert broken.calls == 5
    considered = {c["model"]: c["reason"] for c in replies[-1]["route"]["considered"]}
    assert "circuit is open" in considered["haiku"]


async def test_what_one_replica_found_broken_the_others_do_not_try(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    other, groq = ScriptedProvider([VendorError("boom")]), ScriptedProvider(answer(model="openai/gpt-oss-20b"))
    async with running_processor(nats_url, {"anthropic": ScriptedProvider()}, replica="first") as first:
        second = await start({"anthropic": other, "groq": groq}, replica="second")
        sonnet = first._catalog.models["sonnet"]
        for _ in range(5):
            first._health.failed(sonnet, VendorError("boom"), first._health.started(sonnet))
        await wait_until(lambda: second._health.refusal(sonnet))
    assert (await ask(nc, body(model="sonnet")))["provider"] == "groq"
    assert sonnet.id not in {prompt.model for prompt in other.prompts}


@pytest.mark.parametrize("error", [BadCredentials("your key is no good", status=401)])
async def test_a_dead_key_is_told_to_the_operator_and_the_next_provider_answers(
    nc: Client, start: StartProcessor, error: Exception
) -> None:
    alerts = await nc.subscribe("llm.alert.*")
    dead = ScriptedProvider([error])  # type: ignore[list-item]
    await start({"anthropic": dead, "groq": ScriptedProvider(answer(model="openai/gpt-oss-20b"))})
    for model in ("haiku", "sonnet", "haiku"):
        assert (await ask(nc, body(model=model)))["provider"] == "groq"
    alert = orjson.loads((await alerts.next_msg(timeout=2)).data)
    assert (alert["severity"], "your key is no good" in alert["message"]) == ("warning", True)
    assert dead.calls == 1


async def test_noise_of_the_model_gets_one_more_try_and_then_the_next_candidate(
    nc: Client, start: StartProcessor
) -> None:
    noisy = ScriptedProvider([ModelNoise("botched call")])
    await start({"anthropic": noisy})
    reply = await ask(nc, body(fallback=False))
    assert (reply["error"]["type"], noisy.calls) == ("unavailable", 2)


async def test_all_candidates_down_for_a_while_is_waited_out_within_the_deadline(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": failing_first(2, Overloaded("busy", status=529))})
    reply = await ask(nc, body(fallback=False))
    assert (reply["response"], reply["attempts"]) == ("Hello.", 3)


async def test_while_a_broken_vendor_is_probed_others_wait_for_the_verdict_and_not_for_the_probes_lease(
    nc: Client, start: StartProcessor
) -> None:
    failing = 5

    def script(prompt: Prompt) -> Sequence[Step]:
        nonlocal failing
        failing -= 1
        return [VendorError("boom")] if failing >= 0 else [Opened(), Pause(0.5), *answer()[1:]]

    processor = await start({"anthropic": ScriptedProvider(script)}, max_retries=0)
    processor._health.policy = replace(DEFAULT, open_s=0.3)
    for _ in range(5):
        await ask(nc, body(fallback=False))
    replies = await asyncio.gather(*[ask(nc, body(fallback=False, deadline_ms=20_000)) for _ in range(3)])
    assert [reply.get("response") for reply in replies] == ["Hello."] * 3


# --- hedging --------------------------------------------------------------------------------


async def test_a_critical_request_whose_first_token_is_late_asks_a_second_model_and_counts_the_loser(
    nc: Client, start: StartProcessor
) -> None:
    late = False

    def script(prompt: Prompt) -> Sequence[Step]:
        return [Opened(), Pause(60 if late else 0), *answer()[1:]]

    vendor = ScriptedProvider(script)
    groq = ScriptedProvider(answer("From the other.", model="openai/gpt-oss-20b"))
    processor = await start({"anthropic": vendor, "groq": groq}, hedge_critical=True)
    for _ in range(20):
        await ask(nc, body(), "critical")
    late = True
    reply = await ask(nc, body(), "critical")
    assert (reply["response"], reply["provider"], reply["attempts"]) == ("From the other.", "groq", 2)
    assert vendor.cancelled == 1
    await wait_until(lambda: processor.limits.outstanding == 0)
    attempts = [e for e in await wait_until(lambda: all_audit_events(nc, reply["id"], 5)) if e["event"] == "attempt"]
    costs = {attempt["provider"]: attempt["cost_usd"] for attempt in attempts}
    assert costs["anthropic"] > 0
    assert reply["cost_usd"] == pytest.approx(costs["anthropic"] + costs["groq"])


async def test_a_model_that_speaks_while_the_second_is_let_in_answers_alone(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = False

    def script(prompt: Prompt) -> Sequence[Step]:
        return [Opened(), Pause(0.3 if late else 0), *answer()[1:]]

    silent = ScriptedProvider([Opened(), Pause(60)])
    processor = await start({"anthropic": ScriptedProvider(script), "groq": silent}, hedge_critical=True)
    for _ in range(20):
        await ask(nc, body(), "critical")
    try_now = Admission.try_now

    async def slowly(*args: Any) -> Any:
        admitted = await try_now(*args)
        await asyncio.sleep(0.6)
        return admitted

    monkeypatch.setattr(Admission, "try_now", slowly)
    late = True
    reply = await ask(nc, body(), "critical", timeout=5)
    assert (reply["provider"], reply["attempts"], silent.calls) == ("anthropic", 1, 0)
    assert processor.limits.outstanding == 0


async def test_of_two_hedged_calls_that_both_fail_the_client_hears_why(nc: Client, start: StartProcessor) -> None:
    late = False

    def script(prompt: Prompt) -> Sequence[Step]:
        return [Pause(0.3), InvalidPrompt("bad", status=400)] if late else answer()

    await start({"anthropic": ScriptedProvider(script)}, hedge_critical=True)
    for _ in range(20):
        await ask(nc, body(), "critical")
    late = True
    assert (await ask(nc, body(), "critical"))["error"]["type"] == "invalid_request"


# --- poison ---------------------------------------------------------------------------------


async def test_a_request_that_takes_three_workers_down_is_buried_and_its_client_is_told(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_NAK_DELAY_S", 0.05)
    tries = 0

    async def die(*_: Any) -> None:
        nonlocal tries
        tries += 1
        raise RuntimeError("as if the worker had died")

    monkeypatch.setattr(Worker, "_answer", die)
    await start({"anthropic": ScriptedProvider(answer())})
    reply = await ask(nc, body(), Nats_Msg_Id="poison")
    assert (reply["error"]["type"], tries) == ("internal", 3)
    assert "3 workers died" in reply["error"]["message"]
    dead = await nc.jetstream().get_last_msg("LLM_DEAD", "llm.dead.high.poison")
    assert dead.data == body()


async def test_hand_backs_are_no_deaths(nc: Client, start: StartProcessor) -> None:
    await nc.jetstream().publish("llm.request.low.job-1", body())
    for n in range(5):
        endless = slow(60)
        replica = await start({"anthropic": endless}, replica=f"r{n}", shutdown_grace=0)
        await called(endless)
        replica.stop()
        await at_rest(replica)
    await start({"anthropic": ScriptedProvider(answer())})
    assert (await wait_until(lambda: stored(nc, "job-1")))["response"] == "Hello."


# --- the end of the deadline ----------------------------------------------------------------


async def test_an_ask_that_is_still_queued_at_its_deadline_is_told_then_and_not_when_its_turn_comes(
    nc: Client, start: StartProcessor
) -> None:
    endless = slow(60)
    await start({"anthropic": endless}, max_workers=1, shutdown_grace=0)
    running = [asyncio.create_task(ask(nc, body(fallback=False, deadline_ms=60_000), "low")) for _ in range(8)]
    await wait_until(lambda: endless.calls)
    error = (await ask(nc, body(deadline_ms=500), "low", timeout=5))["error"]
    assert (error["type"], endless.calls) == ("deadline_exceeded", 1)
    for task in running:
        task.cancel()


async def test_a_cancel_ends_a_request_that_is_still_queued(nc: Client, start: StartProcessor) -> None:
    endless = slow(60)
    await start({"anthropic": endless}, max_workers=1, shutdown_grace=0)
    for n in range(8):
        await nc.jetstream().publish(f"llm.request.low.job-{n}", body(fallback=False))
    await wait_until(lambda: endless.calls)
    await nc.publish("llm.cancel.job-7")
    assert (await wait_until(lambda: stored(nc, "job-7"), timeout_s=5))["error"]["type"] == "cancelled"

    async def withdrawn() -> bool:
        return await queued(nc) == 7

    await wait_until(withdrawn)
