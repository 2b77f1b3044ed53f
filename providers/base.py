"""What every provider takes and yields: one prompt in, a stream of frozen events out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Protocol

Json = Any
"""A decoded JSON value."""


# --- what goes in ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture, by value (`data`, base64 without prefix) or by reference (`url`): exactly one is set."""

    media_type: str | None = None
    data: str | None = None
    url: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model's wish to call a tool; `arguments` is a JSON object as text.

    `signature` is an opaque token of the vendor's that has to be returned unchanged on the next turn
    (Gemini's thoughtSignature).
    """

    id: str
    name: str
    arguments: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered to the call `id`."""

    id: str
    content: str
    is_error: bool = False


Part = Text | Image | ToolCall | ToolResult
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Roles come in the order that `processor.messages` has checked."""

    role: Role
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is a JSON schema of type object."""

    name: str
    description: str
    parameters: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`auto`, `none`, `required` (some tool), or `named` (the tool `name`)."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """The answer has to be a JSON object; with `schema`, one that fits it."""

    schema: Mapping[str, Json] | None = None
    name: str = "answer"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One call to one model. `stream` says whether the caller wants deltas as they come.

    Of the first messages, with the tools before them, `stable_messages` were sent before and will likely be again: a
    vendor that wants marks for its cache gets one there.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    response_format: JsonFormat | None = None
    stable_messages: int = 0


# --- what comes out -------------------------------------------------------------------------


class FinishReason(StrEnum):
    """Why the model stopped, in OpenAI's words where it has one."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"
    """A refusal or a safety stop: a completed, billed answer, not an error."""
    PAUSE = "pause"
    """Anthropic's pause_turn: send the answer back to let the model go on."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, in disjoint parts: their sum is what the vendor bills.

    Vendors disagree (Anthropic's parts add up, Groq's and Gemini's cached tokens are included in the
    prompt's), so every adapter takes its vendor's figures apart into these and keeps them in `raw`.
    """

    input_fresh: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    tool_input: int = 0
    output_visible: int = 0
    output_thinking: int = 0
    raw: Mapping[str, Json] = field(default_factory=dict, compare=False)

    @property
    def input_tokens(self) -> int:
        """All input, cached or not."""
        return self.input_fresh + self.cache_read + self.cache_write + self.tool_input

    @property
    def cache_write(self) -> int:
        """Tokens written to the vendor's prompt cache, of either lifetime."""
        return self.cache_write_5m + self.cache_write_1h

    @property
    def output_tokens(self) -> int:
        """All output, thinking included."""
        return self.output_visible + self.output_thinking


Metric = Literal["rpm", "rpd", "tpm", "itpm", "otpm"]
"""Requests a minute or a day; tokens a minute: all, input, output."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What the vendor says is left of one of its limits, this call counted.

    `limit` is None where it does not say; `reset_s` is seconds from the answer until the limit is full again.
    """

    metric: Metric
    limit: int | None
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Opened:
    """The vendor answered 200. `quotas` are what its headers say of its limits, at most one for each metric."""

    vendor_request_id: str | None = None
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingDelta:
    """The next piece of the model's reasoning; `signature` arrives with the last piece of a block."""

    text: str
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the tool call number `index`; `id` and `name` come with its first piece."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class UsageSeen:
    """Usage so far, cumulative: it replaces the one before. It settles a stream that is cut."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Finished:
    """The terminal event: the answer is complete. A stream without it was cut."""

    reason: FinishReason
    usage: Usage
    model: str
    """The model that really served, as the vendor names it."""
    vendor_reason: str | None = None


Event = Opened | TextDelta | ThinkingDelta | ToolCallDelta | UsageSeen | Finished


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how a provider is reached. Times in seconds; `api_key` never shows in a repr."""

    api_key: str = field(default="", repr=False)
    base_url: str | None = None
    api_version: str | None = None
    connections: int = 20
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 60.0
    """The longest silence between two reads: also the longest wait for the first byte."""


class Provider(Protocol):
    """A vendor. `stream` is always driven under `contextlib.aclosing`, in a task of its own.

    `open` imports the SDK and builds its one shared client; it is idempotent, and the first `stream` calls it.
    `stream` raises only `providers.errors.ProviderError` (and `CancelledError`), yields `Opened` first and
    `Finished` last, and raises `StreamCut` when the vendor's terminal event never came.
    """

    @property
    def name(self) -> str: ...

    async def open(self) -> None: ...

    def stream(self, prompt: Prompt) -> AsyncGenerator[Event]: ...

    async def aclose(self) -> None: ...
