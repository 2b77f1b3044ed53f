"""Vendors' rate-limit headers: one shape for all, and nothing that a vendor writes there can break a call."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.base import Quota
from providers.exchange import Vendor
from providers.quotas import QuotasIn, anthropic_quotas, groq_quotas, no_quotas, openai_quotas

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def claude(what: str, limit: str = "50", remaining: str = "49", reset: str = "2026-11-23T12:00:30Z") -> dict[str, str]:
    fields = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{what}-{field}": value for field, value in fields.items()}


def chat(what: str, limit: str = "14400", remaining: str = "14399", reset: str = "6s") -> dict[str, str]:
    fields = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{field}-{what}": value for field, value in fields.items()}


def test_anthropics_requests_and_both_directions_of_tokens_are_quotas_of_a_minute() -> None:
    headers = (
        claude("requests", reset="2026-11-23T12:00:01.5Z")
        | claude("input-tokens", "40000", "12000", "2026-11-23T13:00:42+01:00")
        | claude("output-tokens", "8000", "0")
        | claude("tokens", "48000", "8000")
    )
    assert anthropic_quotas(headers, NOON) == (
        Quota("rpm", 50, 49, 1.5),
        Quota("itpm", 40000, 12000, 42.0),
        Quota("otpm", 8000, 0, 30.0),
    )


@pytest.mark.parametrize("split", ["input-tokens", "output-tokens"])
def test_anthropics_tokens_repeat_the_tighter_direction_and_count_only_alone(split: str) -> None:
    assert anthropic_quotas(claude("tokens", "9", "8"), NOON) == (Quota("tpm", 9, 8, 30.0),)
    assert "tpm" not in {quota.metric for quota in anthropic_quotas(claude("tokens") | claude(split), NOON)}


def test_groqs_requests_are_of_a_day_and_its_tokens_of_a_minute() -> None:
    headers = chat("requests") | chat("tokens", "18000", "17997", "7.66s")
    assert groq_quotas(headers, NOON) == (Quota("rpd", 14400, 14399, 6.0), Quota("tpm", 18000, 17997, 7.66))


def test_a_servers_that_copies_openai_are_both_of_a_minute() -> None:
    headers = chat("requests", "60", "59", "1s") | chat("tokens", "150000", "149984", "6ms")
    assert openai_quotas(headers, NOON) == (Quota("rpm", 60, 59, 1.0), Quota("tpm", 150000, 149984, 0.006))


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7.66s", 7.66),
        ("2m59.56s", 179.56),
        ("6ms", 0.006),
        ("120.5µs", 120.5e-6),
        ("24h0m0s", 86400.0),
        ("1m5s", 65.0),
        ("0s", 0.0),
        ("0", 0.0),
    ],
)
def test_a_reset_in_gos_words_is_told_in_seconds(told: str, seconds: float) -> None:
    (quota,) = groq_quotas(chat("tokens", reset=told), NOON)
    assert quota.reset_s == pytest.approx(seconds)


@pytest.mark.parametrize("told", ["", "soon", "60", "-6s", "6 s", "s", "6s!", "1.2.3s", "2026-11-23T12:00:30Z"])
def test_a_reset_that_is_no_duration_leaves_the_quota_out(told: str) -> None:
    assert groq_quotas(chat("tokens", reset=told) | chat("requests"), NOON) == (Quota("rpd", 14400, 14399, 6.0),)


@pytest.mark.parametrize("told", ["", "soon", "30", "2026-13-01T00:00:00Z", "2026-11-23T12:00:30", "7.66s"])
def test_a_reset_that_is_no_moment_leaves_the_quota_out(told: str) -> None:
    assert anthropic_quotas(claude("requests", reset=told), NOON) == ()


def test_a_reset_that_is_past_is_now() -> None:
    assert anthropic_quotas(claude("requests"), NOON + timedelta(hours=1)) == (Quota("rpm", 50, 49, 0.0),)


@pytest.mark.parametrize("told", ["", "-1", "many", "4.5", "1_000", "९", "9" * 5000])
def test_a_count_that_is_none_leaves_its_field_out(told: str) -> None:
    assert groq_quotas(chat("tokens", remaining=told), NOON) == ()
    assert groq_quotas(chat("tokens", limit=told), NOON) == (Quota("tpm", None, 14399, 6.0),)


def test_a_vendor_reads_its_headers_in_any_case_and_as_of_the_moment_they_came() -> None:
    shouted = {name.title(): value for name, value in claude("requests").items()}
    vendor = Vendor("Anthropic", "request-id", anthropic_quotas)
    assert vendor.quotas(shouted, NOON) == (Quota("rpm", 50, 49, 30.0),)
    in_a_minute = datetime.now(UTC) + timedelta(seconds=60)
    (quota,) = vendor.quotas(claude("requests", reset=in_a_minute.isoformat()))
    assert 50 < quota.reset_s <= 60


def test_a_vendor_that_sends_none_has_none() -> None:
    assert no_quotas(claude("requests") | chat("tokens"), NOON) == ()
    assert Vendor("Gemini", "x-goog-request-id").quotas(chat("tokens")) == ()


WORDS = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=-23))])).map(datetime.isoformat),
    st.from_regex(r"([0-9]+(\.[0-9]+)?(h|m|s|ms|us|ns)){1,3}", fullmatch=True),
)


@given(
    st.dictionaries(
        st.sampled_from(
            sorted(claude("requests") | claude("tokens") | claude("input-tokens") | claude("output-tokens"))
        ),
        WORDS,
    ),
    st.dictionaries(st.sampled_from(sorted(chat("requests") | chat("tokens"))), WORDS),
    st.sampled_from([anthropic_quotas, groq_quotas, openai_quotas]),
)
def test_whatever_the_headers_say_the_quotas_are_sound(
    of_claude: dict[str, str], of_chat: dict[str, str], read: QuotasIn
) -> None:
    quotas = read(of_claude | of_chat, NOON)
    assert len({quota.metric for quota in quotas}) == len(quotas)
    for quota in quotas:
        assert quota.remaining >= 0
        assert quota.limit is None or quota.limit >= 0
        assert quota.reset_s >= 0
        assert math.isfinite(quota.reset_s)
