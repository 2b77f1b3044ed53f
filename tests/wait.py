"""Waiting for something to become true, in place of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def wait_until(predicate: Callable[[], Any | Awaitable[Any]], timeout_s: float = 10.0) -> Any:
    """The predicate's first true value; fails when there is none within `timeout_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if loop.time() > deadline:
            raise AssertionError(f"not true within {timeout_s:g} s: {inspect.getsource(predicate).strip()}")
        await asyncio.sleep(0.01)


def wait_until_blocking(predicate: Callable[[], Any], timeout_s: float = 10.0) -> Any:
    """`wait_until` where no event loop runs."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {timeout_s:g} s: {inspect.getsource(predicate).strip()}")
        time.sleep(0.01)
    return value
