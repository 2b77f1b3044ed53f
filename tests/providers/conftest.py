"""A vendor of the test's own for every provider's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.providers.vendor import Vendor, serving


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with serving() as vendor:
        yield vendor
