"""A real browser for the dashboard's tests: one for the module, and a page of its own for each test."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Page, async_playwright

from tests.conftest import unavailable
from tests.wait import wait_until_blocking

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"),
)


@contextmanager
def browsing(home: Path) -> Iterator[str]:
    """Chromium with its profile in `home`; gives the address at which it is driven."""
    binary = next((found for name in NAMES if (found := shutil.which(name))), None)
    if binary is None:
        unavailable("no chromium: apt-get install chromium")
        return
    process = subprocess.Popen(
        [binary, *FLAGS, f"--user-data-dir={home}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    told = home / "DevToolsActivePort"
    try:
        wait_until_blocking(lambda: told.exists() and told.read_text().count("\n") == 1, timeout_s=30)
        yield f"http://127.0.0.1:{told.read_text().split()[0]}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@dataclass(frozen=True)
class Viewed:
    """A page, and what it has complained of on the console."""

    page: Page
    errors: list[str] = field(default_factory=list)

    async def text(self, selector: str) -> str:
        return (await self.page.locator(selector).first.inner_text()).strip()

    async def table(self, selector: str) -> dict[str, dict[str, str]]:
        """A table by its rows' and columns' headings."""
        found: dict[str, dict[str, str]] = await self.page.locator(selector).evaluate(
            """table => {
                const heads = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
                return Object.fromEntries([...table.tBodies[0].rows].map(row => [
                    row.cells[0].textContent,
                    Object.fromEntries([...row.cells].map((cell, index) => [heads[index], cell.textContent])),
                ]));
            }"""
        )
        return found


@asynccontextmanager
async def viewing(driven_at: str, url: str, **context: Any) -> AsyncIterator[Viewed]:
    """A fresh page at `url`; `context` is playwright's (viewport, color_scheme …)."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(driven_at)
        fresh = await browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        try:
            page = await fresh.new_page()
            page.set_default_timeout(10_000)
            viewed = Viewed(page)
            page.on(
                "console", lambda said: viewed.errors.append(said.text) if said.type in {"error", "warning"} else None
            )
            page.on("pageerror", lambda error: viewed.errors.append(str(error)))
            await page.goto(url)
            yield viewed
        finally:
            await fresh.close()
            await browser.close()
