"""The services API: its answers go to inboxes and nowhere else."""

from __future__ import annotations

import orjson
import pytest
from nats.aio.client import Client

from processor import subjects
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.talk import ask, body


@pytest.mark.parametrize("subject", ["llm.models", "$SRV.PING", "$SRV.INFO.sidecar", "$SRV.STATS"])
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
