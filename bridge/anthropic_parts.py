"""The content blocks of Anthropic's Messages API as the parts of the contract's messages. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bridge.anthropic_fields import REQUIRED, Fields, dumps, invalid
from bridge.ignored import Ignored
from processor.errors import RequestError

Wire = dict[str, Any]
"""A message or a part as the contract's JSON."""


def content_blocks(holder: Fields, name: str, ignored: Ignored, *, required: bool = False) -> Iterator[Fields]:
    """Content, which is a list of blocks or one text."""
    value = holder.take(name)
    if isinstance(value, str):
        yield Fields({"type": "text", "text": value}, holder.at(name), ignored)
    elif isinstance(value, list):
        for index, block in enumerate(value):
            yield Fields(block, f"{holder.at(name)}.{index}", ignored)
    elif value is not None or required:
        raise invalid(holder.at(name), REQUIRED if value is None else "it is a string or a list of blocks")


def text_of(block: Fields) -> str:
    """A text block's text."""
    if (kind := block.of("type", str, required=True)) != "text":
        raise invalid(block.where, f"a text block is wanted here, not {kind:.60}")
    text = block.of("text", str, required=True)
    block.ignore_rest()
    return text


def text_part(text: str) -> Wire:
    """What is said."""
    return {"type": "text", "text": text}


def call_part(block: Fields) -> Wire:
    """The model's call of a tool."""
    arguments = block.of("input", dict) or {}
    return {
        "type": "tool_call",
        "id": block.of("id", str, required=True),
        "name": block.of("name", str, required=True),
        "arguments": dumps(arguments, block.at("input")).decode(),
    }


def user_parts(block: Fields, kind: object) -> list[Wire]:
    """What a user says; an empty text is nothing."""
    if kind == "text":
        text = block.of("text", str, required=True)
        return [text_part(text)] if text else []
    if kind == "image":
        return [_image(block)]
    raise not_served(block, kind)


def _image(block: Fields) -> Wire:
    source = block.inner("source")
    if source is None:
        raise invalid(block.at("source"), REQUIRED)
    kind = source.take("type")
    if kind not in ("base64", "url"):
        raise invalid(source.where, "an image comes as base64 or as url here")
    names = ("media_type", "data") if kind == "base64" else ("url",)
    image = {"type": "image"} | {name: source.of(name, str, required=True) for name in names}
    source.ignore_rest()
    return image


def result_part(block: Fields, shown: list[Wire], ignored: Ignored) -> Wire:
    """A tool's result as text; its images go to what is shown after all results."""
    call_id = block.of("tool_use_id", str, required=True)
    texts: list[str] = []
    for part in content_blocks(block, "content", ignored):
        kind = part.take("type")
        if kind == "tool_reference":  # a tool is loaded from there on; here all are there from the beginning
            found = [text_part(part.of("tool_name", str, required=True))]
        else:
            found = user_parts(part, kind)
        part.ignore_rest()
        if kind == "image":
            shown += [text_part(f"Image in the result of tool call {call_id}:"), *found]
            texts.append("[an image, shown after the tool results]")
        else:
            texts += [text["text"] for text in found]
    result = {"type": "tool_result", "tool_call_id": call_id, "content": "\n".join(texts)}
    return result | {"is_error": True} if block.of("is_error", bool) else result


def not_served(block: Fields, kind: object) -> RequestError:
    """The error for a block that goes nowhere from here."""
    if not isinstance(kind, str):
        return invalid(block.at("type"), REQUIRED if kind is None else "it has to be a string")
    if kind in {"document", "search_result"}:
        return invalid(block.where, f"{kind} blocks are not served here: send what is in it as text or images")
    return invalid(block.where, f"{kind:.60} blocks have no place here")
