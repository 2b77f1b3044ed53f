"""How long a client of an SDK waits for its answer, which is the deadline of a request that names none. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from processor.messages import MAX_DEADLINE_MS

SDK_HEADER = "x-stainless-timeout"
"""In which the vendors' SDKs tell, in seconds, the longest silence that they wait through."""
USUAL_S = 600.0
"""The SDKs' own default, and the longest that the vendors promise to work on an answer that is not streamed."""


def patience_ms(headers: Mapping[str, str], *, stream: bool) -> int:
    """Milliseconds after which nobody waits any more.

    A stream is never silent for long, so there the SDK's figure says nothing of the whole: it may always take
    `USUAL_S`.
    """
    said = headers.get(SDK_HEADER, "")
    wait_s = float(said) if re.fullmatch(r"\d{1,8}(\.\d{1,6})?", said) else USUAL_S
    if stream:
        wait_s = max(wait_s, USUAL_S)
    return min(max(1, round(wait_s * 1000)), MAX_DEADLINE_MS)
