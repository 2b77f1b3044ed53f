"""Sidecar processes that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from tests.chaos.vendor import ScriptedVendor
from tests.processes import Sidecar, running

CATALOG = Path(__file__).with_name("catalog.toml")
KEPT_LINES = 40


class Replica:
    """One `sidecar processor`, started again under the same settings as often as one likes."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._sidecar: Sidecar | None = None
        self.said: list[str] = []
        """What all its lives printed."""

    async def start(self) -> None:
        """From now on it serves."""
        self._sidecar = await self._stack.enter_async_context(running("processor", **self._settings))

    async def kill(self) -> None:
        """SIGKILL."""
        if self._sidecar is not None:
            self._sidecar.process.kill()
        await self.stop()

    async def stop(self) -> int:
        """SIGTERM, unless it is dead already; returns its exit code."""
        await self._stack.aclose()
        sidecar, self._sidecar = self._sidecar, None
        if sidecar is None:
            return 0
        self.said += sidecar.said
        assert sidecar.process.returncode is not None
        return sidecar.process.returncode


@asynccontextmanager
async def replicas(count: int, url: str, vendor: ScriptedVendor, **settings: str) -> AsyncIterator[list[Replica]]:
    """That many processors on the broker at `url`, started one after the other."""
    chosen = {"NATS_URL": url, "SIDECAR_CATALOG": str(CATALOG), "MAX_WORKERS": "16", **vendor.settings(), **settings}
    crowd = [Replica(chosen) for _ in range(count)]
    try:
        for replica in crowd:
            await replica.start()
        yield crowd
    finally:
        await asyncio.gather(*(replica.stop() for replica in crowd))
