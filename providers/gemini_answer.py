"""Gemini's answers as events: chunks, usage and finish reasons, decided without I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.base import (
    Event,
    Finished,
    FinishReason,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageSeen,
)
from providers.codec import from_bytes, token_count
from providers.errors import BadResponse, ModelNoise
from providers.exchange import Refused

_REASONS: Final[Mapping[str, FinishReason]] = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    # Google's limit of one request was reached; only its own continuation token could go on.
    "CONTINUATION": FinishReason.LENGTH,
    **dict.fromkeys(
        (
            "SAFETY",
            "RECITATION",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "MODEL_ARMOR",
            "ESCALATION",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
        ),
        FinishReason.CONTENT_FILTER,
    ),
}
_NOISE: Final = frozenset(
    (
        "MALFORMED_FUNCTION_CALL",
        "UNEXPECTED_TOOL_CALL",
        "MALFORMED_RESPONSE",
        "TOO_MANY_TOOL_CALLS",
        "MISSING_THOUGHT_SIGNATURE",
    )
)


class _FunctionCall(msgspec.Struct, rename="camel"):
    name: str
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"{}")


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Chunk(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    usage_metadata: dict[str, Any] | None = None
    prompt_feedback: _Feedback | None = None
    model_version: str | None = None
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Chunk, strict=False).decode


class GeminiAnswer:
    """One answer as it comes in: `feed` takes each chunk, `finish` closes it.

    `calls_before` is the number of calls the conversation already holds; it keeps minted call ids unique in it.
    """

    def __init__(self, model: str, calls_before: int = 0) -> None:
        self._model = model
        self._calls_before = calls_before
        self._calls = 0
        self._usage = Usage()
        self._reason: str | None = None
        self._message: str | None = None
        self._blocked = False
        self._told_at_the_end = False

    @property
    def complete(self) -> bool:
        return self._reason is not None

    @property
    def closed(self) -> bool:
        """Some servers give a finish reason with every chunk: it is the last only where a chunk had come without."""
        return self.complete and self._told_at_the_end

    def feed(self, data: bytes) -> list[Event]:
        """The events of one chunk (a GenerateContentResponse), or of a whole answer.

        Raises:
            BadResponse: not JSON, or not of that shape.
            Refused: an error in place of a chunk.
        """
        chunk = from_bytes(_decode, data, "Gemini sent a chunk")
        if chunk.error is not None:
            raise Refused(None, chunk.error, {})
        if chunk.model_version:
            self._model = chunk.model_version
        events: list[Event] = []
        for candidate in chunk.candidates or ():
            if not candidate.index:
                self._candidate(candidate, events)
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason and not self.complete:
            self._reason, self._blocked = chunk.prompt_feedback.block_reason, True
        self._told_at_the_end |= not self.complete
        if chunk.usage_metadata is not None:
            before, self._usage = self._usage, usage_of(chunk.usage_metadata)
            if self._usage != before and not self.complete:
                events.append(UsageSeen(self._usage))
        return events

    def finish(self) -> Finished:
        """The terminal event. Call only when `complete`.

        Raises:
            ModelNoise: the model stopped on a call that it botched.
        """
        reason = self._reason or ""
        if reason in _NOISE:
            raise ModelNoise(self._message or f"Gemini stopped with {reason}", status=200, vendor_type=reason)
        if self._blocked:
            stop = FinishReason.CONTENT_FILTER
        elif reason == "STOP" and self._calls:
            stop = FinishReason.TOOL_CALLS
        else:
            stop = _REASONS.get(reason, FinishReason.OTHER)
        return Finished(stop, self._usage, self._model, vendor_reason=reason)

    @property
    def usage(self) -> Usage:
        """The last usage seen: the vendor's figures are cumulative."""
        return self._usage

    def _candidate(self, candidate: _Candidate, events: list[Event]) -> None:
        parts = candidate.content.parts if candidate.content is not None else None
        for part in parts or ():
            if part.function_call is not None:
                events.append(self._call(part.function_call, part.thought_signature))
            elif part.thought:
                events.append(ThinkingDelta(part.text or "", part.thought_signature))
            elif part.text:
                events.append(TextDelta(part.text))
        if candidate.finish_reason and candidate.finish_reason != "FINISH_REASON_UNSPECIFIED":
            self._reason, self._message = candidate.finish_reason, candidate.finish_message

    def _call(self, call: _FunctionCall, signature: str | None) -> ToolCallDelta:
        arguments = bytes(call.args)
        if arguments == b"null":
            arguments = b"{}"
        if not arguments.startswith(b"{"):
            raise BadResponse(f"Gemini called {call.name!r} with arguments that are not an object")
        index, self._calls = self._calls, self._calls + 1
        return ToolCallDelta(
            index=index,
            id=call.id or f"call_{self._calls_before + index}",
            name=call.name,
            arguments=from_bytes(bytes.decode, arguments, "Gemini made a call"),
            signature=signature,
        )


def usage_of(raw: Mapping[str, Any]) -> Usage:
    """Take `usageMetadata` apart.

    `promptTokenCount` includes the cached tokens and not those of tool use. The candidates' count usually leaves
    the thoughts out, except where prompt and candidates alone make the total.
    """

    def count(name: str) -> int:
        return token_count(raw, name)

    prompt, cached, tool = count("promptTokenCount"), count("cachedContentTokenCount"), count("toolUsePromptTokenCount")
    visible, thoughts, total = count("candidatesTokenCount"), count("thoughtsTokenCount"), count("totalTokenCount")
    if thoughts and total in (prompt + visible, prompt + tool + visible):
        visible = max(0, visible - thoughts)
    return Usage(
        input_fresh=max(0, prompt - cached),
        cache_read=cached,
        tool_input=tool,
        output_visible=visible,
        output_thinking=thoughts,
        raw=raw,
    )


_TRAILING_ERROR = re.compile(rb'(?:\A|[\r\n])\s*\[?\s*(\{\s*"error"\s*:.*)', re.DOTALL)


def error_in(tail: bytes) -> bytes | None:
    """The error that ends a stream in plain JSON, without the `data:` of an event, fit for `Answer.feed`."""
    match = _TRAILING_ERROR.search(tail)
    return match[1].rstrip(b" \t\r\n,]") if match is not None else None
