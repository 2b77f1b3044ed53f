"""What others on the bus say is taken apart with care: nothing in it stops the bridge, or grows without a bound."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.figures import Figures, decode_statistics
from bridge.heard_alerts import KEPT, MAX_TEXT, HeardAlerts
from bridge.merging import Heard, Merge
from bridge.spend import MAX_BUDGETS, spent

NOW = datetime(2026, 11, 30, 7, 45, tzinfo=UTC)
documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)
NAMES = ("metadata", "endpoints", "severity", "kind", "message", "replica", "at", "provider", "model", "after", "why")


def statistics(data: object, replica: str = "one") -> bytes:
    endpoints = [{"name": "route", "data": {}}, {"name": "models", "data": data}]
    return orjson.dumps({"metadata": {"replica": replica}, "endpoints": endpoints})


@given(st.binary() | st.dictionaries(st.sampled_from(NAMES), documents).map(orjson.dumps) | documents.map(statistics))
def test_what_is_no_answer_is_refused_and_what_is_one_can_be_shown(body: bytes) -> None:
    try:
        name, figures = decode_statistics(body)
    except ValueError:
        return
    orjson.dumps(Merge({name: Heard(0, figures)}).shown())


@pytest.mark.parametrize(
    "body",
    [
        statistics({"running": "three"}),
        statistics({"running": 2**60}),
        statistics({"running": -1}),
        statistics({}, replica=""),
        statistics({}, replica="x" * 201),
        b'{"metadata": {"replica": "one"}, "endpoints": []}',
        b'{"metadata": {"replica": "one"}, "endpoints": [], "x": ' + b"[" * 100_000,
    ],
)
def test_a_wrong_type_a_missing_name_and_deep_nesting_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        decode_statistics(body)


def test_a_replica_that_tells_less_or_more_is_shown_with_what_it_tells() -> None:
    assert decode_statistics(statistics({"running": 3, "new": [1]})) == ("one", Figures(running=3))


@given(st.sampled_from(["llm.alert.warning", "llm.status.one"]), st.dictionaries(st.sampled_from(NAMES), documents))
def test_alerts_that_are_none_are_left_out(subject: str, fields: dict[str, object]) -> None:
    alerts = HeardAlerts()
    alerts.hear(subject, orjson.dumps(fields), NOW)
    alerts.hear(subject, orjson.dumps(fields)[:-1], NOW)
    assert len(alerts.shown()) <= 1
    orjson.dumps(alerts.shown())


def test_the_newest_alerts_are_kept_and_long_ones_cut() -> None:
    alerts = HeardAlerts()
    fields = {"severity": "critical", "replica": "one", "at": "2026-11-30T07:44:51.002Z", "message": "x" * 10_000}
    for number in range(KEPT + 1):
        alerts.hear("llm.alert.critical", orjson.dumps(fields | {"kind": f"kind-{number}"}), NOW)
    shown = alerts.shown()
    assert (len(shown), shown[0]["kind"], shown[-1]["kind"]) == (KEPT, f"kind-{KEPT}", "kind-1")
    assert (shown[0]["at"], len(shown[0]["message"])) == ("2026-11-30T07:44:51.002Z", MAX_TEXT)
    assert alerts.counts == {"info": 0, "warning": 0, "critical": KEPT + 1}


@pytest.mark.parametrize(
    ("after", "severity"), [("open", "warning"), ("closed", "info"), ("half_open", None), ("ajar", None)]
)
def test_a_breaker_that_opens_or_closes_is_told_of(after: str, severity: str | None) -> None:
    alerts = HeardAlerts()
    change = {"replica": "one", "provider": "groq", "model": "", "after": after, "why": "connection_failed: refused"}
    alerts.hear("llm.status.one", orjson.dumps(change), NOW)
    told = [(alert["severity"], alert["kind"]) for alert in alerts.shown()]
    assert told == ([(severity, "breaker:groq:")] if severity else [])


def test_spending_is_todays_and_the_months_with_the_budgets_that_are_used_most() -> None:
    total = {"cost_usd": 3.5, "saved_usd": 1.0}
    rows = [{"key": "2026-11-29", "cost_usd": 2.5}, {"key": "2026-11-30", "cost_usd": 1.0}]
    budgets = [{"budget": f"b{n}", "limit_usd": 1.0, "spent_usd": n / 10, "share": n / 10} for n in range(50)]
    report = {"rows": rows, "total": total, "projection_usd": None, "not_counted": 2, "budgets": budgets}
    shown = spent(report, NOW)
    assert (shown["today_usd"], shown["month_usd"], shown["saved_month_usd"]) == (1.0, 3.5, 1.0)
    assert (shown["projection_usd"], shown["not_counted"]) == (None, 2)
    assert len(shown["budgets"]) == MAX_BUDGETS
    assert shown["budgets"][0]["budget"] == "b49"
    with pytest.raises((KeyError, TypeError)):
        spent({"error": {"type": "unavailable"}}, NOW)
