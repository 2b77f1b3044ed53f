"""The final reply as a message of Anthropic's Messages API. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from processor.reply_bodies import FinalReply, ReplyUsage

_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "pause": "pause_turn",
}
MALFORMED = "INVALID_JSON"
"""The key under which arguments go that are no JSON object: Anthropic's own advice for handing such back."""


def message_id(request_id: str) -> str:
    """Anthropic's begin so."""
    return f"msg_{request_id}"


def message(final: FinalReply, *, thinking: str = "") -> dict[str, Any]:
    """The whole answer; `thinking` is what the model was seen to think."""
    content: list[dict[str, Any]] = []
    if thinking:
        content.append({"type": "thinking", "thinking": thinking, "signature": ""})
    if final.response:
        content.append({"type": "text", "text": final.response})
    for call in final.tool_calls:
        content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments(call.arguments)})
    return {
        "id": message_id(final.id),
        "type": "message",
        "role": "assistant",
        "model": final.served_by or final.model,
        "content": content,
        "stop_reason": stop_reason(final),
        "stop_sequence": None,
        "usage": usage(final.usage),
    }


def stop_reason(final: FinalReply) -> str:
    """Why it ended; a stop sequence is not told from any other end, since no vendor but Anthropic tells them apart."""
    if final.tool_calls and final.finish_reason in {"stop", "other"}:
        return "tool_use"
    return _REASONS.get(final.finish_reason, "end_turn")


def usage(counted: ReplyUsage) -> dict[str, Any]:
    """Tokens as Anthropic counts them: what was read from a cache, or written to it, stands beside the input."""
    cached = counted.cache_read_tokens + counted.cache_write_tokens
    return {
        "input_tokens": max(0, counted.input_tokens - cached),
        "cache_creation_input_tokens": counted.cache_write_tokens,
        "cache_read_input_tokens": counted.cache_read_tokens,
        "output_tokens": counted.output_tokens,
        "output_tokens_details": {"thinking_tokens": counted.reasoning_tokens},
    }


def arguments(text: str) -> Mapping[str, Any]:
    """A tool call's arguments as an object, whatever the model has written."""
    try:
        found = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {MALFORMED: text}
