"""What goes to a client: the kinds of messages, and the bodies of deltas, the final reply and errors."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from processor.errors import ErrorType


class ReplyEvent(StrEnum):
    """The values of `Sidecar-Event`."""

    DELTA = "delta"
    RESTARTED = "restarted"
    FINAL = "final"
    ERROR = "error"


class Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


Usd = Annotated[Decimal, Field(ge=0), PlainSerializer(float, return_type=float, when_used="json")]
"""US dollars, exact; a JSON number on the wire."""


class ReplyUsage(Reply):
    """Tokens. `input_tokens` and `output_tokens` are totals; the others are parts of them."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class ReplyToolCall(Reply):
    id: str
    name: str
    arguments: str
    signature: str | None = None


class Considered(Reply):
    """A model that was looked at: tried, left waiting, or refused, and why."""

    model: str
    provider: str
    reason: str


class ReplyRoute(Reply):
    reason: str
    considered: tuple[Considered, ...] = ()


class Timing(Reply):
    """Milliseconds from acceptance to the start of work, to the first token, to the end."""

    queued_ms: float
    first_token_ms: float | None
    total_ms: float


class FinalReply(Reply):
    """The answer. `model` is the alias or id that was chosen, `served_by` what the vendor says it ran."""

    id: str
    model: str
    provider: str
    served_by: str
    response: str
    tool_calls: tuple[ReplyToolCall, ...] = ()
    finish_reason: str
    usage: ReplyUsage
    cost_usd: Usd
    cost_estimated: bool = False
    cached: bool = False
    coalesced: bool = False
    """An identical request that was under way has answered this one too."""
    saved_usd: Usd = Decimal(0)
    """What the answer cost the request that was answered by a call, where this one needed none."""
    attempts: int
    route: ReplyRoute
    timing: Timing
    warnings: tuple[str, ...] = ()


class ToolCallPiece(Reply):
    """A piece of the tool call number `index`; `id` and `name` come with its first one."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str


class Delta(Reply):
    """A piece of a streamed answer: text, or beside an empty text a piece of thinking or of a tool call.

    Describes what `replies.Outbox` writes without it, since a model for each delta would cost more than the bus.
    """

    id: str
    seq: int
    text: str
    thinking: str | None = None
    tool_call: ToolCallPiece | None = None


class Restarted(Reply):
    """Another attempt begins, and the text so far is void."""

    id: str
    seq: int
    text: str
    attempt: int


class ErrorBody(Reply):
    type: ErrorType
    message: str
    request_id: str
    retry_after_s: float | None = None


class ErrorReply(Reply):
    error: ErrorBody
