"""uvicorn's WebSocket protocol, but for a peer that takes nothing: its connection is cut, not waited for."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

TAKES_WITHIN_S = 10.0
"""For a peer to take what is buffered for it: some 64 KiB."""


class ImpatientProtocol(WebSocketsSansIOProtocol):
    """Closing alone would wait for ever to write what nobody reads."""

    _stalled: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(TAKES_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
