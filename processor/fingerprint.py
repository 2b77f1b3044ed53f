"""When an answer may come from the cache and under which key, and which answers may enter it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from processor.messages import NamedTool, Request
from processor.parts import ImagePart, Part, TextPart, ToolCallPart, ToolResultPart
from processor.reply_bodies import FinalReply

MAX_ENTRY_BYTES = 256 * 1024
"""Of an encoded answer: a thousand of them are at most 256 MB."""
_FORMAT = b"sidecar answer 1"
"""Part of every key, at most 16 bytes: with another number, nothing that was stored before is found."""
_COMPLETE = {"stop", "tool_calls"}

CacheUse = Literal["use", "skip", "refresh"]
"""Look it up, call where it is not there, and store; neither; call in any case, and store."""


@dataclass(slots=True)
class CacheFigures:
    """What the cache was good for since the start of this replica.

    `coalesced` are requests that were answered by the call of another one.
    """

    hits: int = 0
    misses: int = 0
    coalesced: int = 0
    saved_usd: Decimal = Decimal(0)

    def shown(self) -> dict[str, float]:
        """For statistics."""
        return {**asdict(self), "saved_usd": float(self.saved_usd)}


def fingerprint(request: Request, model_class: str) -> str:
    """64 hexadecimal digits (blake2b) that are equal where everything is that changes an answer.

    What is absent differs from every value that could stand there; JSON schemas are equal in any order of keys.

    Args:
        model_class: which models may answer. It has to differ where another model may stand in and where none may.
    """
    # A JSON array of a fixed length cannot be read in two ways, whatever its texts contain.
    counted = [
        request.tenant,
        model_class,
        [[message.role, [_part(part) for part in message.parts]] for message in request.messages],
        request.max_tokens,
        request.temperature,
        request.top_p,
        request.stop,
        [[tool.name, tool.description, tool.parameters] for tool in request.tools],
        [request.tool_choice.name] if isinstance(request.tool_choice, NamedTool) else request.tool_choice,
        _response_format(request),
    ]
    return blake2b(orjson.dumps(counted, option=orjson.OPT_SORT_KEYS), digest_size=32, person=_FORMAT).hexdigest()


def _part(part: Part) -> list[Any]:
    match part:
        case TextPart():
            return [part.type, part.text]
        case ImagePart():
            return [part.type, part.media_type, part.data, part.url]
        case ToolCallPart():
            return [part.type, part.id, part.name, part.arguments, part.signature]
        case ToolResultPart():
            return [part.type, part.tool_call_id, part.content, part.is_error]


def _response_format(request: Request) -> list[Any] | None:
    wanted = request.response_format
    return None if wanted is None else [wanted.type, wanted.name, wanted.json_schema]


def cache_use(request: Request, *, enabled: bool, sampled: bool) -> CacheUse:
    """What the request, else the settings, want of the cache.

    Args:
        enabled: False: no request uses it, whatever it asks for.
        sampled: whether requests with a temperature above 0 use it too, without asking.
    """
    if not enabled:
        return "skip"
    if request.cache is not None:
        return request.cache
    return "skip" if request.temperature and not sampled else "use"


def may_enter(reply: FinalReply) -> bool:
    """Whether it is worth repeating: whole, not empty, not from the cache itself, and not too large.

    What an earlier, failed attempt of its request cost, even by estimate, says nothing against it.
    """
    return (
        reply.finish_reason in _COMPLETE
        and bool(reply.response or reply.tool_calls)
        and not reply.cached
        and len(encode_entry(reply)) <= MAX_ENTRY_BYTES
    )


def encode_entry(reply: FinalReply) -> bytes:
    """The answer as the cache keeps it: with its exact cost, which its JSON for clients rounds to a float."""
    return orjson.dumps(reply.model_dump(), default=str)


def decode_entry(entry: bytes) -> FinalReply | None:
    """The answer that was stored; None for what this version cannot read."""
    try:
        return FinalReply.model_validate_json(entry)
    except ValidationError:
        return None
