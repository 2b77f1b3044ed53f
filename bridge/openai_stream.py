"""An answer's pieces as OpenAI's chunks: what is sent so far, and what the final reply adds to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from bridge.openai_answer import account, completion_id, finish_reason, tool_call, usage
from bridge.sequence import Piece
from bridge.unsent import SentCall, rest_of, rest_of_calls, torn
from processor.reply_bodies import FinalReply, ReplyEvent


class Chunks:
    """The `chat.completion.chunk`s of one answer.

    Models and attempts are never glued together: OpenAI's format cannot take back what was sent, so an answer that
    begins anew ends the stream, unless nothing of it was sent yet.
    """

    def __init__(self, request_id: str, model: str, *, created: int, include_usage: bool) -> None:
        """`model` is the name that was asked for; which one answers is known at the end. `created`: Unix seconds."""
        self._head = {"id": completion_id(request_id), "object": "chat.completion.chunk", "created": created}
        self._model = model
        self._include_usage = include_usage
        self._text: list[str] = []
        self._calls: dict[int, SentCall] = {}
        """By their numbers, in the order in which they began; by that the client numbers them."""
        self.begun = False
        """Whether anything was sent."""

    def of(self, piece: Piece) -> Iterator[bytes]:
        """The data of the events that a delta, a restart or the final reply makes.

        Raises:
            RequestError: what was sent cannot be gone on with.
        """
        match piece.event:
            case ReplyEvent.DELTA:
                yield from self._delta(orjson.loads(piece.body))
            case ReplyEvent.RESTARTED if self.begun:
                raise torn()
            case ReplyEvent.FINAL:
                yield from self._end(FinalReply.model_validate_json(piece.body))

    def _delta(self, fields: dict[str, Any]) -> Iterator[bytes]:
        if fields.get("thinking"):
            yield from self._say({"reasoning_content": fields["thinking"]})
        elif call := fields.get("tool_call"):
            yield from self._say({"tool_calls": [self._call_piece(call)]})
        elif fields["text"]:
            self._text.append(fields["text"])
            yield from self._say({"content": fields["text"]})

    def _call_piece(self, call: dict[str, Any]) -> dict[str, Any]:
        """A piece of a call, with its id and name where it is the first. Raises RequestError where that never came."""
        number, arguments = call["index"], call["arguments"]
        function = {"arguments": arguments}
        if (sent := self._calls.get(number)) is not None:
            sent.pieces.append(arguments)
            return {"index": self._place(number), "function": function}
        if not {"id", "name"} <= call.keys():
            raise torn()
        self._calls[number] = SentCall(number, call["id"], [arguments])
        function = {"name": call["name"]} | function
        return {"index": self._place(number), "id": call["id"], "type": "function", "function": function}

    def _place(self, number: int) -> int:
        return list(self._calls).index(number)

    def _end(self, final: FinalReply) -> Iterator[bytes]:
        """What of the answer was not sent, the reason of its end, and its usage where that is wanted."""
        if rest := rest_of("".join(self._text), final.response):
            yield from self._say({"content": rest})
        for piece in self._missing_calls(final):
            yield from self._say({"tool_calls": [piece]})
        self._model = final.served_by or final.model
        if not self.begun:
            yield from self._say({})
        yield self._chunk({}, finish_reason(final), sidecar=account(final))
        if self._include_usage:
            yield self._bytes({"choices": [], "usage": usage(final.usage)})

    def _missing_calls(self, final: FinalReply) -> Iterator[dict[str, Any]]:
        beyond = len(self._calls)
        in_order = [sent for _, sent in sorted(self._calls.items())]
        for sent, call, rest in rest_of_calls(in_order, final.tool_calls):
            if sent is None:
                yield {"index": beyond} | tool_call(call)
                beyond += 1
            elif rest:
                yield {"index": self._place(sent.number), "function": {"arguments": rest}}

    # --- chunks -----------------------------------------------------------------------------

    def _say(self, delta: dict[str, Any]) -> Iterator[bytes]:
        if not self.begun:
            self.begun = True
            yield self._chunk({"role": "assistant", "content": "", "refusal": None})
        if delta:
            yield self._chunk(delta)

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._bytes({"choices": [choice]} | ({"usage": None} if self._include_usage else {}) | more)

    def _bytes(self, fields: dict[str, Any]) -> bytes:
        return orjson.dumps(self._head | {"model": self._model} | fields)
