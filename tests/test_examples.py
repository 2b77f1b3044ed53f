"""What the documents tell people to type, typed."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from nats.aio.client import Client

from providers.embedded_model import EmbeddedModel
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor, unavailable

ROOT = Path(__file__).resolve().parent.parent
QUESTION = "Why is the sky blue?"


def snippet(language: str) -> str:
    text = (ROOT / "nats" / "README.md").read_text("utf-8")
    return text.partition(f"```{language}\n")[2].partition("```")[0]


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_the_request_from_python(nc: Client, nats_url: str, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    code = snippet("python").replace("nats://127.0.0.1:4222", nats_url)
    assert await output(sys.executable, "-c", code) == f"{QUESTION}\n"


async def test_the_request_from_a_bare_shell(nc: Client, nats_url: str, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    host, port = nats_url.removeprefix("nats://").split(":")
    code = snippet("bash").replace("/dev/tcp/127.0.0.1/4222", f"/dev/tcp/{host}/{port}")
    # The server's INFO line begins otherwise, so the first line in braces is the answer.
    assert f'"response":"{QUESTION}"' in await output("bash", "-c", code)


def test_the_request_from_node_is_the_same_one() -> None:
    code = snippet("js")
    assert '"llm.request.high"' in code
    assert f'messages: [{{ role: "user", content: "{QUESTION}" }}]' in code


@pytest.mark.slow
async def test_make_demo_shows_a_real_models_answer_and_ends_by_itself() -> None:
    if why := EmbeddedModel.unavailable():
        unavailable(why)
    shown = await output(sys.executable, str(ROOT / "examples" / "demo.py"))
    answer = shown.split("sentences.")[1].split("That answer came over NATS")[0]
    assert len(answer.split()) > 5
    assert "make up" in shown
