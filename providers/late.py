"""A provider's one client: opened at the first call or before, shared by all calls, closed once."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from providers.base import Endpoint


class Closing(Protocol):
    """Whatever a provider keeps open."""

    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closing)


class LateProvider(ABC, Generic[C]):
    """The half of `Provider` that is the same for all who hold connections."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.endpoint = endpoint
        self._name = name
        self._opening = asyncio.Lock()
        self._client: C | None = None

    @abstractmethod
    async def connect(self) -> C:
        """Import what is needed and build the client."""

    @property
    def name(self) -> str:
        return self._name

    async def open(self) -> None:
        """Import the SDK and build the client, once."""
        await self.opened()

    async def opened(self) -> C:
        """The client, made now if it was not there."""
        async with self._opening:
            if self._client is None:
                self._client = await self.connect()
            return self._client

    async def aclose(self) -> None:
        """Close all connections. The next call opens anew."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
