"""The embedded broker: started, stopped, and clear about what is in its way."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path

import nats
import psutil
import pytest

from processor import broker
from processor.broker import BrokerError, embedded_broker
from tests.processes import running
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


async def test_ctrl_c_ends_the_sidecar_before_its_broker(tmp_path: Path) -> None:
    async with running("up", NATS_PORT="0", SIDECAR_DATA_DIR=str(tmp_path)) as sidecar:
        pid = int((tmp_path / "nats" / "nats-server.pid").read_text())
        sidecar.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(sidecar.process.wait(), 10) == 0
        assert not psutil.pid_exists(pid)
    assert not any("connection lost" in line for line in sidecar.said)
