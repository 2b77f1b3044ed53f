"""The connection where the server, or nats-py itself, fails: it is seen, and it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nats.errors
import psutil
import pytest
import uvloop
from nats.aio.msg import Msg

from processor import bus as bus_module
from processor.bus import Bus, BusClosed
from tests.chaos.servers import Server, one_server
from tests.conftest import make_settings
from tests.processes import running
from tests.wait import wait_until, wait_until_blocking


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with one_server(tmp_path) as server:
        yield server


async def connected(url: str) -> Bus:
    bus = Bus()
    await bus.connect(url, make_settings(), name="test")
    return bus


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server that stands still, as under a debugger or a paused machine."""
    process = server._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    wait_until_blocking(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def unsent(bus: Bus) -> int:
    size: int = bus.nc._transport._io_writer.transport.get_write_buffer_size()  # type: ignore[union-attr]
    return size


async def answers(bus: Bus) -> bool:
    return (await bus.nc.request("$JS.API.INFO", b"", timeout=2)).data != b""


async def test_a_read_loop_that_has_ended_is_a_lost_connection(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "WATCHDOG_PERIOD_S", 0.05)
    bus = await connected(nats_url)
    assert bus.nc._reading_task is not None
    bus.nc._reading_task.cancel()
    with pytest.raises(BusClosed):
        await asyncio.wait_for(bus.watch(), 5)
    await bus.close()


async def test_a_server_that_stands_still_is_a_lost_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "WATCHDOG_PERIOD_S", 0.05)
    monkeypatch.setattr(bus_module, "FLUSH_TIMEOUT_S", 0.2)
    bus = await connected(server.url)
    with stopped(server), pytest.raises(BusClosed):
        await asyncio.wait_for(bus.watch(), 5)
    await bus.close()


@pytest.mark.parametrize("wait", [lambda bus: bus.settle(), lambda bus: bus.nc.flush(0.2)])
async def test_a_pong_that_comes_late_does_no_harm(
    server: Server, wait: Callable[[Bus], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "FLUSH_TIMEOUT_S", 0.2)
    bus = await connected(server.url)
    with stopped(server), pytest.raises(nats.errors.TimeoutError):
        await wait(bus)
    assert await answers(bus)
    await bus.settle()
    assert not bus.nc.is_deaf
    await bus.close()


async def test_leaving_a_subscription_handles_what_came_but_waits_for_no_handler_for_ever(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus, seen = await connected(nats_url), []

    async def handle(msg: Msg) -> None:
        seen.append(msg.data)
        await asyncio.sleep(0)

    async def hang(msg: Msg) -> None:
        await asyncio.Event().wait()

    for handler in (handle, hang):
        sub = await bus.nc.subscribe("some.subject", cb=handler)
        await bus.settle()
        for n in range(200):
            await bus.publish("some.subject", b"%d" % n)
        monkeypatch.setattr(bus_module, "LEAVE_TIMEOUT_S", 5.0 if handler is handle else 0.2)
        await asyncio.wait_for(bus.leave(sub), 5)
        assert len(seen) == 200
        assert sub._id not in bus.nc._subs
        assert sub._wait_for_msgs_task is not None
        await wait_until(sub._wait_for_msgs_task.done)
    await bus.close()


async def test_what_is_left_while_the_server_is_away_is_not_subscribed_again(server: Server) -> None:
    bus, seen = await connected(server.url), []

    async def handle(msg: Msg) -> None:
        seen.append(msg.subject)

    left, kept = [
        await bus.nc.subscribe(subject, cb=handler) for subject, handler in (("left", handle), ("kept", handle))
    ]
    await server.kill()
    await wait_until(lambda: not bus.is_connected)
    await bus.leave(left)
    await server.start()
    await wait_until(lambda: bus.is_connected)
    await bus.publish("left", b"")
    await bus.publish("kept", b"")
    await wait_until(lambda: seen)
    assert seen == ["kept"]
    await bus.leave(kept)
    await bus.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("how", ["away", "standing still", "well", "never reached"])
def test_closing_ends_soon_and_without_an_error_whatever_the_server_does(
    how: str, loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def close() -> float:
        async with one_server(tmp_path) as server:
            bus = Bus()
            if how != "never reached":
                await bus.connect(server.url, make_settings(), name="test")
            pushing = None
            if how == "away":
                await server.kill()
                await wait_until(lambda: not bus.is_connected)
                await bus.nc.publish("some.subject", b"x" * 1000)
            with stopped(server) if how == "standing still" else nullcontext():
                if how == "standing still":
                    pushing = asyncio.create_task(push(bus))
                    await wait_until(lambda: unsent(bus) > 1_000_000)
                started = time.monotonic()
                await bus.close()
                took_s = time.monotonic() - started
            if pushing is not None:
                await asyncio.wait({pushing}, timeout=5)
                assert pushing.done()
            own = asyncio.current_task()
            await wait_until(lambda: asyncio.all_tasks() == {own})
            return took_s

    async def push(bus: Bus) -> None:
        try:
            while True:
                await bus.nc.publish("some.subject", b"x" * 1_000_000)
        except nats.errors.ConnectionClosedError:
            return

    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(close()) < 3.5
    assert not caplog.records


async def test_who_waits_for_room_in_the_send_buffer_can_be_cancelled(server: Server) -> None:
    bus = await connected(server.url)

    async def push() -> None:
        while True:
            await bus.nc.publish("some.subject", b"x" * 1_000_000)

    with stopped(server):
        pushing = asyncio.create_task(push())
        await wait_until(lambda: unsent(bus) > 1_000_000)
        pushing.cancel()
        await asyncio.wait({pushing}, timeout=5)
        assert pushing.cancelled()
    await bus.close()


async def test_a_cancellation_that_comes_together_with_the_answer_is_not_lost(nats_url: str) -> None:
    bus = await connected(nats_url)
    await bus.nc.subscribe("some.subject")
    asking = asyncio.create_task(bus.nc.request("some.subject", b"", timeout=5))
    await wait_until(lambda: bus.nc._resp_map)
    await bus.settle()
    (waiting,) = bus.nc._resp_map.values()
    waiting.set_result(Msg(bus.nc))
    asking.cancel()
    await asyncio.wait({asking}, timeout=5)
    assert asking.cancelled()
    await bus.close()


async def test_nothing_that_is_logged_can_end_the_connection(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise BrokenPipeError("stderr is gone")

    bus = await connected(server.url)

    async def fail() -> None:
        raise ValueError("a callback fails")

    bus.on_reconnect(fail)
    monkeypatch.setattr(bus_module, "log", Broken())
    monkeypatch.setattr("processor.nats_client.log", Broken())
    await bus.nc._error_cb(ValueError("an error"))
    await server.kill()
    await wait_until(lambda: not bus.is_connected)
    await server.start()
    await wait_until(lambda: bus.is_connected)
    assert await answers(bus)
    monkeypatch.undo()
    await bus.close()


async def test_sigterm_while_the_broker_is_away_ends_the_processor_in_order(server: Server) -> None:
    async with running("processor", NATS_URL=server.url, LOCAL_BASE_URL="http://127.0.0.1:9") as sidecar:
        await server.kill()
        await wait_until(lambda: any("connection lost" in line for line in sidecar.said))
        sidecar.process.terminate()
        assert await asyncio.wait_for(sidecar.process.wait(), 30) == 0, "".join(sidecar.said)
    assert "Traceback" not in "".join(sidecar.said)
