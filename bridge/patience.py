"""How long a client of an SDK waits for its answer, which is the deadline of a request that names none. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from processor.messages import MAX_DEADLINE_MS

SDK_HEADERS: Final = ("x-stainless-read-timeout", "x-stainless-timeout")
"""In which the vendors' SDKs tell, in seconds, the longest silence that they wait through: Python's in the first,
whatever they say in the second; JavaScript's in the second, as whole seconds."""
USUAL_S = 600.0
"""The SDKs' own default, and the longest that the vendors promise to work on an answer that is not streamed."""
STREAM_S = 3600.0
"""For a stream, which vendors give no end to: a long answer of a slow model takes half of that."""
HEAD_START_S = 2.0
"""By which a whole answer ends before its client stops waiting, though no more than a tenth of the time. An SDK that
is told of the end lets it be; one that has to find it out asks twice more by itself, and each call is paid."""


def patience_ms(headers: Mapping[str, str], *, stream: bool) -> int:
    """Milliseconds after which nobody waits any more.

    A stream is never silent for long, so there the SDK's figure says nothing of the whole: it may always take
    `STREAM_S`.
    """
    wait_s = next((told for name in SDK_HEADERS if (told := _seconds(headers.get(name, "")))), USUAL_S)
    wait_s = max(wait_s, STREAM_S) if stream else wait_s - min(HEAD_START_S, wait_s / 10)
    return min(max(1, round(wait_s * 1000)), MAX_DEADLINE_MS)


def _seconds(said: str) -> float:
    """0 where it is no figure, or less than a second that was cut to none."""
    return float(said) if re.fullmatch(r"\d{1,8}(\.\d{1,6})?", said) else 0.0
