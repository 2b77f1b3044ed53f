"""The models as data: names, prices over time, overlays, and clear complaints."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.catalog import CatalogError, load_catalog, merge
from processor.pricing import Price, PriceList, Rates
from providers.base import Usage

CATALOG = load_catalog(None)
TODAY = datetime(2026, 11, 23, 12, tzinfo=UTC)
TINY = """
[models.tiny]
id = "acme/tiny"
provider = "groq"
context = 8192
max_output = 1024
[[models.tiny.prices]]
"""
RATES = 'input = "0.10"\noutput = "0.20"\n'
counts = st.integers(0, 3_000_000)


def overlaid(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_catalog(path)


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "model_id", "successor"),
    [
        ("haiku", "claude-haiku-4-5-20251001", "claude-haiku-5-5"),
        ("sonnet", "claude-sonnet-4-5-20250929", "claude-sonnet-5-5"),
        ("llama", "llama-3.3-70b-versatile", "openai/gpt-oss-120b"),
        ("kimi", "moonshotai/kimi-k2-instruct-0905", "qwen/qwen3.8-27b"),
        ("gemini", "gemini-2.5-flash", "gemini-3.5-flash-lite"),
    ],
)
def test_the_five_of_the_mission_keep_their_names_and_have_successors(name: str, model_id: str, successor: str) -> None:
    model = CATALOG.models[name]
    assert model.id == model_id
    assert CATALOG.models[model.successor or ""].id == successor


def test_a_name_resolves_by_alias_id_and_other_spelling() -> None:
    day = date(2025, 12, 1)
    for name in ("haiku", "claude-haiku-4-5", "claude-haiku-4-5-20251001"):
        assert CATALOG.resolve(name, day).model.alias == "haiku"


def test_a_model_near_its_end_is_warned_of() -> None:
    resolved = CATALOG.resolve("sonnet", date(2026, 11, 23))
    assert not resolved.moved
    assert resolved.warning is not None
    assert "2026-11-30" in resolved.warning
    assert CATALOG.resolve("sonnet", date(2026, 6, 1)).warning is None


def test_no_successor_is_itself_retired_today() -> None:
    for name in CATALOG.models:
        assert not CATALOG.resolve(name, date(2026, 12, 2)).model.retired(date(2026, 12, 2))


# --- prices ---------------------------------------------------------------------------------


@given(
    st.sampled_from([model for model in CATALOG.models.values() if not model.free]),
    counts,
    counts,
    counts,
    counts,
)
def test_a_cost_is_what_genai_prices_itself_calculates(
    model: Any, fresh: int, read: int, written: int, output: int
) -> None:
    caches = model.provider == "anthropic"
    usage = Usage(fresh, read if model.provider != "groq" else 0, written if caches else 0, output_visible=output)
    theirs = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cache_read,
            cache_write_tokens=usage.cache_write,
            output_tokens=output,
        ),
        model.id,
        provider_id="google" if model.provider == "gemini" else model.provider,
        genai_request_timestamp=TODAY,
    )
    ours = CATALOG.price(usage, model, served_by=model.id, at=TODAY)
    assert (ours.usd, ours.estimated) == (theirs.total_price, False)


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("haiku", ("1", "5")),
        ("sonnet", ("3", "15")),
        ("llama", ("0.59", "0.79")),
        ("kimi", ("1", "3")),
        ("gemini", ("0.3", "2.5")),
    ],
)
def test_the_published_prices_of_the_five(name: str, rates: tuple[str, str]) -> None:
    held = CATALOG.price_lists[name].rates(0, TODAY.date())
    assert (held.input, held.output) == tuple(map(Decimal, rates))


def test_a_one_hour_cache_write_costs_more_than_a_five_minute_one() -> None:
    haiku = CATALOG.models["haiku"]
    five = CATALOG.price(Usage(cache_write_5m=1_000_000), haiku, served_by=haiku.id, at=TODAY).usd
    hour = CATALOG.price(Usage(cache_write_1h=1_000_000), haiku, served_by=haiku.id, at=TODAY).usd
    assert (five, hour) == (Decimal("1.25"), Decimal(2))


def test_an_expected_cost_is_that_of_a_call_which_no_cache_helps() -> None:
    for alias, tokens in (("haiku", 1_000), ("haiku-5.5", 150_000), ("local", 10)):
        model = CATALOG.models[alias]
        real = CATALOG.price(Usage(tokens, output_visible=70), model, served_by=None, at=TODAY).usd
        assert CATALOG.expected_cost(model, tokens, 70, TODAY.date()) == real


def test_the_price_is_that_of_the_model_that_really_served() -> None:
    asked = CATALOG.models["gemini"]
    usage = Usage(1_000_000)
    moved = CATALOG.price(usage, asked, served_by="gemini-3.8-flash", at=TODAY)
    assert (moved.usd, moved.estimated) == (Decimal("0.75"), False)
    prefixed = CATALOG.price(usage, asked, served_by="models/gemini-3.8-flash", at=TODAY)
    assert prefixed == moved


def test_a_served_model_that_nobody_prices_is_an_estimate_and_not_zero() -> None:
    asked = CATALOG.models["haiku"]
    cost = CATALOG.price(Usage(1_000_000), asked, served_by="claude-unheard-of", at=TODAY)
    assert (cost.usd, cost.estimated) == (Decimal(1), True)


def test_a_long_prompt_is_priced_whole_by_its_tier() -> None:
    model = CATALOG.models["haiku-5.5"]
    below = CATALOG.price(Usage(100_000), model, served_by=model.id, at=TODAY).usd
    above = CATALOG.price(Usage(100_001), model, served_by=model.id, at=TODAY).usd
    assert below == Decimal("0.01")
    assert above == Decimal("0.0500005")


def test_a_price_holds_from_its_day_on() -> None:
    def flat(dollars: int) -> Rates:
        return Rates(*[Decimal(dollars)] * 5)

    prices = PriceList.of([Price(flat(2), date(2026, 6, 1)), Price(flat(1), date(2026, 1, 1))])
    assert [prices.rates(0, date(2026, month, 1)).input for month in (1, 5, 6, 12)] == [1, 1, 2, 2]
    with pytest.raises(LookupError):
        prices.rates(0, date(2025, 12, 31))


def test_a_price_of_ones_own_for_later_leaves_the_published_one_until_then(tmp_path: Path) -> None:
    mine = overlaid(tmp_path, f"[[models.haiku.prices]]\nvalid_from = 2027-01-01\n{RATES}")
    costs = [
        mine.price(Usage(1_000_000), mine.models["haiku"], served_by=None, at=datetime(year, 1, 1, tzinfo=UTC)).usd
        for year in (2026, 2027)
    ]
    assert costs == [Decimal(1), Decimal("0.10")]


# --- overlays and complaints ----------------------------------------------------------------


def test_an_overlay_replaces_only_what_it_names(tmp_path: Path) -> None:
    mine = overlaid(
        tmp_path, '[limits.anthropic]\nrpm = 1000\n[models.haiku]\ntier = 4\n[budgets]\nmonthly_usd = "20"\n'
    )
    assert (mine.limits["anthropic"].rpm, mine.limits["anthropic"].tpm) == (1000, 50_000)
    assert (mine.models["haiku"].tier, mine.models["haiku"].context) == (4, 200_000)
    assert mine.budgets.monthly_usd == 20
    assert mine.limits["groq"].rpm == 100


def test_an_overlays_rules_take_the_place_of_all_of_them(tmp_path: Path) -> None:
    mine = overlaid(tmp_path, '[[routing.rules]]\nname = "all"\nmodels = ["qwen", "default"]\nweigh = "cost"\n')
    assert [rule.name for rule in mine.routing.rules] == ["all"]
    assert len(overlaid(tmp_path, "[models.haiku]\ntier = 4\n").routing.rules) == len(CATALOG.routing.rules)


def test_a_new_model_needs_no_code(tmp_path: Path) -> None:
    later = '[[models.tiny.prices]]\nvalid_from = 2027-01-01\ninput = "0.05"\noutput = "0.10"\n'
    mine = overlaid(tmp_path, TINY + RATES + later)
    tiny = mine.models["tiny"]
    assert mine.price(Usage(1_000_000), tiny, served_by="acme/tiny", at=TODAY).usd == Decimal("0.10")
    assert mine.price(Usage(1_000_000), tiny, served_by=None, at=datetime(2027, 1, 1, tzinfo=UTC)).usd == Decimal(
        "0.05"
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[models.haiku]\ncolour = 1\n", "models.haiku.colour: unknown key"),
        ("[models.haiku]\ncontext = -1\n", "models.haiku.context"),
        ('[models.haiku]\nsuccessor = "nobody"\n', "there is no model 'nobody'"),
        ('[models.haiku]\nsuccessor = "haiku"\n', "the successors go round"),
        ('[models.haiku]\nalso = ["sonnet"]\n', "belongs to two models"),
        ('[models.x]\nid = "x/y"\nprovider = "groq"\ncontext = 1\nmax_output = 1\n', "no price is known for x/y"),
        ("[models.x]\n", "models.x.id"),
        (f"{TINY}{RATES}".replace("tiny", "auto"), "models.auto: 'auto' is what routing decides"),
        (f"{TINY}{RATES}".replace("tiny", "Default"), "models.Default: 'Default' is what routing decides"),
        ('[models.haiku]\ncannot = ["fly"]\n', "models.haiku.cannot"),
        (f"{TINY}valid_from = 2027-01-01\n{RATES}", "no price holds before 2027-01-01"),
        (f"{TINY}above_input_tokens = 5\n{RATES}", "no price holds before"),
        (
            f"{TINY}{RATES}[[models.tiny.prices]]\nvalid_from = 2027-01-01\nabove_input_tokens = 5\n{RATES}",
            "from 2027-01-01 on only longer prompts have a price",
        ),
        ("models = 1\n", "models"),
        (
            '[[routing.rules]]\nname = "all"\nmodels = ["nobody"]\n',
            "routing.rules.0.models: there is no model 'nobody'",
        ),
        ('[[routing.rules]]\nname = "all"\ncolour = 1\n', "routing.rules.0.colour: unknown key"),
        ('[[routing.rules]]\nname = "all"\ntier = 6\n', "routing.rules.0.tier"),
        ('[[routing.rules]]\nname = "all"\nweigh = "luck"\n', "routing.rules.0.weigh"),
        ('[[routing.rules]]\nname = "all"\nneeds = ["wings"]\n', "routing.rules.0.needs"),
        ('[[routing.rules]]\nname = "all"\ntask_types = []\n', "routing.rules.0.task_types"),
        ('[[routing.rules]]\nname = "all"\ncomplexity_from = 2\n', "routing.rules.0.complexity_from"),
        ('[[routing.rules]]\nname = ""\n', "routing.rules.0.name"),
        ('[[routing.rules]]\nname = "x"\nprefer = "cost"\n', "the last rule has to be one without conditions"),
        ("[routing]\nrules = []\n", "the last rule has to be one without conditions"),
        ('[[routing.rules]]\nname = "x"\n[[routing.rules]]\nname = "y"\n', "'x' has no condition"),
        ('[[routing.rules]]\nname = "x"\nprefer = "cost"\n[[routing.rules]]\nname = "x"\n', "the name 'x'"),
        ("[routing]\nluck = 1\n", "routing.luck: unknown key"),
        ("not toml", "not TOML"),
    ],
)
def test_a_wrong_catalog_is_refused_by_file_table_and_field(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(CatalogError) as raised:
        overlaid(tmp_path, text)
    assert named in str(raised.value)
    assert "mine.toml" in str(raised.value)


def test_a_missing_overlay_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="SIDECAR_CATALOG"):
        load_catalog(tmp_path / "none.toml")


def test_a_server_of_ones_own_is_no_demo_and_has_other_limits_than_it() -> None:
    mine = load_catalog(local_server=True, local_model="qwen3:8b")
    local = mine.resolve("local", TODAY.date()).model
    assert (local.id, local.demo, local.free) == ("qwen3:8b", False, True)
    assert mine.resolve("qwen3:8b", TODAY.date()).model is local
    assert local.context > CATALOG.models["local"].context
    assert "tools" in local.abilities - CATALOG.models["local"].abilities


def test_an_overlay_knows_ones_own_server_better(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[models.local]\ncontext = 7_000\n")
    mine = load_catalog(tmp_path / "mine.toml", local_server=True, local_model="qwen3:8b")
    assert (mine.models["local"].id, mine.models["local"].context) == ("qwen3:8b", 7_000)


def test_a_model_that_two_providers_serve_costs_what_each_of_them_takes() -> None:
    mine = load_catalog(local_server=True, local_model="openai/gpt-oss-120b")
    usage = Usage(1_000_000)
    theirs, own = mine.models["gpt-oss-120b"], mine.models["local"]
    assert mine.resolve("openai/gpt-oss-120b", TODAY.date()).model is theirs
    assert mine.price(usage, theirs, served_by="openai/gpt-oss-120b", at=TODAY).usd > 0
    assert mine.price(usage, own, served_by="openai/gpt-oss-120b", at=TODAY).usd == 0


json = st.recursive(st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3))
tables = st.dictionaries(st.sampled_from("abc"), json, max_size=3)


@given(tables, tables)
def test_merging_keeps_what_is_not_named_and_takes_what_is(under: dict[str, Any], over: dict[str, Any]) -> None:
    merged = merge(under, over)
    assert merge(merged, over) == merged
    assert merge(under, {}) == under
    assert set(merged) == set(under) | set(over)
