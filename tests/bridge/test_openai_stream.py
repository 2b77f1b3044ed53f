"""Chunks of an answer of which something is missing, begins anew, or ends in a way that OpenAI has no word for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.openai_answer import completion, finish_reason
from bridge.openai_errors import openai_refusal
from bridge.openai_stream import Chunks
from bridge.sequence import Mark, Piece
from processor.errors import ErrorType, RequestError
from processor.reply_bodies import FinalReply, ReplyEvent, ReplyRoute, ReplyToolCall, ReplyUsage, Timing

CALLS = (
    ReplyToolCall(id="c1", name="rain", arguments='{"city":"Rome"}'),
    ReplyToolCall(id="c2", name="rain", arguments="{}"),
)


def final(text: str = "", calls: tuple[ReplyToolCall, ...] = (), reason: str = "stop") -> FinalReply:
    return FinalReply(
        id="r1",
        model="haiku",
        provider="anthropic",
        served_by="claude",
        response=text,
        tool_calls=calls,
        finish_reason=reason,
        usage=ReplyUsage(input_tokens=3, output_tokens=2),
        cost_usd=0,
        attempts=1,
        route=ReplyRoute(reason="asked for"),
        timing=Timing(queued_ms=0, first_token_ms=None, total_ms=1),
    )


def delta(text: str = "", **more: Any) -> Piece:
    return Piece(ReplyEvent.DELTA, Mark(1, 0), orjson.dumps({"id": "r1", "seq": 0, "text": text} | more))


def call_piece(index: int, arguments: str, **more: str) -> Piece:
    return delta(tool_call={"index": index, "arguments": arguments} | more)


def ending(reply: FinalReply) -> Piece:
    return Piece(ReplyEvent.FINAL, Mark(1, 9), reply.model_dump_json().encode())


RESTARTED = Piece(ReplyEvent.RESTARTED, Mark(2, 0), b'{"id":"r1","seq":0,"text":"","attempt":2}')


def chunks(pieces: Iterable[Piece], *, include_usage: bool = False) -> list[dict[str, Any]]:
    one = Chunks("r1", "haiku", created=7, include_usage=include_usage)
    return [orjson.loads(data) for piece in pieces for data in one.of(piece)]


def put_together(found: list[dict[str, Any]]) -> tuple[str, list[tuple[str, str, str]], str]:
    """What a client makes of chunks: the text, the calls, the reason of the end."""
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    calls: dict[int, list[str]] = {}
    for piece in (call for one in deltas for call in one.get("tool_calls", [])):
        call = calls.setdefault(piece["index"], [piece.get("id", ""), piece["function"].get("name", ""), ""])
        call[2] += piece["function"]["arguments"]
    text = "".join(one.get("content") or "" for one in deltas)
    reason = next(c["choices"][0]["finish_reason"] for c in reversed(found) if c["choices"])
    return text, [(i, name, arguments) for _, (i, name, arguments) in sorted(calls.items())], reason


# --- what is missing ------------------------------------------------------------------------


def test_an_answer_of_which_no_delta_came_is_sent_whole() -> None:
    found = chunks([ending(final("Blue.", CALLS, "tool_calls"))])
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"
    assert put_together(found) == (
        "Blue.", [("c1", "rain", '{"city":"Rome"}'), ("c2", "rain", "{}")], "tool_calls"
    )  # fmt: skip


def test_an_empty_answer_has_its_beginning_and_its_end() -> None:
    found = chunks([ending(final())], include_usage=True)
    assert [len(chunk["choices"]) for chunk in found] == [1, 1, 0]
    assert put_together(found) == ("", [], "stop")


def test_the_rest_of_text_and_of_calls_follows_what_was_sent() -> None:
    pieces = [delta("Bl"), call_piece(1, '{"city":', id="c1", name="rain"), ending(final("Blue.", CALLS))]
    assert put_together(chunks(pieces)) == (
        "Blue.", [("c1", "rain", '{"city":"Rome"}'), ("c2", "rain", "{}")], "tool_calls"
    )  # fmt: skip


def test_calls_of_one_id_are_told_from_each_other() -> None:
    """Some models give every call the same."""
    calls = (CALLS[0], ReplyToolCall(id="c1", name="snow", arguments='{"at":2}'))
    pieces = [call_piece(n, call.arguments[:4], id="c1", name=call.name) for n, call in enumerate(calls)]
    told = put_together(chunks([*pieces, ending(final("", calls, "tool_calls"))]))[1]
    assert told == [(call.id, call.name, call.arguments) for call in calls]


def test_a_call_whose_beginning_was_lost_is_not_made_up() -> None:
    with pytest.raises(RequestError):
        chunks([call_piece(0, '"Rome"}')])


@pytest.mark.parametrize(
    "pieces",
    [
        [delta("Red")],
        [delta("Blue. And more")],
        [call_piece(0, "{}", id="c9", name="rain")],
        [call_piece(0, '{"town":', id="c1", name="rain")],
    ],
)
def test_what_does_not_fit_the_answer_is_never_gone_on_with(pieces: list[Piece]) -> None:
    with pytest.raises(RequestError):
        chunks([*pieces, ending(final("Blue.", CALLS))])


@given(st.lists(st.text(max_size=4), max_size=6), st.data())
def test_whatever_got_lost_on_the_way_the_client_has_all_of_the_answer_or_an_error(
    texts: list[str], data: st.DataObject
) -> None:
    heard = [text for text in texts if data.draw(st.booleans())]
    whole = "".join(texts)
    try:
        found = chunks([*map(delta, heard), ending(final(whole))])
    except RequestError:
        assert not whole.startswith("".join(heard))
    else:
        assert put_together(found)[0] == whole


# --- another attempt ------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [delta("Bl"), delta(thinking="Hm."), call_piece(0, "", id="c1", name="rain")])
def test_nothing_of_one_attempt_is_glued_to_another(sent: Piece) -> None:
    with pytest.raises(RequestError, match="began anew"):
        chunks([sent, RESTARTED])


def test_an_attempt_that_said_nothing_is_passed_over() -> None:
    assert put_together(chunks([delta(""), RESTARTED, delta("Blue."), ending(final("Blue."))]))[0] == "Blue."


# --- words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "calls", "theirs"),
    [
        ("stop", (), "stop"),
        ("stop", CALLS, "tool_calls"),
        ("tool_calls", CALLS, "tool_calls"),
        ("length", CALLS, "length"),
        ("content_filter", (), "content_filter"),
        ("pause", (), "length"),
        ("other", (), "stop"),
    ],
)
def test_every_end_has_a_word_of_openais(ours: str, calls: tuple[ReplyToolCall, ...], theirs: str) -> None:
    assert finish_reason(final(calls=calls, reason=ours)) == theirs


def test_a_calls_signature_goes_out_so_that_it_can_come_back() -> None:
    signed = ReplyToolCall(id="c1", name="rain", arguments="{}", signature="s1")
    message = completion(final(calls=(signed,)), created=7)["choices"][0]["message"]
    assert (message["content"], message["tool_calls"][0]["signature"]) == (None, "s1")


@pytest.mark.parametrize("kind", list(ErrorType))
def test_every_error_has_a_form_of_openais(kind: ErrorType) -> None:
    form = openai_refusal(RequestError(kind, "no"))
    assert 400 <= form.status <= 599
    assert form.body["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("messages.2.content: a string", "messages.2.content"),
        ("tool_choice: there is no tool b", "tool_choice"),
        ("haiku: the vendor refuses", None),
        ("body: not JSON", None),
    ],
)
def test_an_error_that_names_a_field_says_so_in_param(message: str, param: str | None) -> None:
    assert openai_refusal(RequestError(ErrorType.INVALID_REQUEST, message)).body["error"]["param"] == param


def test_what_no_window_holds_is_told_from_a_body_that_is_too_large() -> None:
    error = RequestError(ErrorType.TOO_LARGE, "haiku: about 300000 tokens do not fit its window of 200000")
    assert (openai_refusal(error).status, openai_refusal(error, fits_no_window=True).status) == (413, 400)
    told = openai_refusal(error, fits_no_window=True).body["error"]
    assert told["code"] == "context_length_exceeded"
    assert "prompt is too long" in told["message"]
