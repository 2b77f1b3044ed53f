"""What routing and the cache save against "always Sonnet", computed from the audit log: the mission's claims on trial.

    .venv/bin/python -m bench.savings [--requests 2000] [--duplicates 0.35] [--on 2026-11-29 --on 2026-12-02]

The mission's mix (70 % simple, 20 % complex or code, 5 % long context, 5 % speed) is sent through a whole processor,
all of it as `auto`, first with the cache off and then with it on. Questions are those of bench/routing, which a person
has labelled; vendors are scripted, and report tokens as they stand in `OUTPUTS`. With --on, the catalog's dates are
moved so that it is that day for routing and prices.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal

import nats
import orjson
import structlog
import uvloop
from nats.aio.client import Client
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table

from bench.routing.evaluate import Prompt as Labelled
from bench.routing.evaluate import load
from processor import audit_reading, jetstream, subjects
from processor.audit_events import Attempt, AuditEntry, Ended, Received
from processor.broker import contract_dir, embedded_broker
from processor.bus import Bus
from processor.catalog import Catalog, load_catalog
from processor.config import Settings
from processor.estimate import BYTES_PER_TOKEN
from processor.pricing import PriceList
from processor.provision import provision
from processor.service import Processor
from processor.subjects import AuditEvent
from processor.suggestions import usage_of
from processor.usage import money
from providers.base import Finished, FinishReason, Opened, Prompt, Text, TextDelta, Usage
from providers.scripted import ScriptedProvider, Step

Kind = Literal["simple", "complex", "long", "speed"]

MIX: Final[dict[Kind, float]] = {"simple": 0.70, "complex": 0.20, "long": 0.05, "speed": 0.05}
"""The mission's."""
OUTPUTS: Final[dict[Kind, tuple[int, int]]] = {
    "simple": (50, 350),
    "complex": (500, 1500),
    "long": (300, 900),
    "speed": (50, 200),
}
"""Tokens of an answer, evenly between these. A prompt's tokens are its bytes by four."""
CONTEXT_CHARS: Final[dict[Kind, tuple[int, int]]] = {
    "simple": (0, 4_000),
    "complex": (1_000, 12_000),
    "long": (410_000, 480_000),
    "speed": (0, 1_000),
}
"""Of material that stands in a system message beside the question."""
BEST_TIER: Final = 5
CLAIMED_SAVING: Final = 0.60
CLAIMED_HITS: Final = (0.30, 0.40)
WINDOW: Final = 50
"""Requests in flight."""
TIMEOUT_S: Final = 120.0
SONNET: Final = "sonnet"
SENTENCE: Final = "The reservoir stood at {} m on the day before and the pumps ran for {} hours. "


# --- the load ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    kind: Kind
    body: bytes


def workload(requests: int, duplicates: float, seed: int) -> list[Question]:
    """The mix in random order; that share of it repeats an earlier request to the letter."""
    rng = random.Random(seed)
    labelled = load()
    questions: list[Question] = []
    for number in range(requests):
        if questions and rng.random() < duplicates:
            questions.append(rng.choice(questions))
        else:
            [kind] = rng.choices(list(MIX), list(MIX.values()))
            questions.append(Question(kind, _body(kind, number, labelled, rng)))
    return questions


def _body(kind: Kind, number: int, labelled: Sequence[Labelled], rng: random.Random) -> bytes:
    asked = rng.choice([prompt for prompt in labelled if prompt.hard == (kind == "complex")])
    size = rng.randint(*CONTEXT_CHARS[kind])
    sentence = SENTENCE.format(rng.randint(100, 200), rng.randint(1, 24))
    material = (sentence * (size // len(sentence) + 1))[:size]
    system = f"You help the staff of a water utility. Case {number}. {material}"
    body = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": asked.text}]}
    return orjson.dumps(body | {"model": "auto"} | ({"prefer": "speed"} if kind == "speed" else {}))


def scripted(name: str, kinds: dict[str, Kind]) -> ScriptedProvider:
    """A vendor that answers at once, and reports the tokens of the stated mix: the same for the same request."""

    def script(prompt: Prompt) -> Sequence[Step]:
        texts = [part.text for message in prompt.messages for part in message.parts if isinstance(part, Text)]
        size = sum(len(text.encode()) for text in texts)
        rng = random.Random(texts[0][:100])
        output = rng.randint(*OUTPUTS[kinds[_case(texts[0])]])
        usage = Usage(input_fresh=size // BYTES_PER_TOKEN, output_visible=output)
        return [Opened(), TextDelta("An answer."), Finished(FinishReason.STOP, usage, prompt.model)]

    return ScriptedProvider(script, name=name)


def _case(system: str) -> str:
    return system[:100].split("Case ")[1].split(".")[0]


async def send(nc: Client, questions: Sequence[Question], bar: ProgressBar) -> None:
    """Ask them all, `WINDOW` at once, in order."""
    task = bar.add_task("requests", total=len(questions))
    waiting = iter(questions)

    async def ask() -> None:
        for question in waiting:
            await nc.request("llm.request.high", question.body, timeout=TIMEOUT_S)
            bar.advance(task)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WINDOW):
            tasks.create_task(ask())


# --- another day ------------------------------------------------------------------------------------------------------


def on_day(catalog: Catalog, day: date, today: date) -> Catalog:
    """The catalog with its dates moved, so that what holds on `day` holds today."""
    moved = today - day

    def shifted(when: date) -> date:
        return when if when == date.min else when + moved

    models = {
        alias: model.model_copy(update={"retires": None if model.retires is None else shifted(model.retires)})
        for alias, model in catalog.models.items()
    }
    prices = {
        alias: PriceList(tuple(replace(price, valid_from=shifted(price.valid_from)) for price in prices.prices))
        for alias, prices in catalog.price_lists.items()
    }
    return replace(catalog, models=models, price_lists=prices)


# --- what the log says ------------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """`always_sonnet`: every reply's usage, also a cached one's, at Sonnet's price."""

    cost: Decimal = Decimal(0)
    always_sonnet: Decimal = Decimal(0)
    calls: int = 0
    strong: int = 0
    """Calls of models of the best tier."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.cost + other.cost,
            self.always_sonnet + other.always_sonnet,
            self.calls + other.calls,
            self.strong + other.strong,
        )

    @property
    def saving(self) -> float:
        return float(1 - self.cost / self.always_sonnet) if self.always_sonnet else 0.0


@dataclass
class Figures:
    """One run, from its audit log. `kinds`: of the workload, by the fingerprint of a request's body."""

    catalog: Catalog
    today: date
    kinds: dict[str, Kind]
    by_kind: dict[Kind, Sums] = field(default_factory=lambda: {kind: Sums() for kind in MIX})
    told_saved: Decimal = Decimal(0)
    """`saved_usd` of the replies that needed no call."""
    replies: int = 0
    hits: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    costs: dict[str, Decimal] = field(default_factory=dict)
    _bodies: dict[str, str] = field(default_factory=dict)
    _usages: dict[str, Usage] = field(default_factory=dict)
    _hit: Counter[str] = field(default_factory=Counter)

    def see(self, entry: AuditEntry) -> None:
        match entry:
            case Received():
                self._bodies[entry.id] = entry.body_sha256
            case Attempt():
                model, usage = entry.alias or entry.model, usage_of(entry.usage)
                body = self._bodies[entry.id]
                self.calls[model] += 1
                self.costs[model] = self.costs.get(model, Decimal(0)) + entry.cost_usd
                self.input_tokens += usage.input_tokens
                self.output_tokens += usage.output_tokens
                is_strong = self.catalog.models[model].tier == BEST_TIER
                self.by_kind[self.kinds[body]] += Sums(entry.cost_usd, self._at_sonnet(usage), 1, is_strong)
                self._usages[body] = usage
            case Ended(event=AuditEvent.COMPLETED):
                self.replies += 1
                if entry.cached or entry.coalesced:
                    self.hits += 1
                    self.told_saved += entry.saved_usd or Decimal(0)
                    self._hit[self._bodies[entry.id]] += 1
            case Ended():
                self.failed += 1

    def close(self) -> None:
        """Add what the cached replies would have cost: the usage of the call that answered that body."""
        for body, number in self._hit.items():
            self.by_kind[self.kinds[body]] += Sums(always_sonnet=number * self._at_sonnet(self._usages[body]))

    def _at_sonnet(self, usage: Usage) -> Decimal:
        model = self.catalog.resolve(SONNET, self.today).model
        return self.catalog.price_lists[model.alias].cost(usage, self.today)

    def total(self, *left_out: Kind) -> Sums:
        return sum((sums for kind, sums in self.by_kind.items() if kind not in left_out), Sums())

    @property
    def hit_share(self) -> float:
        return self.hits / self.replies if self.replies else 0.0


@asynccontextmanager
async def running_processor(url: str, catalog: Catalog, kinds: dict[str, Kind], *, cache: bool) -> AsyncIterator[None]:
    """A whole processor in this process, with three scripted vendors that know no limits."""
    settings = Settings(_env_file=None, enable_cache=cache, max_workers=32)
    bus = Bus()
    await bus.connect(url, settings, name="savings")
    await provision(bus.nc, contract_dir())
    providers = {name: scripted(name, kinds) for name in ("anthropic", "groq", "gemini")}
    processor = Processor(settings, bus, providers, replace(catalog, limits={}), replica="savings")
    ready = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(processor.run(on_ready=ready.set))
        await ready.wait()
        try:
            yield
        finally:
            processor.stop()
            await task
            await bus.close()


async def run(questions: Sequence[Question], catalog: Catalog, *, cache: bool, console: Console) -> Figures:
    """Send everything, then read the audit log."""
    of_body = {hashlib.sha256(q.body).hexdigest(): q.kind for q in questions}
    kinds = {_case(orjson.loads(q.body)["messages"][0]["content"]): q.kind for q in questions}
    began = datetime.now(UTC)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with tempfile.TemporaryDirectory(prefix="savings-") as home:
        async with embedded_broker(Path(home), 0) as url:
            nc = await nats.connect(url)
            async with running_processor(url, catalog, kinds, cache=cache):
                with ProgressBar(*columns, console=console, transient=True) as bar:
                    await send(nc, questions, bar)
            figures = Figures(catalog, began.date(), of_body)
            progress = audit_reading.Progress()
            async for batch in audit_reading.read(nc, began - timedelta(hours=1), progress):
                for entry in batch:
                    figures.see(entry)
            figures.close()
            state = await jetstream.call(nc, f"STREAM.INFO.{subjects.AUDIT}")
            assert progress.read == state["state"]["messages"], "the log was not read whole"
            await nc.close()
    return figures


# --- the verdict ------------------------------------------------------------------------------------------------------


def report(console: Console, day: date, off: Figures, on: Figures, questions: Sequence[Question], dup: float) -> None:
    repeated = 1 - len({q.body for q in questions}) / len(questions)
    sonnet = off.catalog.resolve(SONNET, off.today).model
    table = Table(title=f"As on {day}: {len(questions):,} requests, {repeated:.1%} of them repeated ({dup:.0%} meant)")
    for title in ("", "cache off", "cache on"):
        table.add_column(title, justify="left" if not title else "right")
    rows: dict[str, Callable[[Figures], str]] = {
        "replies (failed)": lambda f: f"{f.replies:,} ({f.failed})",
        "calls": lambda f: f"{f.calls.total():,}",
        "tokens in, out": lambda f: f"{f.input_tokens:,}, {f.output_tokens:,}",
        "cost": lambda f: money(f.total().cost),
        f"always {sonnet.alias}, no cache": lambda f: money(f.total().always_sonnet),
        "saving": lambda f: f"{f.total().saving:.1%}",
        "hits": lambda f: f"{f.hits:,} ({f.hit_share:.1%})",
        "hits saved, as told": lambda f: money(f.told_saved),
    }
    for title, show in rows.items():
        table.add_row(title, show(off), show(on))
    for model in sorted(off.calls | on.calls):
        shown = (f"{f.calls[model]:,} for {money(f.costs.get(model, Decimal(0)))}" for f in (off, on))
        table.add_row(f"  {model}", *shown)
    console.print(table)
    console.print(_kinds(off, on))
    routed, cached = off.total(), on.total()
    verdicts = Table("claim of the mission", "measured", "", title="The claims")
    claims = [
        *(
            (f"60 % saving, {how}", f"{sums.saving:.1%}", sums.saving >= CLAIMED_SAVING)
            for how, sums in {
                "by routing alone": routed,
                "by routing alone, long prompts left out": off.total("long"),
                "with the cache": cached,
                "with the cache, long prompts left out": on.total("long"),
            }.items()
        ),
        ("30-40 % hits", f"{on.hit_share:.1%}", CLAIMED_HITS[0] <= on.hit_share <= CLAIMED_HITS[1]),
    ]
    for claim, measured, holds in claims:
        verdicts.add_row(claim, measured, "[green]confirmed[/]" if holds else "[red]refuted[/]")
    console.print(verdicts)


def _kinds(off: Figures, on: Figures) -> Table:
    """Where the saving comes from, and at the price of what quality."""
    table = Table(title="By kind of request")
    for title in ("", "of always Sonnet", "routing saves", "with the cache", "of its calls at tier 5"):
        table.add_column(title, justify="right" if title else "left")
    for kind, sums in off.by_kind.items():
        table.add_row(
            kind,
            f"{sums.always_sonnet / off.total().always_sonnet:.1%}",
            f"{sums.saving:.1%}",
            f"{on.by_kind[kind].saving:.1%}",
            f"{sums.strong / max(1, sums.calls):.1%}",
        )
    return table


def describe(console: Console, questions: Sequence[Question]) -> None:
    """The mix as it was drawn."""
    table = Table(title="The mix", caption="tokens of a prompt: its bytes by four; of an answer: drawn evenly")
    for title in ("kind", "share", "prompt, mean", "answer"):
        table.add_column(title, justify="left" if title == "kind" else "right")
    for kind in MIX:
        sizes = [len(q.body) // BYTES_PER_TOKEN for q in questions if q.kind == kind]
        low, high = OUTPUTS[kind]
        mean = sum(sizes) // len(sizes) if sizes else 0
        table.add_row(kind, f"{len(sizes) / len(questions):.1%}", f"{mean:,}", f"{low}-{high:,}")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--duplicates", type=float, default=0.35, help="share of requests that repeat an earlier one")
    parser.add_argument("--on", type=date.fromisoformat, action="append", help="a day; today where none is named")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console, today = Console(width=max(110, Console().width)), datetime.now(UTC).date()
    questions = workload(options.requests, options.duplicates, options.seed)
    describe(console, questions)
    for day in options.on or [today]:
        catalog = on_day(load_catalog(), day, today)
        off = uvloop.run(run(questions, catalog, cache=False, console=console))
        on = uvloop.run(run(questions, catalog, cache=True, console=console))
        report(console, day, off, on, questions, options.duplicates)


if __name__ == "__main__":
    main()
