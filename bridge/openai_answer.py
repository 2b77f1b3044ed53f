"""The final reply as OpenAI's `chat.completion`. Pure."""

from __future__ import annotations

from typing import Any, Final

from processor.reply_bodies import FinalReply, ReplyToolCall, ReplyUsage

_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "pause": "length",  # the turn is not over
}


def completion(final: FinalReply, *, created: int) -> dict[str, Any]:
    """The whole answer; `created` is Unix time in seconds."""
    message: dict[str, Any] = {"role": "assistant", "content": final.response, "refusal": None}
    if final.tool_calls:
        message["content"] = final.response or None
        message["tool_calls"] = [tool_call(call) for call in final.tool_calls]
    return {
        "id": completion_id(final.id),
        "object": "chat.completion",
        "created": created,
        "model": final.served_by or final.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(final)}],
        "usage": usage(final.usage),
        "sidecar": account(final),
    }


def completion_id(request_id: str) -> str:
    """An answer's id as OpenAI writes it; what follows the prefix is the request's own."""
    return f"chatcmpl-{request_id}"


def tool_call(call: ReplyToolCall) -> dict[str, Any]:
    """One call. Its `signature`, where there is one, comes back with the next request of a client that keeps it."""
    function = {"name": call.name, "arguments": call.arguments}
    found = {"id": call.id, "type": "function", "function": function}
    return found if call.signature is None else found | {"signature": call.signature}


def finish_reason(final: FinalReply) -> str:
    """In OpenAI's words. Whoever calls a tool waits for its result, whatever the vendor says of the end."""
    reason = _REASONS.get(final.finish_reason, "stop")
    return "tool_calls" if final.tool_calls and reason == "stop" else reason


def usage(counted: ReplyUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": counted.input_tokens,
        "completion_tokens": counted.output_tokens,
        "total_tokens": counted.input_tokens + counted.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": counted.cache_read_tokens,
            "cache_write_tokens": counted.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": counted.reasoning_tokens},
    }


def account(final: FinalReply) -> dict[str, Any]:
    """What OpenAI's format has no place for: who answered, why, and for how much."""
    return {
        "request_id": final.id,
        "model": final.model,
        "provider": final.provider,
        "route": final.route.reason,
        "cost_usd": float(final.cost_usd),
        "cached": final.cached,
        "attempts": final.attempts,
        "warnings": list(final.warnings),
    }
