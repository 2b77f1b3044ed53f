"""The clocks of a call: to the first token, between tokens, the whole call, and a floor under a stream that only drips.

The connection's own clock is the SDK's, and the whole request's is its deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise

from processor.transcript import CHARS_PER_TOKEN
from providers.base import Event, TextDelta, ThinkingDelta, ToolCallDelta
from providers.errors import TimedOut

FLOOR_WINDOW_S = 15.0
"""Over how long a stream's speed is judged, without its longest pause: while a model thinks, it does not drip."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds; `floor` in tokens a second, 0 for none."""

    first_token_s: float
    between_s: float
    total_s: float
    floor: float


@dataclass(slots=True)
class Drip:
    """Whether a stream is slower than `floor` tokens a second in what is left of the last `FLOOR_WINDOW_S` seconds.

    Their longest pause is left out, which the clock between tokens is for; where that was half of them, all is well.
    """

    floor: float
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    """(time, characters), those of a quarter of a second together."""
    _chars: int = 0
    _begun: float | None = None

    def too_slow(self, chars: int, now: float) -> bool:
        """Take `chars` more characters, seen at `now`. Nothing is too slow before a whole window was seen."""
        self._begun = now if self._begun is None else self._begun
        self._chars += chars
        if self._seen and now - self._seen[-1][0] < FLOOR_WINDOW_S / 60:
            at, before = self._seen.pop()
            self._seen.append((at, before + chars))
        else:
            self._seen.append((now, chars))
        while self._seen[0][0] <= now - FLOOR_WINDOW_S:
            self._chars -= self._seen.popleft()[1]
        tokens = self._chars / CHARS_PER_TOKEN
        if now - self._begun < FLOOR_WINDOW_S or tokens >= self.floor * FLOOR_WINDOW_S:
            return False  # as nearly always: no pause has to be looked for
        times = (now - FLOOR_WINDOW_S, *(at for at, _ in self._seen))
        flow_s = FLOOR_WINDOW_S - max(after - before for before, after in pairwise(times))
        return flow_s > FLOOR_WINDOW_S / 2 and tokens < self.floor * flow_s


async def timed(events: AsyncGenerator[Event], clocks: Clocks) -> AsyncGenerator[Event]:
    """The same events, or `TimedOut` where one is too late.

    A vendor's keep-alives do not count: only tokens set the clock back.
    """
    drip = Drip(clocks.floor)
    limit_s, begun = clocks.first_token_s, False
    began = time.monotonic()
    due, end = began + limit_s, began + clocks.total_s
    async with aclosing(events):
        while True:
            try:
                async with asyncio.timeout(min(due, end) - time.monotonic()):
                    event = await anext(events)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if end <= due:
                    raise TimedOut(f"the answer was not complete in {clocks.total_s:g} s") from None
                where = "between two tokens" if begun else "before its first token"
                raise TimedOut(f"the vendor was silent for {limit_s:g} s {where}") from None
            if chars := _chars(event):
                begun, limit_s = True, clocks.between_s
                due = time.monotonic() + limit_s
                if clocks.floor and drip.too_slow(chars, time.monotonic()):
                    raise TimedOut(f"the stream drips: less than {clocks.floor:g} tokens a second")
            yield event


def _chars(event: Event) -> int:
    match event:
        case TextDelta(text) | ThinkingDelta(text):
            return max(1, len(text))
        case ToolCallDelta(arguments=arguments):
            return max(1, len(arguments))
    return 0
