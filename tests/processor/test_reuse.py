"""Answers without a call: the cache and the single flight, through the whole sidecar."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from processor.cache_stores import MemoryCache
from processor.service import Processor
from providers.base import Finished, FinishReason, Opened, Provider, TextDelta, ToolCallDelta, Usage
from providers.errors import BadCredentials, InvalidPrompt, VendorError
from providers.scripted import Pause, ScriptedProvider, Step
from tests.conftest import StartProcessor, redis_server, running_processor, short_folder
from tests.processor.test_end_to_end import answer, slow
from tests.talk import all_audit_events, ask, ask_stream, body, read
from tests.wait import wait_until


def in_turn(*scripts: Sequence[Step]) -> ScriptedProvider:
    """Plays another script at each call, the last one again and again."""
    left = list(scripts)
    return ScriptedProvider(lambda _: left.pop(0) if len(left) > 1 else left[0])


@pytest.fixture
def start(start: StartProcessor) -> StartProcessor:
    """With the cache, as it is where nobody turns it off."""

    async def with_cache(providers: Mapping[str, Provider], **settings: Any) -> Processor:
        return await start(providers, **{"enable_cache": True} | settings)

    return with_cache


COST = 0.000035  # of one answer(): 10 tokens in, 5 out


# --- the cache ----------------------------------------------------------------------------------


async def test_the_same_request_again_is_answered_without_a_call_and_says_what_it_saved(
    nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(answer("Blue."))
    processor = await start({"anthropic": vendor})
    first, second = await ask(nc, body("Why?")), await ask(nc, body("Why?"))
    assert vendor.calls == 1
    assert (first["cached"], first["cost_usd"], first["saved_usd"]) == (False, COST, 0)
    assert (second["cached"], second["cost_usd"], second["saved_usd"]) == (True, 0, COST)
    assert (second["response"], second["usage"], second["attempts"]) == ("Blue.", first["usage"], 0)
    assert second["route"]["reason"] == "from the cache: haiku was asked for"
    assert second["id"] != first["id"]
    assert processor.load()["cache"] == {"hits": 1, "misses": 1, "coalesced": 0, "saved_usd": COST}


async def test_what_a_lesser_model_answered_while_the_meant_one_was_out_is_not_kept(
    nc: Client, start: StartProcessor
) -> None:
    groq = ScriptedProvider(answer())
    await start({"anthropic": ScriptedProvider([BadCredentials("no", status=401)]), "groq": groq})
    for _ in range(3):
        reply = await ask(nc, body("Why?", model="auto", task_type="code"))
        assert (reply["provider"], reply["cached"]) == ("groq", False)
    assert groq.calls == 3


async def test_the_audit_log_says_that_an_answer_needed_no_call(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    await ask(nc, body("Why?"))
    await ask(nc, body("Why?"), Nats_Msg_Id="again")
    events = {e["event"]: e for e in await wait_until(lambda: all_audit_events(nc, "again", 3))}
    assert set(events) == {"received", "routed", "completed"}
    ended = events["completed"]
    assert (ended["cached"], ended["saved_usd"], ended["cost_usd"], ended["attempts"]) == (True, COST, 0, 0)


async def test_a_call_is_on_record_though_its_request_fails_after_it(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> bool:
        raise RuntimeError("the sidecar itself")

    monkeypatch.setattr("processor.reuse.may_enter", fails)
    await start({"anthropic": ScriptedProvider(answer())})
    assert (await ask(nc, body("Why?"), Nats_Msg_Id="paid"))["error"]["type"] == "internal"
    events = {e["event"]: e for e in await wait_until(lambda: all_audit_events(nc, "paid", 4))}
    assert (events["attempt"]["cost_usd"], events["failed"]["cost_usd"]) == (COST, COST)


async def test_who_cancels_while_the_answer_is_kept_has_it_all_the_same(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = asyncio.Event()

    async def keep(*_: Any) -> None:
        keeping.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(MemoryCache, "put", keep)
    await start({"anthropic": ScriptedProvider(answer())})
    asked = asyncio.create_task(ask(nc, body("Why?"), Nats_Msg_Id="paid"))
    await keeping.wait()
    await nc.publish("llm.cancel.paid")
    assert (await asked)["response"] == "Hello."
    events = {e["event"]: e for e in await wait_until(lambda: all_audit_events(nc, "paid", 4))}
    assert (events["attempt"]["cost_usd"], events["completed"]["cost_usd"]) == (COST, COST)


async def test_a_hit_is_streamed_to_whoever_asked_for_a_stream(nc: Client, start: StartProcessor) -> None:
    call = [ToolCallDelta(0, "t1", "weather", '{"city": "Kampala"}')]
    finished = Finished(FinishReason.TOOL_CALLS, Usage(10, output_visible=5), "claude-haiku-4-5-20251001")
    vendor = ScriptedProvider([Opened(), TextDelta("Let me "), TextDelta("look."), *call, finished])
    await start({"anthropic": vendor})
    tools = [{"name": "weather", "parameters": {"type": "object"}}]
    whole = await ask(nc, body("Why?", tools=tools))
    streamed = await ask_stream(nc, body("Why?", tools=tools, stream=True))
    assert vendor.calls == 1
    assert streamed.text() == "Let me look."
    assert streamed.events() == ["delta", "delta", "final"]
    assert streamed.seqs() == [0, 1, 2]
    pieces = [read(m).get("tool_call") for m in streamed.messages]
    assert {"index": 0, "id": "t1", "name": "weather", "arguments": '{"city": "Kampala"}'} in pieces
    assert streamed.final["tool_calls"] == whole["tool_calls"]


@pytest.mark.parametrize(
    ("fields", "again", "calls"),
    [
        ({}, {"cache": "skip"}, 2),
        ({}, {"cache": "refresh"}, 2),
        ({"cache": "skip"}, {}, 2),
        ({}, {"tenant": "another"}, 2),
        ({}, {"max_tokens": 7}, 2),
        ({}, {"metadata": {"run": "2"}, "deadline_ms": 5000, "stream": False}, 1),
        ({"temperature": 0.7}, {"temperature": 0.7}, 2),
        ({"temperature": 0.7, "cache": "use"}, {"temperature": 0.7, "cache": "use"}, 1),
        ({"temperature": 0}, {"temperature": 0}, 1),
        ({"model": "haiku"}, {"model": "claude-haiku-4-5-20251001"}, 2),  # that one lets nobody stand in
    ],
)
async def test_what_is_the_same_request_and_what_is_not(
    nc: Client, start: StartProcessor, fields: dict[str, Any], again: dict[str, Any], calls: int
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    await ask(nc, body("Why?", **fields))
    await ask(nc, body("Why?", **again))
    assert vendor.calls == calls


async def test_a_refreshed_answer_takes_the_place_of_the_old_one(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": in_turn(answer("old"), answer("new"), answer("wrong"))})
    await ask(nc, body("Why?"))
    await ask(nc, body("Why?", cache="refresh"))
    assert (await ask(nc, body("Why?")))["response"] == "new"


@pytest.mark.parametrize(("settings", "calls"), [({"enable_cache": False}, 2), ({"cache_max_size": 0}, 2), ({}, 1)])
async def test_the_settings_turn_it_off(
    nc: Client, start: StartProcessor, settings: dict[str, Any], calls: int
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor}, **settings)
    await ask(nc, body("Why?", cache="use"))
    await ask(nc, body("Why?", cache="use"))
    assert vendor.calls == calls


async def test_a_setting_caches_sampled_requests_too(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor}, cache_sampled=True)
    await ask(nc, body("Why?", temperature=1))
    await ask(nc, body("Why?", temperature=1))
    assert vendor.calls == 1


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER, FinishReason.PAUSE])
async def test_an_answer_that_was_cut_or_refused_is_not_kept(
    nc: Client, start: StartProcessor, reason: FinishReason
) -> None:
    usage = Usage(input_fresh=10, output_visible=5)
    vendor = ScriptedProvider([Opened(), TextDelta("I"), Finished(reason, usage, "claude-haiku-4-5-20251001")])
    await start({"anthropic": vendor})
    await ask(nc, body("Why?"))
    assert (await ask(nc, body("Why?")))["cached"] is False
    assert vendor.calls == 2


async def test_the_answer_of_a_model_that_only_stood_in_is_not_kept(nc: Client, start: StartProcessor) -> None:
    gemini = in_turn([VendorError("broken")], answer("from gemini", "gemini-2.5-flash"))
    await start({"anthropic": ScriptedProvider(answer("from another")), "gemini": gemini})
    first = await ask(nc, body("Why?", model="gemini"))
    second = await ask(nc, body("Why?", model="gemini"))
    assert (first["response"], second["response"], second["cached"]) == ("from another", "from gemini", False)


async def test_nor_is_one_that_answers_for_a_model_whose_provider_is_not_configured_here(
    nc: Client, nats_url: str, start: StartProcessor, redis_url: str
) -> None:
    claude = ScriptedProvider(answer("from another"))
    async with running_processor(nats_url, {"anthropic": claude}, enable_cache=True, redis_url=redis_url):
        assert (await ask(nc, body("Where?", model="gemini")))["response"] == "from another"
        pinned = body("Where?", model="gemini", fallback=False)
        assert (await ask(nc, pinned))["error"]["type"] == "unavailable"
    gemini = ScriptedProvider(answer("from gemini", "gemini-2.5-flash"))
    await start({"anthropic": claude, "gemini": gemini}, redis_url=redis_url, replica="second")
    assert (await ask(nc, body("Where?", model="gemini")))["response"] == "from gemini"


@pytest.mark.parametrize(("first", "then"), [("llama", "gpt-oss-120b"), ("gpt-oss-120b", "llama")])
async def test_a_hit_names_and_warns_as_its_own_request_was_asked(
    nc: Client, start: StartProcessor, first: str, then: str
) -> None:
    await start({"groq": ScriptedProvider(answer())})
    replies = {name: await ask(nc, body("Why?", model=name)) for name in (first, then)}
    assert replies[then]["cached"] is True
    for name, reply in replies.items():
        assert reply["model"] == name
        assert reply["route"]["reason"].endswith(f"{name} was asked for")
        assert len(reply["warnings"]) == (name == "llama")  # it is retired


async def test_what_auto_means_is_part_of_what_is_the_same(nc: Client, nats_url: str, redis_url: str) -> None:
    claude = {"anthropic": ScriptedProvider(lambda prompt: answer(prompt.model, prompt.model))}
    seen = []
    for default in ("haiku", "haiku-5.5"):
        async with running_processor(nats_url, claude, enable_cache=True, redis_url=redis_url, default_model=default):
            seen += [await ask(nc, body("Which?", model=None)) for _ in range(2)]
    assert [reply["model"] for reply in seen] == ["haiku", "haiku", "haiku-5.5", "haiku-5.5"]
    assert [reply["cached"] for reply in seen] == [False, True, False, True]


async def test_a_hit_costs_nothing_so_a_spent_budget_does_not_refuse_it(
    nc: Client, start: StartProcessor, tmp_path: Path
) -> None:
    overlay = tmp_path / "catalog.toml"
    overlay.write_text("[budgets]\ndaily_usd = 0.00001\nhard = true\n")
    await start({"anthropic": ScriptedProvider(answer())}, sidecar_catalog=overlay)
    await ask(nc, body("Why?", fallback=False))
    assert (await ask(nc, body("Something else?", fallback=False)))["error"]["type"] == "budget_exceeded"
    assert (await ask(nc, body("Why?", fallback=False)))["cached"] is True


# --- the single flight ----------------------------------------------------------------------------


async def test_a_pinned_request_without_a_candidate_does_not_join_one_that_lets_another_answer(
    nc: Client, start: StartProcessor
) -> None:
    claude = slow(0.5)
    await start({"anthropic": claude})
    other = asyncio.create_task(ask(nc, body("Why?", model="gemini")))
    await wait_until(lambda: claude.calls == 1)
    assert (await ask(nc, body("Why?", model="gemini", fallback=False)))["error"]["type"] == "unavailable"
    assert (await other)["response"] == "Hello."


async def test_a_hundred_identical_requests_at_once_make_one_call_and_get_a_hundred_replies(
    nc: Client, start: StartProcessor
) -> None:
    vendor = slow(0.5)
    processor = await start({"anthropic": vendor}, max_workers=5)
    replies = await asyncio.gather(*(ask(nc, body("Why?"), timeout=20) for _ in range(100)))
    assert vendor.calls == 1
    assert Counter(reply["response"] for reply in replies) == {"Hello.": 100}
    assert len({reply["id"] for reply in replies}) == 100
    paid = [reply for reply in replies if not (reply["cached"] or reply["coalesced"])]
    assert len(paid) == 1
    assert sum(Decimal(str(reply["cost_usd"])) for reply in replies) == Decimal(str(COST))
    await wait_until(lambda: not processor.load()["running"])
    assert (processor.load()["sharing"], processor.load()["parked"]) == (0, 0)


async def test_a_critical_request_does_not_wait_for_the_call_of_a_lower_lane(nc: Client, start: StartProcessor) -> None:
    vendor = in_turn([Opened(), Pause(60)], answer("at once"))
    await start({"anthropic": vendor})
    low = asyncio.create_task(ask(nc, body("Why?"), "low", Nats_Msg_Id="low", timeout=20))
    await wait_until(lambda: vendor.calls == 1)
    assert (await ask(nc, body("Why?"), "critical", timeout=5))["response"] == "at once"
    await nc.publish("llm.cancel.low")
    await low


async def test_those_who_wait_for_anothers_call_hold_no_worker(nc: Client, start: StartProcessor) -> None:
    processor = await start(
        {"anthropic": slow(60), "gemini": ScriptedProvider(answer("free"))}, max_workers=2, critical_workers=0
    )
    same = [asyncio.create_task(ask(nc, body("Why?"), Nats_Msg_Id=f"same-{n}", timeout=20)) for n in range(8)]
    await wait_until(lambda: processor.load()["parked"] == 7)
    assert (await ask(nc, body("Something else?", model="gemini"), timeout=5))["response"] == "free"
    for number in range(8):
        await nc.publish(f"llm.cancel.same-{number}")
    assert {(await one)["error"]["type"] for one in same} == {"cancelled"}


async def test_those_who_wait_for_anothers_call_do_not_close_their_lane(nc: Client, start: StartProcessor) -> None:
    vendors = {"anthropic": slow(60), "gemini": ScriptedProvider(answer("free"))}
    processor = await start(vendors, max_workers=4, max_parked=2)
    same = [asyncio.create_task(ask(nc, body("Why?"), Nats_Msg_Id=f"same-{n}", timeout=20)) for n in range(6)]
    await wait_until(lambda: processor.load()["parked"] == 5)
    assert (await ask(nc, body("Something else?", model="gemini"), timeout=5))["response"] == "free"
    for number in range(6):
        await nc.publish(f"llm.cancel.same-{number}")
    await asyncio.gather(*same)


async def test_a_call_that_others_wait_for_goes_on_when_its_own_client_has_gone(
    nc: Client, start: StartProcessor
) -> None:
    words = [step for number in range(120) for step in (TextDelta(f"{number} "), Pause(0.01))]
    finished = Finished(FinishReason.STOP, Usage(10, output_visible=5), "claude-haiku-4-5-20251001")
    vendor = ScriptedProvider([Opened(), *words, finished])
    processor = await start({"anthropic": vendor})
    left = nc.new_inbox()  # nobody listens here
    await nc.publish("llm.request.high", body("Why?", stream=True), reply=left)
    await wait_until(lambda: vendor.calls == 1)
    waiting = asyncio.create_task(ask(nc, body("Why?"), timeout=20))
    await wait_until(lambda: processor.load()["parked"] == 1)
    assert (await waiting)["coalesced"] is True
    assert vendor.calls == 1


async def test_when_the_one_that_calls_is_cancelled_the_next_takes_over(nc: Client, start: StartProcessor) -> None:
    vendor = in_turn([Opened(), Pause(60)], answer("second try"))
    await start({"anthropic": vendor})
    asked = [asyncio.create_task(ask(nc, body("Why?"), Nats_Msg_Id="leads", timeout=20))]
    await wait_until(lambda: vendor.calls == 1)
    asked += [asyncio.create_task(ask(nc, body("Why?"), timeout=20)) for _ in range(5)]
    await nc.publish("llm.cancel.leads")
    replies = await asyncio.gather(*asked)
    assert replies[0]["error"]["type"] == "cancelled"
    assert {reply["response"] for reply in replies[1:]} == {"second try"}
    assert vendor.calls == 2


async def test_a_request_that_the_vendor_calls_wrong_is_wrong_for_all(nc: Client, start: StartProcessor) -> None:
    steps: list[Step] = [Pause(0.3), InvalidPrompt("no such thing")]
    vendor = ScriptedProvider(steps)
    await start({"anthropic": vendor})
    replies = await asyncio.gather(*(ask(nc, body("Why?"), timeout=20) for _ in range(10)))
    assert {reply["error"]["type"] for reply in replies} == {"invalid_request"}
    assert vendor.calls == 1


async def test_a_shutdown_hands_back_who_waits_for_anothers_call(nc: Client, start: StartProcessor) -> None:
    first = await start({"anthropic": slow(60)}, replica="first", shutdown_grace=0.2)
    asked = [asyncio.create_task(ask(nc, body("Why?"), timeout=20)) for _ in range(5)]
    await wait_until(lambda: first.load()["parked"] == 4)
    await start({"anthropic": ScriptedProvider(answer("elsewhere"))}, replica="second")
    first.stop()
    assert {(await one)["response"] for one in asked} == {"elsewhere"}


# --- with Redis -----------------------------------------------------------------------------------


async def test_with_redis_replicas_share_answers_and_calls(nc: Client, start: StartProcessor, redis_url: str) -> None:
    vendors = [slow(0.5), slow(0.5)]
    for number, vendor in enumerate(vendors):
        await start({"anthropic": vendor}, redis_url=redis_url, replica=f"r{number}", max_workers=3)
    replies = await asyncio.gather(*(ask(nc, body("Shared?"), timeout=20) for _ in range(40)))
    assert Counter(reply["response"] for reply in replies) == {"Hello.": 40}
    assert sum(vendor.calls for vendor in vendors) == 1
    assert (await ask(nc, body("Shared?")))["cached"] is True


async def test_where_nothing_is_kept_no_replica_waits_for_another(
    nc: Client, start: StartProcessor, redis_url: str
) -> None:
    busy = {"redis_url": redis_url, "cache_max_size": 0, "max_workers": 1, "critical_workers": 0, "shutdown_grace": 0}
    never, soon = ScriptedProvider([Opened(), Pause(60)]), ScriptedProvider(answer())
    await start({"anthropic": never}, replica="first", **busy)
    inbox = nc.new_inbox()
    await nc.publish("llm.request.high", body("Not kept?"), reply=inbox)
    await wait_until(lambda: never.calls == 1)
    await start({"anthropic": soon}, replica="second", **busy)
    assert (await ask(nc, body("Not kept?"), timeout=8))["response"] == "Hello."


async def test_a_redis_that_goes_fails_no_request_and_is_told(nc: Client, start: StartProcessor) -> None:
    alerts = await nc.subscribe("llm.alert.warning")
    vendor = ScriptedProvider(answer())
    with short_folder() as folder:
        with redis_server(folder) as url:
            await start({"anthropic": vendor}, redis_url=url)
            assert (await ask(nc, body("Why?")))["cached"] is False
        assert (await ask(nc, body("Why?")))["response"] == "Hello."
        assert (await ask(nc, body("Why?")))["cached"] is True  # this process's own
    assert read(await alerts.next_msg(timeout=5))["kind"] == "cache"


async def test_a_slow_redis_takes_no_answer_from_who_has_paid_for_it(
    nc: Client, start: StartProcessor, redis_url: str
) -> None:
    async with Redis.from_url(redis_url) as client:

        async def redis_hangs(_: float) -> None:
            await client.client_pause(400)

        vendor = ScriptedProvider([Opened(), Pause(0), *answer()[1:]], sleep=redis_hangs)
        await start({"anthropic": vendor}, redis_url=redis_url)
        reply = await ask(nc, body("Slow to keep?", deadline_ms=250), Nats_Msg_Id="paid")
    assert (reply["response"], reply["cost_usd"]) == ("Hello.", COST)
    events = {e["event"]: e for e in await wait_until(lambda: all_audit_events(nc, "paid", 4))}
    assert events["attempt"]["cost_usd"] == events["completed"]["cost_usd"] == COST
