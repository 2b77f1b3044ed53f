"""What most of the bridge's tests begin with."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client

from tests.bridge.edge import Edge, bridging


@pytest.fixture
async def edge(nc: Client, nats_url: str) -> AsyncIterator[Edge]:
    """A bridge on a clean broker, without keys."""
    async with bridging(nats_url) as one:
        yield one
