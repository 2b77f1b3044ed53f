"""Alerts as a JSON POST to an address of the operator's."""

from __future__ import annotations

import asyncio

import aiohttp
import structlog

TRIES = 3
PAUSE_S = 2.0
TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


class Webhook:
    """Posts to `url`, which may hold a token and is never logged."""

    def __init__(self, url: str, *, pause_s: float = PAUSE_S) -> None:
        self._url = url
        self._pause_s = pause_s

    async def post(self, body: bytes) -> bool:
        """Whether it was taken (any 2xx) within `TRIES` tries.

        What is refused as wrong (4xx, but not 408 and 429, which ask for patience) is not tried again.
        """
        why = ""
        for number in range(TRIES):
            if number:
                await asyncio.sleep(self._pause_s * 2 ** (number - 1))
            try:
                timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
                async with aiohttp.ClientSession(timeout=timeout) as session:
                    headers = {"Content-Type": "application/json"}
                    async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                        if answer.status < 300:
                            return True
                        why = f"it answered {answer.status}"
                        if 400 <= answer.status < 500 and answer.status not in (408, 429):
                            break
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                why = type(error).__name__  # its text holds the address
        log.error("alert not taken by ALERT_WEBHOOK", why=why)
        return False
