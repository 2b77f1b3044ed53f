"""An answer's pieces as Anthropic's stream events: put together they are the answer, or end with an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.anthropic_answer import MALFORMED, message
from bridge.anthropic_stream import MessageStream
from processor.errors import RequestError
from processor.reply_bodies import FinalReply

TEXT, THINKING = "text", "thinking"


def final(response: str = "", calls: list[dict[str, Any]] | None = None, **fields: Any) -> FinalReply:
    made = {
        "id": "r1",
        "model": "haiku",
        "provider": "anthropic",
        "served_by": "claude-haiku-4-5-20251001",
        "response": response,
        "tool_calls": calls or [],
        "finish_reason": "tool_calls" if calls else "stop",
        "usage": {
            "input_tokens": 30,
            "output_tokens": 7,
            "cache_read_tokens": 20,
            "cache_write_tokens": 4,
            "reasoning_tokens": 2,
        },
        "cost_usd": "0.000047",
        "attempts": 1,
        "route": {"reason": "haiku was asked for"},
        "timing": {"queued_ms": 1.0, "first_token_ms": 2.0, "total_ms": 3.0},
    }
    return FinalReply.model_validate(made | fields)


def delta(text: str = "", **more: Any) -> bytes:
    return orjson.dumps({"id": "r1", "seq": 0, "text": text} | more)


def call_delta(index: int, arguments: str, **first: str) -> bytes:
    return delta(tool_call={"index": index, "arguments": arguments} | first)


def stream() -> MessageStream:
    return MessageStream("r1", "haiku", 12)


@dataclass
class Read:
    """What a client makes of events, as strict as one may be about their order."""

    message: dict[str, Any]
    content: list[dict[str, Any]]
    ended: dict[str, Any]


def read(events: list[dict[str, Any]]) -> Read:
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    content: list[dict[str, Any]] = []
    written: list[str] = []
    is_open = False
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert (event["index"], is_open) == (len(content), False)
            content.append(dict(event["content_block"]))
            written, is_open = [], True
            continue
        assert (event["index"], is_open) == (len(content) - 1, True)
        if event["type"] == "content_block_delta":
            written.append(event["delta"][{"tool_use": "partial_json"}.get(kind := content[-1]["type"], kind)])
            continue
        assert event["type"] == "content_block_stop"
        block, whole, is_open = content[-1], "".join(written), False
        if block["type"] == "tool_use":
            block["input"] = orjson.loads(whole or "{}")
        else:
            block[block["type"]] = whole
    assert not is_open
    return Read(events[0]["message"], content, events[-2])


def test_the_events_are_anthropics_in_their_order() -> None:
    one = stream()
    assert one.delta(delta("Hel")) == [
        {
            "type": "message_start",
            "message": {
                "id": "msg_r1",
                "type": "message",
                "role": "assistant",
                "model": "haiku",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {
                    "input_tokens": 12,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 1,
                },
            },
        },
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
    ]
    assert one.delta(delta("lo")) == [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}}
    ]
    assert one.final(final("Hello")) == [
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {
                "input_tokens": 6,
                "cache_creation_input_tokens": 4,
                "cache_read_input_tokens": 20,
                "output_tokens": 7,
                "output_tokens_details": {"thinking_tokens": 2},
            },
            "sidecar": {
                "model": "haiku",
                "provider": "anthropic",
                "served_by": "claude-haiku-4-5-20251001",
                "cost_usd": 0.000047,
                "route": "haiku was asked for",
                "cached": False,
            },
        },
        {"type": "message_stop"},
    ]


def test_thinking_text_and_calls_are_blocks_of_their_own() -> None:
    one = stream()
    found = one.delta(delta(thinking="Let me")) + one.delta(delta(thinking=" see.")) + one.delta(delta("I look."))
    found += one.delta(call_delta(0, "", id="a", name="look")) + one.delta(call_delta(0, '{"at"'))
    found += one.delta(call_delta(0, ":1}")) + one.delta(call_delta(1, "{}", id="b", name="see"))
    calls = [{"id": "a", "name": "look", "arguments": '{"at":1}'}, {"id": "b", "name": "see", "arguments": "{}"}]
    got = read(found + one.final(final("I look.", calls)))
    assert got.content == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "a", "name": "look", "input": {"at": 1}},
        {"type": "tool_use", "id": "b", "name": "see", "input": {}},
    ]
    assert got.ended["delta"]["stop_reason"] == "tool_use"


def test_a_block_is_sent_while_it_is_written() -> None:
    one = stream()
    one.delta(call_delta(0, '{"a":', id="a", name="look"))
    assert [event["type"] for event in one.delta(call_delta(0, "1"))] == ["content_block_delta"]


def test_an_answer_that_is_empty_still_is_a_message() -> None:
    got = read(stream().final(final("")))
    assert got.content == []


def test_nothing_is_told_before_there_is_content_so_another_attempt_may_begin() -> None:
    one = stream()
    assert one.delta(delta("")) == []
    one.restarted()
    assert not one.has_begun
    assert read(one.delta(delta("new")) + one.final(final("new"))).content == [{"type": "text", "text": "new"}]


def test_an_attempt_that_begins_after_text_was_sent_ends_the_stream() -> None:
    one = stream()
    one.delta(delta("old"))
    with pytest.raises(RequestError, match="void"):
        one.restarted()


@pytest.mark.parametrize(
    ("sent", "ending"),
    [
        ([delta("Hexlo")], final("Hello")),
        ([delta("Hello!")], final("Hello")),
        (
            [call_delta(0, '{"a":2', id="a", name="look")],
            final("", [{"id": "a", "name": "look", "arguments": '{"a":1}'}]),
        ),
        ([call_delta(0, "{}", id="a", name="look")], final("", [{"id": "b", "name": "look", "arguments": "{}"}])),
        ([call_delta(0, "{}", id="a", name="look")], final("x")),
    ],
)
def test_what_was_sent_is_a_beginning_of_the_answer_or_the_stream_ends_without_its_end(
    sent: list[bytes], ending: FinalReply
) -> None:
    one = stream()
    for piece in sent:
        one.delta(piece)
    with pytest.raises(RequestError, match="void"):
        one.final(ending)


def test_a_call_whose_beginning_was_lost_is_not_made_up() -> None:
    with pytest.raises(RequestError):
        stream().delta(call_delta(0, '"a":1}'))


# --- whatever the model says ----------------------------------------------------------------

PIECE = st.text(alphabet='ab {}"\\é', min_size=1, max_size=4)
ARGUMENTS = st.dictionaries(st.text(max_size=3), st.integers(0, 99) | st.text(max_size=3), max_size=3)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[bytes], FinalReply]:
    """Deltas of an answer, the calls' pieces among each other, and its ending."""
    pieces = [delta(thinking=piece) for piece in draw(st.lists(PIECE, max_size=3))]
    said = draw(st.lists(PIECE, max_size=4))
    pieces += map(delta, said)
    arguments = draw(st.lists(ARGUMENTS, max_size=3))
    queues: list[list[bytes]] = []
    calls = []
    for number, given_ in enumerate(arguments):
        whole = orjson.dumps(given_).decode()
        cut = draw(st.integers(0, len(whole)))
        queues.append(
            [
                call_delta(number, "", id=f"c{number}", name="look"),
                call_delta(number, whole[:cut]),
                call_delta(number, whole[cut:]),
            ]
        )
        calls.append({"id": f"c{number}", "name": "look", "arguments": whole})
    started = 0
    while any(queues):
        ready = [n for n in range(min(started + 1, len(queues))) if queues[n]]
        chosen = draw(st.sampled_from(ready))
        started = max(started, chosen + 1)
        pieces.append(queues[chosen].pop(0))
    return pieces, final("".join(said), calls)


@given(answers(), st.data())
def test_what_a_client_puts_together_is_the_answer_even_where_the_last_deltas_were_lost(
    answer: tuple[list[bytes], FinalReply], data: st.DataObject
) -> None:
    pieces, ending = answer
    came = pieces[: data.draw(st.integers(0, len(pieces)))]
    one = stream()
    events = [event for piece in came for event in one.delta(piece)]
    got = read(events + one.final(ending))
    assert "".join(block["text"] for block in got.content if block["type"] == "text") == ending.response
    whole = message(ending)
    assert [block for block in got.content if block["type"] == "tool_use"] == [
        block for block in whole["content"] if block["type"] == "tool_use"
    ]
    assert got.ended["delta"]["stop_reason"] == whole["stop_reason"]
    assert got.ended["usage"] == whole["usage"]


# --- whole answers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("pause", "pause_turn"),
        ("other", "end_turn"),
    ],
)
def test_why_an_answer_ended_is_said_in_anthropics_words(ours: str, theirs: str) -> None:
    assert message(final("x", finish_reason=ours))["stop_reason"] == theirs


def test_an_answer_with_calls_waits_for_them_whatever_the_vendor_says() -> None:
    calls = [{"id": "a", "name": "look", "arguments": "{}"}]
    assert message(final("", calls, finish_reason="stop"))["stop_reason"] == "tool_use"


@pytest.mark.parametrize("broken", ['{"a":', "[1]", "nothing"])
def test_arguments_that_are_no_object_are_handed_on_as_text(broken: str) -> None:
    calls = [{"id": "a", "name": "look", "arguments": broken}]
    assert message(final("", calls))["content"] == [
        {"type": "tool_use", "id": "a", "name": "look", "input": {MALFORMED: broken}}
    ]
