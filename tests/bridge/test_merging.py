"""Replicas merged: nothing is lost or counted twice, in whatever order they answer."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.figures import (
    Breaker,
    Counts,
    Figures,
    InFlight,
    LaneCounts,
    Limit,
    Model,
    ModelCounts,
    Provider,
    RecentCalls,
)
from bridge.merging import LANES, MAX_IN_FLIGHT, OUTCOMES, Heard, Merge
from bridge.quantiles import quantile, together

BOUNDS = [0.1, 1.0, 10.0]
few = st.integers(0, 50)
buckets = st.lists(few, min_size=4, max_size=4)
lanes = st.builds(
    LaneCounts, received=few, outcomes=st.dictionaries(st.sampled_from(OUTCOMES), few), recent_wait=buckets
)
recent = st.builds(RecentCalls, calls=few, errors=st.just(0), first_token=buckets, duration=buckets)
called = st.builds(ModelCounts, provider=st.just("anthropic"), calls=few, recent=recent)
counts = st.builds(
    Counts,
    bounds_s=st.just(BOUNDS),
    lanes=st.dictionaries(st.sampled_from(LANES), lanes),
    models=st.dictionaries(st.sampled_from(["haiku", "sonnet"]), called),
)
waiting = st.builds(
    InFlight,
    id=st.text("abc", min_size=1, max_size=3),
    lane=st.sampled_from(LANES),
    state=st.sampled_from(["queued", "waiting", "calling"]),
    age_s=st.floats(0, 100),
)
breakers = st.builds(Breaker, state=st.sampled_from(["closed", "half_open", "open"]), ready_in_s=st.floats(0, 60))
providers = st.builds(
    lambda own, breaker: Provider("anthropic", True, own, [], [Model("haiku", "id", True, breaker)]), breakers, breakers
)
replicas = st.builds(
    Figures,
    running=few,
    in_flight=st.lists(waiting, max_size=5),
    providers=st.lists(providers, max_size=1),
    metrics=st.none() | counts,
)


@settings(max_examples=50)
@given(st.dictionaries(st.text("xyz", min_size=1), replicas, max_size=4), st.randoms())
def test_the_order_of_answers_does_not_matter(told: dict[str, Figures], chance: random.Random) -> None:
    heard = {name: Heard(0, figures) for name, figures in told.items()}
    names = list(heard)
    chance.shuffle(names)
    one, other = Merge(heard).shown(), Merge({name: heard[name] for name in names}).shown()
    listed, again = one.pop("in_flight"), other.pop("in_flight")
    assert one == other
    assert {shown["id"] for shown in listed} == {shown["id"] for shown in again}


@settings(max_examples=50)
@given(st.dictionaries(st.text("xyz", min_size=1), replicas, max_size=4))
def test_sums_are_the_sums_of_all_replicas(told: dict[str, Figures]) -> None:
    merged = Merge({name: Heard(0, figures) for name, figures in told.items()}).shown()
    every = [figures.metrics for figures in told.values() if figures.metrics is not None]
    for lane in merged["lanes"]:
        of_lane = [one.lanes[lane["lane"]] for one in every if lane["lane"] in one.lanes]
        assert lane["received"] == sum(one.received for one in of_lane)
        assert lane["outcomes"]["failed"] == sum(one.outcomes.get("failed", 0) for one in of_lane)
    if any(figures.providers for figures in told.values()):
        (anthropic,) = merged["providers"]
        (haiku,) = anthropic["models"]
        assert haiku["calls"] == sum(one.models["haiku"].calls for one in every if "haiku" in one.models)
        worst = [provider.models[0].breaker.state for figures in told.values() for provider in figures.providers]
        order = ["closed", "half_open", "open"]
        assert haiku["breaker"]["state"] == max(worst, key=order.index)


@given(buckets, buckets, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_of_two_together_lies_between_those_of_each(one: list[int], other: list[int], q: float) -> None:
    each = [quantile(BOUNDS, counts, q) for counts in (one, other)]
    known = [value for value in each if value is not None]
    both = quantile(BOUNDS, together([one, other]), q)
    if both is None:
        assert not known
    else:
        assert min(known) - 1e-9 <= both <= max(known) + 1e-9
        assert 0 <= both <= BOUNDS[-1]


def test_the_oldest_are_listed_and_an_id_that_two_hold_is_listed_with_who_is_at_work() -> None:
    many = [InFlight(f"job-{n}", "low", "queued", float(n)) for n in range(MAX_IN_FLIGHT + 50)]
    one = Figures(held=len(many), in_flight=many)
    other = Figures(held=1, in_flight=[InFlight("job-249", "low", "calling", 249.0, "shop", "haiku", 1)])
    merged = Merge({"one": Heard(0, one), "other": Heard(0, other)}).shown()
    assert len(merged["in_flight"]) == MAX_IN_FLIGHT
    assert merged["in_flight_total"] == MAX_IN_FLIGHT + 51
    assert [shown["id"] for shown in merged["in_flight"][:2]] == ["job-249", "job-248"]
    assert (merged["in_flight"][0]["replica"], merged["in_flight"][0]["state"]) == ("other", "calling")


def test_rates_come_from_two_answers_of_the_same_replica_and_from_no_longer_pause() -> None:
    def figures(received: int) -> Figures:
        return Figures(metrics=Counts(BOUNDS, lanes={"high": LaneCounts(received=received)}))

    first = Heard(10.0, figures(100))
    assert Merge({"a": first}).shown()["requests_per_s"] is None
    second = first.then(figures(130), 12.0)
    newcomer = Heard(12.0, figures(1_000_000))
    assert Merge({"a": second, "b": newcomer}).shown()["requests_per_s"] == 15.0
    assert Merge({"a": second}).shown()["lanes"][1]["received_per_s"] == 15.0
    assert second.then(figures(140), 20.0).rates is None


def test_each_replica_tells_its_part_of_a_limit_and_the_limit_is_theirs_together() -> None:
    def figures(used: int) -> Figures:
        return Figures(providers=[Provider("groq", True, limits=[Limit("rpm", used, 100, 60)])])

    merged = Merge({"a": Heard(0, figures(30)), "b": Heard(0, figures(12))}).shown()
    assert merged["providers"][0]["limits"] == [{"metric": "rpm", "used": 42, "limit": 100, "window_s": 60}]


def test_a_replica_of_another_version_is_counted_and_its_buckets_are_left_out() -> None:
    ours = Counts(BOUNDS, lanes={"high": LaneCounts(received=1, recent_wait=[1, 0, 0, 0])})
    others = Counts([5.0], lanes={"high": LaneCounts(received=2, recent_wait=[0, 9])})
    heard = {"a": Heard(0, Figures(metrics=ours)), "b": Heard(0, Figures(metrics=ours))}
    merged = Merge(heard | {"c": Heard(0, Figures(metrics=others))}).shown()
    assert merged["lanes"][1]["received"] == 4
    assert merged["lanes"][1]["wait"]["p99_s"] <= BOUNDS[0]


def test_without_a_replica_everything_is_there_and_empty() -> None:
    merged = Merge({}).shown()
    assert [lane["lane"] for lane in merged["lanes"]] == list(LANES)
    assert merged["lanes"][0]["queued"] is None
    assert merged["lanes"][0]["wait"] == {"p50_s": None, "p95_s": None, "p99_s": None}
    assert (merged["metrics"], merged["replicas"], merged["providers"], merged["in_flight"]) == (True, [], [], [])
    assert merged["cache"]["hit_rate"] is None
