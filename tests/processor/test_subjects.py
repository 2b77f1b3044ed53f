"""Subjects: built, taken apart, and guarded against a client's word."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor import subjects
from processor.subjects import Priority, parse_enqueue, reply_to_refusal

ids = st.from_regex(r"[A-Za-z0-9_-]{1,128}", fullmatch=True)


@given(st.sampled_from(Priority), ids)
def test_an_enqueue_subject_is_taken_apart_as_it_was_built(priority: Priority, request_id: str) -> None:
    assert parse_enqueue(subjects.enqueue(priority, request_id)) == (priority, request_id)


@pytest.mark.parametrize("subject", ["llm.request.high", "llm.request.urgent.x", "llm.reply.x.y", "", "a.b.c.d"])
def test_other_subjects_are_no_enqueue(subject: str) -> None:
    with pytest.raises(ValueError):
        parse_enqueue(subject)


@pytest.mark.parametrize("text", ["", "a.b", "a b", "a*", ">", "ä", "x" * 129, "a\n"])
def test_what_is_no_request_id(text: str) -> None:
    assert not subjects.is_request_id(text)


def test_new_ids_are_ids_and_differ() -> None:
    fresh = {subjects.new_request_id() for _ in range(1000)}
    assert len(fresh) == 1000
    assert all(map(subjects.is_request_id, fresh))


@pytest.mark.parametrize("place", ["_INBOX.abc.1", "_INBOX_team.x", "_R_.abc", "llm.reply.mine", "app.answers.7"])
def test_where_a_client_may_have_its_answer_sent(place: str) -> None:
    assert reply_to_refusal(place, "mine", ("app.answers.",)) is None


@pytest.mark.parametrize(
    "place",
    [
        "$JS.API.STREAM.DELETE.LLM_AUDIT",
        "$SYS.x",
        "llm.request.critical",
        "llm.request.critical.x",
        "llm.cancel.other",
        "llm.audit.completed.x",
        "llm.reply.other",
        "llm.reply.>",
        "llm.reply.mine.more",
        "_INBOX.>",
        "_INBOX.*.x",
        "_INBOX",
        "_INBOX..x",
        "_INBOX.a b",
        "_INBOX.a\r\nPUB x",
        "app.answers",
        "",
        "_INBOX." + "x" * 600,
    ],
)
def test_where_it_may_not(place: str) -> None:
    assert reply_to_refusal(place, "mine", ("app.answers.",)) is not None


@given(st.text())
def test_no_word_of_a_client_opens_a_subject_of_ours_or_the_servers(place: str) -> None:
    if place.startswith(("$", "llm.request", "llm.audit", "llm.cancel")):
        assert reply_to_refusal(place, "mine") is not None
