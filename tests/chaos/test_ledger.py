"""Each check of the ledger finds the fault that it is for, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from tests.chaos.ledger import UNDER_WAY_S, Evidence, Message, Sent, faults
from tests.chaos.vendor import Call

CALL = Call(0, "groq", "m", "q1", streamed=True, arrived=10.0, answered=11.0)
FINAL = orjson.dumps({"response": CALL.answer})
ENDED = 11.5
END = Message("end")


def message(event: str, attempt: int, seq: int, body: bytes = b"", at: float = ENDED) -> Message:
    return Message(event, "r1", attempt, seq, body, at)


def attempt(number: int, *, pieces: int = 20) -> list[Message]:
    """`restarted`, if it is not the first, then that many deltas."""
    said = [message("restarted", number, 0, b'{"text":""}')] if number > 1 else []
    deltas = [orjson.dumps({"text": text}) for text in CALL.words[:pieces]]
    return said + [message("delta", number, seq, body) for seq, body in enumerate(deltas, len(said))]


STREAM = attempt(1)
LAST = message("final", 1, 20, FINAL)
REQUEST = Sent("q1", "r1", streamed=True, listens=True, kept=True, heard=[*STREAM, LAST, END])
EVIDENCE = Evidence(
    replies={"r1": [LAST]},
    audit={"r1": [{"event": "received"}, {"event": "attempt"}, {"event": "completed"}]},
    keys={"r1": "q1"},
    queued=0,
    unacknowledged={"high": 0},
    calls=[CALL],
    loads={"here": {"running": 0, "reservations": 0, "tasks": 38}},
    idle_tasks=38,
)


def test_a_day_without_chaos_has_no_faults() -> None:
    assert faults([REQUEST], EVIDENCE) == []


def test_an_ending_told_twice_is_no_fault() -> None:
    assert faults([replace(REQUEST, heard=[*STREAM, LAST, END, LAST, END])], EVIDENCE) == []


def test_a_killed_attempt_and_a_whole_one_after_it_are_no_fault() -> None:
    last = message("final", 2, 21, FINAL)
    heard = [*attempt(1, pieces=7), *attempt(2), last, END]
    killed = Call(1, "groq", "m", "q1", streamed=True, arrived=9.0)
    seen = replace(EVIDENCE, replies={"r1": [last]}, calls=[killed, CALL])
    assert faults([replace(REQUEST, heard=heard)], seen) == []


def test_who_was_cut_off_may_miss_pieces_but_hears_the_rest_in_order() -> None:
    cut = replace(EVIDENCE, outages=[(ENDED - 1, ENDED)])
    request = replace(REQUEST, at=ENDED - 2)
    assert faults([replace(request, heard=[*STREAM[3:], LAST, END])], cut) == []
    assert "numbered" in faults([replace(request, heard=[*STREAM[3:], *STREAM[:3], LAST, END])], cut)[0]


@pytest.mark.parametrize(
    ("heard", "fault"),
    [
        ([*STREAM[:5], *STREAM[6:], LAST, END], "attempt 1 is numbered"),
        ([*STREAM[:5], *STREAM[6:], LAST, END], "pieces of attempt 1 are not the answer"),
        ([*STREAM, *STREAM[:3], LAST, END], "pieces of attempt 1"),
        ([*attempt(1, pieces=3), *attempt(2)[1:], replace(LAST, attempt=2), END], "`restarted` at []"),
        ([*attempt(2), *attempt(1, pieces=3), LAST, END], "attempts mixed"),
        ([*STREAM, LAST], "empty message after the stream never came"),
        ([*STREAM], "its client heard 1:delta×20"),
        ([*STREAM, replace(LAST, body=b'{"response":"else"}'), END], "another ending than the stored one"),
        ([*STREAM, LAST, replace(LAST, body=b'{"response":"else"}'), END], "2 different endings"),
        ([*STREAM, replace(LAST, request_id="r2"), END], "several ids"),
    ],
)
def test_what_a_client_should_not_have_heard_is_found(heard: list[Message], fault: str) -> None:
    assert any(fault in found for found in faults([replace(REQUEST, heard=heard)], EVIDENCE))


def test_a_request_without_stream_hears_one_message() -> None:
    whole = replace(REQUEST, streamed=False)
    assert faults([replace(whole, heard=[LAST, LAST])], EVIDENCE) == []
    assert "asked for one message" in faults([replace(whole, heard=[STREAM[0], LAST])], EVIDENCE)[0]


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        (replace(EVIDENCE, queued=1), "LLM_REQUESTS still holds 1"),
        (replace(EVIDENCE, unacknowledged={"low": 2}), "consumer low has 2"),
        (replace(EVIDENCE, loads={"here": {"reservations": 1}}), "here has 1 reservations"),
        (replace(EVIDENCE, counted=10**12), "the counters say 1 dollars, the audit log 0"),
        (replace(EVIDENCE, loads={"here": {"tasks": 39}}), "here has 39 tasks"),
        (replace(EVIDENCE, replies={}), "was kept and has no ending"),
        (replace(EVIDENCE, replies={"r1": [LAST, LAST]}), "2 endings in LLM_REPLIES"),
        (replace(EVIDENCE, replies={"r1": [*STREAM[1:], LAST]}), "attempt 1 is numbered"),
        (replace(EVIDENCE, audit={}), "terminal audit events []"),
        (replace(EVIDENCE, audit={"r1": [{"event": "completed"}] * 2}), "terminal audit events ['completed', 'com"),
        (replace(EVIDENCE, audit={"r1": [{"event": "failed"}]}), "ended as final, audited as failed"),
        (replace(EVIDENCE, calls=[replace(CALL, answered=None)]), "no vendor gave this answer whole"),
        (replace(EVIDENCE, calls=[replace(CALL, number=1)]), "no vendor gave this answer whole"),
    ],
)
def test_what_streams_and_vendors_should_not_hold_is_found(seen: Evidence, fault: str) -> None:
    assert any(fault in found for found in faults([REQUEST], seen))


def test_a_call_after_the_reply_was_stored_is_found() -> None:
    audit = {"r1": [{"event": "completed", "replica": "a", "delivery": 2}]}
    again = replace(EVIDENCE, audit=audit, calls=[CALL, replace(CALL, number=1, arrived=ENDED + UNDER_WAY_S + 0.05)])
    assert faults([REQUEST], again) == [
        "r1 (q1): called again after its reply was stored: groq -1.500 s, groq +0.300 s; audited by ['a, delivery 2']"
    ]


def test_a_call_that_was_under_way_when_the_reply_was_stored_is_none_after_it() -> None:
    late = replace(EVIDENCE, calls=[CALL, replace(CALL, number=1, arrived=ENDED + UNDER_WAY_S - 0.05)])
    assert faults([REQUEST], late) == []


def test_an_ask_that_nobody_kept_may_be_lost_and_one_that_was_taken_up_may_not() -> None:
    ask = Sent("q2", None, streamed=True, listens=True)
    assert faults([REQUEST, ask], EVIDENCE) == []
    taken = replace(EVIDENCE, keys={"r1": "q1"})
    assert "its client heard nothing" in faults([replace(ask, key="q1")], taken)[0]
