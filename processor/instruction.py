"""Parts what a prompt asks from what was pasted into it: the bulk of a prompt is not its difficulty."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from processor.vocabulary import VOCABULARY, plain

MAX_CHARS: Final = 16_000
"""Of a prompt that are looked at: its first and its last half of that."""
MAX_LINES: Final = 200
"""Likewise; the lines between are material."""
MAX_FENCES: Final = 20
"""Fenced blocks that are told from the text around them, and """
CODE_LOOKED_AT: Final = 20
"""lines of each that tell whether it is code: a quarter of them have to look like it."""
ALL_READ: Final = 1_000
"""Characters of prose up to which all of it may be the instruction."""
EDGE: Final = 700
"""Characters of the first and the last paragraph that are read in a longer one."""
SHORT: Final = 300
"""Characters of one of the two up to which it is the instruction, and the other, if it is longer, the material."""
LISTED: Final = 12
"""Items that a list of instructions may have; more of them are data."""
ITEM: Final = 200
"""Characters of an item that are read."""

ABOUT_A_TEXT: Final = 300
"""Characters from which on what stands beside "Summarise" or "Translate" is taken for the text that is meant."""
SAID_AFTER: Final = 150
"""Characters up to which a paragraph after that text is taken for instruction."""

WORD: Final = re.compile(r"[^\W\d_]+")
_SENTENCE = re.compile(r"[^\n.?!:。？！：]{1,300}[\n.?!:。？！：]")
_MATERIAL: Final = {"quote": 1, "code": 3, "table": 3, "log": 3, "spoken": 3, "row": 1}
"""Lines of a kind from which on they are material."""
_FENCE = re.compile(r'```|~~~|"""')
_ITEM = re.compile(r"\s{0,8}(?:[-*•]|\(?(?:\d{1,2}|[a-z])[.)])\s")
_CODE = re.compile(
    r"\s*(?:def |class \w+[(:]|import \w|from \S+ import |async def |await |return\b|try:|except\b|else:|elif |\}"
    r"|SELECT |INSERT |UPDATE |CREATE |FROM |WHERE |JOIN |WITH \w+ AS|#include|func |fn |let |const |var |public "
    r"|private |</?\w+|for \(|if \(|while \(|[\w.\[\]]{1,60} [-+*]?= \S)"
)
_CODE_ENDS = ("{", "}", ";", "):", "];")
_LOG = re.compile(r"\s{0,4}[\[(]?(?:\d{4}-\d\d-\d\d|\d{1,2}:\d\d|\d{1,2}[/.]\d{1,2}[/.]\d{2,4})")
_SPOKEN = re.compile(r"[\[(<*]{0,2}\w[\w .'-]{0,24}[\])>*]{0,2}: ")
_NUMBER = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Parted:
    """`instruction` and its list items, and how many lines of code and of other pasted material there were."""

    instruction: str
    items: int
    code_lines: int
    pasted_lines: int


def part(text: str) -> Parted:
    """What is asked, without fences, quotes, tables, logs, transcripts and code, without the text that a task such as
    translating is about, and without the middle of a long one. Time is linear in the characters that are looked at.
    """
    if len(text) > MAX_CHARS:
        text = text[: MAX_CHARS // 2] + " " + text[-MAX_CHARS // 2 :]
    pieces = _FENCE.split(text, maxsplit=2 * MAX_FENCES)
    if len(pieces) % 2 == 0:  # the last fence is never closed: what follows it may be the question
        pieces[-2:] = ["\n".join(pieces[-2:])]
    code = pasted = 0
    for block in pieces[1::2]:
        lines = [line for line in block.splitlines() if line.strip()]
        if block[:1].isalpha() or _is_code(lines[:CODE_LOOKED_AT]):
            code += len(lines)
        else:
            pasted += len(lines)
    lines = "\n\n".join(pieces[0::2]).splitlines()
    if len(lines) > MAX_LINES:
        pasted += len(lines) - MAX_LINES
        lines = [*lines[: MAX_LINES // 2], "", *lines[-MAX_LINES // 2 :]]
    kinds = [_kind(line) for line in lines]
    if kinds.count("item") > LISTED:
        kinds = ["row" if kind == "item" else kind for kind in kinds]
    material = {kind for kind, lines_at_least in _MATERIAL.items() if kinds.count(kind) >= lines_at_least}
    paragraphs: list[list[str]] = [[]]
    items: list[str] = []
    for line, kind in zip(lines, kinds, strict=True):
        if kind == "blank" or kind in material:
            code, pasted = code + (kind == "code"), pasted + (kind not in ("code", "blank"))
            if paragraphs[-1]:
                paragraphs.append([])
            continue
        if kind == "item":
            items.append(line[:ITEM])
        paragraphs[-1].append(line)
    asked = _asked(["\n".join(lines) for lines in paragraphs if lines], items)
    return Parted(asked, len(items), code, pasted)


def _asked(paragraphs: list[str], items: list[str]) -> str:
    whole = "\n\n".join(paragraphs)
    if (task := _task_on_a_text(paragraphs)) is not None:
        return task
    if len(whole) <= ALL_READ:
        return whole
    if len(paragraphs) == 1:
        paragraphs = paragraphs[0].split("\n")
    first, last = paragraphs[0], paragraphs[-1] if len(paragraphs) > 1 else ""
    if len(first) <= SHORT < len(last):
        last = ""
    elif len(last) <= SHORT < len(first) and last:
        first = ""
    return "\n\n".join([first[:EDGE], *items, last[-EDGE:]])


def _task_on_a_text(paragraphs: list[str]) -> str | None:
    """Of "Summarise this: ..." the part before the text, or after it; None where the text may be the task itself."""
    if not paragraphs:
        return None
    first, last = _SENTENCE.match(paragraphs[0]), paragraphs[-1]
    lead = first.group() if first else ""
    rest = sum(map(len, paragraphs)) - len(lead)
    if lead and (rest > ABOUT_A_TEXT or lead.endswith((":", "："))) and _is_task_on_a_text(lead):
        return f"{lead}\n\n{last}" if len(paragraphs) > 1 and len(last) <= SAID_AFTER else lead
    if len(paragraphs) > 1 and len(last) <= ABOUT_A_TEXT < rest and _is_task_on_a_text(last):
        return last
    return None


def _is_task_on_a_text(sentence: str) -> bool:
    asked = plain(sentence)
    kinds = VOCABULARY.count(WORD.findall(asked), asked)
    return "given" in kinds and not kinds.keys() & {"reasoning", "planning", "systems"}


def _is_code(lines: list[str]) -> bool:
    return sum(_kind(line) == "code" for line in lines) * 4 >= len(lines) > 0


def _kind(line: str) -> str:
    bare = line.strip()
    if not bare:
        return "blank"
    if bare[0] == ">":
        return "quote"
    if bare.count("|") >= 2 or line.count("\t") >= 1 + (line[0] == "\t") or _is_row(bare):
        return "table"
    if _LOG.match(line):
        return "log"
    if _ITEM.match(line):
        return "item"
    if bare.endswith(_CODE_ENDS) or _CODE.match(line):
        return "code"
    return "spoken" if _SPOKEN.match(line) else "prose"


def _is_row(line: str) -> bool:
    """Of comma-separated values: at least three, short, without a space or with numbers."""
    cells = line[:400].count(",") + line[:400].count(";") + 1
    return (
        cells >= 3
        and len(line) / cells < 24
        and line.count(" ") <= cells * 2
        and (" " not in line or _NUMBER.search(line) is not None)
    )
