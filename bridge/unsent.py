"""What of an answer its client was not sent, where deltas were lost; or that what was sent is no part of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from processor.errors import ErrorType, RequestError
from processor.reply_bodies import ReplyToolCall


def torn() -> RequestError:
    """A part of an answer was sent that is void now."""
    return RequestError(
        ErrorType.UNAVAILABLE, "the answer began anew in the middle: what came so far is void; ask again"
    )


@dataclass(slots=True)
class SentCall:
    """A tool call as far as it was sent: its number in the answer, its id, and its arguments in pieces."""

    number: int
    id: str
    pieces: list[str] = field(default_factory=list)


def rest_of(sent: str, whole: str) -> str:
    """What of `whole` was not sent. Raises RequestError where what was sent is no beginning of it."""
    if not whole.startswith(sent):
        raise torn()
    return whole[len(sent) :]


def rest_of_calls(
    sent: Sequence[SentCall], calls: Sequence[ReplyToolCall]
) -> Iterator[tuple[SentCall | None, ReplyToolCall, str]]:
    """Of each call the arguments that were not sent, and what was sent of it: None, where it never began.

    Args:
        sent: in the order of their numbers, which is that of the answer's `calls`.

    Raises:
        RequestError: other calls were sent than the answer has. Ids alone do not tell: some models give all calls one.
    """
    if [one.id for one in sent] != [call.id for call in calls[: len(sent)]]:
        raise torn()
    for one, call in zip(sent, calls, strict=False):
        yield one, call, rest_of("".join(one.pieces), call.arguments)
    for call in calls[len(sent) :]:
        yield None, call, call.arguments
