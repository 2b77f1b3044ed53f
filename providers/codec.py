"""What the vendors' codecs share. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from providers.base import Json, Message, Text
from providers.errors import Unsupported


def system_text(messages: tuple[Message, ...], vendor: str) -> str:
    """All system messages as one text.

    Raises:
        Unsupported: something else than text in them.
    """
    texts: list[str] = []
    for part in (part for message in messages if message.role == "system" for part in message.parts):
        if not isinstance(part, Text):
            raise Unsupported(f"{vendor}'s system prompt takes text only")
        texts.append(part.text)
    return "\n\n".join(filter(None, texts))


def json_object(text: str) -> dict[str, Json] | None:
    """The JSON object that `text` is, or None."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def call_arguments(name: str, arguments: str, vendor: str) -> dict[str, Json]:
    """A tool call's arguments as the object that `vendor` asks for.

    Raises:
        Unsupported: they are none.
    """
    value = json_object(arguments or "{}")
    if value is None:
        raise Unsupported(f"{vendor} takes a JSON object as arguments of a call, and {name!r} has none")
    return value


def token_count(figures: Any, name: str) -> int:
    """A vendor's figure, 0 where it is missing or makes no sense."""
    value = figures.get(name) if isinstance(figures, Mapping) else None
    return int(value) if isinstance(value, int | float) and value > 0 else 0
