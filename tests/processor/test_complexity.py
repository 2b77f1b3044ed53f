"""How hard a prompt looks: bulk is not difficulty, a proof is, and any text is scored in bounded time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.routing.evaluate import fastest_s
from processor.complexity import NOTABLE, WEIGHTS, Complexity, complexity, features
from processor.instruction import MAX_CHARS, part
from processor.vocabulary import PIECES, VOCABULARY, WORDS, plain

ARTICLE = "\n\n".join(
    f"On day {day} the council met again, and the reservoir had fallen by a hand's breadth. Why it fell nobody could "
    "prove, but the engineers compared the probability of a leak with that of theft, and argued until dusk."
    for day in range(12)
)
CODE = "```python\ndef mean(xs):\n    return sum(xs) / len(xs)\n```"
READINGS = "\n".join(f"2026-03-{day:02} | well {day % 7} | {day * 3.1:.1f} m | ok" for day in range(1, 29))


def score(text: str) -> float:
    return complexity(text).score


@pytest.mark.parametrize(
    "text",
    [
        "Prove that there are infinitely many primes of the form 4k + 3.",
        "Find the race condition in this worker, and say why it shows only under load.",
        "Why does the sample mean of a Cauchy distribution not converge?",
        "Demuestra que la raíz de 2 es irracional.",
        "Démontrez que tout entier pair est somme de deux entiers impairs, et pourquoi.",
        "Beweise, dass es unendlich viele Primzahlen gibt.",
        "证明根号二是无理数，并比较两种方法。",
    ],
)
def test_a_short_prompt_that_asks_for_thinking_goes_to_the_strong_model(text: str) -> None:
    assert score(text) >= 0.5


@pytest.mark.parametrize(
    "text",
    [
        "hi",
        "Thanks a lot!",
        "What is the capital of Kenya?",
        "Translate to French: the well is dry",
        "Rename `x` to `depth`.\n" + CODE,
        "Traduce al inglés: el pozo está seco",
        "Résume en une phrase : la pluie est tombée hier sur tout le bassin.",
        "Fasse den Text in einem Satz zusammen: Es hat geregnet.",
        "翻译成英文：你好",
        "",
        " \n\t ",
    ],
)
def test_small_talk_facts_and_simple_tasks_stay_with_the_small_model(text: str) -> None:
    assert score(text) < 0.5


@pytest.mark.parametrize(
    "bulk", [ARTICLE, READINGS, READINGS * 20, f"```\n{ARTICLE}\n```", "> " + ARTICLE.replace("\n", "\n> ")]
)
def test_pasted_bulk_does_not_make_a_simple_task_hard(bulk: str) -> None:
    assert score(f"Summarise this in one sentence:\n\n{bulk}") < 0.5
    assert score(f"{bulk}\n\nSummarise this in one sentence.") < 0.5


def test_nor_does_it_hide_a_hard_question_at_its_end() -> None:
    question = "Which of the readings contradict each other, and what could be the root cause? Weigh the hypotheses."
    assert score(f"{READINGS}\n\n{question}") >= 0.5
    assert score(f"{READINGS * 40}\n\n{question}") >= 0.5


def test_code_is_told_from_the_question_about_it() -> None:
    parted = part(f"Why is this slow?\n\n{CODE}\n\nMake it lazy.")
    assert parted.instruction == "Why is this slow?\n\nMake it lazy."
    assert parted.code_lines == 2 + 1
    bare = part("Why is this slow?\n\ndef mean(xs):\n    total = sum(xs)\n    return total / len(xs)")
    assert bare.instruction == "Why is this slow?"
    assert bare.code_lines == 3


@pytest.mark.parametrize("before", ["```python\n" + "x = f(1)\n" * 9, "What is ``` for? ", 'It printed """. '])
def test_a_fence_that_is_never_closed_does_not_swallow_the_question(before: str) -> None:
    question = "Why does this deadlock under load? Find the race condition."
    assert score(f"{before}\n{question}") >= 0.5
    assert question in part(f"{before}\n{question}").instruction


def test_tables_logs_quotes_and_transcripts_are_material() -> None:
    for material in (
        READINGS,
        "well,depth,day\n1,2.5,3\n2,2.6,3\n3,2.5,4",
        "> so they said\n> and more",
        "10:31 Asha: no water\n10:32 Ben: still none\n10:40 Asha: it is back",
        "Asha: no water\nBen: still none\nAsha: it is back",
    ):
        parted = part(f"Is anyone without water?\n\n{material}")
        assert parted.instruction == "Is anyone without water?"
        assert parted.pasted_lines == len(material.splitlines())


def test_of_a_short_paragraph_and_a_long_text_the_short_one_asks() -> None:
    text = "the well was low " * 100
    assert part(f"Is it dry?\n\n{text}").instruction.strip() == "Is it dry?"
    assert part(f"{text}\n\nIs it dry?").instruction.strip() == "Is it dry?"


def test_a_few_items_are_steps_and_many_are_data() -> None:
    few, many = ("\n".join(f"{n}. pump {n}" for n in range(1, last + 1)) for last in (4, 30))
    assert features(f"Do this\n{few}")["steps"] == 4
    assert part(f"Which is late?\n{many}").instruction == "Which is late?"


def test_accents_make_no_difference() -> None:
    assert plain("Démontrez DASS die Straße ümlaut 水 hat") == "demontrez dass die strasse umlaut 水 hat"
    assert features("Démontrez ceci") == features("Demontrez ceci")


def test_the_reasons_say_what_spoke_for_and_against() -> None:
    hard = complexity(
        "Prove, step by step, that the integral converges.\n1. bound it\n2. compare it\n3. conclude\n" + CODE
    )
    assert {"reasoning", "mathematics", "3 steps"} <= set(hard.why)
    assert "a simple task" in complexity("Translate: good morning").why
    assert complexity("A triangle must be drawn.").why == ("mathematics", "1 condition")
    assert complexity("").why == ()


def test_what_is_named_first_weighs_most_and_the_rest_does_not_count_for_much() -> None:
    found = complexity("Prove that the matrix is singular, then translate the proof: at least two ways, but briefly.")
    weighing = [abs(c.log_odds) for c in found.contributions if abs(c.log_odds) >= NOTABLE]
    assert len(found.why) == len(weighing)
    first = max(found.contributions, key=lambda c: abs(c.log_odds))
    assert found.why[0] == first.says


def test_every_weight_has_a_feature_and_every_feature_a_weight() -> None:
    assert set(features("")) == set(WEIGHTS)
    assert all(weight.why and weight.most > 0 for weight in WEIGHTS.values())


def test_every_word_of_the_vocabulary_is_found_as_it_is_listed() -> None:
    for kind, listed in WORDS.items():
        for word in listed.split():
            bare = word.rstrip("*")
            assert bare == plain(bare), word
            assert VOCABULARY.count(bare.split("_"), bare).get(kind), word
    for kind, listed in PIECES.items():
        for piece in listed.split():
            assert VOCABULARY.count([], f"x{piece.replace('_', ' ')}x").get(kind), piece


@given(st.text(max_size=3_000))
def test_any_text_has_a_score_and_always_the_same(text: str) -> None:
    found = complexity(text)
    assert 0 <= found.score <= 1
    assert found == complexity(text)
    assert isinstance(found, Complexity)


@given(st.text(alphabet='a1 \n\t`"~|,;:>-*.()[]{}<=^\\$éß水́', max_size=400), st.integers(1, 60))
def test_structure_of_any_kind_has_one_too(piece: str, times: int) -> None:
    assert 0 <= score(piece * times) <= 1


@pytest.mark.parametrize(
    "text",
    [
        " " * 10**6, "a" * 10**6, "\n" * 10**6, "|" * 10**6, "é" * 10**6, "水" * 10**6, "🙂" * 10**5, "\ud800" * 10**5,
        "```" * 10**5, '"""~~~' * 10**5, "- a\n" * 10**5, "a: " * 10**5, "a: \n" * 10**5, ",1" * 10**5, "a^" * 10**5,
        "O(" + "n" * 10**6, "from " + "x" * 10**6, "[(<" * 10**5, "\\frac" * 10**5, "1." * 10**5, "1,1." * 10**5,
        "e\u0301" * 10**5, "why prove_" * 10**5, "</" * 10**5, "a = [" * 10**5, "a[" * 10**5, "2026-03-01 " * 10**5,
    ],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        complexity(text)
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.1


@pytest.mark.parametrize(
    "text", ["- a\n", "a\n", "\n", "```", "```\na", "1|2|3\n", "10:31 a\n", "1,2,3\n", "word word\n\n", "qx ", "水"]
)
def test_nor_does_one_thing_over_and_over_beside_prose_of_the_same_size(text: str) -> None:
    """Side by side: `python -m bench.routing.evaluate` says how long it takes on the machine it runs on."""
    prose = "The district office asks which wells will be dry by the end of the month, and why. " * 60
    assert fastest_s((text * 4096)[:4096], runs=30) < 5 * fastest_s(prose[:4096], runs=30)


def test_only_the_first_and_the_last_8000_characters_are_looked_at() -> None:
    head, tail = "Summarise." + "word " * 1_598, "word " * 1_598 + "Thank you."
    assert len(head) == len(tail) == MAX_CHARS // 2
    assert features(head + "\n- prove it\n- and why" * 2 + tail) == features(head + " " + tail)


@pytest.mark.parametrize("text", ["Why is the sky blue?", "why does my cat sneeze", "Warum ist der Himmel blau?"])
def test_to_ask_why_alone_is_not_hard(text: str) -> None:
    assert score(text) < 0.5
