"""A prompt as the body of Anthropic's Messages API, decided without I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from providers.anthropic_schema import with_one_type_each
from providers.base import Image, Json, JsonFormat, Part, Prompt, Text, ToolCall, ToolChoice, ToolResult
from providers.codec import call_arguments, https_address, system_text
from providers.errors import Unsupported

VENDOR: Final = "Anthropic"
MAX_TEMPERATURE: Final = 1.0
_IMAGES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}

SchemaTransform = Callable[[dict[str, Any]], dict[str, Any]]
"""The SDK's `transform_schema`: any JSON schema in the subset that structured outputs take."""


def encode(prompt: Prompt, transform: SchemaTransform, *, stream: bool) -> dict[str, Json]:
    """The request body.

    The block with which the prompt's stable messages end is marked for Anthropic's cache, which then holds all up to
    it, tools and system first, for five minutes after each use (source: platform.claude.com/docs/en/build-with-claude/
    prompt-caching; of at most four marks one is used). An empty text gets none, since none is sent.

    Where `temperature` and `top_p` are both given, `temperature` goes out alone: the models since Claude 4.5 answer
    400 to both (source: "Use only temperature OR top_p, not both", Anthropic's guide to migrating to Claude 4.5,
    platform.claude.com/docs/en/about-claude/models/migrating-to-claude-4), and for older ones it advised against it.

    Raises:
        Unsupported: what Anthropic cannot do, by name.
    """
    if prompt.temperature is not None and prompt.temperature > MAX_TEMPERATURE:
        raise Unsupported(f"Anthropic takes a temperature of 0 to 1, not {prompt.temperature:g}")
    if any(not stop.strip() for stop in prompt.stop):
        raise Unsupported("Anthropic takes no stop sequence of white space alone")
    turns, last_stable = _turns(prompt)
    body: dict[str, Json] = {"model": prompt.model, "max_tokens": prompt.max_tokens, "messages": turns}
    if stream:
        body["stream"] = True
    if system := system_text(prompt.messages, VENDOR):
        # As blocks wherever a mark is set: a prefix is found again only in the form in which it was written.
        blocks = _system_blocks(prompt)
        body["system"] = blocks or system
        if blocks and last_stable is None:
            last_stable = blocks[0]
    if last_stable is not None:
        last_stable["cache_control"] = {"type": "ephemeral"}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    elif prompt.top_p is not None:
        body["top_p"] = prompt.top_p
    if prompt.stop:
        body["stop_sequences"] = list(prompt.stop)
    if prompt.tools:
        body["tools"] = [
            {"name": tool.name, "description": tool.description, "input_schema": {"type": "object", **tool.parameters}}
            for tool in prompt.tools
        ]
        body["tool_choice"] = _choice(prompt.tool_choice)
    if prompt.response_format is not None:
        body["output_config"] = {"format": _json_format(prompt.response_format, transform)}
    return body


def _system_blocks(prompt: Prompt) -> list[dict[str, Json]]:
    """The system messages that are stable, then those that are this prompt's own; none where none is stable."""
    stable = prompt.messages[: prompt.stable_messages]
    texts = system_text(stable, VENDOR), system_text(prompt.messages[len(stable) :], VENDOR)
    return [{"type": "text", "text": text} for text in texts if text] if texts[0] else []


def _choice(choice: ToolChoice) -> dict[str, Json]:
    chosen: dict[str, Json] = {"type": _CHOICES[choice.mode]}
    return chosen | {"name": choice.name} if choice.mode == "named" else chosen


def _json_format(wanted: JsonFormat, transform: SchemaTransform) -> dict[str, Json]:
    if wanted.schema is None:
        raise Unsupported("Anthropic answers in JSON only by a schema: give response_format one")
    try:
        return {"type": "json_schema", "schema": transform(with_one_type_each(wanted.schema))}
    except Exception as error:
        # The SDK says no in many ways, failed assertions among them.
        why = f"{type(error).__name__}: {error!s:.200}"
        raise Unsupported(f"Anthropic cannot express the JSON schema of response_format ({why})") from error


def _turns(prompt: Prompt) -> tuple[list[dict[str, Json]], dict[str, Json] | None]:
    """The turns, consecutive ones of a role joined: all results of parallel calls have to stand in one turn.

    Then the last block among them that is part of the prompt's stable messages, if one is.
    """
    turns: list[dict[str, Json]] = []
    last_stable: dict[str, Json] | None = None
    for number, message in enumerate(prompt.messages, 1):
        role = "assistant" if message.role == "assistant" else "user"
        blocks = [block for block in map(_block, message.parts) if block is not None]
        if message.role == "system" or not blocks:
            continue
        if number <= prompt.stable_messages:
            last_stable = blocks[-1]
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if not turns:
        raise Unsupported("Anthropic needs a message other than the system's")
    return turns, last_stable


def _block(part: Part) -> dict[str, Json] | None:
    match part:
        case Text(text):
            # Anthropic answers 400 to a text block without text.
            return {"type": "text", "text": text} if text else None
        case Image():
            return {"type": "image", "source": _source(part)}
        case ToolCall(call_id, name, arguments):
            return {
                "type": "tool_use",
                "id": _call_id(call_id),
                "name": name,
                "input": call_arguments(name, arguments, VENDOR),
            }
        case ToolResult(call_id, content, is_error):
            block = {"type": "tool_result", "tool_use_id": _call_id(call_id), "content": content}
            return block | {"is_error": True} if is_error else block


def _source(image: Image) -> dict[str, Json]:
    if image.data is not None:
        if image.media_type not in _IMAGES:
            raise Unsupported(f"Anthropic takes JPEG, PNG, GIF and WebP images, not {image.media_type}")
        return {"type": "base64", "media_type": image.media_type, "data": image.data}
    url = image.url or ""
    https_address(url, VENDOR)
    return {"type": "url", "url": url}


def _call_id(call_id: str) -> str:
    """Another vendor's id in the letters that Anthropic allows."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", call_id)
