"""The embedded broker: started, stopped, and clear about what is in its way."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import nats
import nats.errors
import psutil
import pytest

from processor import broker, redrive
from processor.broker import BrokerError, embedded_broker
from tests.processes import Sidecar, running
from tests.talk import ask
from tests.wait import wait_until


async def test_it_serves_jetstream_on_loopback_and_is_gone_at_the_end(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path, 0) as url:
        assert url.startswith("nats://127.0.0.1:")
        client = await nats.connect(url)
        await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
        await client.jetstream().publish("kept", b"x")
        pid = int((tmp_path / "nats" / "nats-server.pid").read_text())
        addresses = {c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"}
        await client.close()
    assert addresses == {"127.0.0.1"}
    assert not psutil.pid_exists(pid)
    async with embedded_broker(tmp_path, 0) as url:
        client = await nats.connect(url)
        assert (await client.jetstream().stream_info("KEPT")).state.messages == 1
        await client.close()


async def test_a_taken_port_is_said_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(BrokerError, match=f"port {port} is taken.*NATS_URL.*NATS_PORT"):
            async with embedded_broker(tmp_path, port):
                raise AssertionError("it started")


async def test_one_folder_serves_one_sidecar(tmp_path: Path) -> None:
    async with embedded_broker(tmp_path, 0):
        with pytest.raises(BrokerError, match="SIDECAR_DATA_DIR"):
            async with embedded_broker(tmp_path, 0):
                raise AssertionError("it started")


async def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="SIDECAR_DATA_DIR"):
        async with embedded_broker(tmp_path / "file", 0):
            raise AssertionError("it started")


async def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = tmp_path / "contract"
    contract.mkdir()
    (contract / "nats-server.conf").write_text("jetstream { nonsense: }")
    monkeypatch.setattr(broker, "contract_dir", lambda: contract)
    with pytest.raises(BrokerError, match=r"nats-server did not start: .*nats-server\.log"):
        async with embedded_broker(tmp_path, 0):
            raise AssertionError("it started")


async def test_kill_9_of_the_sidecar_leaves_no_broker_behind(tmp_path: Path) -> None:
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path)) as sidecar:
        pid = int((tmp_path / "nats" / "nats-server.pid").read_text())
        sidecar.process.send_signal(signal.SIGKILL)
        await sidecar.process.wait()
        await wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    async with embedded_broker(tmp_path, 0) as url:
        client = await nats.connect(url)
        await client.close()


def kill_broker(home: Path) -> None:
    os.kill(int((home / "nats" / "nats-server.pid").read_text()), signal.SIGKILL)


async def test_a_broker_that_dies_is_started_again_on_its_port_with_its_streams(tmp_path: Path) -> None:
    vendor = {"LOCAL_BASE_URL": "http://127.0.0.1:9"}
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path), **vendor) as sidecar:
        client = await nats.connect(sidecar.url, max_reconnect_attempts=-1, reconnect_time_wait=0, error_cb=ignore)
        await client.jetstream().publish("llm.dead.low.kept", b"x")
        kill_broker(tmp_path)
        await wait_until(lambda: any("started again" in line for line in sidecar.said))
        await wait_until(lambda: client.is_connected)
        assert await redrive.count(client) == 1

        async def answers() -> bool:
            try:
                refused = await ask(client, b"no request", timeout=1)
            except nats.errors.Error:
                return False
            return bool(refused["error"]["type"] == "invalid_request")

        await wait_until(answers)
        await client.close()
    assert sidecar.process.returncode == 0


async def test_a_broker_that_dies_again_and_again_ends_the_sidecar_with_the_place_of_its_log(tmp_path: Path) -> None:
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path)) as sidecar:
        for times in range(broker.MAX_DEATHS):
            await has_been_started_again(tmp_path, sidecar, times)
            kill_broker(tmp_path)
        assert await asyncio.wait_for(sidecar.process.wait(), 20) == 1
    assert "Traceback" not in "".join(sidecar.said)
    assert f"its log is {tmp_path / 'nats' / 'nats-server.log'}" in sidecar.said[-1]


async def has_been_started_again(home: Path, sidecar: Sidecar, times: int) -> None:
    def it_serves() -> bool:
        pid = (home / "nats" / "nats-server.pid").read_text()
        ports = home / "nats" / f"nats-server_{pid}.ports"
        return pid.isdecimal() and psutil.pid_exists(int(pid)) and ports.exists()

    await wait_until(lambda: sum("started again" in line for line in sidecar.said) == times and it_serves())


async def ignore(_: Exception) -> None:
    """The connection is meant to break."""


async def test_ctrl_c_ends_the_sidecar_before_its_broker(tmp_path: Path) -> None:
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path)) as sidecar:
        pid = int((tmp_path / "nats" / "nats-server.pid").read_text())
        sidecar.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(sidecar.process.wait(), 10) == 0
        assert not psutil.pid_exists(pid)
    assert not any("connection lost" in line for line in sidecar.said)
