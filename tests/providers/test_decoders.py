"""What every decoder of answers does with bytes that are none: they are the vendor's fault, and nothing escapes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from providers.anthropic_answer import AnthropicAnswer
from providers.boundary import error_body
from providers.chat_completions import ChatAnswer
from providers.errors import BadResponse
from providers.exchange import Answer, Refused
from providers.gemini_answer import GeminiAnswer

DECODERS: Final[dict[str, tuple[Callable[[], Answer], list[bytes]]]] = {
    "anthropic": (
        lambda: AnthropicAnswer("m"),
        [
            b'{"type":"content_block_delta","delta":{"type":"text_delta","text":"~"}}',
            b'{"type":"content_block_start","content_block":{"type":"tool_use","id":"a","name":"f","input":{"a":"~"}}}',
            b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":3,"other":"~"}}',
        ],
    ),
    "chat completions": (
        lambda: ChatAnswer("m", "The server"),
        [
            b'{"choices":[{"delta":{"content":"~"}}]}',
            b'{"choices":[],"usage":{"prompt_tokens":3,"other":"~"}}',
        ],
    ),
    "gemini": (
        lambda: GeminiAnswer("m"),
        [
            b'{"candidates":[{"content":{"parts":[{"text":"~"}]}}]}',
            b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":"~"}}}]}}]}',
            b'{"candidates":[],"usageMetadata":{"promptTokenCount":3,"other":"~"}}',
        ],
    ),
}
each = pytest.mark.parametrize("name", DECODERS)
DEEP: Final = b"[" * 100_000


@each
@pytest.mark.parametrize("bad", [b'"~\xff"', DEEP, DEEP + b"]" * 100_000], ids=["not UTF-8", "open", "deep"])
def test_what_cannot_be_read_is_a_bad_response(name: str, bad: bytes) -> None:
    make, events = DECODERS[name]
    for event in events:
        make().feed(event)
        with pytest.raises(BadResponse):
            make().feed(event.replace(b'"~"', bad))


@each
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_bytes_are_read_or_a_bad_response(name: str, data: st.DataObject) -> None:
    make, events = DECODERS[name]
    event = data.draw(st.sampled_from(events))
    at = data.draw(st.integers(0, len(event)))
    spoilt = event[:at] + data.draw(st.binary(max_size=3)) + event[at + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(BadResponse, Refused):
        make().feed(spoilt)


@pytest.mark.parametrize("body", [b'{"error": {"message": "\xff"}}', DEEP, b"\xff"])
def test_an_error_body_that_cannot_be_read_is_its_own_message(body: bytes) -> None:
    told: Any = error_body(body)["message"]
    assert told == body.decode("utf-8", "replace")
