"""`only`: whatever a request asks for and whatever fails, no model answers that it does not name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from processor.errors import ErrorType, RequestError
from processor.router import Conditions, route
from processor.traits import Traits
from providers.errors import Overloaded
from providers.scripted import ScriptedProvider
from tests.conftest import StartProcessor
from tests.processor.test_end_to_end import answer
from tests.processor.test_router import CATALOG, DECEMBER, NOVEMBER, anything, looks, names, refused, request, whatever
from tests.talk import all_audit_events, ask, body, served
from tests.wait import wait_until

allowed = st.lists(st.sampled_from([*sorted(CATALOG.models), "claude-haiku-4-5"]), min_size=1, max_size=4).map(tuple)


@given(anything, whatever, allowed)
def test_no_candidate_is_another_and_the_others_are_refused_in_words(
    asked: Traits, known: Conditions, only: tuple[str, ...]
) -> None:
    meant = {CATALOG.resolve(name, known.now.date()).model.alias for name in only}
    asked = asked.model_copy(update={"only": only})
    if asked.model is not None and CATALOG.resolve(asked.model, known.now.date()).model.alias not in meant:
        with pytest.raises(RequestError) as forbidden:
            route(asked, CATALOG, known)
        assert forbidden.value.type is ErrorType.FORBIDDEN
        return
    found = route(asked, CATALOG, known)
    assert {candidate.model.alias for candidate in found.candidates} <= meant
    reasons = {refusal.model: refusal.reason for refusal in found.refusals}
    outside = set(CATALOG.models) - meant
    assert {reasons[alias] for alias in outside} <= {"it is not among the models that may answer"}


@given(anything, whatever)
def test_whoever_names_all_models_is_routed_as_if_none_were_named(asked: Traits, known: Conditions) -> None:
    everything = route(asked.model_copy(update={"only": tuple(CATALOG.models)}), CATALOG, known)
    without = route(asked, CATALOG, known)
    assert [c.model for c in everything.candidates] == [c.model for c in without.candidates]


def test_auto_is_decided_among_them() -> None:
    found = looks(task_type="code", only=("gemini", "haiku"))
    assert (found.rule, set(names(found))) == ("code", {"gemini", "haiku"})
    assert refused(found)["sonnet"] == "it is not among the models that may answer"


def test_a_name_means_what_it_means_on_that_day() -> None:
    assert names(looks(NOVEMBER, only=("sonnet",))) == ["sonnet"]
    assert names(looks(DECEMBER, only=("sonnet",))) == ["sonnet-5.5"]


def test_where_none_of_them_can_it_is_said_what_these_lack() -> None:
    assert looks(only=("haiku",), available={"gemini"}).nobody is ErrorType.UNAVAILABLE
    assert looks(only=("haiku",), input_tokens=1_000_000).nobody is ErrorType.TOO_LARGE


def test_a_name_that_is_no_models_is_not_found() -> None:
    with pytest.raises(RequestError, match=r"^only: there is no model 'haikku'; did you mean haiku") as refused:
        looks(only=("haikku",))
    assert refused.value.type is ErrorType.NOT_FOUND


def test_an_answer_is_kept_for_those_whom_the_same_models_may_answer() -> None:
    def kept_under(*only: str) -> tuple[str, str]:
        found = looks(only=only)
        return found.model_class, found.means

    assert kept_under("haiku", "gemini") == kept_under("gemini", "claude-haiku-4-5", "haiku")
    assert len({kept_under(), kept_under("haiku"), kept_under("gemini"), kept_under("haiku", "gemini")}) == 4


@pytest.mark.parametrize("wrong", [[], ["a b"], ["haiku"] * 65, [1]])
def test_a_list_that_is_none_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(RequestError, match=r"^only"):
        request(only=wrong)


async def test_a_model_that_is_down_has_no_stand_in_but_those(nc: Client, start: StartProcessor) -> None:
    groq, gemini = ScriptedProvider(answer()), ScriptedProvider(answer())
    await start({"anthropic": ScriptedProvider([Overloaded("busy")]), "groq": groq, "gemini": gemini}, max_retries=0)
    reply = await ask(nc, body(only=["haiku", served("gemini")]), Nats_Msg_Id="one")
    assert (reply["provider"], groq.calls) == ("gemini", 0)
    events = {e["event"]: e for e in await wait_until(lambda: all_audit_events(nc, "one", 4))}
    assert events["routed"]["traits"]["only"] == ["haiku", served("gemini")]


async def test_a_model_that_is_asked_for_and_not_named_is_forbidden(nc: Client, start: StartProcessor) -> None:
    vendor = ScriptedProvider(answer())
    await start({"anthropic": vendor})
    error = (await ask(nc, body(only=["gemini"])))["error"]
    assert (error["type"], vendor.calls) == ("forbidden", 0)
    assert error["message"] == "model: haiku is not among the models that may answer this request: gemini"


async def test_no_answer_of_another_model_comes_from_the_cache(nc: Client, start: StartProcessor) -> None:
    anthropic, gemini = ScriptedProvider(answer()), ScriptedProvider(answer())
    await start({"anthropic": anthropic, "gemini": gemini}, enable_cache=True)
    question = body("Why?", model="auto")
    first = await ask(nc, question)
    assert (first["provider"], (await ask(nc, question))["cached"]) == ("anthropic", True)
    reply = await ask(nc, body("Why?", model="auto", only=[served("gemini")]))
    assert (reply["provider"], reply["cached"]) == ("gemini", False)
