"""A provider that plays a script of events, pauses and errors: for tests, chaos and benchmarks."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from providers.base import Event, Finished, FinishReason, Opened, Prompt, Text, TextDelta, Usage
from providers.errors import ProviderError

KEPT_PROMPTS = 1_000


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for that many seconds before the next step."""

    seconds: float


Step = Event | Pause | ProviderError
Script = Callable[[Prompt], Sequence[Step]]


def echo(prompt: Prompt) -> Sequence[Step]:
    """Says the last user text back, word by word, and counts words as tokens."""
    text = next((p.text for m in reversed(prompt.messages) for p in m.parts if isinstance(p, Text)), "")
    words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
    usage = Usage(input_fresh=len(words), output_visible=len(words), raw={"words": len(words)})
    deltas = [TextDelta(word) for word in words] if prompt.stream else [TextDelta(text)]
    return [Opened(), *deltas, Finished(FinishReason.STOP, usage, prompt.model)]


class ScriptedProvider:
    """Plays `script`: the same steps at every call, or those that a function makes of the prompt."""

    def __init__(
        self,
        script: Script | Sequence[Step] = echo,
        *,
        name: str = "scripted",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.calls = 0
        self.cancelled = 0
        self.prompts: deque[Prompt] = deque(maxlen=KEPT_PROMPTS)
        self._script = script
        self._sleep = sleep

    async def open(self) -> None:
        """Nothing to open."""

    async def aclose(self) -> None:
        """Nothing to close."""

    async def stream(self, prompt: Prompt) -> AsyncGenerator[Event]:
        self.calls += 1
        self.prompts.append(prompt)
        steps = self._script(prompt) if callable(self._script) else self._script
        try:
            for step in steps:
                match step:
                    case Pause(seconds):
                        await self._sleep(seconds)
                    case ProviderError():
                        raise step
                    case _:
                        yield step
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
