"""A provider's one client: opened at the first call or before, shared by all calls, closed once."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar

from providers.base import Endpoint
from providers.boundary import safe_message
from providers.errors import BadCredentials, ProviderError, VendorError

log = logging.getLogger(__name__)


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
        """The client, made now if it was not there.

        Raises:
            ProviderError: it cannot be made, so that nothing is sent; whatever the reason, another provider may answer.
        """
        async with self._opening:
            if self._client is None:
                try:
                    self._check_key()
                    self._client = await self.connect()
                except ProviderError as error:
                    error.unsent = True
                    raise
                except Exception as error:
                    # The error's own words may hold a path or a proxy's password: they are the operator's to read.
                    log.warning("%s cannot be opened: %s", self._name, safe_message(repr(error), self.endpoint.api_key))
                    why = type(error).__name__
                    raise VendorError(f"{self._name} cannot be opened ({why})", unsent=True) from error
            return self._client

    def _check_key(self) -> None:
        """Refuse a key that no HTTP header can hold, which every SDK does in its own way, and late."""
        key = self.endpoint.api_key
        if not (key.isascii() and key.isprintable()):
            raise BadCredentials(f"{self._name}'s key has characters that no key has (a line's end, perhaps)")

    async def aclose(self) -> None:
        """Close all connections. The next call opens anew."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()
