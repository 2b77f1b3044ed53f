"""Anthropic's answers as events: stream events and whole messages, usage and stop reasons, decided without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from providers.base import Event, Finished, FinishReason, TextDelta, ThinkingDelta, ToolCallDelta, Usage, UsageSeen
from providers.codec import from_bytes, token_count
from providers.exchange import Refused

_REASONS: Final[Mapping[str, FinishReason]] = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
    "pause_turn": FinishReason.PAUSE,
}


class _Block(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _Delta(msgspec.Struct):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    model: str | None = None
    usage: dict[str, Any] | None = None


class _Piece(msgspec.Struct):
    """Any stream event, or a whole message: their fields do not collide."""

    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    model: str | None = None
    content: list[_Block] | None = None
    stop_reason: str | None = None


_decode = msgspec.json.Decoder(_Piece, strict=False).decode


class AnthropicAnswer:
    """One answer as it comes in, as `exchange.Answer` says."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._calls: dict[int, int] = {}
        self._raw: dict[str, Any] = {}
        self._reason: str | None = None
        self.complete = False
        self.usage = Usage()

    @property
    def closed(self) -> bool:
        return self.complete

    def feed(self, data: bytes) -> list[Event]:
        piece = from_bytes(_decode, data, "Anthropic sent an event")
        match piece.type:
            case "message_start" if piece.message is not None:
                self._model = piece.message.model or self._model
                return self._used(piece.message.usage)
            case "content_block_start" if piece.content_block is not None:
                return self._started(piece.index, piece.content_block)
            case "content_block_delta" if piece.delta is not None:
                return self._continued(piece.index, piece.delta)
            case "message_delta":
                if piece.delta is not None:
                    self._reason = piece.delta.stop_reason or self._reason
                return self._used(piece.usage)
            case "message_stop":
                self.complete = True
            case "message":
                return self._whole(piece)
            case "error":
                raise Refused(None, piece.error or {}, {})
        # Whatever else comes (ping, content_block_stop, kinds of event still unknown) says nothing of the answer.
        return []

    def finish(self) -> Finished:
        reason = _REASONS.get(self._reason or "", FinishReason.OTHER)
        return Finished(reason, self.usage, self._model, vendor_reason=self._reason)

    def _used(self, figures: Mapping[str, Any] | None) -> list[Event]:
        """Figures are cumulative: a later one replaces the one before, and one that is left out stays."""
        self._raw |= {name: value for name, value in (figures or {}).items() if value is not None}
        before, self.usage = self.usage, usage_of(self._raw)
        return [UsageSeen(self.usage)] if self.usage != before else []

    def _started(self, index: int, block: _Block) -> list[Event]:
        if block.type == "tool_use":
            number = self._calls.setdefault(index, len(self._calls))
            whole = bytes(block.input)
            arguments = "" if whole in (b"{}", b"null") else from_bytes(bytes.decode, whole, "Anthropic made a call")
            return [ToolCallDelta(number, block.id, block.name, arguments)]
        if block.type == "text" and block.text:
            return [TextDelta(block.text)]
        if block.type == "thinking" and (block.thinking or block.signature):
            return [ThinkingDelta(block.thinking or "", block.signature)]
        return []

    def _continued(self, index: int, delta: _Delta) -> list[Event]:
        match delta.type:
            case "text_delta" if delta.text:
                return [TextDelta(delta.text)]
            case "input_json_delta" if delta.partial_json and index in self._calls:
                return [ToolCallDelta(self._calls[index], arguments=delta.partial_json)]
            case "thinking_delta" if delta.thinking:
                return [ThinkingDelta(delta.thinking)]
            case "signature_delta" if delta.signature:
                return [ThinkingDelta("", delta.signature)]
        return []

    def _whole(self, message: _Piece) -> list[Event]:
        self._model = message.model or self._model
        self._reason = message.stop_reason
        self.complete = message.stop_reason is not None
        self._used(message.usage)
        return [event for index, block in enumerate(message.content or ()) for event in self._started(index, block)]


def usage_of(raw: Mapping[str, Any]) -> Usage:
    """Anthropic's figures add up: `input_tokens` are fresh, cache reads and writes stand beside them."""

    split = raw.get("cache_creation")
    hour = token_count(split, "ephemeral_1h_input_tokens")
    written = max(
        token_count(raw, "cache_creation_input_tokens"), hour + token_count(split, "ephemeral_5m_input_tokens")
    )
    output = token_count(raw, "output_tokens")
    thinking = min(output, token_count(raw.get("output_tokens_details"), "thinking_tokens"))
    return Usage(
        input_fresh=token_count(raw, "input_tokens"),
        cache_read=token_count(raw, "cache_read_input_tokens"),
        cache_write_5m=written - hour,
        cache_write_1h=hour,
        output_visible=output - thinking,
        output_thinking=thinking,
        raw=dict(raw),
    )
