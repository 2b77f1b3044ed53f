"""The format that Groq and most local servers share, OpenAI's chat completions: a prompt's body, an answer's events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.base import (
    Event,
    Finished,
    FinishReason,
    Image,
    Json,
    JsonFormat,
    Message,
    Prompt,
    Text,
    TextDelta,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    ToolResult,
    Usage,
    UsageSeen,
)
from providers.codec import from_bytes, token_count
from providers.errors import Unsupported
from providers.exchange import Refused

_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_DONE: Final = b"[DONE]"


# --- the request ----------------------------------------------------------------------------


def encode(prompt: Prompt, *, stream: bool, limit_name: str) -> dict[str, Json]:
    """The request body. `limit_name` is the field that bounds the answer: servers differ in it.

    Raises:
        Unsupported: what the format cannot say, by name.
    """
    body: dict[str, Json] = {
        "model": prompt.model,
        "messages": [turn for message in prompt.messages for turn in _turns(message)],
        limit_name: prompt.max_tokens,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.top_p is not None:
        body["top_p"] = prompt.top_p
    if prompt.stop:
        body["stop"] = list(prompt.stop)
    if prompt.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
            }
            for tool in prompt.tools
        ]
        body["tool_choice"] = _choice(prompt.tool_choice)
    if prompt.response_format is not None:
        body["response_format"] = _json_format(prompt.response_format)
    return body


def _choice(choice: ToolChoice) -> Json:
    if choice.mode == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode


def _json_format(wanted: JsonFormat) -> dict[str, Json]:
    if wanted.schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": dict(wanted.schema)}}


def _turns(message: Message) -> list[dict[str, Json]]:
    """One message; a set of tool results is one message each."""
    if message.role == "tool":
        results = [part for part in message.parts if isinstance(part, ToolResult)]
        return [{"role": "tool", "tool_call_id": part.id, "content": part.content} for part in results]
    calls = [_call(part) for part in message.parts if isinstance(part, ToolCall)]
    content = [part for part in message.parts if isinstance(part, Text | Image)]
    turn: dict[str, Json] = {"role": message.role}
    if all(isinstance(part, Text) for part in content):
        turn["content"] = "".join(part.text for part in content if isinstance(part, Text))
    elif message.role != "user":
        raise Unsupported(f"chat completions take images from the user only, not in a {message.role} message")
    else:
        turn["content"] = [_part(part) for part in content]
    return [turn | {"tool_calls": calls} if calls else turn]


def _part(part: Text | Image) -> dict[str, Json]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    url = part.url or f"data:{part.media_type};base64,{part.data}"
    return {"type": "image_url", "image_url": {"url": url}}


def _call(call: ToolCall) -> dict[str, Json]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}


# --- the answer -----------------------------------------------------------------------------


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct):
    index: int | None = None
    delta: _Said | None = None
    message: _Said | None = None
    finish_reason: str | None = None


class _XGroq(msgspec.Struct):
    usage: dict[str, Any] | None = None
    error: Any = None


class _Chunk(msgspec.Struct):
    """A chunk of a stream, or a whole answer, whose choices have a `message` in place of a `delta`."""

    model: str | None = None
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    x_groq: _XGroq | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk, strict=False).decode


class ChatAnswer:
    """One answer as it comes in, as `exchange.Answer` says. `title` names the vendor in errors."""

    def __init__(self, model: str, title: str) -> None:
        self._model = model
        self._title = title
        self._indexes: dict[int, int] = {}
        self._ids: dict[int, str | None] = {}
        self._calls = 0
        self._reason: str | None = None
        self.closed = False
        self.usage = Usage()

    @property
    def complete(self) -> bool:
        return self._reason is not None

    def feed(self, data: bytes) -> list[Event]:
        if data.strip() == _DONE:
            # Without a finish reason before it, the end of the stream is not the end of an answer.
            self.closed = self.complete
            return []
        chunk = from_bytes(_decode, data, f"{self._title} sent a chunk")
        self._refuse(chunk.error)
        self._refuse(chunk.x_groq.error if chunk.x_groq else None)
        self._model = chunk.model or self._model
        events: list[Event] = []
        for choice in chunk.choices or ():
            if not choice.index:
                self._choice(choice, events)
        # Groq tells the usage in one place, the other, or both: the same figures, to be taken once.
        figures = chunk.usage or (chunk.x_groq.usage if chunk.x_groq else None)
        if figures:
            self.usage = usage_of(figures)
            events.append(UsageSeen(self.usage))
        return events

    def finish(self) -> Finished:
        reason = _REASONS.get(self._reason or "", FinishReason.OTHER)
        if reason is FinishReason.STOP and self._calls:
            reason = FinishReason.TOOL_CALLS
        return Finished(reason, self.usage, self._model, vendor_reason=self._reason)

    def _refuse(self, error: Any) -> None:
        if error:
            raise Refused(None, error if isinstance(error, Mapping) else {"message": str(error)}, {})

    def _choice(self, choice: _Choice, events: list[Event]) -> None:
        said = choice.delta or choice.message
        if said is not None:
            if thought := said.reasoning or said.reasoning_content:
                events.append(ThinkingDelta(thought))
            if text := said.content or said.refusal:
                events.append(TextDelta(text))
            events += [self._call(call) for call in said.tool_calls or ()]
        self._reason = choice.finish_reason or self._reason
        if choice.message is not None:
            self.closed = self.complete

    def _call(self, call: _ToolCall) -> ToolCallDelta:
        """A piece of a call.

        Servers that leave the index out, or give all calls the same, begin a new one with another id and a name; the
        id alone does not tell, for some mint one for every piece.
        """
        function = call.function or _Function()
        named = call.index if call.index is not None else -1
        began = self._ids.get(named)
        if named not in self._indexes or (function.name and call.id and call.id != began):
            self._indexes[named] = self._calls
            self._ids[named] = call.id
            self._calls += 1
        return ToolCallDelta(self._indexes[named], call.id, function.name, function.arguments or "")


def usage_of(raw: Mapping[str, Any]) -> Usage:
    """Take OpenAI's `usage` apart: cached tokens are part of the prompt's, reasoning part of the completion's."""

    prompt, completion = token_count(raw, "prompt_tokens"), token_count(raw, "completion_tokens")
    cached = min(prompt, token_count(raw.get("prompt_tokens_details"), "cached_tokens"))
    thinking = min(completion, token_count(raw.get("completion_tokens_details"), "reasoning_tokens"))
    return Usage(
        input_fresh=prompt - cached,
        cache_read=cached,
        output_visible=completion - thinking,
        output_thinking=thinking,
        raw=dict(raw),
    )
