"""One stage for each provider, on which a test says what its vendor does: llmock over HTTP, or a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import orjson
from llmock.pytest_plugin import LLMock

from providers.anthropic import AnthropicProvider
from providers.base import (
    Endpoint,
    Finished,
    FinishReason,
    Opened,
    Provider,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from providers.boundary import kind_by_status
from providers.errors import BadResponse, StreamCut, TimedOut
from providers.gemini import GeminiProvider
from providers.groq import GroqProvider
from providers.local import LocalProvider
from providers.scripted import Pause, Script, ScriptedProvider, Step
from tests.providers.vendor import KEY

OVER_HTTP = [AnthropicProvider, GroqProvider, GeminiProvider, LocalProvider]
PROVIDERS = ["anthropic", "groq", "gemini", "local", "scripted"]


class Stage(Protocol):
    """What the vendor does at the next calls."""

    provider: Provider
    model: str

    def reply(self, text: str) -> None: ...
    def call_tool(self, name: str, arguments: dict[str, Any]) -> None: ...
    def fail(self, status: int, retry_after_s: float | None = None) -> None: ...
    def break_stream(self, how: str) -> None: ...

    @property
    def calls(self) -> int: ...


class HttpStage:
    """A provider over real sockets."""

    def __init__(self, llmock: LLMock, provider: Provider, model: str) -> None:
        self.provider, self.model, self._llmock = provider, model, llmock

    def reply(self, text: str) -> None:
        self._llmock.reply(text)

    def call_tool(self, name: str, arguments: dict[str, Any]) -> None:
        self._llmock.call_tool(name, arguments)

    def fail(self, status: int, retry_after_s: float | None = None) -> None:
        self._llmock.fail(status, retry_after=retry_after_s, times=None)

    def break_stream(self, how: str) -> None:
        self._llmock.reply("one two three four five six")
        match how:
            case "cut":
                self._llmock.disconnect(after_chunks=2)
            case "ended":
                self._llmock.truncate(after_chunks=2)
            case "corrupt":
                self._llmock.corrupt(after_chunks=2)
            case "silent":
                self._llmock.stall(seconds=3)

    @property
    def calls(self) -> int:
        return len(self._llmock.requests)


class ScriptedStage:
    """The scripted provider plays what the others are made to do."""

    def __init__(self) -> None:
        self._play([])
        self.model = "scripted"

    def reply(self, text: str) -> None:
        words = [TextDelta(piece) for piece in text.split(" ")]
        pieces = [TextDelta(f"{word.text} ") for word in words[:-1]] + words[-1:]
        usage = Usage(input_fresh=1, output_visible=len(words))
        self._play(
            lambda prompt: [
                Opened(),
                *(pieces if prompt.stream else [TextDelta(text)]),
                Finished(FinishReason.STOP, usage, prompt.model),
            ]
        )

    def call_tool(self, name: str, arguments: dict[str, Any]) -> None:
        call = ToolCallDelta(0, "call_1", name, orjson.dumps(arguments).decode())
        self._play([Opened(), call, Finished(FinishReason.TOOL_CALLS, Usage(1, output_visible=1), self.model)])

    def fail(self, status: int, retry_after_s: float | None = None) -> None:
        self._play([kind_by_status(status)("scripted", status=status, retry_after_s=retry_after_s)])

    def break_stream(self, how: str) -> None:
        errors = {"cut": StreamCut, "ended": StreamCut, "corrupt": BadResponse, "silent": TimedOut}
        self._play([Opened(), TextDelta("one"), Pause(0.01), errors[how]("scripted")])

    def _play(self, script: Script | Sequence[Step]) -> None:
        self._scripted = ScriptedProvider(script)
        self.provider: Provider = self._scripted

    @property
    def calls(self) -> int:
        return self._scripted.calls


@asynccontextmanager
async def stage(name: str, llmock: LLMock) -> AsyncIterator[Stage]:
    """The stage of the provider `name`; its vendors are silent for at most a second and a half."""
    if name == "scripted":
        yield ScriptedStage()
        return
    endpoint = Endpoint(
        api_key=KEY,
        base_url=llmock.base_url("openai" if name == "local" else name),
        api_version="v1beta",
        read_timeout_s=1.5,
    )
    made: tuple[Provider, str]
    match name:
        case "anthropic":
            made = AnthropicProvider(endpoint), "claude-haiku-4-5-20251001"
        case "groq":
            made = GroqProvider(endpoint), "openai/gpt-oss-120b"
        case "gemini":
            made = GeminiProvider(endpoint), "gemini-3.5-flash-lite"
        case _:
            made = LocalProvider(endpoint), "llama3"
    try:
        yield HttpStage(llmock, *made)
    finally:
        await made[0].aclose()
