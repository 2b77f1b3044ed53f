"""The `system` and `messages` of Anthropic's Messages API as the contract's messages. Pure.

Consecutive messages of one role are one turn, as Anthropic has it. A user's turn becomes the results of tools, then
all else it says. Our results are text: an image in one follows as the user's, and the result says so. A system
message in the middle stands where it stood, as the user's text between `<system>` tags, since ours have systems only
at the front. Thinking in the history goes nowhere: no signature of another model is of use to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bridge.anthropic_fields import REQUIRED, Fields, invalid
from bridge.anthropic_parts import (
    Wire,
    call_part,
    content_blocks,
    not_served,
    result_part,
    text_of,
    text_part,
    user_parts,
)
from bridge.ignored import Ignored
from processor.messages import MAX_PARTS

_THINKING = ("thinking", "redacted_thinking")
_ROLES = {"user", "assistant", "system"}


@dataclass
class Talk:
    """The contract's messages; `origins` names the field that each came from."""

    messages: list[Wire] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)

    def add(self, role: str, parts: list[Wire], origin: str) -> None:
        is_text = len(parts) == 1 and parts[0]["type"] == "text"
        self.messages.append({"role": role, "content": parts[0]["text"] if is_text else parts})
        self.origins.append(origin)


@dataclass
class _Turn:
    role: str
    where: str
    blocks: list[Fields]


def talk(body: Fields, ignored: Ignored) -> Talk:
    """All messages, the system's first.

    Raises:
        RequestError: `invalid_request`, naming a block that is wrong or that no model behind the sidecar is given.
    """
    made = Talk()
    for block in content_blocks(body, "system", ignored):
        _add_system(made, block)
    turns = list(_turns(body, ignored))
    if not turns:
        raise invalid("messages", REQUIRED)
    for turn in turns:
        if turn.role == "assistant":
            _add_assistant(made, turn)
        elif turn.role == "user":
            _add_user(made, turn, ignored)
        else:
            for block in turn.blocks:
                _add_system(made, block)
    return made


def _turns(body: Fields, ignored: Ignored) -> Iterator[_Turn]:
    turn: _Turn | None = None
    for message in body.objects("messages"):
        role = message.of("role", str, required=True)
        if role not in _ROLES:
            raise invalid(message.at("role"), "it is user, assistant or system")
        blocks = list(content_blocks(message, "content", ignored, required=True))
        message.ignore_rest()
        if role == "system" and turn is not None and turn.role != "system":
            role, blocks = "user", [_as_users(block, ignored) for block in blocks]
        if turn is not None and turn.role == role:
            turn.blocks += blocks
            continue
        if turn is not None:
            yield turn
        turn = _Turn(role, message.where, blocks)
    if turn is not None:
        yield turn


def _as_users(block: Fields, ignored: Ignored) -> Fields:
    return Fields({"type": "text", "text": f"<system>\n{text_of(block)}\n</system>"}, block.where, ignored)


def _add_system(made: Talk, block: Fields) -> None:
    if text := text_of(block):
        made.add("system", [text_part(text)], block.where)


def _add_assistant(made: Talk, turn: _Turn) -> None:
    parts: list[Wire] = []
    for block in turn.blocks:
        kind = block.take("type")
        if kind == "text":
            if text := block.of("text", str, required=True):
                parts.append(text_part(text))
        elif kind == "tool_use":
            parts.append(call_part(block))
        elif kind in _THINKING:  # a tuple: what comes may be anything, also what no set can hold
            block.ignore(kind)
            continue
        else:
            raise not_served(block, kind)
        block.ignore_rest()
    if parts:
        made.add("assistant", parts, turn.where)


def _add_user(made: Talk, turn: _Turn, ignored: Ignored) -> None:
    results: list[Wire] = []
    shown: list[Wire] = []
    said: list[Wire] = []
    for block in turn.blocks:
        kind = block.take("type")
        if kind == "tool_result":
            results.append(result_part(block, shown, ignored))
        else:
            said += user_parts(block, kind)
        block.ignore_rest()
    for some in _chunks(results):
        made.add("tool", some, turn.where)
    if not results and not said:
        raise invalid(turn.where, "the content is empty")
    for some in _chunks(shown + said):
        made.add("user", some, turn.where)


def _chunks(parts: list[Wire]) -> Iterator[list[Wire]]:
    for start in range(0, len(parts), MAX_PARTS):
        yield parts[start : start + MAX_PARTS]
