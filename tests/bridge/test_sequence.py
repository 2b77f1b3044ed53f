"""The order of an answer's messages: marks, and where one stands."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sequence import BEGINNING, Mark, Place, place

marks = st.builds(Mark, st.integers(1, 9), st.integers(0, 50))


@given(marks)
def test_a_mark_is_read_as_it_is_written(mark: Mark) -> None:
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize("text", ["", "1", "1.", ".1", "0.3", "1.-1", "1.2.3", "a.b", "1.٣", "1." + "9" * 40, "+1.2"])
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not the id of an event"):
        Mark.parse(text)


def test_the_first_message_is_the_next_after_the_beginning() -> None:
    assert place(BEGINNING, Mark(1, 0)) is Place.NEXT


@given(marks, marks)
def test_a_message_is_next_only_where_nothing_is_left_out_within_its_attempt(seen: Mark, mark: Mark) -> None:
    where = place(seen, mark)
    assert (where is Place.PAST) == (mark <= seen)
    if where is Place.NEXT:
        assert mark == Mark(seen.attempt, seen.seq + 1) or (mark.attempt > seen.attempt and mark.seq == 0)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.data())
def test_whatever_arrives_in_whatever_order_what_is_taken_is_in_order_and_once(
    lengths: list[int], data: st.DataObject
) -> None:
    written = [Mark(n + 1, seq) for n, length in enumerate(lengths) for seq in range(length + 1)]
    arriving = data.draw(st.lists(st.sampled_from(written), max_size=60))
    seen, taken = BEGINNING, list[Mark]()
    for mark in [*arriving, *written]:
        if place(seen, mark) is Place.NEXT:
            seen = mark
            taken.append(mark)
    assert taken == sorted(set(taken))
    assert taken[-1] == written[-1]
    for before, after in pairwise(taken):
        assert after.seq == 0 or after == Mark(before.attempt, before.seq + 1)
