"""The bridge as a process: its address, its end, and its place beside the processor."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import orjson
import psutil
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from bridge.open_files import raise_open_files
from bridge.service import bridge
from processor.bus import Bus, BusClosed
from processor.exits import Exit, Fatal
from processor.keys import new_key
from tests.bridge.edge import bridging, listen
from tests.conftest import make_settings
from tests.processes import command, running
from tests.talk import body
from tests.wait import wait_until

# --- where it listens -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "localhost.example.org"])
def test_without_keys_it_serves_this_machine_alone(host: str) -> None:
    with pytest.raises(Fatal, match=f"SIDECAR_HOST={host}: .*no API keys") as refused, listening(sidecar_host=host):
        pass
    assert refused.value.code == Exit.USAGE


@pytest.mark.parametrize(
    ("host", "url"), [("localhost", "http://127.0.0.1:"), ("127.0.0.2", "http://127.0.0.2:"), ("::1", "http://[::1]:")]
)
def test_any_loopback_address_will_do(host: str, url: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no ::1")
    with listening(sidecar_host=host) as edge:
        assert edge.url.startswith(url)


def test_with_keys_it_serves_any_address_and_without_it_says_that_it_does_not() -> None:
    with capture_logs() as logged, listening(sidecar_host="0.0.0.0", sidecar_api_keys=new_key()) as edge:
        assert edge.url.startswith("http://0.0.0.0:")
    assert logged == []
    with capture_logs() as logged, listening():
        assert "no SIDECAR_API_KEYS are set" in logged[0]["event"]


def test_with_keys_a_name_is_looked_up_and_one_that_is_none_is_said() -> None:
    with listening(sidecar_host="localhost", sidecar_api_keys=new_key()) as edge:
        assert edge.url.startswith(("http://127.0.0.1:", "http://[::1]:"))
    with (
        pytest.raises(Fatal, match=r"SIDECAR_HOST=no such host: no such address"),
        listening(sidecar_host="no such host", sidecar_api_keys=new_key()),
    ):
        pass


def test_keys_that_cannot_be_used_are_said_at_once_and_never_shown(tmp_path: Path) -> None:
    broken, missing = tmp_path / "broken.toml", tmp_path / "missing.toml"
    broken.write_text(f'[keys.a]\nsha256 = "{(planted := new_key())}"\n')
    wrong = {
        str(broken): r"broken.toml: keys.a.sha256: ",
        str(missing): "No such file",
        ",": "no key",
        "a,a": "same key",
    }
    for value, says in wrong.items():
        with pytest.raises(Fatal, match=says) as refused, listening(sidecar_api_keys=value):
            pass
        assert refused.value.code == Exit.USAGE
        assert "sidecar keys add" in str(refused.value)
        assert planted not in str(refused.value)


def test_a_key_that_can_be_guessed_and_a_file_without_keys_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text("")
    for value, says in {"short": "can be guessed", str(tmp_path / "keys.toml"): "nobody may use the bridge"}.items():
        with capture_logs() as logged, listening(sidecar_api_keys=value):
            pass
        assert [says in str(entry) for entry in logged] == [True]
        assert "short`" not in str(logged)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_process_may_open_as_many_files_as_the_bridge_needs_or_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    limits = (1024, 100_000)
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: raised.append(to))
    with capture_logs() as logged:
        raise_open_files(2_000)
        assert (raised, logged) == ([(2_456, 100_000)], [])
        limits = (1024, 2_000)
        raise_open_files(2_000)
        assert (raised[1], len(logged)) == ((2_000, 2_000), 1)
        limits = (4096, 4096)
        raise_open_files(2_000)
        assert len(raised) == 2


async def test_a_taken_port_ends_up_with_one_line_before_there_is_a_broker(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ended = await command("up", NATS_PORT="0", SIDECAR_PORT=port, SIDECAR_DATA_DIR=str(tmp_path))
    assert (ended.code, len(ended.err.splitlines())) == (1, 1)
    assert f"port {port}" in ended.err
    assert "set SIDECAR_PORT" in ended.err
    assert not (tmp_path / "nats").exists()


# --- how it ends, and goes on ---------------------------------------------------------------


async def test_what_is_being_answered_when_it_stops_is_answered(nc: Client, nats_url: str) -> None:
    waiting = asyncio.Event()
    asked: list[Msg] = []

    async def take(msg: Msg) -> None:
        asked.append(msg)
        waiting.set()

    await listen(nc, take)
    async with bridging(nats_url) as edge:
        answer = asyncio.create_task(edge.post(body()))
        await waiting.wait()
        edge.stopping.set()
        await wait_until(lambda: refuses(edge.url))
        ended, _ = await asyncio.wait({edge.serving}, timeout=0.5)
        assert not ended
        await nc.publish(asked[0].reply, b'{"rule": "late"}')
        assert await answer == (200, {"rule": "late"})
        await asyncio.wait_for(edge.serving, 5)


async def test_a_connection_that_never_ends_is_not_waited_for_beyond_the_grace_time(nc: Client, nats_url: str) -> None:
    async with bridging(nats_url, shutdown_grace=0.1) as edge:
        host, _, port = edge.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/route HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        await wait_until(lambda: writer.transport.get_write_buffer_size() == 0)
        edge.stopping.set()
        await asyncio.wait_for(edge.serving, 5)
        writer.close()


async def test_a_connection_to_the_broker_that_is_lost_for_good_is_built_anew_under_the_same_address(
    nc: Client, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, lives, lose = Bus.watch, 0, asyncio.Event()

    async def watch_until_lost(bus: Bus) -> None:
        nonlocal lives
        lives += 1
        if lives > 1:
            await watch(bus)
        await lose.wait()
        raise BusClosed("as if the server had complained")

    async def answer(msg: Msg) -> None:
        await nc.publish(msg.reply, b"{}")

    monkeypatch.setattr(Bus, "watch", watch_until_lost)
    await listen(nc, answer)
    async with bridging(nats_url) as edge:
        assert (await edge.post(body()))[0] == 200
        lose.set()
        await wait_until(lambda: lives == 2)
        assert (await edge.post(body()))[0] == 200


# --- the whole process ----------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_up_answers_over_http_and_a_signal_ends_all_of_it_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    vendor = {"LOCAL_BASE_URL": "http://127.0.0.1:9", "GROQ_API_KEY": "gsk-secret"}
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path), **vendor) as sidecar:
        broker = int((tmp_path / "nats" / "nats-server.pid").read_text())
        async with aiohttp.ClientSession() as client, client.post(f"{sidecar.http}/api/route", data=body()) as response:
            assert response.status == 200
            assert orjson.loads(await response.read())["refusals"]
        sidecar.process.send_signal(number)
        assert await asyncio.wait_for(sidecar.process.wait(), 10) == 0
        assert not psutil.pid_exists(broker)
    said = "".join(sidecar.said)
    assert not any(word in said for word in ("connection lost", "Traceback", "gsk-secret"))


async def test_a_bridge_alone_is_a_client_of_the_broker_like_any_other(nc: Client, nats_url: str) -> None:
    vendor = {"LOCAL_BASE_URL": "http://127.0.0.1:9"}
    async with (
        running("bridge", NATS_URL=nats_url) as first,
        running("bridge", NATS_URL=nats_url) as second,
        running("processor", NATS_URL=nats_url, **vendor),
        aiohttp.ClientSession() as client,
    ):
        for edge in (first, second):
            async with client.post(f"{edge.http}/api/route", data=body()) as response:
                assert response.status == 200
    assert (first.process.returncode, second.process.returncode) == (0, 0)


async def test_a_bridge_without_a_broker_says_what_to_set() -> None:
    assert ((await command("bridge")).code, (await command("bridge", NATS_URL="nats://127.0.0.1:1")).code) == (2, 3)


def listening(**settings: object):  # type: ignore[no-untyped-def]
    return bridge(make_settings(**({"sidecar_port": 0} | settings)))


def refuses(url: str) -> bool:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
