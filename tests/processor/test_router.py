"""Which models may answer, in which order, and why the others may not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.catalog import Catalog, CatalogModel, load_catalog
from processor.errors import ErrorType, RequestError
from processor.messages import Request, decode_request
from processor.prompts import build_prompt
from processor.router import ASKED, Conditions, Route, route
from processor.traits import Traits, traits
from providers import anthropic_codec, gemini_codec
from providers.base import Endpoint, Prompt
from providers.errors import Unsupported
from providers.groq import GroqProvider

NOVEMBER = datetime(2026, 11, 23, tzinfo=UTC)
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
KIMIS_TIME = datetime(2026, 4, 1, tzinfo=UTC)
ALL = {"anthropic", "groq", "gemini", "local"}
CATALOG: Catalog = load_catalog(None)
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PICTURE = [
    {"type": "text", "text": "What?"},
    {"type": "image", "media_type": "image/png", "data": PIXEL},
]


def request(content: Any = "hi", **fields: Any) -> Request:
    return decode_request(orjson.dumps({"messages": [{"role": "user", "content": content}], **fields}))


def conditions(available: set[str] = ALL, on: datetime = NOVEMBER, default: str = "haiku", **known: Any) -> Conditions:
    return Conditions(on, available, default, **known)


def routed(available: set[str] = ALL, on: datetime = NOVEMBER, text: Any = "hi", **fields: Any) -> Route:
    return route(request(text, **fields), CATALOG, conditions(available, on))


def looks(on: datetime = NOVEMBER, available: set[str] = ALL, **fields: Any) -> Route:
    """A request of 1,000 tokens that looks easy, but for what is named."""
    given = Traits(**{"input_tokens": 1_000, "complexity": 0.1} | fields)
    return route(given, CATALOG, conditions(available, on))


def under(given: Traits, **known: Any) -> Route:
    return route(given, CATALOG, conditions(**known))


def names(found: Route) -> list[str]:
    return [candidate.name for candidate in found.candidates]


def refused(found: Route) -> dict[str, str]:
    return {refusal.model: refusal.reason for refusal in found.refusals}


EASY = Traits(input_tokens=1_000, complexity=0.1)
HARD = Traits(input_tokens=1_000, complexity=0.9)


# --- the rules of `auto` ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "rule", "first"),
    [
        ({}, "default", "haiku"),
        ({"complexity": 0.9}, "complex", "sonnet"),
        ({"complexity": 0.5}, "complex", "sonnet"),
        ({"task_type": "code"}, "code", "sonnet"),
        ({"task_type": "reasoning"}, "reasoning", "sonnet"),
        ({"task_type": "translation", "complexity": 0.9}, "simple-task", "haiku"),
        ({"task_type": "poetry", "complexity": 0.9}, "complex", "sonnet"),
        ({"task_type": "summarisation", "complexity": 0.9}, "simple-task", "haiku"),
        ({"task_type": "Translate", "complexity": 0.9}, "simple-task", "haiku"),
        ({"task_type": "code-review"}, "code", "sonnet"),
        ({"task_type": "CODE"}, "code", "sonnet"),
        ({"task_type": "maths"}, "reasoning", "sonnet"),
        ({"prefer": "speed"}, "speed", "gpt-oss-120b"),
        ({"prefer": "cost", "complexity": 0.9}, "cost", "haiku"),
        ({"prefer": "quality"}, "quality", "sonnet"),
        ({"prefer": "cost", "task_type": "code"}, "cost", "haiku"),
        ({"needs": ("images",)}, "images", "gemini"),
        ({"needs": ("images",), "task_type": "code"}, "images", "gemini"),
        ({"needs": ("images",), "prefer": "speed"}, "speed", "gemini"),
        ({"needs": ("tools",)}, "default", "haiku"),
        ({"input_tokens": 100_000}, "default", "haiku"),
        ({"input_tokens": 150_000}, "long-context", "gemini"),
        ({"input_tokens": 150_000, "prefer": "quality", "needs": ("images",)}, "long-context", "gemini"),
    ],
)
def test_the_missions_rules(fields: dict[str, Any], rule: str, first: str) -> None:
    found = looks(**fields)
    assert (found.rule, names(found)[0]) == (rule, first)


@pytest.mark.parametrize(("on", "speed"), [(KIMIS_TIME, "llama"), (NOVEMBER, "gpt-oss-120b")])
def test_speed_is_llama_on_groq_and_its_successor_from_the_day_it_goes(on: datetime, speed: str) -> None:
    assert names(looks(on, prefer="speed"))[0] == speed


def test_a_long_prompt_goes_to_kimi_where_it_is_served_and_never_to_its_successor() -> None:
    assert names(looks(KIMIS_TIME, input_tokens=150_000))[0] == "kimi"
    without = looks(KIMIS_TIME, ALL - {"groq"}, input_tokens=150_000)
    assert names(without)[0] == "gemini"
    after = looks(NOVEMBER, input_tokens=110_000)
    scores = {candidate.name: candidate.score for candidate in after.candidates}
    assert scores["qwen"] < scores["gpt-oss-20b"]  # so it is not preferred, but dearer


def test_a_long_prompt_goes_to_the_cheapest_model_whose_window_holds_it() -> None:
    found = looks(input_tokens=150_000)
    costs = [candidate.cost_usd for candidate in found.candidates]
    assert costs == sorted(costs)
    assert all(candidate.model.context >= 150_000 + 4096 for candidate in found.candidates)
    unwell = under(Traits(input_tokens=150_000), unwell={"gemini": "down", "gemini-3.5-flash-lite": "down"})
    assert names(unwell)[0] == "haiku-5.5"


@pytest.mark.parametrize(
    "fields", [{}, {"task_type": "code"}, {"prefer": "quality"}, {"prefer": "cost"}, {"prefer": "speed"}]
)
def test_gemini_is_the_backup(fields: dict[str, Any]) -> None:
    found = looks(**fields)
    assert names(found)[1] == "gemini"
    alone = route(
        Traits(input_tokens=10, **fields), CATALOG, conditions(unwell={names(found)[0]: "its circuit is open"})
    )
    assert names(alone)[0] == "gemini"


def test_a_hard_question_is_told_from_an_easy_one_by_its_text() -> None:
    hard = "Prove that the sum of two odd integers is even, then weigh the trade-offs of both proofs step by step."
    assert (routed(text=hard).rule, routed(text="Translate 'rain' into Swahili.").rule) == ("complex", "default")
    assert names(routed(text=hard))[0] == "sonnet"


def test_the_default_is_what_the_setting_says() -> None:
    assert names(under(EASY, default="sonnet"))[0] == "sonnet"
    assert names(routed())[0] == names(routed(model="auto"))[0] == "haiku"
    moved = under(EASY, default="llama")
    assert moved.candidates[0].name == "gpt-oss-120b"
    assert "retired on 2026-08-16" in moved.candidates[0].warnings[0]
    with pytest.raises(RequestError, match="did you mean haiku"):
        under(EASY, default="hauku")


def test_every_reason_says_the_rule_and_the_figures() -> None:
    found = under(EASY, latency={"haiku": (0.5, 1000.0)}, unwell={"gemini": "its circuit is open after failures"})
    assert found.candidates[0].reason == "rule 'default': tier 3, about $0.002500, 0.8 s"
    assert found.candidates[-1].reason.endswith("its circuit is open after failures")
    assert under(EASY, room={"haiku": 0.02}).candidates[0].name == "gemini"
    assert "2% of its limits free" in str(under(EASY, room={"haiku": 0.02}).candidates)


# --- what is known counts ---------------------------------------------------------------------


def test_a_model_that_is_nearly_out_of_room_comes_after_the_next_best() -> None:
    assert names(under(EASY, room={"haiku": 0.11}))[0] == "haiku"
    assert names(under(EASY, room={"haiku": 0.09}))[0] == "gemini"


def test_a_faster_model_wins_where_speed_counts_and_what_is_not_measured_is_neutral() -> None:
    fast = Traits(input_tokens=100, prefer="speed")
    slow_llama = {"gpt-oss-120b": (20.0, 10.0), "gemini": (0.3, 500.0)}
    assert names(under(fast, latency=slow_llama))[0] == "gemini"
    assert names(under(fast, latency={"gemini": (0.3, 500.0)})) == names(under(fast))
    assert names(under(EASY, latency={"haiku": (0.6, 50.0), "gemini": (0.2, 300.0)}))[0] == "haiku"


def test_a_verbose_model_is_priced_by_what_it_usually_says() -> None:
    cost = {
        usual: next(c.cost_usd for c in under(EASY, usual_output={"haiku": usual}).candidates if c.name == "haiku")
        for usual in (100, 2_000)
    }
    assert cost[2_000] > 5 * cost[100]
    short = Traits(input_tokens=1_000, max_tokens=100)
    assert under(short, usual_output={"haiku": 2_000}).candidates[0].cost_usd == cost[100]


def test_a_model_of_which_nothing_is_known_is_taken_to_say_as_much_as_the_others() -> None:
    chatty, brief = (
        {c.name: c.score for c in under(EASY, usual_output=dict.fromkeys(("haiku", "gpt-oss-20b"), n)).candidates}
        for n in (1_000, 10)
    )
    assert chatty["qwen"] == pytest.approx(brief["qwen"], abs=0.5)


def test_without_cost_optimization_quality_decides() -> None:
    tiers = [candidate.model.tier for candidate in under(EASY, by_quality=True).candidates]
    assert tiers == sorted(tiers, reverse=True)
    assert "by quality" in under(EASY, by_quality=True).candidates[0].reason
    assert names(under(EASY.model_copy(update={"prefer": "cost"}), by_quality=True))[0] == "haiku"
    assert under(EASY.model_copy(update={"model": "haiku"}), by_quality=True).candidates[1].model.tier == 5


def test_without_cost_optimization_speed_and_room_only_part_models_of_one_quality() -> None:
    known: dict[str, Any] = {
        "latency": {"sonnet": (40.0, 20.0), "sonnet-5.5": (20.0, 20.0), "qwen": (0.5, 500.0)},
        "room": {"sonnet": 0.11, "sonnet-5.5": 0.11},
    }
    assert names(under(EASY, by_quality=True, **known))[:2] == ["sonnet-5.5", "sonnet"]
    fallbacks = names(under(EASY.model_copy(update={"model": "haiku"}), by_quality=True, **known))[1:3]
    assert fallbacks == ["sonnet-5.5", "sonnet"]


@pytest.mark.parametrize("by_quality", [False, True])
def test_near_the_end_of_a_budget_cheaper_models_are_preferred(by_quality: bool) -> None:
    for asked in (EASY, HARD, EASY.model_copy(update={"prefer": "quality"})):
        usual, thrifty = under(asked), under(asked, thrifty=True, by_quality=by_quality)
        assert thrifty.candidates[0].cost_usd < usual.candidates[0].cost_usd / 5
        assert "the budget is nearly used" in thrifty.candidates[0].reason


def test_a_budget_changes_nothing_for_a_model_that_was_asked_for() -> None:
    named = EASY.model_copy(update={"model": "sonnet"})
    assert names(under(named, thrifty=True)) == names(under(named))


def test_a_free_model_is_cheaper_than_all_others() -> None:
    mine = load_catalog(local_server=True, local_model="qwen3:8b")
    found = route(EASY, mine, conditions(thrifty=True))
    assert names(found)[0] == "local"
    assert names(route(EASY, mine, conditions()))[0] == "haiku"


def test_who_was_meant_is_known_though_another_comes_first() -> None:
    def meant(given: Traits, **known: Any) -> tuple[str, str]:
        found = under(given, **known)
        assert found.meant is not None
        return found.meant.alias, names(found)[0]

    out = {"unwell": {"sonnet": "down", "sonnet-5.5": "down"}}
    assert meant(HARD, **out) == ("sonnet", "gemini")
    assert meant(HARD, room={"sonnet": 0.0}) == ("sonnet", "gemini")
    assert meant(EASY, by_quality=True, **out) == ("sonnet", "gemini-3.8-flash")
    thrifty, cheap = meant(HARD, thrifty=True)
    assert thrifty == cheap
    assert meant(EASY.model_copy(update={"model": "sonnet"}), **out) == ("sonnet", "sonnet")
    assert under(EASY, available=set()).meant is None


# --- a model that was asked for ---------------------------------------------------------------


def test_the_model_that_was_asked_for_comes_first_then_the_others_by_score() -> None:
    found = routed(model="sonnet")
    assert (names(found)[0], found.rule) == ("sonnet", ASKED)
    scores = [candidate.score for candidate in found.candidates[1:]]
    assert scores == sorted(scores, reverse=True)
    assert found.candidates[0].reason == "sonnet was asked for"
    assert found.candidates[1].reason.startswith("fallback: tier ")


def test_fallbacks_are_as_good_as_the_model_that_was_asked_for_where_they_can_be() -> None:
    assert routed(model="sonnet").candidates[1].model.tier == 5
    assert routed(model="haiku").candidates[1].model.tier == 3


def test_of_equally_good_fallbacks_another_vendors_comes_first() -> None:
    found = [candidate.model.provider for candidate in routed(model="haiku").candidates]
    assert found[0] == "anthropic" != found[1]


def test_a_model_that_was_asked_for_is_first_even_when_it_is_unwell() -> None:
    named = EASY.model_copy(update={"model": "haiku"})
    assert names(under(named, unwell={"haiku": "down"}, room={"haiku": 0.0}))[0] == "haiku"


@pytest.mark.parametrize(("model", "answers"), [("llama", ["llama"]), ("auto", ["haiku"])])
def test_without_fallback_there_is_one_candidate(model: str, answers: list[str]) -> None:
    found = routed(model=model, fallback=False)
    assert names(found) == answers
    assert refused(found)["sonnet"] == f"{answers[0]} alone may answer"


def test_auto_without_fallback_is_the_best_model_that_can() -> None:
    assert names(routed(available={"groq"}, fallback=False)) == names(routed(available={"groq"}))[:1]


@pytest.mark.parametrize("name", ["claude-haiku-4-5-20251001", "claude-haiku-4-5", "openai/gpt-oss-20b"])
def test_a_full_model_id_pins_the_model_unless_fallback_is_asked_for(name: str) -> None:
    assert names(routed(model=name)) == [name]
    assert len(names(routed(model=name, fallback=True))) > 1
    assert names(routed(available={"local"}, model=name)) == []


def test_a_retired_name_moves_on_to_its_successor_and_says_so() -> None:
    found = routed(model="llama")
    assert (found.candidates[0].name, found.candidates[0].model.id) == ("llama", "openai/gpt-oss-120b")
    assert "retired on 2026-08-16" in found.candidates[0].warnings[0]


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("sonnet", "claude-sonnet-4-5-20250929", "claude-sonnet-5-5"),
        ("gemini", "gemini-2.5-flash", "gemini-3.5-flash-lite"),
    ],
)
def test_a_name_changes_its_model_on_the_day_the_old_one_goes(name: str, before: str, after: str) -> None:
    assert routed(model=name).candidates[0].model.id == before
    assert routed(model=name, on=DECEMBER).candidates[0].model.id == after


def test_a_retired_model_is_no_fallback() -> None:
    found = routed(model="haiku")
    assert not {"llama", "kimi"} & set(names(found))
    assert refused(found)["kimi"] == "its vendor no longer serves it"


def test_an_answer_is_kept_under_the_models_id_or_under_the_rule() -> None:
    assert routed(model="llama").model_class == routed(model="gpt-oss-120b").model_class == "openai/gpt-oss-120b"
    assert routed().model_class == "auto:default"


def test_what_a_rule_means_changes_with_the_catalog_and_the_settings_and_not_with_the_moment() -> None:
    def means(on: datetime = NOVEMBER, **known: Any) -> str:
        return route(request(), CATALOG, conditions(on=on, **known)).means

    now = means()
    others = [means(default="sonnet"), means(by_quality=True), means(on=DECEMBER)]
    assert len({now, *others}) == 4
    assert means(unwell={"haiku": "broken"}, room={"gemini": 0.01}, thrifty=True) == now


# --- what no model is weighed by --------------------------------------------------------------


def test_a_provider_without_key_is_refused_with_its_reason() -> None:
    found = routed(available={"groq"}, model="haiku")
    assert all(candidate.model.provider == "groq" for candidate in found.candidates)
    assert refused(found)["haiku"] == "provider anthropic is not configured"


def test_a_demo_model_answers_by_name_or_when_there_is_nothing_else() -> None:
    assert names(routed(model="local"))[0] == "local"
    assert names(routed(available={"local"})) == ["local"]
    assert "local" not in names(routed()) + names(routed(model="haiku"))
    assert names(routed(available={"local"}, model="haiku")) == []
    assert names(under(EASY, default="local"))[0] == "local"


def test_images_tools_and_json_leave_out_models_that_cannot() -> None:
    found = routed(text=PICTURE, model="llama")
    assert {candidate.model.provider for candidate in found.candidates} == {"anthropic", "gemini"}
    assert "it has no images" in refused(found)["gpt-oss-120b"]
    with_tools = routed(available={"local"}, model="local", tools=[{"name": "f"}])
    assert (names(with_tools), with_tools.refusals[0].reason) == ([], "it has no tools")


JSON = {"type": "json_object"}
SCHEMA = {"type": "json_schema", "schema": {"type": "object"}}
TOOLS = [{"name": "f"}]


def test_what_a_vendor_refuses_beside_its_abilities_goes_elsewhere() -> None:
    assert names(routed(response_format=JSON, fallback=False)) == ["gemini"]
    assert refused(routed(response_format=JSON))["haiku"] == "it has no json_object"
    everything: dict[str, Any] = {"tools": TOOLS, "response_format": SCHEMA}
    assert names(routed(text=PICTURE, fallback=False, **everything)) == ["haiku"]
    assert names(routed(prefer="speed", fallback=False, **everything)) == ["haiku-5.5"]
    assert refused(routed(model="llama", **everything))["gemini"] == "it has no json_with_tools"


@pytest.mark.parametrize("model", [m for m in CATALOG.models.values() if m.provider != "local"], ids=lambda m: m.alias)
def test_what_the_catalog_says_that_a_model_cannot_is_what_its_provider_refuses(model: CatalogModel) -> None:
    encode: dict[str, Callable[[Prompt], Any]] = {
        "anthropic": lambda prompt: anthropic_codec.encode(prompt, dict, stream=False),
        "groq": lambda prompt: GroqProvider(Endpoint()).call(prompt, None, stream=False),
        "gemini": gemini_codec.encode,
    }
    asked: dict[str, dict[str, Any]] = {
        "json_object": {"response_format": JSON},
        "json_with_tools": {"response_format": SCHEMA, "tools": TOOLS},
    }
    for combination, fields in asked.items():
        prompt = build_prompt(request(**fields), model_id=model.id, max_output=100, stream=False)
        refuses = pytest.raises(Unsupported) if combination in model.cannot else nullcontext()
        with refuses:
            encode[model.provider](prompt)


@pytest.mark.parametrize(
    ("fields", "available", "fault"),
    [
        ({"text": PICTURE}, {"groq"}, ErrorType.INVALID_REQUEST),
        ({"text": PICTURE, "model": "openai/gpt-oss-20b"}, ALL, ErrorType.INVALID_REQUEST),
        ({"text": "x" * 900_000}, {"groq"}, ErrorType.TOO_LARGE),
        ({"text": "x" * 900_000, "model": "claude-haiku-4-5"}, {"groq"}, ErrorType.UNAVAILABLE),
        ({}, set(), ErrorType.UNAVAILABLE),
    ],
)
def test_where_nobody_may_answer_it_is_said_whose_fault_that_is(
    fields: dict[str, Any], available: set[str], fault: ErrorType
) -> None:
    found = routed(available=available, **fields)
    assert (names(found), found.nobody) == ([], fault)


def test_a_prompt_that_does_not_fit_the_window_goes_where_it_fits() -> None:
    found = routed(model="llama", text="x" * 900_000)
    assert all(candidate.model.context > 225_000 for candidate in found.candidates)
    assert "do not fit its window" in refused(found)["qwen"]


def test_the_window_holds_the_prompt_and_the_longest_answer() -> None:
    edge = CATALOG.models["gpt-oss-20b"].context - 1_000
    assert "gpt-oss-20b" in names(looks(input_tokens=edge, max_tokens=1_000))
    assert "gpt-oss-20b" in refused(looks(input_tokens=edge, max_tokens=1_001))


def test_an_unknown_model_is_not_found() -> None:
    with pytest.raises(RequestError, match="did you mean haiku") as raised:
        routed(model="hauku")
    assert raised.value.type is ErrorType.NOT_FOUND


def test_everything_considered_is_told() -> None:
    considered = routed(available={"anthropic"}, model="haiku").considered
    assert len(considered) == len(CATALOG.models)
    assert considered[0].reason == "haiku was asked for"


def test_a_rule_of_ones_own_spells_its_task_types_as_it_likes(tmp_path: Path) -> None:
    rules = '[[routing.rules]]\nname = "mine"\ntask_types = ["Field-Report"]\n[[routing.rules]]\nname = "all"\n'
    (tmp_path / "mine.toml").write_text(rules)
    mine = load_catalog(tmp_path / "mine.toml")
    for spelled in ("Field-Report", "field_report"):
        assert route(EASY.model_copy(update={"task_type": spelled}), mine, conditions()).rule == "mine"


def test_a_rule_of_ones_own_may_prefer_a_demo_model(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[[routing.rules]]\nname = "all"\nmodels = ["local"]\n')
    mine = load_catalog(tmp_path / "mine.toml")
    assert names(route(HARD, mine, conditions()))[0] == "local"


# --- whatever is asked, whatever is known -----------------------------------------------------

ALIASES = sorted(CATALOG.models)
anything = st.builds(
    Traits,
    model=st.sampled_from([None, None, "local", "claude-haiku-4-5", *ALIASES]),
    task_type=st.sampled_from([None, "code", "reasoning", "chat", "other"]),
    prefer=st.sampled_from([None, "cost", "speed", "quality"]),
    fallback=st.sampled_from([None, True, False]),
    needs=st.sets(st.sampled_from(["tools", "images", "json", "json_object", "json_with_tools"])).map(
        lambda needs: tuple(sorted(needs))
    ),
    input_tokens=st.integers(0, 2_000_000) | st.integers(1, 5_000),
    max_tokens=st.none() | st.integers(1, 200_000),
    complexity=st.floats(0, 1),
)
some = st.sampled_from(ALIASES)
whatever = st.builds(
    Conditions,
    now=st.sampled_from([KIMIS_TIME, NOVEMBER, DECEMBER]),
    available=st.sets(st.sampled_from(sorted(ALL))),
    default=st.sampled_from(ALIASES),
    unwell=st.dictionaries(some, st.just("down")),
    latency=st.dictionaries(some, st.tuples(st.floats(0, 3_600), st.floats(0.001, 1e6))),
    room=st.dictionaries(some, st.floats(0, 1)),
    usual_output=st.dictionaries(some, st.integers(0, 200_000)),
    by_quality=st.booleans(),
    thrifty=st.booleans(),
)


@given(anything, whatever)
def test_every_model_is_either_a_candidate_or_refused(asked: Traits, known: Conditions) -> None:
    found = route(asked, CATALOG, known)
    aliases = [c.model.alias for c in found.candidates] + [r.model for r in found.refusals]
    assert sorted(aliases) == ALIASES
    assert all(candidate.reason for candidate in found.candidates)
    assert all(refusal.reason for refusal in found.refusals)


@given(anything, whatever)
def test_a_candidate_has_what_the_request_needs(asked: Traits, known: Conditions) -> None:
    for candidate in route(asked, CATALOG, known).candidates:
        assert set(asked.needs) & {"tools", "images", "json"} <= candidate.model.abilities
        assert not set(asked.needs) & candidate.model.cannot
        assert candidate.model.provider in known.available
        assert asked.input_tokens < candidate.model.context
        assert not candidate.model.retired(known.now.date())


@given(anything, whatever)
def test_the_order_is_by_score_and_a_named_model_is_first(asked: Traits, known: Conditions) -> None:
    found = route(asked, CATALOG, known)
    by_score = list(found.candidates)
    if asked.model is not None and (meant := CATALOG.resolve(asked.model, known.now.date()).model).alias not in {
        refusal.model for refusal in found.refusals
    }:
        assert by_score.pop(0).model is meant
    assert by_score == sorted(by_score, key=lambda c: (-c.score, c.model.alias))


@given(anything, whatever)
def test_who_is_unwell_never_comes_before_who_is_well_unless_it_was_asked_for(asked: Traits, known: Conditions) -> None:
    found = route(asked, CATALOG, known).candidates
    first_counts = int(asked.model is not None)
    unwell = [candidate.model.alias in known.unwell for candidate in found[first_counts:]]
    assert unwell == sorted(unwell)


@given(anything, whatever)
def test_a_demo_model_never_stands_beside_one_that_is_none_unless_it_is_meant(asked: Traits, known: Conditions) -> None:
    found = route(asked, CATALOG, replace(known, default="haiku"))
    demos = {c.model.alias for c in found.candidates if c.model.demo}
    if asked.model != "local" and demos:
        assert asked.model is None
        assert len(demos) == len(found.candidates)


@given(anything, whatever)
def test_a_route_can_be_told_again_from_the_audit_log(asked: Traits, known: Conditions) -> None:
    again = Traits.model_validate_json(asked.model_dump_json(exclude_none=True))
    assert route(again, CATALOG, known) == route(asked, CATALOG, known)


def test_a_request_and_its_traits_are_routed_alike() -> None:
    asked = request("Prove that there are infinitely many primes.", tools=[{"name": "f"}], max_tokens=7)
    assert route(asked, CATALOG, conditions()) == route(traits(asked), CATALOG, conditions())
