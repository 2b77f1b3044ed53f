"""Two vendors in trouble and one healthy: every request is answered, and nobody is called who asked to wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import orjson
import pytest
from nats.aio.client import Client

from tests.acceptance.vendors import serving
from tests.chaos.vendor import Refuse, ScriptedVendor, during
from tests.processes import running
from tests.talk import ask, body

REQUESTS = 200
TROUBLE_S = 30.0
RETRY_AFTER_S = 5
UNDER_WAY_S = 0.3
"""What was sent before the 429 had come back."""


@pytest.mark.slow
async def test_with_anthropic_overloaded_and_groq_throttled_all_are_answered_and_no_retry_after_is_broken(
    nc: Client, nats_url: str
) -> None:
    begun = time.time()
    trouble = ScriptedVendor(
        during("anthropic", begun, begun + TROUBLE_S, Refuse(529)),
        during("groq", begun, begun + TROUBLE_S, Refuse(429, RETRY_AFTER_S)),
        pause_s=0.005,
    )
    async with serving(trouble) as vendor, running("processor", NATS_URL=nats_url, **vendor.settings()) as up:

        async def one(n: int) -> dict[str, object]:
            await asyncio.sleep(n * TROUBLE_S / REQUESTS)
            model = ("haiku", "llama", "auto", "sonnet")[n % 4]
            priority = ("critical", "high", "medium", "low")[n % 3]
            return await ask(nc, body(f"q{n}", model=model, deadline_ms=150_000), priority, timeout=160)

        replies = await asyncio.gather(*[one(n) for n in range(REQUESTS)])
    assert [reply for reply in replies if "error" in reply] == []
    assert Counter(reply["provider"] for reply in replies)["gemini"] > REQUESTS / 2
    throttled = [call.arrived for call in vendor.calls if call.vendor == "groq" and call.mischief is not None]
    assert throttled
    inside = [
        call.arrived - refused
        for call in vendor.calls
        for refused in throttled
        if call.vendor == "groq" and UNDER_WAY_S < call.arrived - refused < RETRY_AFTER_S
    ]
    assert inside == []
    path = [orjson.loads(line) for line in up.said if '"circuit breaker"' in line]
    haiku = [(step["before"], step["after"]) for step in path if step["model"] == "haiku"]
    assert haiku[:3] == [("closed", "open"), ("open", "half_open"), ("half_open", "open")]
