"""One HTTP client that streams an answer, and re-attaches through the next bridge whenever it loses its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

RETRY_S = 0.2
PATIENCE = 100
"""Tries to re-attach, one after the other, before it is given up."""


@dataclass
class Reader:
    """What one client saw of one stream: `text` is every delta, in the order of arrival."""

    question: str
    text: str = ""
    response: str | None = None
    """The whole text that the final reply holds."""
    chunks: int = 0
    connections: int = 0
    out_of_order: int = 0
    faults: list[str] = field(default_factory=list)
    _seen: str = ""

    @property
    def has_ended(self) -> bool:
        return self.response is not None or bool(self.faults)

    def is_whole(self, expected: str) -> bool:
        """Every byte came once, in order, and the final reply has the same ones."""
        return not self.faults and not self.out_of_order and self.text == expected == self.response

    async def read(self, client: aiohttp.ClientSession, bridges: Sequence[str]) -> None:
        """Ask through the first bridge, and read to the ending, through the others in turn where that one is lost."""
        body = {"messages": [{"role": "user", "content": self.question}], "stream": True, "deadline_ms": 600_000}
        headers = {"X-Sidecar-Detach": "true"}
        async with client.post(f"{bridges[0]}/api/chat", data=orjson.dumps(body), headers=headers) as response:
            if response.status != 200:
                self.faults.append(f"{response.status} {await response.text()}")
                return
            request_id = response.headers["X-Sidecar-Request-Id"]
            await self._take(response)
        for tries in range(PATIENCE):
            if self.has_ended:
                return
            await self._attach(client, f"{bridges[(tries + 1) % len(bridges)]}/api/requests/{request_id}/events")
        if not self.has_ended:
            self.faults.append("no bridge gave the rest")

    async def _attach(self, client: aiohttp.ClientSession, url: str) -> None:
        try:
            async with client.get(url, headers={"Last-Event-ID": self._seen} if self._seen else {}) as response:
                if response.status == 200:
                    await self._take(response)
                    return
        except aiohttp.ClientError:
            pass  # that bridge is away, as the next try will show
        await asyncio.sleep(RETRY_S)

    async def _take(self, response: aiohttp.ClientResponse) -> None:
        self.connections += 1
        try:
            async for mark, name, data in _events(response):
                self._check_order(mark)
                match name:
                    case "delta":
                        self.text += orjson.loads(data)["text"]
                        self.chunks += 1
                    case "final":
                        self.response = orjson.loads(data)["response"]
                    case _:
                        self.faults.append(f"{name}: {data.decode()[:200]}")
        except aiohttp.ClientError:
            return  # the connection is lost: the rest is read anew

    def _check_order(self, mark: str) -> None:
        attempt, _, seq = mark.partition(".")
        before = self._seen.partition(".")
        follows = (before[0], int(before[2]) + 1) if self._seen else ("1", 0)
        self.out_of_order += (attempt, int(seq)) != follows
        self._seen = mark


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, bytes]]:
    """(id, name, data) of each whole event that has an id; what comes without one is of the bridge, not the answer."""
    fields: dict[bytes, bytes] = {}
    async for line in response.content:
        if line == b"\n":
            if b"id" in fields:
                yield fields[b"id"].decode(), fields[b"event"].decode(), fields[b"data"]
            fields = {}
        else:
            name, _, value = line.rstrip(b"\n").partition(b": ")
            fields[name] = value
