"""How often each key may ask, over all bridges: the processor's sliding window, in a document a key in NATS."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, field

import structlog

from bridge.callers import Caller
from bridge.keyring import Keyring
from bridge.line import Line
from processor import subjects
from processor.bucket import Admit, Denied, Need, Result
from processor.bus import Bus
from processor.errors import ErrorType, RequestError
from processor.limit_stores import (
    Clock,
    Contended,
    LimitStore,
    MemoryStore,
    NatsStore,
    StateLost,
    StoreUnavailable,
    steady_clock,
)

ALONE_S = 5.0
"""For how long this bridge counts alone after NATS did not answer, so that not every request waits for it."""

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class _Asked:
    """One that waits to be let through; `result` is set by whoever asks for all that wait."""

    admit: Admit
    result: Result = None
    is_decided: bool = False


@dataclass(eq=False, slots=True)
class _Gate:
    waiting: dict[_Asked, None] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class KeyRates:
    """Lets each key through so often a minute. What waits while NATS is asked goes with the next question, all at once.

    Where NATS does not answer, this bridge counts alone: no key is let through without being counted.
    """

    def __init__(self, line: Line, keyring: Keyring, clock: Clock | None = None) -> None:
        self._line = line
        self._keyring = keyring
        self._clock = clock or steady_clock()
        self._alone = MemoryStore(self._clock)
        self._shared: tuple[Bus, LimitStore] | None = None
        self._alone_until = -math.inf
        self._gates: dict[str, _Gate] = {}
        """One a key that is limited: as many as there are keys."""

    async def count(self, who: Caller, requests: int = 1, *, counted: int = 0) -> None:
        """Count so many requests of the caller's key, or none of them, beside what was `counted` just before.

        Raises:
            RequestError: `rate_limited`, with the time after which they fit if nobody else comes; `too_large` for
                more at once than fit into a minute.
        """
        name, rpm = who.name, self._keyring.rpm(who.name)
        if rpm is None or requests < 1:
            return
        if (together := requests + counted) > rpm:
            raise RequestError(ErrorType.TOO_LARGE, f"{together} requests at once; this key may make {rpm} a minute")
        gate, mine = self._gates.setdefault(name, _Gate()), _Asked(Admit({"": {"rpm": rpm}}, Need(requests)))
        gate.waiting[mine] = None
        try:
            async with gate.lock:
                if not mine.is_decided:
                    await self._decide(name, gate)
        finally:
            gate.waiting.pop(mine, None)
        if isinstance(mine.result, Denied):
            raise RequestError(
                ErrorType.RATE_LIMITED,
                f"this key may make {rpm} request{'s' if rpm > 1 else ''} a minute, over all bridges",
                retry_after_s=mine.result.wait_s,
            )

    async def _decide(self, name: str, gate: _Gate) -> None:
        """Ask for all that wait. Whoever is cancelled here leaves the others to the next, at worst counted twice."""
        asked = list(gate.waiting)
        for one, result in zip(asked, await self._run(name, [one.admit for one in asked]), strict=True):
            one.result, one.is_decided = result, True
            gate.waiting.pop(one, None)

    async def _run(self, name: str, admits: list[Admit]) -> list[Result]:
        bus, loop = self._line.bus, asyncio.get_running_loop()
        if bus.is_connected and loop.time() >= self._alone_until:
            if self._shared is None or self._shared[0] is not bus:
                self._shared = bus, NatsStore(bus, self._clock, subjects.key_state)
            try:
                return await self._shared[1].run(name, admits)
            except (StoreUnavailable, StateLost, Contended) as error:
                self._alone_until = loop.time() + ALONE_S
                log.warning("a key's rate is counted by this bridge alone", key=name, why=str(error))
        return await self._alone.run(name, admits)
