"""OpenAI's body of a chat completion as the contract's request: any bytes give one, or one named error. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson

from bridge.ignored import Ignored
from bridge.openai_messages import talk
from bridge.openai_parts import Json, wrong
from bridge.steering import METADATA
from processor.errors import RequestError
from processor.messages import Request, decode_request

MAX_METADATA: Final = 32
MAX_METADATA_CHARS: Final = 512

_AS_THEY_ARE: Final = ("model", "stream", "temperature", "top_p", "stop")
_LIMITS: Final[Sequence[str]] = ("max_completion_tokens", "max_tokens")
_TURNED: Final = ("messages", "tools", "tool_choice", "response_format", "n", "user", "metadata", "stream_options")
_USED: Final = frozenset({*_AS_THEY_ARE, *_LIMITS, *_TURNED})
_TOOL: Final = ("name", "description", "parameters")
_STEERING: Final = frozenset(METADATA.values())
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks for.

    `steering` is what of its metadata steers it, `moved` are the numbers of the messages that stand elsewhere now.
    """

    request: Request
    include_usage: bool = False
    steering: Mapping[str, Json] = field(default_factory=dict)
    ignored: Ignored = field(default_factory=Ignored)
    moved: tuple[int, ...] = ()


def decode(body: bytes) -> Asked:
    """The request that a client of OpenAI's format means by `body`.

    Raises:
        RequestError: `too_large` or `invalid_request`, naming the first wrong field as the client wrote it.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise wrong("body", f"not JSON: {error}"[:200]) from None
    if not isinstance(fields, dict):
        raise wrong("body", "it has to be a JSON object")
    ignored = Ignored()
    given = {name: value for name, value in fields.items() if value is not None}
    ignored.add_all_but(_USED, given)
    _refuse_the_unserved(given)
    try:
        spoken = talk(given.get("messages"), ignored)
        options, places = _options(given, ignored)
        request = orjson.dumps({"messages": spoken.messages} | options)
    except orjson.JSONEncodeError:
        raise wrong("body", "it is nested too deeply") from None
    try:
        return Asked(
            decode_request(request),
            _include_usage(given, ignored),
            _steering(given),
            ignored,
            tuple(spoken.moved),
        )
    except RequestError as error:
        raise RequestError(error.type, in_the_clients_words(error.message, spoken.places | places)) from None


def in_the_clients_words(message: str, places: Mapping[str, str]) -> str:
    """An error's message with the place it begins with as the client knows it: the longest of `places` counts."""
    path, colon, rest = message.partition(":")
    known = [place for place in places if path == place or path.startswith(f"{place}.")]
    if not colon or not known:
        return message
    ours = max(known, key=len)
    return f"{places[ours]}{path.removeprefix(ours)}:{rest}"


def _refuse_the_unserved(given: Mapping[str, Json]) -> None:
    if given.get("functions"):
        raise wrong("functions", "the old form of tools is not served")
    if given.get("n", 1) != 1:
        raise wrong("n", "one choice is given: ask again for another")


def _options(given: Mapping[str, Json], ignored: Ignored) -> tuple[dict[str, Json], dict[str, str]]:
    """The contract's fields beside the messages, and what the client calls those with another name."""
    options = {name: given[name] for name in _AS_THEY_ARE if name in given}
    places = {}
    for limit in _LIMITS:
        if limit in given and "max_tokens" in options:
            ignored.add(limit)
        elif limit in given:
            options["max_tokens"] = given[limit]
            places["max_tokens"] = limit
    if tools := given.get("tools"):
        options["tools"] = _tools(tools, ignored)
        places |= {f"tools.{index}": f"tools.{index}.function" for index in range(len(tools))}
    choice = given.get("tool_choice")
    # Without tools there is nothing to choose, which is what these two say.
    if choice is not None and (tools or choice not in ("auto", "none")):
        options["tool_choice"] = _tool_choice(choice)
    if "response_format" in given:
        options["response_format"] = _response_format(given["response_format"], ignored)
        places["response_format.schema"] = "response_format.json_schema.schema"
        places["response_format.name"] = "response_format.json_schema.name"
    options["metadata"] = _metadata(given, ignored)
    return options, places


def _tools(tools: Json, ignored: Ignored) -> list[Json]:
    if not isinstance(tools, list):
        raise wrong("tools", "a list")
    found = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type", "function") != "function":
            raise wrong(f"tools.{index}.type", "only functions are served as tools")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise wrong(f"tools.{index}.function", "an object with name, description and parameters")
        ignored.add_all_but(_TOOL, function, "tools")
        ignored.add_all_but(("type", "function"), tool, "tools")
        found.append(_given(function, _TOOL))
    return found


def _tool_choice(choice: Json) -> Json:
    if isinstance(choice, str):
        return choice
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    if not isinstance(function, dict):
        raise wrong("tool_choice", 'auto, none, required, or {"type": "function", "function": {"name"}}')
    return {"name": function.get("name")}


def _response_format(wanted: Json, ignored: Ignored) -> Json:
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        kind = wanted.get("type") if isinstance(wanted, dict) else None
        if kind not in ("text", "json_object"):
            raise wrong("response_format.type", "text, json_object or json_schema")
        return {"type": kind}
    inner = wanted.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong("response_format.json_schema", "an object with name and schema")
    ignored.add_all_but(("name", "schema"), inner, "response_format", "json_schema")
    return {"type": "json_schema"} | _given(inner, ("name", "schema"))


def _given(fields: Mapping[str, Json], names: Iterable[str]) -> dict[str, Json]:
    return {name: fields[name] for name in names if fields.get(name) is not None}


def _include_usage(given: Mapping[str, Json], ignored: Ignored) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not given.get("stream"):
        ignored.add("stream_options")
        return False
    ignored.add_all_but(("include_usage",), options, "stream_options")
    return options.get("include_usage") is True


# --- metadata -------------------------------------------------------------------------------


def _steering(given: Mapping[str, Json]) -> dict[str, Json]:
    metadata = given.get("metadata")
    return _given(metadata, _STEERING) if isinstance(metadata, dict) else {}


def _metadata(given: Mapping[str, Json], ignored: Ignored) -> dict[str, str]:
    """What the audit log keeps: as much of `metadata` as the contract takes, and `user`. Nothing here is refused."""
    metadata = given.get("metadata", {})
    if not isinstance(metadata, dict):
        ignored.add("metadata")
        metadata = {}
    kept: dict[str, str] = {}
    for name, value in metadata.items():
        if name in _STEERING:
            continue
        if not isinstance(value, str) or not _TOKEN.match(name) or len(kept) == MAX_METADATA:
            ignored.add("metadata", name)
            continue
        if len(value) > MAX_METADATA_CHARS:
            ignored.add("metadata", name)
        kept[name] = value[:MAX_METADATA_CHARS]
    user = given.get("user")
    if isinstance(user, str) and "user" not in kept and len(kept) < MAX_METADATA:
        kept["user"] = user[:MAX_METADATA_CHARS]
    if user is not None and kept.get("user") != user:
        ignored.add("user")
    return kept
