"""A vendor of the test's own for every provider's tests, and one that cannot be reached."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest

from tests.providers.vendor import Vendor, serving


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with serving() as vendor:
        yield vendor


@pytest.fixture
def unreachable() -> Iterator[str]:
    """The URL of a listener whose backlog is full: nobody gets a connection, nor a refusal."""
    with ExitStack() as kept:
        listener = kept.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(16):
            caller = kept.enter_context(socket.socket())
            caller.settimeout(0.1)
            try:
                caller.connect(listener.getsockname())
            except TimeoutError:
                break
        else:
            pytest.skip("this kernel's backlog does not fill")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
