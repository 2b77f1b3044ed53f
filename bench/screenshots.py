"""The README's pictures of the dashboard: a whole sidecar with scripted vendors under a mixed load, photographed.

    .venv/bin/python -m bench.screenshots [--seconds 150] [--into docs]

It needs Chromium on PATH. Everything runs on this machine, on ports and in a folder of its own; no vendor is called.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import math
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import nats
import nats.errors
import orjson
import structlog
from nats.aio.client import Client
from playwright.async_api import Page, async_playwright

from bridge.service import bridge
from processor.broker import contract_dir, embedded_broker
from processor.bus import Bus
from processor.config import Settings
from processor.provision import provision
from processor.service import Processor, configured_catalog
from providers.base import Finished, FinishReason, Opened, Prompt, Text, TextDelta, Usage
from providers.errors import Overloaded
from providers.scripted import Pause, ScriptedProvider, Step

CATALOG = """
[limits.anthropic]
rpm = 600
tpm = 190_000
[limits.groq]
rpm = 240
tpm = 90_000
[limits.gemini]
rpm = 200
tpm = 400_000
[budgets]
monthly_usd = 5
daily_usd = 1
[budgets.tenants.field-office]
monthly_usd = 0.4
"""
TENANTS = ("water-board", "field-office", "research", "default")
QUESTIONS = (
    "Summarise the soil moisture readings of the last week",
    "Which districts are at risk of drought this month?",
    "Translate the warning for the northern valleys",
    "Write the morning report for the water board",
    "Is the reservoir's level normal for the season?",
)
ANSWER = "Rain is expected in the north by Thursday, while the southern basins stay dry and need watching."
A_SECOND = {"critical": 0.5, "high": 4.0, "medium": 2.0, "low": 0.8}
BATCH, BATCH_EVERY_S = 60, 40.0
"""Requests that are put into the low lane at once, now and then."""
REPEATED = 0.25
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
DESKTOP = {"viewport": {"width": 1440, "height": 1060}, "color_scheme": "light"}
PHONE = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "device_scale_factor": 2}
PROMPT = "Which districts need water first, and why?"


def vendor(name: str, *, speed: float, breaks: float, rng: random.Random) -> ScriptedProvider:
    """Answers word by word, in a time that differs as real ones do, and fails a share of the calls.

    For half a minute in every two it fails them all where `breaks` is 1 or more.
    """
    calls = itertools.count()

    def script(prompt: Prompt) -> Sequence[Step]:
        number = next(calls)
        is_out = breaks >= 1 and number % 90 > 70
        if is_out or rng.random() < breaks % 1:
            return [Pause(0.2), Overloaded(f"{name} is overloaded")]
        size = sum(len(part.text) for message in prompt.messages for part in message.parts if isinstance(part, Text))
        words = [f"{word} " for word in ANSWER.split() * rng.randint(1, 3)]
        between = speed * rng.lognormvariate(0, 0.4) / len(words)
        steps: list[Step] = [Opened(), Pause(speed * rng.lognormvariate(-1.6, 0.5))]
        steps += itertools.chain.from_iterable((TextDelta(word), Pause(between)) for word in words)
        usage = Usage(input_fresh=size // 4 + rng.randint(20, 400), output_visible=len(words) * 4)
        return [*steps, Finished(FinishReason.STOP, usage, prompt.model)]

    return ScriptedProvider(script, name=name)


async def load(nc: Client, rng: random.Random) -> None:
    """Asks on all lanes, for ever: in waves, some of them again, and now and then a batch."""
    loop = asyncio.get_running_loop()
    began, next_batch = loop.time(), 8.0
    async with asyncio.TaskGroup() as asks:
        for number in itertools.count():
            at = loop.time() - began
            for lane, rate in A_SECOND.items():
                wave = 1 + 0.6 * math.sin(at / (9 + 4 * len(lane)) + len(lane))
                if rng.random() < rate * wave / 10:
                    asks.create_task(_ask(nc, lane, _body(rng, number)))
            if at >= next_batch:
                next_batch += BATCH_EVERY_S
                for part in range(BATCH):
                    await nc.publish(f"llm.request.low.batch-{number}-{part}", orjson.dumps(_body(rng, number + part)))
            await asyncio.sleep(0.1)


def _body(rng: random.Random, number: int) -> dict[str, Any]:
    number = rng.randint(0, 3) if rng.random() < REPEATED else number
    question = f"{QUESTIONS[number % len(QUESTIONS)]} (case {number})"
    body = {"messages": [{"role": "user", "content": question}], "tenant": rng.choice(TENANTS), "deadline_ms": 90_000}
    return body | rng.choice(({}, {}, {"prefer": "speed"}, {"prefer": "quality"}, {"model": "gemini"}))


async def _ask(nc: Client, lane: str, body: dict[str, Any]) -> None:
    with suppress(nats.errors.Error):  # at the end the sidecar goes while some still wait
        await nc.request(f"llm.request.{lane}", orjson.dumps(body), timeout=90)


@asynccontextmanager
async def demo(home: Path, rng: random.Random) -> AsyncIterator[tuple[str, str]]:
    """Broker, processor and bridge; gives the addresses of the broker and of the page."""
    (home / "catalog.toml").write_text(CATALOG, "utf-8")
    settings = Settings(
        _env_file=None, sidecar_catalog=home / "catalog.toml", sidecar_port=0, max_workers=14, shutdown_grace=3
    )
    vendors = {
        "anthropic": vendor("anthropic", speed=1.3, breaks=0.02, rng=rng),
        "gemini": vendor("gemini", speed=0.9, breaks=0.0, rng=rng),
        "groq": vendor("groq", speed=0.4, breaks=1.05, rng=rng),
    }
    bus, stopping = Bus(), asyncio.Event()
    async with embedded_broker(home, 0) as url:
        await bus.connect(url, settings, name="screenshots")
        await provision(bus.nc, contract_dir())
        processor = Processor(settings, bus, vendors, configured_catalog(settings), replica="demo-1")
        ready = asyncio.Event()
        with bridge(settings) as edge:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(processor.run(on_ready=ready.set))
                tasks.create_task(edge.serve(url, stopping, lambda _: None))
                await ready.wait()
                try:
                    yield url, edge.url
                finally:
                    stopping.set()
                    processor.stop()
        await bus.close()


async def photograph(page: Page, path: Path, *, prompt: str = "") -> None:
    """What the page shows now; with `prompt`, once it was tried."""
    if prompt:
        await page.fill("#try-text", prompt)
        await page.click("#try-send")
        await page.wait_for_selector("#try-facts:not([hidden])", timeout=30_000)
    await page.evaluate("document.activeElement.blur()")
    print(f"{path}: {len(await page.screenshot(path=path)) / 1024:.0f} KB")


async def run(seconds: float, into: Path, home: Path) -> None:
    rng = random.Random(7)
    async with demo(home, rng) as (broker_url, address), async_playwright() as playwright:
        nc = await nats.connect(broker_url)
        loading = asyncio.create_task(load(nc, rng))
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        pages = []
        for context in (DESKTOP, PHONE):
            page = await (await browser.new_context(**context)).new_page()
            await page.goto(address)
            pages.append(page)
        print(f"{address} for {seconds:g} s")
        await asyncio.wait({loading}, timeout=seconds)
        await photograph(pages[0], into / "dashboard.png", prompt=PROMPT)
        await photograph(pages[1], into / "dashboard-phone.png")
        await browser.close()
        loading.cancel()
        await asyncio.wait({loading})
        await nc.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150, help="of load before the pictures are taken")
    parser.add_argument("--into", type=Path, default=Path("docs"))
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    options.into.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as home:
        asyncio.run(run(options.seconds, options.into, Path(home)))


if __name__ == "__main__":
    main()
