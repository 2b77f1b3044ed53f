"""The body of a request, bounded and checked: any bytes give a request or one named error."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from processor.errors import ErrorType, RequestError
from processor.parts import (
    MAX_TEXT_CHARS,
    TOKEN,
    TOO_LARGE,
    ImagePart,
    LongText,
    Model,
    Name,
    Part,
    TextPart,
    Token,
    ToolCallPart,
    ToolResultPart,
)

MAX_BODY_BYTES = 7 * 1024 * 1024
"""Of a whole request: below the broker's max_payload of 8 MB with room for headers."""
MAX_MESSAGES = 1_000
MAX_PARTS = 100
MAX_TOOLS = 128
MAX_SCHEMA_CHARS = 100_000
MAX_DESCRIPTION_CHARS = 50_000
"""Of a tool: coding agents explain theirs in more than 10,000."""
MAX_TOKENS = 200_000
MAX_DEADLINE_MS = 7 * 24 * 3600 * 1000
MAX_ONLY = 64
"""Models that a request may name as the only ones."""

_ALLOWED = {
    "system": (TextPart,),
    "user": (TextPart, ImagePart),
    "assistant": (TextPart, ToolCallPart),
    "tool": (ToolResultPart,),
}


class ChatMessage(Model):
    role: Literal["system", "user", "assistant", "tool"]
    content: LongText | Annotated[tuple[Part, ...], Field(min_length=1, max_length=MAX_PARTS)]

    @property
    def parts(self) -> tuple[Part, ...]:
        return (TextPart(type="text", text=self.content),) if isinstance(self.content, str) else self.content

    @model_validator(mode="after")
    def _parts_fit_the_role(self) -> Self:
        for index, part in enumerate(self.parts):
            if not isinstance(part, _ALLOWED[self.role]):
                raise PydanticCustomError(
                    "part",
                    "part {index}: a {role} message has no {part}",
                    {"index": index, "role": self.role, "part": part.type},
                )
        if self.role != "assistant" and self.content == "":
            raise PydanticCustomError("empty", "the content is empty")
        return self


# --- options --------------------------------------------------------------------------------


def _flat_function(value: Any) -> Any:
    """OpenAI's nesting `{"type": "function", "function": {...}}` is taken as well."""
    if isinstance(value, dict) and value.get("type") == "function" and isinstance(value.get("function"), dict):
        return value["function"]
    return value


def _json_object(value: Any) -> Any:
    """Bounds of a JSON object that is passed on as it is: finite, and not larger than a vendor would read."""
    if isinstance(value, dict):
        size = 0
        stack: list[Any] = [value]
        while stack:
            item = stack.pop()
            size += 8
            if isinstance(item, dict):
                stack.extend(item.values())
                size += sum(len(key) for key in item)
            elif isinstance(item, list):
                stack.extend(item)
            elif isinstance(item, str):
                size += len(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise PydanticCustomError("json_finite", "NaN and Infinity are not JSON")
            elif isinstance(item, int) and not -(2**63) <= item < 2**64:
                raise PydanticCustomError("json_int", "an integer of more than 64 bits")
            if size > MAX_SCHEMA_CHARS:
                raise PydanticCustomError(TOO_LARGE, "at most {limit} characters", {"limit": MAX_SCHEMA_CHARS})
    return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_json_object)]


class ToolSpec(Model):
    name: Token
    description: Annotated[str, StringConstraints(max_length=MAX_DESCRIPTION_CHARS)] = ""
    parameters: JsonObject = Field(default_factory=lambda: {"type": "object", "properties": {}})


class NamedTool(Model):
    name: Token


def _flat_schema(value: Any) -> Any:
    """OpenAI's nesting `{"type": "json_schema", "json_schema": {...}}` is taken as well."""
    if isinstance(value, dict) and isinstance(value.get("json_schema"), dict):
        inner = {k: v for k, v in value["json_schema"].items() if k in {"name", "schema"}}
        return {"type": "json_schema", **inner}
    return value


class ResponseFormat(Model):
    type: Literal["text", "json_object", "json_schema"]
    name: Token = "answer"
    json_schema: JsonObject | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _schema_is_there(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise PydanticCustomError("schema", "a schema goes with type json_schema, and only with it")
        return self


Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class Request(Model):
    """What a client asks for. Unknown fields are refused by name; every size has a bound."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: Name | None = None
    task_type: Token | None = None
    prefer: Literal["cost", "speed", "quality"] | None = None
    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: Annotated[tuple[Stop, ...], BeforeValidator(_listed), Field(max_length=8)] = ()
    tools: Annotated[tuple[Annotated[ToolSpec, BeforeValidator(_flat_function)], ...], Field(max_length=MAX_TOOLS)] = ()
    tool_choice: Literal["auto", "none", "required"] | Annotated[NamedTool, BeforeValidator(_flat_function)] | None = (
        None
    )
    response_format: Annotated[ResponseFormat, BeforeValidator(_flat_schema)] | None = None
    cache: Literal["use", "skip", "refresh"] | None = None
    fallback: bool | None = None
    """Whether another model may answer; unset: yes, unless the model was named by a vendor's full id."""
    only: Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1, max_length=MAX_ONLY)] = ()
    """The models that may answer, by any of their names; unset: all. It holds for `auto` and for fallbacks too."""
    deadline_ms: Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)] | None = None
    tenant: Token = "default"
    metadata: Annotated[dict[Token, Annotated[str, StringConstraints(max_length=512)]], Field(max_length=32)] = Field(
        default_factory=dict
    )

    @property
    def text_chars(self) -> int:
        """Characters of all text in the messages."""
        return sum(_text_chars(message) for message in self.messages)

    @model_validator(mode="after")
    def _is_a_conversation(self) -> Self:
        _check_turns(self.messages)
        text = self.text_chars
        if text > MAX_TEXT_CHARS:
            raise PydanticCustomError(
                TOO_LARGE,
                "messages hold {text} characters of text; the limit is {limit}",
                {"text": text, "limit": MAX_TEXT_CHARS},
            )
        names = [tool.name for tool in self.tools]
        if len(set(names)) != len(names):
            raise PydanticCustomError("tools", "tools: two tools have one name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.name not in names:
            raise PydanticCustomError(
                "tool_choice", "tool_choice: there is no tool {name}", {"name": self.tool_choice.name}
            )
        if self.tool_choice is not None and not names:
            raise PydanticCustomError("tool_choice", "tool_choice: there are no tools to choose from")
        return self


def _text_chars(message: ChatMessage) -> int:
    total = 0
    for part in message.parts:
        match part:
            case TextPart():
                total += len(part.text)
            case ToolCallPart():
                total += len(part.arguments)
            case ToolResultPart():
                total += len(part.content)
            case ImagePart():
                pass
    return total


def _check_turns(messages: tuple[ChatMessage, ...]) -> None:
    """System first, then a user's turn; every tool call is answered before the talk goes on; ours to answer last."""

    def wrong(index: int, why: str) -> PydanticCustomError:
        return PydanticCustomError("turns", "messages.{index}: {why}", {"index": index, "why": why})

    open_calls: set[str] = set()
    begun = False
    for index, message in enumerate(messages):
        if message.role == "system":
            if begun:
                raise wrong(index, "a system message stands before all others")
            continue
        if not begun and message.role != "user":
            raise wrong(index, "the first message after the system's is the user's")
        begun = True
        if message.role != "tool" and open_calls:
            raise wrong(index, f"tool call {min(open_calls)} has no tool_result yet")
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                open_calls.add(part.id)
            elif isinstance(part, ToolResultPart):
                if part.tool_call_id not in open_calls:
                    raise wrong(index, f"tool_result answers no open tool call ({part.tool_call_id})")
                open_calls.discard(part.tool_call_id)
    if messages[-1].role not in {"user", "tool"} or open_calls:
        raise wrong(len(messages) - 1, "the last message is the user's or a complete set of tool results")


# --- bytes to request and back --------------------------------------------------------------


def decode_request(body: bytes) -> Request:
    """The request that `body` holds.

    Raises:
        RequestError: `too_large` or `invalid_request`, naming the first wrong field.
    """
    if len(body) > MAX_BODY_BYTES:
        raise RequestError(ErrorType.TOO_LARGE, f"the body has {len(body)} bytes; the limit is {MAX_BODY_BYTES}")
    try:
        return Request.model_validate_json(body)
    except ValidationError as error:
        raise _named(error) from None
    except RecursionError:
        raise RequestError(ErrorType.INVALID_REQUEST, "the body is nested too deeply") from None


def encode_fields(fields: Mapping[str, Any]) -> bytes:
    """The body of fields that were decoded from one, and perhaps changed.

    Raises:
        RequestError: `invalid_request`: more can be read than can be written.
    """
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        raise RequestError(ErrorType.INVALID_REQUEST, "the body is nested too deeply") from None


def asks_for_stream(body: bytes) -> bool:
    """Whether a body, even one that is refused, asks for a stream: its client reads on until the empty message."""
    return _field(body, "stream") is True


def tenant_of(body: bytes) -> str:
    """The tenant that a body names, whatever else is in it."""
    named = _field(body, "tenant")
    return named if isinstance(named, str) and re.fullmatch(TOKEN, named) else "default"


def _field(body: bytes, name: str) -> Any:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return fields.get(name) if isinstance(fields, dict) else None


def encode_request(request: Request) -> bytes:
    """The shortest body that decodes to `request`."""
    return request.model_dump_json(exclude_defaults=True, by_alias=True).encode()


def _named(error: ValidationError) -> RequestError:
    """The deepest of pydantic's complaints (a union reports one for each branch), too large before all others."""
    details = error.errors(include_url=False, include_input=False)
    deepest = max(details, key=lambda d: (d["type"] in _SIZE_ERRORS, len(d["loc"])))
    kind = ErrorType.TOO_LARGE if deepest["type"] in _SIZE_ERRORS and _is_bulk(deepest) else ErrorType.INVALID_REQUEST
    where, what = _path(deepest["loc"]), deepest["msg"]
    if deepest["type"] == "extra_forbidden":
        what = "unknown field"
    elif deepest["type"] == "model_type" and not where:
        where, what = "body", "it has to be a JSON object"
    elif deepest["type"] == "json_invalid":
        where, what = "body", f"not JSON: {what.removeprefix('Invalid JSON: ')}"
    return RequestError(kind, (f"{where}: {what}" if where else what)[:500])


_SIZE_ERRORS = {TOO_LARGE, "string_too_long"}
_BULK = {"messages", "tools", "response_format"}
_PART_TAGS = {"text", "image", "tool_call", "tool_result"}


def _is_bulk(detail: ErrorDetails) -> bool:
    return not detail["loc"] or detail["loc"][0] in _BULK


def _path(loc: tuple[int | str, ...]) -> str:
    """The field as the client wrote it: pydantic also names the branch of a union, which the client never did."""
    steps: list[str] = []
    before: int | str = ""
    for step in loc:
        branch = isinstance(step, str) and ("[" in step or step in {"constrained-str", "NamedTool"})
        if not branch and not (isinstance(before, int) and step in _PART_TAGS):
            steps.append(str(step))
        before = step
    return ".".join(steps)
