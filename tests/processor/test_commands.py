"""The command line as users meet it: output, errors, exit codes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from processor import jetstream
from providers.base import Opened
from providers.scripted import Pause, ScriptedProvider
from tests.conftest import StartProcessor
from tests.processes import Ended, command, running
from tests.talk import listen, served

NOWHERE = "nats://127.0.0.1:9"


@pytest.fixture
def url(nc: Client, nats_url: str) -> str:
    """A broker with empty streams."""
    return nats_url


@pytest.mark.parametrize(
    "arguments", [["--help"], ["up", "--help"], ["ask", "--help"], ["route", "--help"], ["provision", "--help"], []]
)
async def test_help_teaches(arguments: list[str]) -> None:
    shown = await command(*arguments)
    assert "Usage: sidecar" in shown.out + shown.err
    assert "Traceback" not in shown.err


async def test_ask_streams_the_answer_to_stdout_and_tells_about_it_on_stderr(url: str, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    asked = await command("ask", "It will rain", NATS_URL=url)
    assert (asked.code, asked.out) == (0, "It will rain\n")
    assert "claude-haiku-4-5-20251001 (anthropic) · 3 in, 3 out" in asked.err


async def test_ask_takes_a_file_from_standard_input_after_the_text(url: str, start: StartProcessor) -> None:
    vendor = ScriptedProvider()
    await start({"anthropic": vendor})
    asked = await command("ask", "Summarise:", "--no-stream", "--priority", "low", stdin="a file\n", NATS_URL=url)
    assert asked.out == "Summarise:\n\na file\n\n"
    assert asked.code == 0


async def test_ask_json_prints_the_final_reply_and_nothing_else(url: str, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider()})
    asked = await command("ask", "hi", "--json", "--system", "Be brief.", "--max-tokens", "5", NATS_URL=url)
    reply = orjson.loads(asked.out)
    assert (reply["response"], reply["provider"], asked.err) == ("hi", "anthropic", "")


async def test_route_shows_what_a_running_sidecar_decides_and_why(url: str, start: StartProcessor) -> None:
    await start({"anthropic": ScriptedProvider(), "groq": ScriptedProvider()})
    shown = await command("route", "Fix this loop", "--task-type", "code", NATS_URL=url)
    assert (shown.code, shown.err) == (0, "")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[0][:2] == ["rule", "code"]
    assert rows[2][:3] == ["1", served("sonnet"), "anthropic"]
    assert "rule 'code': tier 5, about $0.00" in shown.out
    assert "refused: provider gemini is not configured" in shown.out


async def test_route_without_a_sidecar_decides_by_the_settings_and_says_so(url: str, nc: Client) -> None:
    for address in (url, NOWHERE):
        wanted = ("--json", "--prefer", "speed", "--max-tokens", "9")
        shown = await command("route", *wanted, stdin="hi", NATS_URL=address, GROQ_API_KEY="gsk", GEMINI_API_KEY="AIza")
        decision = orjson.loads(shown.out)
        assert (shown.code, decision["rule"], decision["candidates"][0]["model"]) == (0, "speed", "gpt-oss-120b")
        assert (one_line(shown), "health, latency and room are unknown" in shown.err) == (True, True)


async def test_route_fails_where_no_model_can_answer_or_the_question_is_refused(
    url: str, start: StartProcessor
) -> None:
    await start({"groq": ScriptedProvider()})
    none = await command("route", "hi", "--model", "claude-haiku-4-5", NATS_URL=url)
    assert (none.code, none.err.strip()) == (1, "no model can answer this")
    for address in (url, NOWHERE):
        unknown = await command("route", "hi", "--model", "hauku", NATS_URL=address)
        assert (unknown.code, "not_found: model: there is no model 'hauku'" in unknown.err) == (1, True)
    assert (await command("route", "hi", "--prefer", "luck", NATS_URL=url)).code == 2
    assert (await command("route", NATS_URL=url)).code == 2


async def test_route_decides_by_the_settings_where_a_sidecar_fails_or_its_broker_takes_no_such_question(
    url: str, nc: Client
) -> None:
    async def fail(msg: Msg) -> None:
        await nc.publish(
            msg.reply, b"", headers={"Nats-Service-Error": "out of order", "Nats-Service-Error-Code": "500"}
        )

    await listen(nc, "llm.route", fail)
    failed = await command("route", "hi", "--json", NATS_URL=url, GROQ_API_KEY="gsk")
    assert (failed.code, one_line(failed), "(out of order); decided by" in failed.err) == (0, True, True)
    large = await command("route", "--json", stdin="x" * 9_000_000, NATS_URL=url, GROQ_API_KEY="gsk")
    assert (large.code, one_line(large), "maximum payload exceeded" in large.err) == (1, True, True)
    assert orjson.loads(large.out)["error"]["type"] == "too_large"


@pytest.mark.parametrize("asking", [["ask"], ["route"], ["route", "hi", "--model"], ["route", "hi", "--system"]])
async def test_bytes_that_are_no_text_are_wrong_usage(asking: list[str]) -> None:
    wrong = await command(*asking, "caf\udce9", NATS_URL=NOWHERE)
    assert (wrong.code, "is not text" in wrong.err, "Traceback" in wrong.err) == (2, True, False)


async def test_a_default_model_that_there_is_not_is_told_before_anything_starts() -> None:
    for command_line in (["processor"], ["route", "hi"], ["check"]):
        wrong = await command(*command_line, NATS_URL=NOWHERE, DEFAULT_MODEL="hauku")
        assert (wrong.code, "DEFAULT_MODEL: there is no model 'hauku'" in wrong.out + wrong.err) == (1, True)


def one_line(ended: Ended) -> bool:
    return len(ended.err.strip().splitlines()) == 1 and "Traceback" not in ended.err


async def test_ask_fails_with_a_code_and_one_line_for_each_kind_of_trouble(url: str, start: StartProcessor) -> None:
    no_broker = await command("ask", "hi", NATS_URL=NOWHERE)
    assert (no_broker.code, one_line(no_broker)) == (3, True)
    assert NOWHERE in no_broker.err

    no_sidecar = await command("ask", "hi", NATS_URL=url)
    assert (no_sidecar.code, one_line(no_sidecar)) == (3, True)
    assert "sidecar up" in no_sidecar.err

    await start({"anthropic": ScriptedProvider([Opened(), Pause(30)])})
    late = await command("ask", "hi", "--timeout", "0.3", NATS_URL=url)
    assert (late.code, one_line(late)) == (4, True)
    assert "deadline_exceeded" in late.err

    unknown = await command("ask", "hi", "--model", "hauku", NATS_URL=url)
    assert (unknown.code, one_line(unknown)) == (1, True)
    assert "did you mean haiku" in unknown.err

    as_json = await command("ask", "hi", "--model", "hauku", "--json", NATS_URL=url)
    assert orjson.loads(as_json.out)["error"]["type"] == "not_found"
    assert as_json.code == 1

    nothing = await command("ask", NATS_URL=url)
    assert nothing.code == 2
    assert "nothing to ask" in nothing.err


async def test_a_wrong_setting_is_named_in_one_line(url: str) -> None:
    wrong = await command("ask", "hi", MAX_WORKERS="many", NATS_URL=url)
    assert (wrong.code, one_line(wrong)) == (2, True)
    assert wrong.err.startswith("MAX_WORKERS:")


async def test_a_wrong_catalog_stops_the_start_with_its_place(tmp_path: Path, url: str) -> None:
    (tmp_path / "mine.toml").write_text("[models.haiku]\ncolour = 1\n")
    wrong = await command("processor", NATS_URL=url, SIDECAR_CATALOG=str(tmp_path / "mine.toml"))
    assert (wrong.code, one_line(wrong)) == (1, True)
    assert "mine.toml: models.haiku.colour: unknown key" in wrong.err


async def test_the_processor_needs_a_broker_and_says_so() -> None:
    unset = await command("processor")
    assert (unset.code, one_line(unset)) == (2, True)
    assert "NATS_URL" in unset.err


async def test_provision_reports_and_exits_1_on_drift_until_it_may_update(url: str, nc: Client) -> None:
    found = (await jetstream.call(nc, "STREAM.INFO.LLM_DEAD"))["config"]
    await jetstream.call(nc, "STREAM.UPDATE.LLM_DEAD", found | {"max_bytes": 12345})
    drifted = await command("provision", NATS_URL=url)
    assert drifted.code == 1
    assert "max_bytes" in drifted.out
    assert "12345" in drifted.out
    updated = await command("provision", "--update", NATS_URL=url)
    again = await command("provision", NATS_URL=url)
    assert (updated.code, again.code) == (0, 0)
    assert "drifted" not in again.out


async def test_check_tells_one_line_each_and_fails_where_something_needed_is_missing(
    url: str, nc: Client, start: StartProcessor
) -> None:
    idle = await command("check", NATS_URL=url, ANTHROPIC_API_KEY="sk-ant-secret")
    assert idle.code == 0
    assert "sk-ant-secret" not in idle.out + idle.err
    lines = [line.split() for line in idle.out.splitlines()]
    assert ["ok", "anthropic"] in [line[:2] for line in lines]
    assert ["off", "groq"] in [line[:2] for line in lines]
    assert ["ok", "LLM_REQUESTS"] in [line[:2] for line in lines]
    assert "llama-3.3-70b-versatile) was retired" in idle.out
    assert (await command("check", "--serving", NATS_URL=url, ANTHROPIC_API_KEY="sk-ant-secret")).code == 1
    await start({"anthropic": ScriptedProvider()})
    serving = await command("check", "--serving", NATS_URL=url, ANTHROPIC_API_KEY="sk-ant-secret")
    assert (serving.code, "test 0.1.0" in serving.out) == (0, True)
    assert (await command("check", NATS_URL=NOWHERE)).code == 1


async def test_check_looks_at_redis_too(url: str, nc: Client, redis_url: str) -> None:
    for address, state in ((redis_url, "ok"), ("redis://127.0.0.1:1", "warn")):
        checked = await command("check", NATS_URL=url, REDIS_URL=address, GROQ_API_KEY="gsk-secret")
        assert [state, "redis"] in [line.split()[:2] for line in checked.out.splitlines()], checked.out


async def test_up_without_a_broker_starts_its_own_and_ask_finds_it(tmp_path: Path) -> None:
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path), GROQ_API_KEY="gsk-secret") as sidecar:
        checked = await command("check", "--serving", NATS_URL=sidecar.url, GROQ_API_KEY="gsk-secret")
        assert checked.code == 0
    assert sidecar.process.returncode == 0
    assert "gsk-secret" not in "".join(sidecar.said)
