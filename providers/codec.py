"""What the vendors' codecs share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import msgspec
import orjson

from providers.base import Json, Message, Text
from providers.errors import BadResponse, Unsupported

T = TypeVar("T")


def to_bytes(body: Mapping[str, Json]) -> bytes:
    """A request's body as it goes out.

    Raises:
        Unsupported: JSON as the wire has it cannot say this (an integer over 64 bits, hundreds of levels).
    """
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise Unsupported(f"the request cannot be written as JSON: {error}") from error


def from_bytes(decode: Callable[[bytes], T], data: bytes, piece: str) -> T:
    """What `decode` reads in the bytes of an answer; `piece` names them in the error.

    Raises:
        BadResponse: they are not JSON, not UTF-8, or not of the shape.
    """
    try:
        return decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadResponse(f"{piece} that cannot be read: {error}") from error


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


def https_address(url: str, vendor: str) -> SplitResult:
    """An image's address, taken apart.

    Raises:
        Unsupported: it is no https address.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Unsupported(f"{vendor} fetches images from https addresses only: {error}") from error
    if parts.scheme != "https":
        raise Unsupported(f"{vendor} fetches images from https addresses only, not {parts.scheme or 'none'!r}")
    return parts


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
