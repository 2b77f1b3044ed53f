"""A body of Anthropic's Messages API as the contract's request. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from bridge.anthropic_fields import TOO_LONG, Fields, dumps, invalid
from bridge.anthropic_turns import Talk, talk
from bridge.ignored import Ignored
from processor.errors import ErrorType, RequestError
from processor.estimate import base_tokens
from processor.messages import MAX_TOKENS, ChatMessage, Request, ToolSpec, decode_request

T = TypeVar("T")

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_THEIR_NAMES = {"stop": "stop_sequences", "response_format": "output_config.format", "parameters": "input_schema"}
_MESSAGES: TypeAdapter[tuple[ChatMessage, ...]] = TypeAdapter(tuple[ChatMessage, ...])
_TOOLS: TypeAdapter[tuple[ToolSpec, ...]] = TypeAdapter(tuple[ToolSpec, ...])


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client of Anthropic's API wants."""

    request: Request
    metadata: Mapping[str, object]
    """What in the body's `metadata` is the sidecar's: `sidecar_priority` and the like."""
    ignored: Ignored
    thinks: bool
    """Whether it asked for thinking, and so wants to see what there is of it."""

    @property
    def model(self) -> str:
        """The model's name as the client wrote it."""
        return self.request.model or ""


def asked(body: bytes) -> Asked:
    """What the body of `POST /v1/messages` asks for.

    Raises:
        RequestError: `invalid_request` or `too_large`, naming the field in Anthropic's words.
    """
    ignored = Ignored()
    fields = _fields(body, ignored)
    made = talk(fields, ignored)
    wire: dict[str, Any] = {
        "model": fields.of("model", str, required=True),
        # The longest answer of every model is shorter than that bound, and what is beyond it is cut to it anyway.
        "max_tokens": min(fields.of("max_tokens", int, required=True), MAX_TOKENS),
        "messages": made.messages,
        "stream": fields.of("stream", bool) or False,
        "tools": list(_tools(fields)),
    }
    wire |= _sampling(fields) | _output(fields)
    if (choice := _choice(fields, any_tools=bool(wire["tools"]))) is not None:
        wire["tool_choice"] = choice
    metadata = _metadata(fields)
    thinks = _thinks(fields)
    fields.ignore_rest()
    if made.messages and made.messages[-1]["role"] == "assistant":
        raise invalid(
            "messages", "prefill is not served here: the last message is the user's, with all results of tool calls"
        )
    return Asked(_decoded(dumps(wire, "body"), made), metadata, ignored, thinks)


def count(body: bytes) -> int:
    """About how many tokens the body of `POST /v1/messages/count_tokens` has; any history may be counted.

    Raises:
        RequestError: as `asked`.
    """
    ignored = Ignored()
    fields = _fields(body, ignored)
    fields.of("model", str, required=True)
    made = talk(fields, ignored)
    messages = _checked(_MESSAGES, made.messages, made.origins)
    tools = _checked(_TOOLS, found := list(_tools(fields)), [f"tools.{index}" for index in range(len(found))])
    return base_tokens(Request.model_construct(messages=messages, tools=tools))


def _checked(form: TypeAdapter[T], wire: list[dict[str, Any]], origins: list[str]) -> T:
    """What a history holds, whether or not it can be answered."""
    try:
        return form.validate_json(dumps(wire, "body"))
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        where = origins[int(detail["loc"][0])] if detail["loc"] else "body"  # nested too deeply to be read
        raise invalid(where, detail["msg"]) from None


def _fields(body: bytes, ignored: Ignored) -> Fields:
    try:
        return Fields(orjson.loads(body), "", ignored)
    except orjson.JSONDecodeError as error:
        raise invalid("body", f"not JSON: {error.msg}") from None


def _decoded(wire: bytes, made: Talk) -> Request:
    """The request, with what is wrong in it named as in the body that the client sent."""
    try:
        return decode_request(wire)
    except RequestError as error:
        said = _in_their_words(error.message, made)
        if error.type is ErrorType.TOO_LARGE and error.message.startswith("messages") and "image" not in said:
            raise invalid(TOO_LONG, said) from None
        raise RequestError(error.type, said) from None


def _in_their_words(message: str, made: Talk) -> str:
    path, colon, what = message.partition(": ")
    steps = path.split(".")
    if not colon or not re.fullmatch(r"[\w.]+", path):
        return message
    if steps[0] == "messages" and len(steps) > 1 and steps[1].isdecimal():
        origin = made.origins[int(steps[1])]
        named = [step for step in steps[2:] if step != "content" and not step.isdecimal()]
        return ": ".join([origin, *named[-1:], what])
    return f"{'.'.join(_THEIR_NAMES.get(step, step) for step in steps)}: {what}"


def _sampling(fields: Fields) -> dict[str, Any]:
    said: dict[str, Any] = {}
    temperature = fields.take("temperature")
    if temperature is not None:
        if not _is_number(temperature) or not 0 <= temperature <= 1:
            raise invalid("temperature", "it is a number from 0 to 1")
        said["temperature"] = temperature
    top_p = fields.take("top_p")
    if top_p is not None:
        if not _is_number(top_p) or not 0 <= top_p <= 1:
            raise invalid("top_p", "it is a number from 0 to 1")
        said["top_p"] = top_p
    if stops := fields.of("stop_sequences", list):
        said["stop"] = stops
    return said


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tools(fields: Fields) -> list[dict[str, Any]]:
    tools: list[dict[str, Any]] = []
    for tool in fields.objects("tools"):
        kind = tool.of("type", str)
        if kind not in {None, "custom"}:
            raise invalid(tool.where, f"{kind:.60} is a tool of Anthropic's own and not served here, but custom tools")
        tools.append(
            {
                "name": tool.of("name", str, required=True),
                "description": tool.of("description", str) or "",
                "parameters": tool.of("input_schema", dict, required=True),
            }
        )
        tool.ignore_rest()
    return tools


def _choice(fields: Fields, *, any_tools: bool) -> str | dict[str, str] | None:
    choice = fields.inner("tool_choice")
    if choice is None:
        return None
    kind = choice.of("type", str, required=True)
    name = choice.of("name", str, required=True) if kind == "tool" else None
    choice.ignore_rest()
    if name is not None:
        return {"name": name}
    if kind not in _CHOICES:
        raise invalid(choice.at("type"), "it is auto, any, tool or none")
    # Without tools these two ask for nothing.
    return None if kind in {"auto", "none"} and not any_tools else _CHOICES[kind]


def _output(fields: Fields) -> dict[str, Any]:
    """Structured outputs: `output_config.format`, or `output_format` as older betas call it."""
    found = fields.inner("output_format")
    if (config := fields.inner("output_config")) is not None:
        found = config.inner("format") or found
        config.ignore_rest()
    if found is None:
        return {}
    if found.of("type", str, required=True) != "json_schema":
        raise invalid(found.at("type"), "it is json_schema")
    schema = found.of("schema", dict, required=True)
    found.ignore_rest()
    return {"response_format": {"type": "json_schema", "schema": schema}}


def _metadata(fields: Fields) -> dict[str, object]:
    """What the sidecar reads in the metadata; the rest is not kept."""
    if (given := fields.inner("metadata")) is None:
        return {}
    ours = given.starting("sidecar_")
    given.ignore_rest()
    return ours


def _thinks(fields: Fields) -> bool:
    """Whether thinking is asked for. No request turns it on or off: a model thinks as it does by itself."""
    thinking = fields.inner("thinking")
    if thinking is None:
        return False
    fields.ignore("thinking")
    return thinking.take("type") in ("enabled", "adaptive")
