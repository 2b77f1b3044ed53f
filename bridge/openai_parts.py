"""What a message of OpenAI's format holds, as the contract's parts: text, images, tool calls. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson

from bridge.ignored import Ignored
from processor.errors import ErrorType, RequestError

Json = Any
"""A decoded JSON value."""

_IMAGES: Final = {
    "image/png": "image/png",
    "image/jpeg": "image/jpeg",
    "image/jpg": "image/jpeg",
    "image/gif": "image/gif",
    "image/webp": "image/webp",
}


def wrong(where: str, why: str) -> RequestError:
    """An error that begins with the field it is about."""
    return RequestError(ErrorType.INVALID_REQUEST, f"{where}: {why}")


def _listed(content: Json, at: str) -> Iterator[tuple[str, Json]]:
    """Each part with its place; a string is one text, null is nothing."""
    if isinstance(content, str):
        yield at, {"type": "text", "text": content}
    elif isinstance(content, list):
        for index, part in enumerate(content):
            if not isinstance(part, dict):
                raise wrong(f"{at}.{index}", "a part is an object with a type")
            yield f"{at}.{index}", part
    elif content is not None:
        raise wrong(at, "a string or a list of parts")


def _text(part: Mapping[str, Json], at: str, ignored: Ignored, name: str = "text") -> str:
    text = part.get(name)
    if not isinstance(text, str):
        raise wrong(f"{at}.{name}", "a string")
    ignored.add_all_but(("type", name), part, "messages.content")
    return text


def texts(content: Json, at: str, ignored: Ignored) -> Iterator[str]:
    """The texts of a content that holds no other parts. Raises RequestError with the place."""
    for place, part in _listed(content, at):
        if part.get("type") != "text":
            raise wrong(f"{place}.type", "only text stands here")
        yield _text(part, place, ignored)


def said_by_user(content: Json, at: str, ignored: Ignored) -> list[Json]:
    """A user's texts and images. Raises RequestError with the place."""
    parts: list[Json] = []
    for place, part in _listed(content, at):
        match part.get("type"):
            case "text":
                parts.append({"type": "text", "text": _text(part, place, ignored)})
            case "image_url":
                parts.append(_image(part, place, ignored))
            case _:
                raise wrong(f"{place}.type", "text or image_url; audio and files are not served")
    return parts


def _image(part: Mapping[str, Json], at: str, ignored: Ignored) -> Json:
    image = part.get("image_url")
    fields: Mapping[str, Json] = image if isinstance(image, dict) else {"url": image}
    url = fields.get("url")
    if not isinstance(url, str):
        raise wrong(f"{at}.image_url.url", "a string")
    ignored.add_all_but(("url",), fields, "messages.content.image_url")
    if url[:5].lower() != "data:":
        return {"type": "image", "url": url}
    head, comma, data = url[5:].partition(",")
    kind, *parameters = head.split(";")
    if not comma or "base64" not in parameters:
        raise wrong(f"{at}.image_url.url", "a data URL is data:<media type>;base64,<data>")
    media_type = _IMAGES.get(kind.strip().lower())
    if media_type is None:
        raise wrong(f"{at}.image_url.url", "images are PNG, JPEG, GIF or WebP")
    return {"type": "image", "media_type": media_type, "data": data}


def said_by_assistant(message: Mapping[str, Json], at: str, ignored: Ignored) -> tuple[list[Json], int]:
    """An assistant's text, its refusal as text, then its tool calls; and how many of the parts are calls.

    Raises:
        RequestError: `invalid_request`, with the place.
    """
    if message.get("function_call") is not None:
        raise wrong(f"{at}.function_call", "the old form of tool_calls is not served")
    parts: list[Json] = []
    for place, part in _listed(message.get("content"), f"{at}.content"):
        name = part.get("type")
        if name not in ("text", "refusal"):
            raise wrong(f"{place}.type", "text or refusal")
        parts.append({"type": "text", "text": _text(part, place, ignored, name)})
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        parts.append({"type": "text", "text": refusal})
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise wrong(f"{at}.tool_calls", "a list")
    if calls:
        parts = [part for part in parts if part["text"]]
    parts += [_call(call, f"{at}.tool_calls.{index}", ignored) for index, call in enumerate(calls)]
    return parts, len(calls)


def _call(call: Json, at: str, ignored: Ignored) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or call.get("type", "function") != "function":
        raise wrong(at, 'a tool call is {"id", "type": "function", "function": {"name", "arguments"}}')
    ignored.add_all_but(("id", "type", "function", "index", "signature"), call, "messages.tool_calls")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = orjson.dumps(arguments).decode()
    part = {"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": arguments or "{}"}
    return part if call.get("signature") is None else part | {"signature": call["signature"]}
