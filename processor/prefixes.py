"""Which beginnings of prompts come again, for vendors whose prompt cache wants a mark where they end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import orjson
from cachetools import TTLCache

from processor.estimate import BYTES_PER_TOKEN, TOKENS_PER_IMAGE, TOKENS_PER_MESSAGE
from processor.messages import NamedTool, Request
from processor.parts import ImagePart, Part, TextPart, ToolCallPart, ToolResultPart

MIN_TOKENS: Final = 1_024
"""Anthropic caches no shorter prefix, and some of its models ask for more (Haiku 4.5 for 4,096). Below its model's
minimum a mark has no effect and no cost (platform.claude.com/docs/en/build-with-claude/prompt-caching)."""
LIFETIME_S: Final = 300.0
"""How long Anthropic keeps a prefix after its last use, and so how soon one has to come again to be worth a mark: a
write costs a quarter more than plain input, a read a tenth of it (same source)."""
MAX_PREFIXES: Final = 30_000
"""Three for a prompt; about 300 bytes each."""

_KEY_BYTES: Final = 16
_ROLES: Final = {"system": b"s", "user": b"u", "assistant": b"a", "tool": b"t"}


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is known of a prompt's beginning: so many of its messages came before. `keys`: what it leaves behind."""

    stable_messages: int = 0
    keys: tuple[bytes, ...] = ()


class Prefixes:
    """The beginnings of the prompts that were answered within the last five minutes, of each tenant and model apart.

    Of each prompt three are kept: the system messages, all but the last message, and all of it. So a system prompt
    that many requests share, a set of examples, and a conversation that goes on are each found. The tools stand before
    all messages, and whatever else changes a vendor's cache (tool choice, response format) is part of what is compared.

    In memory only, and bounded; `timer` tells seconds.
    """

    def __init__(self, timer: Callable[[], float]) -> None:
        self._seen: TTLCache[bytes, None] = TTLCache(MAX_PREFIXES, LIFETIME_S, timer)

    def __len__(self) -> int:
        return len(self._seen)

    def of(self, request: Request, model_id: str, tokens: int) -> Prefix:
        """The longest beginning of at least `MIN_TOKENS` that came before; `tokens` is the whole prompt's estimate."""
        if tokens < MIN_TOKENS:
            return Prefix()
        keys = list(_keys(request, model_id))
        count = len(keys)
        stable = next((n for n in range(count, 0, -1) if keys[n - 1] in self._seen), 0)
        system = sum(message.role == "system" for message in request.messages)
        # The known one again: a vendor's cache keeps what is used.
        kept = {system, count - 1, count, stable} - {0}
        return Prefix(stable, tuple(key for n in sorted(kept) if (key := keys[n - 1])))

    def answered(self, prefix: Prefix) -> None:
        """The prompt that begins so was answered. Of one that failed nothing is kept: what comes again is a retry."""
        for key in prefix.keys:
            self._seen[key] = None


def _keys(request: Request, model_id: str) -> Iterator[bytes]:
    """A key for the prompt up to each message, that message included; an empty one while that is too short to cache."""
    hashed = blake2b(digest_size=_KEY_BYTES)

    def feed(tag: bytes, *texts: str) -> int:
        # The tag tells how many texts follow, and each text's length stands before it: no two prompts read the same.
        hashed.update(tag)
        size = 0
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            hashed.update(len(data).to_bytes(8, "big"))
            hashed.update(data)
            size += len(data)
        return size

    choice, wanted = request.tool_choice, request.response_format
    feed(b"P", request.tenant, model_id)
    feed(b"N", choice.name) if isinstance(choice, NamedTool) else feed(b"M", choice or "auto")
    feed(b"F", wanted.model_dump_json() if wanted is not None else "")
    size = sum(
        feed(b"O", tool.name, tool.description, orjson.dumps(tool.parameters).decode()) for tool in request.tools
    )
    extra = 0
    for message in request.messages:
        feed(_ROLES[message.role])
        extra += TOKENS_PER_MESSAGE
        for part in message.parts:
            if isinstance(part, ImagePart):
                extra += TOKENS_PER_IMAGE
                feed(*_fields(part))
            else:
                size += feed(*_fields(part))
        yield hashed.copy().digest() if size // BYTES_PER_TOKEN + extra >= MIN_TOKENS else b""


def _fields(part: Part) -> tuple[bytes, *tuple[str, ...]]:
    """A tag for the kind of part, then its texts."""
    match part:
        case TextPart(text=text):
            return b"T", text
        case ImagePart(url=str(url)):
            return b"U", url
        case ImagePart(media_type=media_type, data=data):
            return b"D", media_type or "", data or ""
        case ToolCallPart(id=call_id, name=name, arguments=arguments, signature=signature):
            return b"C", call_id, name, arguments, signature or ""
        case ToolResultPart(tool_call_id=call_id, content=content, is_error=is_error):
            return b"E" if is_error else b"R", call_id, content
