"""The content blocks of a streamed message: one open at a time, each with its start, its deltas and its stop. Pure.

Vendors may write two tool calls in turns, Anthropic's stream never does: what belongs to a later block waits until the
one before it is whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from bridge.unsent import SentCall

Event = dict[str, Any]
"""A stream event's data; its `type` is the event's name too."""
Kind = Literal["text", "thinking", "tool_use"]

_DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


@dataclass(slots=True)
class _Block:
    kind: Kind
    opening: Event
    written: list[str] = field(default_factory=list)
    sent: int = 0
    """Of `written`, how many pieces."""
    looked_at: int = 0
    """Of `written`, how many pieces there were when it was last no JSON."""

    def is_whole(self) -> bool:
        """Whether nothing more can come once another block has begun."""
        if self.kind != "tool_use":
            return True
        if self.looked_at == len(self.written) or not self.written[-1].endswith("}"):
            return False
        self.looked_at = len(self.written)
        return _is_json("".join(self.written))


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


class Blocks:
    """What an answer consists of so far; each method gives the events that tell the client."""

    def __init__(self) -> None:
        self._open: deque[_Block] = deque()
        """The block that is being sent, then those that wait."""
        self._begun = False
        self._index = 0
        self._calls: dict[int, _Block] = {}
        self._text: list[str] = []

    @property
    def text(self) -> str:
        """All text that was taken in."""
        return "".join(self._text)

    @property
    def calls(self) -> list[SentCall]:
        """The tool calls so far, in their order."""
        calls = sorted(self._calls.items())
        return [SentCall(number, block.opening["id"], block.written) for number, block in calls]

    def add_text(self, piece: str) -> list[Event]:
        self._text.append(piece)
        return self._add("text", piece, {"type": "text", "text": ""})

    def add_thinking(self, piece: str) -> list[Event]:
        return self._add("thinking", piece, {"type": "thinking", "thinking": "", "signature": ""})

    def add_call(self, number: int, piece: str, *, id: str | None = None, name: str | None = None) -> list[Event]:
        """A piece of the tool call `number`. Raises KeyError where its first piece, with id and name, never came."""
        block = self._calls.get(number)
        if block is None:
            if id is None or name is None:
                raise KeyError(number)
            opening = {"type": "tool_use", "id": id, "name": name, "input": {}}
            block = self._calls[number] = _Block("tool_use", opening)
            self._open.append(block)
        if piece:
            block.written.append(piece)
        return list(self._send())

    def close(self) -> list[Event]:
        """The answer is whole: all that waits, and the last block's stop."""
        return list(self._send(to_the_end=True))

    def _add(self, kind: Kind, piece: str, opening: Event) -> list[Event]:
        if not self._open or self._open[-1].kind != kind:
            self._open.append(_Block(kind, opening))
        self._open[-1].written.append(piece)
        return list(self._send())

    def _send(self, *, to_the_end: bool = False) -> Iterator[Event]:
        while self._open:
            block = self._open[0]
            if not self._begun:
                self._begun = True
                yield {"type": "content_block_start", "index": self._index, "content_block": block.opening}
            kind, name = _DELTAS[block.kind]
            for piece in block.written[block.sent :]:
                yield {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, name: piece}}
            block.sent = len(block.written)
            is_last = len(self._open) == 1
            if not (to_the_end or (not is_last and block.is_whole())):
                return
            yield {"type": "content_block_stop", "index": self._index}
            self._open.popleft()
            self._index += 1
            self._begun = False
