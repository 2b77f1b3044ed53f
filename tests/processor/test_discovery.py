"""The services API: its answers go to inboxes and nowhere else."""

from __future__ import annotations

import orjson
import pytest
from nats.aio.client import Client

from processor import subjects
from providers.errors import ModelGone
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body, read, served


@pytest.mark.parametrize("subject", ["llm.models", "llm.route", "$SRV.PING", "$SRV.INFO.sidecar", "$SRV.STATS"])
async def test_a_question_cannot_plant_its_answer_as_a_requests_reply(
    subject: str, nc: Client, start: StartProcessor
) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    first = await ask(nc, body(), Nats_Msg_Id="job-1")
    kept = (await nc.jetstream().stream_info(subjects.REPLIES)).state.last_seq
    await nc.publish(subject, b"", reply="llm.reply.job-1")
    assert orjson.loads((await nc.request(subject, b"", timeout=5)).data)  # and so it has seen the one before
    await nc.flush()
    assert (await nc.jetstream().stream_info(subjects.REPLIES)).state.last_seq == kept
    assert await ask(nc, body(), Nats_Msg_Id="job-1") == first
    assert vendor.calls == 1


async def test_route_says_what_would_answer_and_calls_nobody(nc: Client, start: StartProcessor) -> None:
    vendors = {"anthropic": ScriptedProvider(), "groq": ScriptedProvider()}
    await start(vendors)
    decision = read(await nc.request("llm.route", body("hi", model="auto", task_type="code"), timeout=5))
    assert (decision["rule"], decision["model_class"]) == ("code", "auto:code")
    assert decision["candidates"][0]["model"] == served("sonnet")
    assert decision["candidates"][0]["reason"].startswith("rule 'code': tier 5, about $0.00")
    assert decision["candidates"][0]["cost_usd"] > decision["candidates"][-1]["cost_usd"]
    assert {"model": served("gemini"), "provider": "gemini", "reason": "provider gemini is not configured"} in decision[
        "refusals"
    ]
    assert 0 <= decision["complexity"]["score"] <= 1
    assert [vendor.calls for vendor in vendors.values()] == [0, 0]


async def test_route_knows_which_models_are_unwell_and_how_fast_they_were(nc: Client, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider([ModelGone("gone", status=404)]), "groq": ScriptedProvider(answer())})
    for _ in range(5):
        await ask(nc, body())
    decision = read(await nc.request("llm.route", body(model="auto"), timeout=5))
    last = decision["candidates"][-1]
    assert (last["model"], last["reason"].endswith("its circuit is open after failures")) == ("haiku", True)
    helper = next(c for c in decision["candidates"] if c["model"] == "gpt-oss-120b")
    assert helper["reason"].endswith(" s")


@pytest.mark.parametrize(
    ("asked", "code", "named"),
    [
        (body(model="hauku"), "404", "did you mean haiku"),
        (body(temperature=9), "400", "temperature"),
        (b"no json", "400", "body: not JSON"),
        (b"", "400", "body: not JSON"),
    ],
)
async def test_route_refuses_what_an_ask_would_be_refused_for(
    asked: bytes, code: str, named: str, nc: Client, start: StartProcessor
) -> None:
    await start({"anthropic": ScriptedProvider()})
    refused = await nc.request("llm.route", asked, timeout=5)
    assert refused.headers is not None
    assert refused.headers["Nats-Service-Error-Code"] == code
    assert named in refused.headers["Nats-Service-Error"]
    assert named in read(refused)["error"]["message"]
