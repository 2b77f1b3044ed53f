"""A request that is delivered again: by a broker that forgot, to a sidecar that was cut off, under an id that ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from processor import jetstream, redelivery, worker
from processor.broker import contract_dir
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.provision import provision
from processor.replies import Ending, Replies
from processor.service import Processor
from processor.subjects import Priority
from providers.base import Opened, TextDelta
from providers.scripted import Pause, ScriptedProvider, Step
from tests.chaos.load import client
from tests.chaos.servers import Server, one_server
from tests.conftest import StartProcessor, running_processor
from tests.processor.test_end_to_end import answer, slow
from tests.talk import Streamed, ask, body, listen, stored
from tests.wait import wait_until


async def none_queued(nc: Client) -> bool:
    return (await nc.jetstream().stream_info("LLM_REQUESTS")).state.messages == 0


async def answered_calls(nc: Client, vendor: ScriptedProvider, times: int, **fields: Any) -> list[int]:
    """Enqueue one id so often, each time when the one before is done; how many calls there were after each."""
    calls = []
    for _ in range(times):
        headers = {"Reply-To": "llm.reply.job-1"}
        await nc.jetstream().publish("llm.request.low.job-1", body(**fields), headers=headers)
        await wait_until(lambda: stored_ending(nc))
        await wait_until(lambda: none_queued(nc))
        calls.append(vendor.calls)
    return calls


async def stored_ending(nc: Client) -> bool:
    bus = Bus()
    bus.nc = nc  # type: ignore[assignment]  # nats-py's own will do
    return await Replies(bus).ending("job-1") is not None


async def test_an_id_whose_stream_is_kept_is_answered_from_there_however_often_it_comes(
    nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    assert await answered_calls(nc, vendor, 4, stream=True) == [1, 1, 1, 1]
    kept = await nc.jetstream().stream_info("LLM_REPLIES", subjects_filter="llm.reply.job-1")
    messages = (kept.state.subjects or {})["llm.reply.job-1"]
    last = await jetstream.last_message(nc, "LLM_REPLIES", "llm.reply.job-1")
    assert last is not None
    assert (last.body, last.headers) == (b"", {})
    assert messages == len(answer()) - 2 + 2  # its deltas, the final and one empty message


async def test_a_delta_that_comes_after_the_ending_does_not_hide_it(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    await answered_calls(nc, vendor, 1, stream=True)
    late = {"Sidecar-Event": "delta", "Sidecar-Attempt": "1", "Sidecar-Seq": "1", "Sidecar-Request-Id": "job-1"}
    await nc.publish("llm.reply.job-1", b'{"text":"late"}', headers=late)
    assert await answered_calls(nc, vendor, 2, stream=True) == [1, 1]


@asynccontextmanager
async def at_work(home: Path, vendor: ScriptedProvider) -> AsyncIterator[tuple[Server, Client, Processor]]:
    """A broker that can be killed, a client of it, and a processor with eight calls under way."""
    async with one_server(home) as server, client(server.url) as nc:
        await provision(nc, contract_dir())
        async with running_processor(server.url, {"anthropic": vendor}, replica="first", max_workers=9) as owner:
            for number in range(8):
                await nc.jetstream().publish(f"llm.request.low.job-{number}", body())
            await wait_until(lambda: vendor.calls == 8)
            yield server, nc, owner


async def test_a_sidecar_that_starts_after_a_broker_was_killed_runs_nothing_that_another_one_is_at_work_on(
    tmp_path: Path,
) -> None:
    first, second = slow(4), ScriptedProvider(answer())
    async with at_work(tmp_path, first) as (server, nc, owner):
        await server.kill()
        await server.start()
        await wait_until(lambda: owner._bus.reconnected_at and nc.is_connected)
        async with running_processor(server.url, {"anthropic": second}, replica="second"):
            await wait_until(lambda: none_queued(nc), timeout_s=30)
    assert (first.calls, second.calls) == (8, 0)


async def test_a_sidecar_that_finds_a_killed_broker_first_waits_for_those_who_may_be_at_work(tmp_path: Path) -> None:
    first, second = slow(5), ScriptedProvider(answer())
    async with (
        at_work(tmp_path, first) as (server, nc, owner),
        running_processor(server.url, {"anthropic": second}, replica="second") as other,
    ):
        owner._bus.nc.options["reconnect_time_wait"] = 1.2
        await server.kill()
        await wait_until(lambda: owner._bus.nc._server_pool[0].reconnects)  # tried in vain, and rests now
        await server.start()
        await wait_until(lambda: other._bus.reconnected_at and nc.is_connected)
        assert not owner._bus.nc.is_connected
        await wait_until(lambda: none_queued(nc), timeout_s=30)
    assert (first.calls, second.calls) == (8, 0)


async def test_what_ended_while_others_were_asked_about_it_is_not_run_again(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended_just_before(self: redelivery.Redelivery, request_id: str) -> bool:
        await self._replies.store(request_id, Ending.refusal(request_id, RequestError(ErrorType.CANCELLED, "stopped")))
        return False

    monkeypatch.setattr(redelivery.Redelivery, "_runs_elsewhere", ended_just_before)
    await nc.jetstream().publish("llm.request.low.job-1", body())
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})  # after the acceptance: a broker that was killed may have had it delivered
    await wait_until(lambda: none_queued(nc))
    assert (vendor.calls, (await stored(nc, "job-1") or {})["error"]["message"]) == (0, "stopped")


async def test_an_id_that_has_ended_keeps_its_ending_whatever_is_enqueued_under_it_later(
    nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider(answer())})
    assert (await ask(nc, body(), Nats_Msg_Id="job-1"))["response"] == "Hello."
    await nc.jetstream().publish("llm.request.low.job-1", b"no request")
    await wait_until(lambda: none_queued(nc))
    assert (await stored(nc, "job-1") or {})["response"] == "Hello."
    assert (await nc.jetstream().stream_info("LLM_DEAD")).state.messages == 0


async def test_deliveries_that_come_again_to_the_worker_that_is_at_it_are_no_deaths(
    nc: Client, start: StartProcessor
) -> None:
    endless = slow(60)
    owner = await start({"anthropic": endless}, replica="owner", shutdown_grace=0)
    await nc.jetstream().publish("llm.request.low.job-1", body())
    await wait_until(lambda: endless.calls)
    job = owner._worker.running["job-1"]
    for count in range(2, 5):
        await job.delivery._tell(b"-NAK")  # as if its heartbeats had been lost
        await wait_until(lambda: job.delivery.count == count)  # noqa: B023
    owner.stop()
    await wait_until(lambda: not owner._worker.running)
    await start({"anthropic": ScriptedProvider(answer())}, replica="next")
    assert (await wait_until(lambda: stored(nc, "job-1")))["response"] == "Hello."


async def test_what_an_owner_answers_for_is_no_death_either(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "RUNS_ELSEWHERE_S", 0.05)
    monkeypatch.setattr(redelivery, "AMNESIA_S", 0)
    first, second = ScriptedProvider([Opened(), Pause(1.5), *answer()[1:]]), ScriptedProvider(answer())
    owner = await start({"anthropic": first}, replica="owner")
    await nc.jetstream().publish("llm.request.high.job-1", body())
    await wait_until(lambda: first.calls)
    await start({"anthropic": second}, replica="other")
    questions = await listen(nc, "llm.running.*")
    await owner._lanes[Priority.HIGH].stop()
    await owner._worker.running["job-1"].delivery._tell(b"-NAK")
    reply = await wait_until(lambda: stored(nc, "job-1"))
    await wait_until(lambda: none_queued(nc))
    assert (reply["response"], first.calls, second.calls) == ("Hello.", 1, 0)
    assert questions.pending_msgs > 2  # asked again and again, until the owner was done


async def test_what_waits_behind_long_calls_is_given_to_a_replica_that_is_idle(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SOON_S", 0.2)
    busy, idle = slow(60), ScriptedProvider(answer())
    first = await start({"anthropic": busy}, replica="busy", max_workers=5, shutdown_grace=0)
    for number in range(4):
        await nc.jetstream().publish(f"llm.request.high.long-{number}", body())
    await wait_until(lambda: busy.calls == 4)
    await nc.jetstream().publish("llm.request.high.job-1", body())
    await wait_until(lambda: first._lanes.held)
    await start({"anthropic": idle}, replica="idle", max_workers=5)
    reply = await wait_until(lambda: stored(nc, "job-1"), timeout_s=5)
    assert (reply["response"], reply["attempts"], idle.calls) == ("Hello.", 1, 1)


async def test_a_lane_that_gave_back_what_it_held_has_its_turn_when_a_slot_is_free(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SOON_S", 0.05)
    vendor = slow(0.3)
    processor = await start({"anthropic": vendor}, max_workers=1)
    for number in range(6):
        await nc.jetstream().publish(f"llm.request.low.job-{number}", body())
    await wait_until(lambda: none_queued(nc), timeout_s=10)
    assert vendor.calls == 6
    assert not processor._lanes.held
    seen = (await nc.jetstream().consumer_info("LLM_REQUESTS", "low")).delivered
    assert seen is not None
    assert seen.consumer_seq <= 6 + 2  # what was first buffered is all that was delivered twice
    await nc.jetstream().publish("llm.request.low.later", body())
    assert (await wait_until(lambda: stored(nc, "later")))["response"] == "Hello."


async def test_nobody_is_asked_about_a_request_that_was_only_buffered_elsewhere(
    nc: Client, start: StartProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SOON_S", 0.05)
    questions = await listen(nc, "llm.running.*")
    await start({"anthropic": slow(0.2)}, max_workers=1)
    for number in range(4):
        await nc.jetstream().publish(f"llm.request.low.job-{number}", body())
    await wait_until(lambda: none_queued(nc), timeout_s=10)
    assert questions.pending_msgs == 0


async def test_an_error_after_the_death_of_a_worker_that_streamed_begins_anew(
    nc: Client, start: StartProcessor
) -> None:
    stream: list[Step] = [Opened(), TextDelta("one "), TextDelta("two "), Pause(60)]
    dying = await start({"anthropic": ScriptedProvider(stream)}, replica="dying", shutdown_grace=0)
    place = nc.new_inbox()
    sub = await nc.subscribe(place)
    request = body(stream=True, deadline_ms=1_500)
    await nc.jetstream().publish("llm.request.low.job-1", request, headers={"Reply-To": place})
    first = [await sub.next_msg(timeout=5) for _ in range(2)]
    job = dying._worker.running["job-1"]
    job.delivery.done = True  # it dies: nothing is acknowledged, nothing handed back
    dying.stop()
    await wait_until(lambda: not dying._worker.running)
    await wait_until(lambda: datetime.now(UTC) > job.delivery.accepted + timedelta(seconds=1.5))
    await start({"anthropic": ScriptedProvider(answer())}, replica="next")
    await job.delivery._tell(b"-NAK")
    heard = Streamed([*first, *[await sub.next_msg(timeout=5) for _ in range(3)]])
    assert heard.events() == ["delta", "delta", "restarted", "error"]
    assert (heard.seqs(1), heard.seqs(2)) == ([0, 1], [0, 1])


async def test_whether_a_request_runs_is_told_to_inboxes_alone(nc: Client, start: StartProcessor) -> None:
    endless = slow(60)
    await start({"anthropic": endless}, shutdown_grace=0)
    await nc.jetstream().publish("llm.request.high.job-1", body())
    await wait_until(lambda: endless.calls)
    await nc.publish("llm.running.job-1", b"somebody", reply="llm.reply.job-1")
    assert (await nc.request("llm.running.job-1", b"somebody", timeout=2)).data == b"test"
    assert (await nc.jetstream().stream_info("LLM_REPLIES")).state.messages == 0
