"""Alerts: on the bus, in the log, and where the operator wants them; not once for each request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web
from nats.aio.client import Client
from pydantic import ValidationError

from processor.alerts import Alerts
from processor.bus import Bus
from processor.webhook import Webhook
from tests.conftest import make_settings
from tests.talk import listen, read
from tests.wait import wait_until


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that answers with these statuses in turn, then 200; its address, and what it was sent."""
    received: list[dict[str, Any]] = []
    answers = iter(statuses)

    async def take(request: web.Request) -> web.Response:
        received.append(orjson.loads(await request.read()))
        return web.Response(status=next(answers, 200))

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook?token=s3cret", received
    finally:
        await runner.cleanup()


@pytest.fixture
async def bus(nc: Client, nats_url: str) -> AsyncIterator[Bus]:
    one = Bus()
    await one.connect(nats_url, make_settings(), name="test")
    yield one
    await one.close()


async def test_an_alert_goes_to_the_bus_and_to_the_webhook_with_a_text_to_show(nc: Client, bus: Bus) -> None:
    sub = await listen(nc, "llm.alert.*")
    async with receiver() as (url, received):
        alerts = Alerts(bus, "r1", Webhook(url))
        alerts.tell("critical", "budget x", "100% is spent")
        await wait_until(lambda: received)
        await alerts.abandon()
    assert read(await sub.next_msg(timeout=5))["message"] == "100% is spent"
    assert (received[0]["severity"], received[0]["kind"]) == ("critical", "budget x")
    assert received[0]["text"] == "CRITICAL 100% is spent (budget x, r1)"


async def test_the_same_trouble_is_told_once_in_a_while(bus: Bus) -> None:
    async with receiver() as (url, received):
        alerts = Alerts(bus, "r1", Webhook(url))
        for kind in ("a", "a", "b"):
            alerts.tell("warning", kind, "x")
        await wait_until(lambda: len(received) == 2)
        await alerts.abandon()
    assert [told["kind"] for told in received] == ["a", "b"]


async def test_a_webhook_that_fails_is_tried_again_and_one_that_refuses_is_not() -> None:
    async with receiver(503, 429) as (url, received):
        assert await Webhook(url, pause_s=0.01).post(b"{}")
        assert len(received) == 3
    async with receiver(410) as (url, received):
        assert not await Webhook(url, pause_s=0.01).post(b"{}")
        assert len(received) == 1


async def test_the_webhooks_address_is_in_no_log_and_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert not await Webhook("http://127.0.0.1:9/hook?token=s3cret", pause_s=0.01).post(b"{}")
    with pytest.raises(ValidationError) as refused:
        make_settings(alert_webhook="ftp://x/s3cret")
    said = capsys.readouterr()
    assert "ALERT_WEBHOOK" in said.out + said.err
    assert "s3cret" not in said.out + said.err + str(refused.value.errors(include_input=False))
    assert "s3cret" not in repr(make_settings(alert_webhook="https://x/s3cret"))
