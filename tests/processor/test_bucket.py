"""Limits as a pure function of time: for any walk of the clock, and any mix of needs, settlements and refunds."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.bucket import (
    GUARD_S,
    METRICS,
    SLOTS,
    WINDOW_S,
    Admit,
    Denied,
    Entry,
    Granted,
    Hold,
    Metric,
    Need,
    Record,
    Result,
    Scope,
    Settle,
    State,
    Told,
    apply,
)
from processor.limit_documents import decode_state, encode_state

START = 1_795_478_400.0
SHARE = 0.9
LIMITS: Mapping[Scope, Mapping[Metric, int]] = {
    "": {"rpm": 7, "tpm": 1000, "tpd": 3000},
    "haiku": {"itpm": 500, "otpm": 300},
}

needs = st.builds(Need, st.just(1), st.integers(0, 800), st.integers(0, 500))
moves = st.one_of(st.integers(0, 3_000), st.integers(-20_000, 0), st.integers(20_000, 70_000))


@dataclass
class Call:
    granted: Granted
    critical: bool
    used: Mapping[tuple[Scope, Metric], int]
    seen_ms: int
    """When the vendor counts it."""


@dataclass
class Walk:
    """A replica in simulated time, and what its vendor sees."""

    state: State = field(default_factory=State)
    now: float = START
    calls: list[Call] = field(default_factory=list)
    running: deque[Call] = field(default_factory=deque)

    def move(self, ms: int) -> None:
        self.now = round(self.now + ms / 1000, 3)

    def admit(self, need: Need, *, critical: bool = True, late_ms: int = 0) -> Result:
        result = apply(self.state, Admit(LIMITS, need, 1.0 if critical else SHARE), self.now)
        if isinstance(result, Granted):
            call = Call(result, critical, result.taken, result.at_ms + late_ms)
            self.calls.append(call)
            self.running.append(call)
        return result

    def settle(self, actual: Need | None) -> None:
        """The oldest call ends, with no more than was taken for it."""
        if not self.running:
            return
        call = self.running.popleft()
        apply(self.state, Settle(call.granted, actual), self.now)
        call.used = {
            place: min(taken, actual.of(place[1]) if actual else 0) for place, taken in call.granted.taken.items()
        }


def most_in_a_window(calls: list[Call], scope: Scope, metric: Metric) -> int:
    """The largest sum that any window of the metric holds, as the vendor counts."""
    width_ms, seen = WINDOW_S[metric] * 1000, sorted((c.seen_ms, c.used.get((scope, metric), 0)) for c in calls)
    most = used = first = 0
    for at, amount in seen:
        used += amount
        while seen[first][0] <= at - width_ms:
            used -= seen[first][1]
            first += 1
        most = max(most, used)
    return most


steps = st.lists(
    st.tuples(moves, needs, st.booleans(), st.integers(0, int(GUARD_S * 1000)), st.floats(0, 1), st.booleans()),
    max_size=60,
)
"""Time, need, critical, how late the vendor sees it; then the oldest call ends, with this share of its estimate."""


def scaled(taken: Granted, share: float) -> Need:
    return Need(1, int(taken.taken["haiku", "itpm"] * share), int(taken.taken["haiku", "otpm"] * share))


def walked(walk: Walk, taken_steps: list[tuple[int, Need, bool, int, float, bool]]) -> Walk:
    for ms, need, critical, late_ms, share, ends in taken_steps:
        walk.move(ms)
        walk.admit(need, critical=critical, late_ms=late_ms)
        if ends and walk.running:
            walk.settle(None if share < 0.2 else scaled(walk.running[0].granted, share))
    return walk


@given(steps)
def test_no_window_exceeds_a_limit_and_no_window_of_others_than_critical_their_share(
    taken_steps: list[tuple[int, Need, bool, int, float, bool]],
) -> None:
    walk = walked(Walk(), taken_steps)
    others = [call for call in walk.calls if not call.critical]
    for scope, limits in LIMITS.items():
        for metric, limit in limits.items():
            assert most_in_a_window(walk.calls, scope, metric) <= limit
            assert most_in_a_window(others, scope, metric) <= math.floor(limit * SHARE)


@given(steps)
def test_nothing_leaks_what_is_given_back_is_gone_at_once_and_the_rest_when_its_window_has_passed(
    taken_steps: list[tuple[int, Need, bool, int, float, bool]],
) -> None:
    given_back = walked(Walk(), [(*step[:4], 0.0, False) for step in taken_steps])
    while given_back.running:
        given_back.settle(None)
    assert given_back.state.is_empty

    forgotten = walked(Walk(), taken_steps)
    newest = forgotten.state.newest_ms / 1000
    slot_s = WINDOW_S["tpd"] / SLOTS
    forgotten.state.advance(newest + WINDOW_S["tpd"] + slot_s + GUARD_S)
    assert forgotten.state.is_empty


@given(steps, needs, st.booleans())
def test_a_refusal_says_the_very_millisecond_from_which_on_the_request_fits(
    taken_steps: list[tuple[int, Need, bool, int, float, bool]], need: Need, critical: bool
) -> None:
    walk = walked(Walk(), taken_steps)
    denied = walk.admit(need, critical=critical)
    if not isinstance(denied, Denied) or math.isinf(denied.wait_s):
        return
    admit = Admit(LIMITS, need, 1.0 if critical else SHARE)
    free_at = walk.state.newest_ms / 1000 + denied.wait_s
    assert isinstance(apply(walk.state.copy(), admit, free_at - 0.001), Denied)
    assert isinstance(apply(walk.state.copy(), admit, free_at), Granted)


@given(steps)
def test_a_state_is_the_same_after_json_and_a_copy_is_its_own(
    taken_steps: list[tuple[int, Need, bool, int, float, bool]],
) -> None:
    walk = walked(Walk(), taken_steps)
    apply(walk.state, Hold("haiku", 5, "wait"), walk.now)
    apply(walk.state, Told("haiku", "otpm", 7, 50), walk.now)
    apply(walk.state, Told("haiku", "itpm", 7, 50, 90), walk.now)
    assert decode_state(encode_state(walk.state)) == walk.state
    before = encode_state(walk.state)
    copy = walk.state.copy()
    apply(copy, Admit({"": {"rpm": 10**6}}, Need()), walk.now)
    apply(copy, Hold("", 9), walk.now)
    apply(copy, Told("", "rpm", 1, 9), walk.now)
    assert encode_state(walk.state) == before
    assert encode_state(copy) != before


@given(steps)
def test_the_state_is_bounded(taken_steps: list[tuple[int, Need, bool, int, float, bool]]) -> None:
    state = walked(Walk(), taken_steps * 8).state
    assert set(state.windows) <= {(scope, metric) for scope, limits in LIMITS.items() for metric in limits}
    assert all(len(window.slots) <= SLOTS + GUARD_S * SLOTS / 60 + 1 for window in state.windows.values())
    assert all(list(w.slots) == sorted(w.slots) and w.used == sum(w.slots.values()) for w in state.windows.values())


@pytest.mark.parametrize(
    ("limits", "need_of", "metric"),
    [
        ({"rpm": 50}, lambda _: Need(), "rpm"),
        ({"rpm": 3}, lambda _: Need(), "rpm"),
        ({"tpm": 50_000}, lambda draw: Need(1, draw(400), draw(400)), "tpm"),
        ({"itpm": 50_000}, lambda _: Need(1, 10_000, 500), "itpm"),
        ({"otpm": 8_000}, lambda draw: Need(1, 10_000, draw(300)), "otpm"),
        ({"rpd": 2_000}, lambda _: Need(), "rpd"),
    ],
)
def test_a_saturated_limit_is_used_to_95_percent_and_never_more(
    limits: dict[Metric, int], need_of: Callable[[Callable[[int], int]], Need], metric: Metric
) -> None:
    random_of = random.Random(1)
    state, now, windows = State(), START, 20
    need = need_of(lambda most: random_of.randint(1, most))
    calls: list[Call] = []
    while now < START + windows * WINDOW_S[metric]:
        result = apply(state, Admit({"": limits}, need), now)
        if isinstance(result, Granted):
            calls.append(Call(result, True, result.taken, result.at_ms))
            need = need_of(lambda most: random_of.randint(1, most))
        else:
            assert isinstance(result, Denied)
            now += result.wait_s
    used = sum(call.used["", metric] for call in calls)
    assert used >= 0.95 * limits[metric] * windows
    assert most_in_a_window(calls, "", metric) <= limits[metric]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
def test_wherever_in_its_slot_an_admission_falls_the_next_is_a_window_and_the_guard_later(
    metric: Metric, part: float
) -> None:
    state, admit = State(), Admit({"": {metric: 1}}, Need(1, 1, 1) if metric[0] != "t" else Need(1, 1))
    slot_s = WINDOW_S[metric] / SLOTS
    now = START // slot_s * slot_s + part * slot_s
    assert isinstance(apply(state, admit, now), Granted)
    denied = apply(state, admit, now)
    assert isinstance(denied, Denied)
    assert 0 < denied.wait_s - WINDOW_S[metric] - GUARD_S <= slot_s


def test_a_sum_of_milliseconds_as_floats_is_the_millisecond_that_it_means() -> None:
    for ms in range(1000):
        state = State()
        state.advance(START + ms / 1000 + 0.975)
        assert state.newest_ms == round(START * 1000) + ms + 975


def test_what_is_recorded_late_takes_its_place_in_time() -> None:
    state, at_ms = State(), round(START * 1000)
    for earlier_ms in (0, 40_000, 20_000, 59_000, 1_000):
        apply(state, Record((Entry("", "rpm", at_ms - earlier_ms, 1),)), START)
    slots = list(state.windows["", "rpm"].slots)
    assert slots == sorted(slots)
    waits = []
    for limit in (5, 4, 3, 2, 1):
        denied = apply(state, Admit({"": {"rpm": limit}}, Need()), START)
        assert isinstance(denied, Denied)
        waits.append(denied.wait_s)
    assert waits == pytest.approx([2.75, 21.75, 41.75, 60.75, 61.75])


def test_what_is_settled_higher_than_estimated_is_paid_back_by_those_who_follow() -> None:
    walk = Walk()
    granted = walk.admit(Need(1, 100, 50))
    assert isinstance(granted, Granted)
    apply(walk.state, Settle(granted, Need(1, 100, 290)), walk.now)
    denied = walk.admit(Need(1, 0, 20))
    assert isinstance(denied, Denied)
    assert (denied.scope, denied.why) == ("haiku", "its limit of 300 output tokens a minute is used up")
    assert isinstance(walk.admit(Need(1, 0, 10)), Granted)


def test_a_settlement_after_its_window_changes_nothing() -> None:
    walk = Walk()
    granted = apply(walk.state, Admit({"": {"rpm": 1}}, Need()), walk.now)
    assert isinstance(granted, Granted)
    walk.move(62_000)
    apply(walk.state, Settle(granted, Need(5)), walk.now)
    assert walk.state.is_empty


def test_a_limit_of_the_model_and_one_of_its_provider_hold_at_once_and_nothing_is_taken_by_halves() -> None:
    state = State()
    limits: dict[Scope, dict[Metric, int]] = {"": {"rpm": 3}, "haiku": {"rpm": 2}}
    for _ in range(2):
        assert isinstance(apply(state, Admit(limits, Need()), START), Granted)
    denied = apply(state, Admit(limits, Need()), START)
    assert isinstance(denied, Denied)
    assert (denied.scope, denied.why) == ("haiku", "its limit of 2 requests a minute is used up")
    assert state.windows["", "rpm"].used == 2
    other: dict[Scope, dict[Metric, int]] = {"": {"rpm": 3}, "sonnet": {}}
    assert isinstance(apply(state, Admit(other, Need()), START), Granted)
    denied = apply(state, Admit(other, Need()), START)
    assert isinstance(denied, Denied)
    assert (denied.scope, denied.why) == ("", "its provider's limit of 3 requests a minute is used up")


def test_an_estimate_over_the_limit_is_cut_to_it_but_input_far_over_it_never_fits() -> None:
    limits: dict[Scope, dict[Metric, int]] = {"": {"tpm": 1000}}
    for need in (Need(1, 600, 64_000), Need(1, 1001, 0), Need(1, 1500, 64_000)):
        granted = apply(State(), Admit(limits, need), START)
        assert isinstance(granted, Granted)
        assert granted.taken == {("", "tpm"): 1000}
    never = apply(State(), Admit(limits, Need(1, 1501, 0)), START)
    assert never == Denied(math.inf, "", "it needs 1,501 of its provider's limit of 1,000 tokens a minute")


def test_input_over_the_share_of_a_requests_priority_takes_all_of_that_share() -> None:
    limits: dict[Scope, dict[Metric, int]] = {"": {"tpm": 50_000}}
    state = State()
    granted = apply(state, Admit(limits, Need(1, 46_000, 300), 0.9), START)
    assert isinstance(granted, Granted)
    assert granted.taken == {("", "tpm"): 45_000}
    assert isinstance(apply(state, Admit(limits, Need(1, 10, 10), 0.9), START), Denied)
    assert isinstance(apply(state, Admit(limits, Need(1, 2_000, 3_000)), START), Granted)


def test_a_number_of_requests_is_no_guess() -> None:
    never = apply(State(), Admit({"": {"rpm": 10}}, Need(10), 0.9), START)
    assert isinstance(never, Denied)
    assert math.isinf(never.wait_s)
    assert never.why.endswith(", of which 9 are for requests of its priority")


@pytest.mark.parametrize(
    ("limit", "buffer", "cap"),
    [(50, 0.1, 45), (100, 0.34, 66), (50, 0.56, 22), (10, 0.9, 1), (1, 0.5, 1), (3, 0.99, 1), (50, 0.0, 50)],
)
def test_the_share_of_others_than_critical_is_the_whole_part_and_at_least_one(
    limit: int, buffer: float, cap: int
) -> None:
    state = State()
    admit = Admit({"": {"rpm": limit}}, Need(), 1 - buffer)
    admitted = [apply(state, admit, START) for _ in range(limit + 1)]
    assert sum(isinstance(result, Granted) for result in admitted) == cap
    critical = Admit({"": {"rpm": limit}}, Need())
    admitted = [apply(state, critical, START) for _ in range(limit + 1)]
    assert sum(isinstance(result, Granted) for result in admitted) == limit - cap


def test_a_held_model_lets_others_pass_and_a_held_provider_nobody() -> None:
    state = State()
    haiku, sonnet = Admit({"": {}, "haiku": {}}, Need()), Admit({"": {}, "sonnet": {}}, Need())
    apply(state, Hold("haiku", 10, "the vendor asked to wait"), START)
    assert apply(state, haiku, START) == Denied(10.0, "haiku", "the vendor asked to wait")
    assert isinstance(apply(state, sonnet, START), Granted)
    apply(state, Hold("", 20, "all of it"), START)
    assert apply(state, sonnet, START + 1) == Denied(19.0, "", "all of it")
    assert isinstance(apply(state, haiku, START + 20), Granted)
    assert state.is_empty


def test_a_longer_hold_is_never_shortened_and_none_is_longer_than_a_day() -> None:
    state, admit = State(), Admit({"": {}}, Need())
    apply(state, Hold("", 60), START)
    apply(state, Hold("", 5), START)
    assert apply(state, admit, START) == Denied(60.0, "", "the vendor asked to wait")
    for for_s in (-3.0, math.nan):
        apply(state, Hold("", for_s), START)
    assert apply(state, admit, START) == Denied(60.0, "", "the vendor asked to wait")
    apply(state, Hold("", math.inf), START)
    assert apply(state, admit, START) == Denied(86_400.0, "", "the vendor asked to wait")


def test_what_the_vendor_tells_counts_down_is_replaced_and_is_forgotten_at_its_reset() -> None:
    state, admit = State(), Admit({"": {}, "haiku": {}}, Need(1, 10, 30))
    apply(state, Told("haiku", "otpm", 65, 12), START)
    assert isinstance(apply(state, admit, START), Granted)
    assert isinstance(apply(state, admit, START), Granted)
    denied = Denied(12.0, "haiku", "the vendor says that its output tokens a minute are used up")
    assert apply(state, admit, START) == denied
    assert isinstance(apply(state, Admit({"": {}, "sonnet": {}}, Need(1, 10, 30)), START), Granted)
    apply(state, Told("haiku", "otpm", 30, 40), START + 1)
    assert isinstance(apply(state, admit, START + 1), Granted)
    assert apply(state, admit, START + 1) == Denied(40.0, "haiku", denied.why)
    assert isinstance(apply(state, admit, START + 41), Granted)
    assert state.is_empty


def test_what_a_day_holds_comes_back_bit_by_bit_where_the_vendor_tells_its_limit() -> None:
    state, admit = State(), Admit({"": {}, "gpt": {}}, Need())
    apply(state, Told("gpt", "rpd", 0, 86_400, 14_400), START)
    denied = Denied(6.0, "gpt", "the vendor says that its requests a day are used up")
    for n in range(3):
        assert apply(state, admit, START + 6 * n) == denied
        assert apply(state, admit, START + 6 * n + 5) == replace(denied, wait_s=1.0)
        assert isinstance(apply(state, admit, START + 6 * n + 6), Granted)


@given(
    st.integers(-1, 900),
    st.one_of(st.none(), st.integers(1, 1000)),
    st.floats(0, 100),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 500)), max_size=20),
    st.integers(0, 1200),
)
def test_a_wait_for_what_the_vendor_told_is_exact_and_no_more_is_taken_than_comes_back(
    remaining: int, limit: int | None, reset_s: float, calls: list[tuple[int, int]], amount: int
) -> None:
    state, told = State(), Told("gpt", "otpm", remaining, reset_s, limit)
    apply(state, told, START)
    taken, now = 0, START
    for ms, tokens in calls:
        now = round(now + ms / 1000, 3)
        result = apply(state, Admit({"gpt": {}}, Need(1, 0, tokens)), now)
        if not state.told:
            return
        taken += tokens if isinstance(result, Granted) else 0
        gain = max(0, limit - max(0, remaining)) if limit else 0
        assert taken <= max(0, remaining) + (gain * (now - START) / min(60, reset_s) if gain else 0) + 1
    admit = Admit({"gpt": {}}, Need(1, 0, amount))
    denied = apply(state.copy(), admit, now)
    if isinstance(denied, Denied):
        free_at = state.newest_ms / 1000 + denied.wait_s
        assert isinstance(apply(state.copy(), admit, free_at - 0.001), Denied)
        assert isinstance(apply(state.copy(), admit, free_at), Granted)


def test_what_was_not_used_goes_back_to_a_vendors_word_but_not_to_a_younger_one() -> None:
    def ask(tokens: int, at: float) -> Result:
        return apply(state, Admit({"gpt": {"otpm": 5000}}, Need(1, 0, tokens)), at)

    state = State()
    before = ask(400, START)
    assert isinstance(before, Granted)
    apply(state, Told("gpt", "otpm", 500, 60, 1000), START + 1)
    apply(state, Settle(before, None), START + 1)  # the vendor has not counted it, or has counted it off itself
    assert isinstance(ask(501, START + 1), Denied)
    after = ask(500, START + 1)
    assert isinstance(after, Granted)
    apply(state, Settle(after, Need(1, 0, 100)), START + 1)
    assert isinstance(ask(401, START + 1), Denied)
    after = ask(400, START + 1)
    assert isinstance(after, Granted)
    apply(state, Settle(after, None), START + 31)
    assert isinstance(ask(651, START + 31), Denied)
    after = ask(650, START + 31)
    assert isinstance(after, Granted)
    apply(state, Settle(after, None), START + 40)
    assert isinstance(ask(1000, START + 60.9), Denied)
    assert isinstance(ask(1000, START + 61), Granted)
    assert not state.told


def test_a_vendors_word_never_outlives_its_window() -> None:
    state = State()
    apply(state, Told("", "rpm", -5, 10**9), START)
    assert isinstance(denied := apply(state, Admit({"": {}}, Need()), START), Denied)
    assert denied.wait_s == WINDOW_S["rpm"]


def test_what_was_granted_elsewhere_counts_and_what_a_clock_ahead_says_is_not_believed() -> None:
    state, at_ms = State(), round(START * 1000)
    admit = Admit({"": {"rpm": 2}}, Need())
    apply(state, Record((Entry("", "rpm", at_ms - 61_800, 9), Entry("", "rpm", at_ms - 30_000, 1))), START)
    assert isinstance(apply(state, admit, START), Granted)
    assert isinstance(denied := apply(state, admit, START), Denied)
    assert denied.wait_s == pytest.approx(31.75, abs=0.25)
    state = State()
    apply(state, Record((Entry("", "rpm", at_ms + 3_600_000, 2),)), START)
    assert isinstance(denied := apply(state, admit, START), Denied)
    assert denied.wait_s <= WINDOW_S["rpm"] + 2 * GUARD_S + 0.25


def test_a_need_counts_for_each_metric_what_the_metric_names_and_never_less_than_nothing() -> None:
    counted = {metric: Need(1, 20, 300).of(metric) for metric in METRICS}
    assert counted == {"rpm": 1, "rpd": 1, "tpm": 320, "tpd": 320, "itpm": 20, "otpm": 300}
    assert Need(1, -5, -7).of("tpm") == 0
