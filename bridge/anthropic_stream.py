"""One answer's pieces as the stream events of Anthropic's Messages API. Pure."""

from __future__ import annotations

from typing import Any

import orjson

from bridge.anthropic_answer import message_id, stop_reason, usage
from bridge.anthropic_blocks import Blocks, Event
from bridge.unsent import rest_of, rest_of_calls, torn
from processor.reply_bodies import FinalReply


class MessageStream:
    """What a client has been told of one message. Nothing is told before there is content."""

    def __init__(self, request_id: str, model: str, input_tokens: int, *, thinks: bool = True) -> None:
        """`model` is the name that was asked for; `input_tokens` is an estimate that the end sets right.

        Thinking is only told to a client that `thinks`: any other one takes the first block for the answer.
        """
        self._thinks = thinks
        self._start: Event = {
            "type": "message_start",
            "message": {
                "id": message_id(request_id),
                "type": "message",
                "role": "assistant",
                "model": model,
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": input_tokens,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 1,
                },
            },
        }
        self._blocks = Blocks()
        self.has_begun = False

    def delta(self, body: bytes) -> list[Event]:
        """The events for a delta's body.

        Raises:
            RequestError: the beginning of a tool call was lost on the way.
        """
        piece: dict[str, Any] = orjson.loads(body)
        if call := piece.get("tool_call"):
            found = self._call(**call)
        elif thinking := piece.get("thinking"):
            found = self._blocks.add_thinking(thinking) if self._thinks else []
        elif text := piece["text"]:
            found = self._blocks.add_text(text)
        else:
            return []
        return self._begin(found)

    def restarted(self) -> list[Event]:
        """The answer begins anew: nothing to tell a client that knows nothing of it yet.

        Raises:
            RequestError: it knows a part; the stream has to end.
        """
        if self.has_begun:
            raise torn()
        self._blocks = Blocks()
        return []

    def final(self, reply: FinalReply) -> list[Event]:
        """The rest of the answer, where some of its deltas were lost, and its end.

        Raises:
            RequestError: what was sent is no beginning of it.
        """
        found = self._rest(reply) + self._blocks.close()
        told: Event = {"model": reply.model, "provider": reply.provider, "served_by": reply.served_by}
        told |= {"cost_usd": float(reply.cost_usd), "route": reply.route.reason, "cached": reply.cached}
        ended = {"stop_reason": stop_reason(reply), "stop_sequence": None}
        found.append({"type": "message_delta", "delta": ended, "usage": usage(reply.usage), "sidecar": told})
        found.append({"type": "message_stop"})
        return self._begin(found)

    def _begin(self, found: list[Event]) -> list[Event]:
        """Before the first event stand the message's start and, as in Anthropic's own streams, a ping."""
        if self.has_begun or not found:
            return found
        self.has_begun = True
        return [self._start, {"type": "ping"}, *found]

    def _rest(self, reply: FinalReply) -> list[Event]:
        found: list[Event] = []
        if rest := rest_of(self._blocks.text, reply.response):
            found += self._blocks.add_text(rest)
        calls = self._blocks.calls
        beyond = calls[-1].number + 1 if calls else 0
        for sent, call, rest in rest_of_calls(calls, reply.tool_calls):
            if sent is None:
                found += self._call(beyond, rest, call.id, call.name)
                beyond += 1
            elif sent.pieces or rest != "{}":  # which stands for none
                found += self._call(sent.number, rest)
        return found

    def _call(self, index: int, arguments: str, id: str | None = None, name: str | None = None) -> list[Event]:
        try:
            return self._blocks.add_call(index, arguments, id=id, name=name)
        except KeyError:
            raise torn() from None
