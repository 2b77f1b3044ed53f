"""An answer's pieces as OpenAI's chunks: what is sent so far, and what the final reply adds to it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from bridge.openai_answer import account, completion_id, finish_reason, tool_call, usage
from bridge.sequence import Piece
from processor.errors import ErrorType, RequestError
from processor.reply_bodies import FinalReply, ReplyEvent


@dataclass(slots=True)
class _SentCall:
    index: int
    arguments: list[str] = field(default_factory=list)


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
        self._calls: dict[int, _SentCall] = {}
        self._ids: dict[str, _SentCall] = {}
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
                raise _broken("the answer began anew in the middle, and a stream of this format cannot take back text")
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
        """A piece of a call, with its id and name where it is the first; calls are numbered as they begin."""
        if (sent := self._calls.get(call["index"])) is not None:
            sent.arguments.append(call["arguments"])
            return {"index": sent.index, "function": {"arguments": call["arguments"]}}
        sent = _SentCall(len(self._calls), [call["arguments"]])
        call_id = call.get("id", "")
        self._calls[call["index"]] = self._ids[call_id] = sent
        function = {"name": call.get("name", ""), "arguments": call["arguments"]}
        return {"index": sent.index, "id": call_id, "type": "function", "function": function}

    def _end(self, final: FinalReply) -> Iterator[bytes]:
        """What of the answer was not sent, the reason of its end, and its usage where that is wanted."""
        if rest := self._rest("".join(self._text), final.response):
            yield from self._say({"content": rest})
        for piece in self._missing_calls(final):
            yield from self._say({"tool_calls": [piece]})
        self._model = final.served_by
        if not self.begun:
            yield from self._say({})
        yield self._chunk({}, finish_reason(final), sidecar=account(final))
        if self._include_usage:
            yield self._bytes({"choices": [], "usage": usage(final.usage)})

    def _missing_calls(self, final: FinalReply) -> Iterator[dict[str, Any]]:
        if not self._ids.keys() <= {call.id for call in final.tool_calls}:
            raise _broken("other tool calls were sent than the answer has")
        index = len(self._calls)
        for call in final.tool_calls:
            if (sent := self._ids.get(call.id)) is None:
                yield {"index": index} | tool_call(call)
                index += 1
            elif rest := self._rest("".join(sent.arguments), call.arguments):
                yield {"index": sent.index, "function": {"arguments": rest}}

    @staticmethod
    def _rest(sent: str, whole: str) -> str:
        if not whole.startswith(sent):
            raise _broken("what was sent is not the beginning of the answer")
        return whole[len(sent) :]

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


def _broken(why: str) -> RequestError:
    return RequestError(ErrorType.UNAVAILABLE, f"{why}: ask again")
