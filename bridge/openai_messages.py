"""OpenAI's messages as a talk of the contract's: who speaks when, and what the client calls each place of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from bridge.ignored import Ignored
from bridge.openai_parts import Json, said_by_assistant, said_by_user, texts, wrong

_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_USED: Final = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "refusal", "tool_calls", "function_call"},
    "tool": {"role", "content", "tool_call_id"},
}


@dataclass(frozen=True, slots=True)
class Talk:
    """`messages` in the contract's form; `places` says for each of their paths what the client calls it.

    `moved` are the numbers of the client's messages that stand elsewhere now.
    """

    messages: list[Json] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)


def talk(messages: Json, ignored: Ignored) -> Talk:
    """The talk that a request's `messages` are.

    The contract has its system messages first, so those from the middle are moved there, in their order. Where there
    is no other message, the last of them is what the user says. An empty system message is left out.

    Raises:
        RequestError: `invalid_request`; what the contract itself refuses is left to it.
    """
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "a list of at least one message")
    found = Talk()
    first: list[tuple[int, Json]] = []
    then: list[tuple[int, Json]] = []
    for number, message in enumerate(messages):
        role = _role(message, number)
        ignored.add_all_but(_USED[role], message, "messages")
        if role != "system":
            then.append((number, message))
            continue
        if message.get("content") in ("", None, []):
            continue
        first.append((number, message))
        if then:
            found.moved.append(number)
    if not then and first:
        number, message = first.pop()
        then.append((number, message | {"role": "user"}))
        found.moved.append(number)
    for number, message in [*first, *then]:
        ours = len(found.messages)
        found.places[f"messages.{ours}"] = f"messages.{number}"
        found.messages.append(_message(message, number, ours, found.places, ignored))
    return found


def _role(message: Json, number: int) -> str:
    if not isinstance(message, dict):
        raise wrong(f"messages.{number}", "a message is an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        said = "; function calls of the old form are not served: use tools" if role == "function" else ""
        raise wrong(f"messages.{number}.role", f"{', '.join(_ROLES[:-1])} or {_ROLES[-1]}{said}")
    return "system" if role == "developer" else role


def _message(message: Json, number: int, ours: int, places: dict[str, str], ignored: Ignored) -> Json:
    at, content = f"messages.{number}", message.get("content")
    match message["role"]:
        case "tool":
            places[f"messages.{ours}.content.0"] = at
            said = "".join(texts(content, f"{at}.content", ignored))
            result = {"type": "tool_result", "tool_call_id": message.get("tool_call_id"), "content": said}
            return {"role": "tool", "content": [result]}
        case "assistant":
            parts, calls = said_by_assistant(message, at, ignored)
            for index in range(calls):
                part, call = f"messages.{ours}.content.{len(parts) - calls + index}", f"{at}.tool_calls.{index}"
                places |= {part: call} | {f"{part}.{name}": f"{call}.function.{name}" for name in ("name", "arguments")}
            return {"role": "assistant", "content": _plain(parts)}
        case "user":
            return {"role": "user", "content": _plain(said_by_user(content, f"{at}.content", ignored))}
        case _:
            parts = [{"type": "text", "text": text} for text in texts(content, f"{at}.content", ignored)]
            return {"role": "system", "content": _plain(parts)}


def _plain(parts: list[Json]) -> Json:
    """One text is itself the content, and so is nothing."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts
