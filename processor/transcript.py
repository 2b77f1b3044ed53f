"""What one attempt has produced so far, folded from the provider's events."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from processor.reply_bodies import ReplyToolCall
from providers.base import (
    Event,
    Finished,
    Opened,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
    UsageSeen,
)

CHARS_PER_TOKEN = 4
"""Of English text, by the vendors' own rule of thumb."""


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    signature: str | None = None
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Transcript:
    """`finished` is None until the terminal event came; `usage` is the last that the vendor told."""

    opened: Opened | None = None
    usage: Usage = field(default_factory=Usage)
    finished: Finished | None = None
    first_token_at: float | None = None
    _text: list[str] = field(default_factory=list)
    _calls: dict[int, _Call] = field(default_factory=dict)
    _thinking_chars: int = 0

    def add(self, event: Event, now: float) -> None:
        """Take the next event, seen at the monotonic time `now`."""
        match event:
            case TextDelta(text):
                self._text.append(text)
                self._token(now)
            case ThinkingDelta(text):
                self._thinking_chars += len(text)
                self._token(now)
            case ToolCallDelta():
                self._add_call(event)
                self._token(now)
            case UsageSeen(usage):
                self.usage = usage
            case Opened():
                self.opened = event
            case Finished():
                self.finished = event
                self.usage = event.usage

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def tool_calls(self) -> tuple[ReplyToolCall, ...]:
        return tuple(
            ReplyToolCall(
                id=call.id, name=call.name, arguments="".join(call.arguments) or "{}", signature=call.signature
            )
            for _, call in sorted(self._calls.items())
        )

    def settled(self, *, prompt_tokens: int, at_work: bool) -> tuple[Usage, bool]:
        """What the attempt has to be charged with, and whether that is an estimate.

        A complete answer is charged by the vendor's figures, an attempt that was never opened with nothing, unless the
        vendor was `at_work` on it. One that was cut or cancelled is charged by the last usage seen; what that lacks is
        estimated: the input as `prompt_tokens`, the output from its characters.
        """
        if self.finished is not None:
            return self.usage, False
        if self.opened is None and not at_work:
            return self.usage, False
        written = sum(map(len, self._text)) + self._thinking_chars
        written += sum(len(piece) for call in self._calls.values() for piece in call.arguments)
        usage = self.usage
        if not usage.input_tokens:
            usage = replace(usage, input_fresh=prompt_tokens)
        if usage.output_tokens < written // CHARS_PER_TOKEN:
            usage = replace(usage, output_visible=-(-written // CHARS_PER_TOKEN) - usage.output_thinking)
        return usage, True

    def _token(self, now: float) -> None:
        if self.first_token_at is None:
            self.first_token_at = now

    def _add_call(self, event: ToolCallDelta) -> None:
        call = self._calls.setdefault(event.index, _Call())
        call.id = event.id or call.id
        call.name = event.name or call.name
        call.signature = event.signature or call.signature
        call.arguments.append(event.arguments)
