"""How much of a vendor's limits is used, decided: an exact sliding window of slots, and what the vendor itself said.

A token bucket would not do: with a small burst it never admits a request of 10,000 tokens, with a large one it lets
through up to twice the limit in a window. Here a window is cut into `SLOTS` slots; an admission counts in the slot of
its moment, and a slot counts until a whole window and `GUARD_S` have passed since its end. So no window exceeds its
limit, the state is bounded, and a saturated limit is used to 60 / (60 + 0.25 + 1.5) = 97 %.

Times inside a state are whole milliseconds of unix time, so that every store computes the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple, get_args

Scope = str
"""A model's alias, or "" for the whole provider."""
Metric = Literal["rpm", "rpd", "tpm", "tpd", "itpm", "otpm"]
METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
WINDOW_S: Final[Mapping[Metric, float]] = {m: 86_400.0 if m.endswith("d") else 60.0 for m in METRICS}
SLOTS: Final = 240
GUARD_S: Final = 1.5
"""How much later than its admission a vendor may see a request, and how far replicas' clocks may differ."""
LONGEST_HOLD_S: Final = 86_400.0
GUESS_MARGIN: Final = 1.5
"""How many times its limit an estimate of the input must be before it is taken to fit never."""
_MOST: Final = 10**12
"""Of any one amount, so that sums stay exact in a double."""
_UNITS: Final[Mapping[Metric, str]] = {
    "rpm": "requests a minute",
    "rpd": "requests a day",
    "tpm": "tokens a minute",
    "tpd": "tokens a day",
    "itpm": "input tokens a minute",
    "otpm": "output tokens a minute",
}


@dataclass(frozen=True, slots=True)
class Need:
    """What a request takes of its limits: an estimate before the call, the real usage after it."""

    requests: int = 1
    input_tokens: int = 0
    output_tokens: int = 0

    def of(self, metric: Metric) -> int:
        match metric:
            case "rpm" | "rpd":
                amount = self.requests
            case "tpm" | "tpd":
                amount = self.input_tokens + self.output_tokens
            case "itpm":
                amount = self.input_tokens
            case "otpm":
                amount = self.output_tokens
        return max(0, min(amount, _MOST))

    def least(self, metric: Metric) -> int:
        """All but the output, of which little is known before the call."""
        return Need(self.requests, self.input_tokens).of(metric)


class Demand(NamedTuple):
    """`amount` of one metric. `cap` is what may be used of its `limit`; both are None where we know none."""

    scope: Scope
    metric: Metric
    amount: int
    cap: int | None
    limit: int | None


class Entry(NamedTuple):
    """`amount` used (or, negative, given back) at `at_ms`."""

    scope: Scope
    metric: Metric
    at_ms: int
    amount: int


@dataclass(frozen=True, slots=True)
class Admit:
    """Let a request through under all of `limits`, or none. Scopes without limits are named with an empty mapping.

    `share` of each limit may be used: 1.0 by critical requests, less by others, but always at least 1.
    """

    limits: Mapping[Scope, Mapping[Metric, int]]
    need: Need
    share: float = 1.0

    def demands(self) -> Iterator[Demand]:
        """One for each scope and metric. Tokens are a guess, so an amount that may yet fit is cut to what does."""
        for scope, limits in self.limits.items():
            for metric in METRICS:
                amount, limit = self.need.of(metric), limits.get(metric)
                if limit is None:
                    yield Demand(scope, metric, amount, None, None)
                    continue
                # The small addition undoes a binary fraction's error: 100 * (1 - 0.34) is 65.99999999999999.
                cap = max(1, math.floor(min(limit, _MOST) * self.share + 1e-9))
                most = cap if metric in ("rpm", "rpd") else limit * GUESS_MARGIN
                yield Demand(scope, metric, amount if self.need.least(metric) > most else min(amount, cap), cap, limit)

    def never(self) -> Denied | None:
        """The refusal of what can never fit, however long it waits."""
        for d in self.demands():
            if d.cap is not None and d.amount > d.cap:
                why = f"it needs {d.amount:,} of {_whose(d.scope)} limit of {d.limit:,} {_UNITS[d.metric]}"
                kept = "" if d.cap == d.limit else f", of which {d.cap:,} are for requests of its priority"
                return Denied(math.inf, d.scope, why + kept)
        return None

    def granted(self, at_ms: int) -> Granted:
        demands = list(self.demands())
        return Granted(
            at_ms,
            {(d.scope, d.metric): d.amount for d in demands if d.cap is not None},
            {(d.scope, d.metric): d.amount for d in demands if d.amount},
        )

    def denied(self, wait_ms: int, scope: Scope, cause: str, detail: str) -> Denied:
        """`cause` is "held" (`detail`: the reason), "told" or "used" (`detail`: the metric)."""
        if cause == "held":
            return Denied(wait_ms / 1000, scope, detail)
        d = next(d for d in self.demands() if (d.scope, d.metric) == (scope, detail))
        if cause == "told":
            return Denied(wait_ms / 1000, scope, f"the vendor says that {_whose(scope)} {_UNITS[d.metric]} are used up")
        return Denied(wait_ms / 1000, scope, f"{_whose(scope)} limit of {d.limit:,} {_UNITS[d.metric]} is used up")


@dataclass(frozen=True, slots=True)
class Granted:
    """The request may be sent now. `taken` is what to settle later.

    `asked` has all of it, what no limit of ours counts too: the vendor may have told of it.
    """

    at_ms: int
    taken: Mapping[tuple[Scope, Metric], int]
    asked: Mapping[tuple[Scope, Metric], int] = field(default_factory=dict)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(Entry(*place, self.at_ms, amount) for place, amount in self.taken.items() if amount)


@dataclass(frozen=True, slots=True)
class Denied:
    """Not now: it could fit in `wait_s` seconds at the soonest, never where that is infinite. `why` is for clients."""

    wait_s: float
    scope: Scope
    why: str


@dataclass(frozen=True, slots=True)
class Settle:
    """Put the real usage in place of what was taken; None gives all back, the request too."""

    granted: Granted
    actual: Need | None

    def entries(self) -> tuple[Entry, ...]:
        return self._changes(self.granted.taken)

    def unused(self) -> tuple[Entry, ...]:
        """What was asked for and not used, negative: it is given back to a vendor's word that is not younger."""
        return tuple(entry for entry in self._changes(self.granted.asked) if entry.amount < 0)

    def _changes(self, amounts: Mapping[tuple[Scope, Metric], int]) -> tuple[Entry, ...]:
        used = self.actual or Need(0)
        changes = (Entry(*place, self.granted.at_ms, used.of(place[1]) - amount) for place, amount in amounts.items())
        return tuple(entry for entry in changes if entry.amount)


@dataclass(frozen=True, slots=True)
class Hold:
    """Admit nobody in the scope for `for_s` seconds, at most a day. A longer hold is never shortened."""

    scope: Scope
    for_s: float
    reason: str = "the vendor asked to wait"

    @property
    def for_ms(self) -> int:
        return math.ceil(min(max(0.0, self.for_s), LONGEST_HOLD_S) * 1000)


@dataclass(frozen=True, slots=True)
class Told:
    """The vendor's own word, in place of its last one: `remaining` are left, and it is full again in `reset_s`.

    Vendors' limits fill at an even pace; where `limit` is unknown or already full, nothing comes back before the end.
    """

    scope: Scope
    metric: Metric
    remaining: int
    reset_s: float
    limit: int | None = None

    def word(self, now_ms: int) -> Word:
        window_ms = round(WINDOW_S[self.metric] * 1000)
        full_ms = math.ceil(min(max(0.0, self.reset_s), WINDOW_S[self.metric]) * 1000)
        left, limit = max(0, min(self.remaining, _MOST)), min(self.limit or 0, _MOST)
        if limit <= left:
            return Word(left, now_ms, full_ms, 0, left, now_ms + full_ms)
        return Word(left, now_ms, full_ms, limit - left, limit, now_ms + window_ms)


class Word(NamedTuple):
    """What a vendor told, as it is kept: `left` at `at_ms`, then `gain` more in `full_ms` up to `limit`.

    What is taken afterwards is taken off `left`, which may make it negative: the pace stays. None outlives `last_ms`.
    """

    left: int
    at_ms: int
    full_ms: int
    gain: int
    limit: int
    last_ms: int

    def free_at_ms(self, amount: int) -> int:
        """When `amount` is left, or the limit is full, at the soonest."""
        missing = min(amount, self.limit) - self.left
        if missing <= 0 and amount <= self.limit:
            return self.at_ms
        if not self.gain:
            return self.last_ms
        # In doubles and in this order, as every store computes it.
        return min(self.last_ms, self.at_ms + math.ceil(float(missing) * self.full_ms / self.gain))

    @property
    def ends_ms(self) -> int:
        """When it says nothing any more."""
        return self.free_at_ms(self.limit) if self.gain else self.last_ms

    def less(self, amount: int) -> Word:
        return self._replace(left=self.left - amount)


@dataclass(frozen=True, slots=True)
class Record:
    """Count what happened elsewhere, whether it fits or not."""

    amounts: tuple[Entry, ...]

    def entries(self) -> tuple[Entry, ...]:
        return self.amounts


Op = Admit | Settle | Record | Hold | Told
Result = Granted | Denied | None


def slot_ms(metric: Metric) -> int:
    return round(WINDOW_S[metric] * 1000) // SLOTS


def kept_ms(metric: Metric) -> int:
    """For how long a slot counts after its end."""
    return round((WINDOW_S[metric] + GUARD_S) * 1000)


@dataclass(slots=True)
class Window:
    """Amounts by slot number, oldest first."""

    metric: Metric
    slots: dict[int, int] = field(default_factory=dict)
    used: int = 0

    def ends_ms(self, slot: int) -> int:
        """When the slot no longer counts."""
        return (slot + 1) * slot_ms(self.metric) + kept_ms(self.metric)

    def forget(self, now_ms: int) -> None:
        while self.slots and self.ends_ms(slot := next(iter(self.slots))) <= now_ms:
            self.used -= self.slots.pop(slot)

    def add(self, at_ms: int, amount: int, now_ms: int) -> None:
        """Count `amount` at `at_ms`; a clock that is ahead of ours by more than the guard is not believed."""
        slot = min(at_ms, now_ms + round(GUARD_S * 1000)) // slot_ms(self.metric)
        if self.ends_ms(slot) <= now_ms:
            return
        before = self.slots.get(slot, 0)
        after = max(0, before + amount)
        self.used += after - before
        late = bool(self.slots) and slot < next(reversed(self.slots))
        self.slots[slot] = after
        if not after:
            del self.slots[slot]
        elif late and not before:
            self.slots = dict(sorted(self.slots.items()))

    def free_at_ms(self, amount: int, cap: int) -> int:
        """When `amount` fits under `cap` at the soonest, if nothing else comes; 0 if it does already."""
        used, at = self.used, 0
        for slot, held in self.slots.items():
            if used + amount <= cap:
                break
            used -= held
            at = self.ends_ms(slot)
        return at


@dataclass(slots=True)
class State:
    """All that is known of one provider's limits. Changed in place by `apply`."""

    newest_ms: int = 0
    windows: dict[tuple[Scope, Metric], Window] = field(default_factory=dict)
    holds: dict[Scope, tuple[int, str]] = field(default_factory=dict)
    told: dict[tuple[Scope, Metric], Word] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        return not (self.windows or self.holds or self.told)

    def copy(self) -> State:
        windows = {place: Window(w.metric, dict(w.slots), w.used) for place, w in self.windows.items()}
        return State(self.newest_ms, windows, dict(self.holds), dict(self.told))

    def advance(self, now: float) -> None:
        """Go on to `now`, never back, and forget what is over."""
        # A microsecond makes up for the division that made `now` a float.
        now_ms = self.newest_ms = max(self.newest_ms, math.floor(now * 1000 + 0.001))
        for window in self.windows.values():
            window.forget(now_ms)
        self.windows = {place: window for place, window in self.windows.items() if window.slots}
        self.holds = {scope: held for scope, held in self.holds.items() if held[0] > now_ms}
        self.told = {place: told for place, told in self.told.items() if told.ends_ms > now_ms}

    def record(self, entries: tuple[Entry, ...]) -> None:
        for scope, metric, at_ms, amount in entries:
            window = self.windows.setdefault((scope, metric), Window(metric))
            window.add(at_ms, amount, self.newest_ms)
            if not window.slots:
                del self.windows[scope, metric]


def apply(state: State, op: Op, now: float) -> Result:
    """Do one operation at `now` (unix seconds). Only an `Admit` has a result."""
    state.advance(now)
    match op:
        case Admit():
            return _admit(state, op)
        case Record():
            state.record(op.entries())
        case Settle():
            state.record(op.entries())
            for scope, metric, at_ms, amount in op.unused():
                told = state.told.get((scope, metric))
                if told is not None and at_ms >= told.at_ms:
                    state.told[scope, metric] = told.less(amount)
        case Hold(scope):
            until, said = state.newest_ms + op.for_ms, op.reason[:200]
            if until > max(state.newest_ms, state.holds.get(scope, (0, ""))[0]):
                state.holds[scope] = (until, said)
        case Told(scope, metric):
            state.told[scope, metric] = op.word(state.newest_ms)
    return None


def _admit(state: State, op: Admit) -> Granted | Denied:
    if (never := op.never()) is not None:
        return never
    now = state.newest_ms
    longest: tuple[int, Scope, str, str] = (now, "", "", "")
    for scope in op.limits:
        until, reason = state.holds.get(scope, (0, ""))
        longest = max(longest, (until, scope, "held", reason), key=_until)
    for d in op.demands():
        if (told := state.told.get((d.scope, d.metric))) is not None:
            longest = max(longest, (told.free_at_ms(d.amount), d.scope, "told", d.metric), key=_until)
        window = state.windows.get((d.scope, d.metric))
        if d.amount and d.cap is not None and window is not None:
            longest = max(longest, (window.free_at_ms(d.amount, d.cap), d.scope, "used", d.metric), key=_until)
    if longest[0] > now:
        return op.denied(longest[0] - now, *longest[1:])
    granted = op.granted(now)
    state.record(granted.entries())
    for d in op.demands():
        if (told := state.told.get((d.scope, d.metric))) is not None:
            state.told[d.scope, d.metric] = told.less(d.amount)
    return granted


def _until(cause: tuple[int, Scope, str, str]) -> int:
    return cause[0]


def _whose(scope: Scope) -> str:
    return "its" if scope else "its provider's"
