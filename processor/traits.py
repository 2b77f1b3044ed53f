"""What routing looks at in a request, without its text. Pure."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from processor.complexity import complexity
from processor.estimate import base_tokens
from processor.messages import Request
from processor.parts import ImagePart, TextPart, ToolCallPart, ToolResultPart

AUTO: Final = "auto"
QUESTION_CHARS: Final = 16_000
"""Of a question that is longer the first and last halves of so many are looked at."""

Ability = Literal["tools", "images", "json"]
"""What a request may need and not every model has."""
Combination = Literal["json_object", "json_with_tools"]
"""What follows from abilities, but not for every model: JSON without a schema, and JSON from one that has tools."""
Preference = Literal["cost", "speed", "quality"]


class Traits(BaseModel):
    """A request as routing sees it. It stands in the audit log, so that it can be routed again without the text."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str | None = None
    """As it was asked for; None for `auto`."""
    task_type: str | None = None
    prefer: Preference | None = None
    fallback: bool | None = None
    only: tuple[str, ...] = ()
    """Names of the models that may answer; empty: all."""
    needs: tuple[Ability | Combination, ...] = ()
    """Sorted."""
    input_tokens: int
    """The whole prompt's size, before anything is learned of a model."""
    max_tokens: int | None = None
    """As it was asked for."""
    complexity: float = 0.0
    """From 0 to 1, of the question alone."""
    stream: bool = False


def traits(request: Request) -> Traits:
    """What routing looks at in `request`."""
    return Traits(
        model=None if request.model is None or request.model.lower() == AUTO else request.model,
        task_type=request.task_type,
        prefer=request.prefer,
        fallback=request.fallback,
        only=request.only,
        needs=_needs(request),
        input_tokens=base_tokens(request),
        max_tokens=request.max_tokens,
        complexity=complexity(question(request)).score,
        stream=request.stream,
    )


def question(request: Request) -> str:
    """The text of the user's last turn, which is what is to be answered; of a long one its beginning and its end.

    What stands before it (instructions that every request of an application shares, earlier turns) says little of how
    hard this turn is.
    """
    last = next(message for message in reversed(request.messages) if message.role == "user")
    text = "\n".join(part.text for part in last.parts if isinstance(part, TextPart))
    if len(text) <= QUESTION_CHARS:
        return text
    half = QUESTION_CHARS // 2
    return text[:half] + text[-half:]


def _needs(request: Request) -> tuple[Ability | Combination, ...]:
    needs: list[Ability | Combination] = []
    parts = {type(part) for message in request.messages for part in message.parts}
    has_tools = bool(request.tools or parts & {ToolCallPart, ToolResultPart})
    if ImagePart in parts:
        needs.append("images")
    if request.response_format is not None and request.response_format.type != "text":
        needs.append("json")
        if request.response_format.type == "json_object":
            needs.append("json_object")
        if request.tools:
            needs.append("json_with_tools")
    if has_tools:
        needs.append("tools")
    return tuple(needs)
