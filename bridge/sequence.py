"""The order of one answer's messages: which comes next, which came before, and where something is missing. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import total_ordering

from processor.reply_bodies import ReplyEvent

MAX_MARK_CHARS = 32


@total_ordering
@dataclass(frozen=True, slots=True)
class Mark:
    """A message's place in its answer: `Sidecar-Attempt` and `Sidecar-Seq`; as text `1.17`."""

    attempt: int
    seq: int

    def __lt__(self, other: Mark) -> bool:
        return (self.attempt, self.seq) < (other.attempt, other.seq)

    def __str__(self) -> str:
        return f"{self.attempt}.{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark that `text` shows. Raises ValueError."""
        attempt, dot, seq = text.strip().partition(".")
        if len(text) > MAX_MARK_CHARS or not dot or not _is_number(attempt) or not _is_number(seq) or attempt == "0":
            raise ValueError(f"{text[:MAX_MARK_CHARS]!r} is not the id of an event, such as 1.17")
        return cls(int(attempt), int(seq))


BEGINNING = Mark(1, -1)
"""Before the first message of an answer."""


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of an answer. `body` is the contract's JSON: a delta, the final reply or an error."""

    event: ReplyEvent
    mark: Mark
    body: bytes

    @property
    def is_ending(self) -> bool:
        return self.event in {ReplyEvent.FINAL, ReplyEvent.ERROR}


class Place(StrEnum):
    """Where a message stands beside what was seen of its answer."""

    NEXT = "next"
    PAST = "past"
    AHEAD = "ahead"


def place(seen: Mark, mark: Mark) -> Place:
    """Where `mark` stands when `seen` was the last.

    A later attempt may begin at any time, since it makes the text so far void; within an attempt nothing is left out.
    """
    if mark <= seen:
        return Place.PAST
    begins = mark.attempt > seen.attempt and mark.seq == 0
    follows = mark.attempt == seen.attempt and mark.seq == seen.seq + 1
    return Place.NEXT if begins or follows else Place.AHEAD
