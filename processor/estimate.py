"""How many tokens a request will take, before it is sent: from its size, and from what each model reported before.

In memory only, and bounded: one entry a model. No clock and no I/O.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import orjson
from cachetools import LRUCache

from processor.messages import Request
from processor.parts import ImagePart, TextPart, ToolCallPart, ToolResultPart

BYTES_PER_TOKEN: Final = 4
"""Of English text, by the vendors' own rule of thumb; UTF-8 bytes, since other scripts take more of both a letter."""
TOKENS_PER_MESSAGE: Final = 4
"""Roles and separators."""
TOKENS_PER_IMAGE: Final = 1_500
"""Anthropic's figure for the largest image it does not shrink (width x height / 750); the others count less."""
RATIO_BOUNDS: Final = (0.25, 4.0)
HALF_LIFE: Final = 35
"""Requests after which what was seen counts half, so that about the last fifty weigh."""
KEPT_CALLS: Final = 200
KNOWN_AFTER: Final = 20
"""Calls before a model's usual answer and usual speed are believed, where a request's fate hangs on them …"""
COMPARED_AFTER: Final = 5
"""… and where models are only compared by them."""
RECENT_CALLS: Final = 50
"""Of which models are compared …"""
RECENT_S: Final = 3_600.0
"""… none older than this: how fast a vendor is changes within a day, and a model that was slow once and is avoided for
it has to be tried again."""
SHORTEST_S: Final = 0.001
"""Of writing an answer: one that came all at once was not written at once."""
MAX_MODELS: Final = 1_000


def base_tokens(request: Request) -> int:
    """The size of the whole prompt in tokens, as far as it can be told without knowing the model."""
    size = 0
    images = 0
    for message in request.messages:
        for part in message.parts:
            match part:
                case TextPart():
                    size += _bytes(part.text)
                case ToolCallPart():
                    size += _bytes(part.name) + _bytes(part.arguments)
                case ToolResultPart():
                    size += _bytes(part.content)
                case ImagePart():
                    images += 1
    for tool in request.tools:
        size += _bytes(tool.name) + _bytes(tool.description) + len(orjson.dumps(tool.parameters))
    if request.response_format is not None and request.response_format.json_schema is not None:
        size += len(orjson.dumps(request.response_format.json_schema))
    return -(-size // BYTES_PER_TOKEN) + TOKENS_PER_MESSAGE * len(request.messages) + TOKENS_PER_IMAGE * images


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@dataclass(slots=True)
class _Model:
    reported: float = 0.0
    estimated: float = 0.0
    counted: float = 0.0
    """Of `counted_of` input tokens, what vendors' limits count."""
    counted_of: float = 0.0
    outputs: deque[int] = field(default_factory=lambda: deque(maxlen=KEPT_CALLS))
    first_tokens: dict[bool, deque[float]] = field(
        default_factory=lambda: {streamed: deque(maxlen=KEPT_CALLS) for streamed in (True, False)}
    )
    """Of streams, and of whole answers, whose first token comes with the last."""
    paces: dict[bool, deque[tuple[float, float, float]]] = field(
        default_factory=lambda: {streamed: deque(maxlen=RECENT_CALLS) for streamed in (True, False)}
    )
    """When, then seconds to the first token, then tokens a second; of a whole answer, all its time is in the last."""
    speed: tuple[float, float] | None = None
    speed_until: float = 0.0
    usual_output: int | None = None

    @property
    def ratio(self) -> float:
        low, high = RATIO_BOUNDS
        return min(high, max(low, self.reported / self.estimated)) if self.estimated else 1.0

    @property
    def counted_share(self) -> float:
        return self.counted / self.counted_of if self.counted_of else 1.0


class Learned:
    """What the calls of this process have shown of each model, by its alias."""

    def __init__(self) -> None:
        self._models: LRUCache[str, _Model] = LRUCache(MAX_MODELS)

    def need(self, alias: str, base: int, max_tokens: int) -> tuple[int, int]:
        """(input, output) tokens to expect of a prompt of `base` tokens whose answer may have `max_tokens`.

        The input is what vendors' limits count, as far as that is known; the output is what 95 of 100 answers of the
        model stayed under, once that is.
        """
        model = self._models.get(alias)
        if model is None:
            return base, max_tokens
        usual = _p95(model.outputs)
        tokens = self.counted_input(alias, base)
        return tokens, max_tokens if usual is None else min(max_tokens, math.ceil(usual))

    def input_tokens(self, alias: str, base: int) -> int:
        """All input tokens to expect of a prompt of `base` tokens, cached or not."""
        model = self._models.get(alias)
        return base if model is None else math.ceil(base * model.ratio - 1e-9)

    def counted_input(self, alias: str, base: int) -> int:
        """What vendors' limits count of a prompt of `base` tokens, as far as that is known."""
        model = self._models.get(alias)
        return base if model is None else math.ceil(base * model.ratio * model.counted_share - 1e-9)

    def observe(
        self,
        alias: str,
        base: int,
        input_tokens: int,
        output_tokens: int,
        first_token_s: float | None,
        counted_input_tokens: int | None = None,
        *,
        streamed: bool = True,
        duration_s: float | None = None,
        now: float = 0.0,
    ) -> None:
        """A complete answer to a prompt of `base` tokens, with what the vendor reported, cached input too.

        `counted_input_tokens` is the part that its limits count, without what its cache held. `duration_s` is the time
        from the call's start to the answer's end, which was at `now` by a monotonic clock.
        """
        model = self._models.setdefault(alias, _Model())
        if base > 0 and input_tokens > 0:
            kept = 0.5 ** (1 / HALF_LIFE)
            model.reported = model.reported * kept + input_tokens
            model.estimated = model.estimated * kept + base
            if counted_input_tokens is not None:
                model.counted = model.counted * kept + max(0, min(counted_input_tokens, input_tokens))
                model.counted_of = model.counted_of * kept + input_tokens
        model.outputs.append(output_tokens)
        if first_token_s is not None:
            model.first_tokens[streamed].append(first_token_s)
        if len(model.outputs) >= COMPARED_AFTER:
            model.usual_output = round(median(model.outputs))
        if duration_s is not None and output_tokens > 0:
            waited_s = first_token_s if streamed and first_token_s is not None else 0.0
            pace = output_tokens / max(SHORTEST_S, duration_s - waited_s)
            model.paces[streamed].append((now, waited_s, pace))
            for paces in model.paces.values():
                while paces and now - paces[0][0] >= RECENT_S:
                    paces.popleft()
            # Streams tell waiting and writing apart, so they count before whole answers.
            if known := next((p for s in (True, False) if len(p := model.paces[s]) >= COMPARED_AFTER), None):
                model.speed = median(wait for _, wait, _ in known), median(pace for _, _, pace in known)
                model.speed_until = known[-COMPARED_AFTER][0] + RECENT_S

    def first_token_p95(self, alias: str, *, streamed: bool = True) -> float | None:
        """Seconds within which 95 of 100 first tokens came, None while too few are known."""
        model = self._models.get(alias)
        return None if model is None else _p95(model.first_tokens[streamed])

    def speed(self, alias: str, now: float) -> tuple[float, float] | None:
        """(seconds to the first token, tokens a second after it), medians of recent calls; None while few are known.

        `now` is by the clock that `observe` was told by.

        Where a model's answers were not streamed the first is 0, and its wait is in the second.
        """
        model = self._models.get(alias)
        return model.speed if model is not None and now < model.speed_until else None

    def usual_output(self, alias: str) -> int | None:
        """Tokens of its usual answer, thinking too; None while few are known."""
        model = self._models.get(alias)
        return None if model is None else model.usual_output


def _p95(values: deque[int] | deque[float]) -> float | None:
    if len(values) < KNOWN_AFTER:
        return None
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]
