"""A provider's limits as the one document that replicas share in NATS, and whose turn it is to write it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from processor.bucket import State, Window, Word

MAX_WRITERS: Final = 64
"""Replicas that a document remembers the last change of, so that a lost answer is not taken for a lost change."""
GAP_S: Final = (0.025, 0.05)
"""Left free by a replica after its write: another that is further away needs two round trips, to read and to write."""
SHARED_S: Final = 10.0
"""For how long a document is taken to be shared after another replica's write was seen."""
LOOK_FIRST_S: Final = 1.0
"""For how long after a conflict a replica reads before it writes."""
OPENING_AFTER_S: Final = 2.0
"""After so long a time of writes without a gap, a long one is left: who always wins never hears of who always loses."""
OPENING_S: Final = 0.1


@dataclass(slots=True)
class Document:
    """A provider's state as it stands in the stream.

    `birth` is new wherever a document is written that no other precedes. `writers` has the number of each replica's
    last change.
    """

    birth: str
    state: State = field(default_factory=State)
    writers: dict[str, int] = field(default_factory=dict)

    def changed_by(self, writer: str, number: int) -> Document:
        """A copy to change."""
        recent = dict(list(self.others(writer).items())[-(MAX_WRITERS - 1) :])
        return Document(self.birth, self.state.copy(), recent | {writer: number})

    def others(self, writer: str) -> dict[str, int]:
        return {name: last for name, last in self.writers.items() if name != writer}

    def encode(self) -> bytes:
        return orjson.dumps({"birth": self.birth, "writers": self.writers, "state": encode_state(self.state)})

    @classmethod
    def decode(cls, body: bytes) -> Document:
        """Raises ValueError, KeyError or TypeError for what is no such document."""
        fields = orjson.loads(body)
        return cls(str(fields["birth"]), decode_state(fields["state"]), dict(fields["writers"]))


def encode_state(state: State) -> dict[str, Any]:
    """Compact JSON: slots as first number, amount, then distance and amount of each that follows."""
    windows = []
    for (scope, metric), window in state.windows.items():
        row: list[Any] = [scope, metric]
        last = 0
        for slot, amount in window.slots.items():
            row += (slot - last, amount)
            last = slot
        windows.append(row)
    return {
        "t": state.newest_ms,
        "w": windows,
        "h": [[scope, *held] for scope, held in state.holds.items()],
        "q": [[*place, *told] for place, told in state.told.items()],
    }


def decode_state(fields: Any) -> State:
    """The state that `encode_state` wrote."""
    state = State(int(fields["t"]))
    for scope, metric, *row in fields["w"]:
        slots = dict(zip(itertools.accumulate(row[::2]), row[1::2], strict=True))
        state.windows[scope, metric] = Window(metric, slots, sum(slots.values()))
    state.holds = {scope: (int(until), str(reason)) for scope, until, reason in fields["h"]}
    state.told = {(scope, metric): Word(*map(int, word)) for scope, metric, *word in fields["q"]}
    return state


def joined(one: State, other: State) -> State:
    """What is known at least, of two states with a common past: the greater of both, slot by slot."""
    result = one.copy()
    result.newest_ms = max(one.newest_ms, other.newest_ms)
    for (scope, metric), window in other.windows.items():
        into = result.windows.setdefault((scope, metric), Window(metric))
        slots = {s: max(into.slots.get(s, 0), window.slots.get(s, 0)) for s in into.slots.keys() | window.slots.keys()}
        into.slots, into.used = dict(sorted(slots.items())), sum(slots.values())
    for held, (until, reason) in other.holds.items():
        result.holds[held] = max(result.holds.get(held, (0, "")), (until, reason))
    return result


@dataclass(slots=True)
class Turns:
    """When a replica may write a document again, in seconds of any one clock. One that is alone need not wait."""

    next_s: float = -math.inf
    shared_until_s: float = -math.inf
    look_first_until_s: float = -math.inf
    wrote_s: float = -math.inf
    without_gap_since_s: float = -math.inf

    def looks_first(self, now_s: float) -> bool:
        """Where others write too, whoever wrote last would know the document best and win again and again."""
        return now_s < self.look_first_until_s

    def seen_others(self, now_s: float) -> None:
        """Another replica has written since this one looked last."""
        self.shared_until_s = now_s + SHARED_S

    def beaten(self, now_s: float) -> None:
        """Another replica has written first."""
        self.seen_others(now_s)
        self.look_first_until_s = now_s + LOOK_FIRST_S

    def wrote(self, now_s: float, gap_s: float) -> None:
        """This replica has written; where others do too it leaves `gap_s`, and a long gap once in a while."""
        if now_s - self.wrote_s >= GAP_S[1]:
            self.without_gap_since_s = now_s
        self.wrote_s = now_s
        if now_s < self.shared_until_s:
            self.next_s = self.without_gap_since_s = now_s + gap_s
        elif now_s - self.without_gap_since_s >= OPENING_AFTER_S:
            self.next_s = self.without_gap_since_s = now_s + OPENING_S
