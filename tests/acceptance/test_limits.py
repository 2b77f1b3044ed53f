"""One limit for all replicas, by the vendor's own log: never exceeded in any minute, and nearly used up in each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import nats
import pytest

from tests.acceptance.vendors import serving
from tests.chaos.vendor import ScriptedVendor
from tests.conftest import nats_server
from tests.processes import running
from tests.talk import body
from tests.wait import wait_until

RPM = 60
BURST = 200


def catalog_in(home: Path) -> Path:
    home.mkdir()
    catalog = home / "catalog.toml"
    catalog.write_text(f"[limits.anthropic]\nrpm = {RPM}\ntpm = 1_000_000_000\n", "utf-8")
    return catalog


async def arrivals(home: Path, **settings: str) -> list[float]:
    """When each of BURST requests reached the vendor, with two processors before it."""
    catalog = catalog_in(home)
    with nats_server(home) as url:
        async with serving(ScriptedVendor(pause_s=0.005)) as vendor:
            common: dict[str, Any] = {
                "NATS_URL": url,
                "SIDECAR_CATALOG": str(catalog),
                "RATE_LIMIT_BUFFER": "0",
                **vendor.settings(),
                **settings,
            }
            async with running("processor", **common), running("processor", **common):
                nc = await nats.connect(url)
                for n in range(BURST):
                    await nc.jetstream().publish(f"llm.request.low.job-{n}", body(f"q{n}", fallback=False))
                await wait_until(lambda: len(vendor.calls) >= BURST, timeout_s=300)
                await nc.close()
            return sorted(call.arrived for call in vendor.calls)


@pytest.mark.slow
async def test_two_processors_share_one_limit_with_redis_and_without(tmp_path: Path, redis_url: str) -> None:
    both = await asyncio.gather(arrivals(tmp_path / "nats"), arrivals(tmp_path / "redis", REDIS_URL=redis_url))
    for times in both:
        assert len(times) == BURST
        most = max(sum(1 for t in times if start <= t < start + 60) for start in times)
        assert most <= RPM
        fastest_s = (BURST - 1) // RPM * 60.0
        assert fastest_s / (times[-1] - times[0]) >= 0.9, times[-1] - times[0]
