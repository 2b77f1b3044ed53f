"""What a replica knows of the models, brought together for routing."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from processor.catalog import Limits as LimitsTable
from processor.catalog import load_catalog
from processor.estimate import COMPARED_AFTER, Learned
from processor.health import Health
from processor.limits import Limits
from processor.lookout import Lookout
from processor.messages import Request, decode_request
from processor.router import Route
from processor.traits import Traits
from providers.errors import ModelGone

CATALOG = replace(
    load_catalog(), limits={"anthropic": LimitsTable(rpm=10, tpm=50_000), "gemini": LimitsTable(tpm=2_000_000)}
)
HAIKU = CATALOG.models["haiku"]
ASKED = Traits(input_tokens=1_000)


class Watch:
    """A lookout, and the parts that it looks at."""

    def __init__(self, **options: Any) -> None:
        self.learned, self.health = Learned(), Health()
        self.limits = Limits(CATALOG, [], buffer=0.0, on_degraded=lambda _: None, on_recovered=lambda _: None)
        given: dict[str, Any] = {"available": {"anthropic", "gemini"}, "default_model": "haiku", "by_quality": False}
        self.lookout = Lookout(CATALOG, self.learned, self.health, self.limits, **given | options)

    def answered(self, alias: str, seconds: float, tokens: int) -> None:
        for _ in range(COMPARED_AFTER):
            self.learned.observe(alias, 100, 100, tokens, seconds / 2, duration_s=seconds, now=time.monotonic())

    def first(self, **fields: Any) -> str:
        return self.route(**fields).candidates[0].model.alias

    def route(self, **fields: Any) -> Route:
        return self.lookout.route(asked(**fields))


def asked(**fields: Any) -> Request:
    return decode_request(orjson.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}))


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    one = Watch()
    yield one
    await one.limits.close()


async def test_of_a_model_that_was_never_called_only_its_room_is_known(watch: Watch) -> None:
    known = watch.lookout.conditions(ASKED, "default")
    assert (known.unwell, known.latency, known.usual_output) == ({}, {}, {})
    assert known.room == {alias: 1.0 for alias, m in CATALOG.models.items() if m.provider in {"anthropic", "gemini"}}


async def test_a_model_whose_circuit_is_open_is_unwell(watch: Watch) -> None:
    watch.health.failed(HAIKU, ModelGone("gone", status=404), watch.health.started(HAIKU))
    assert watch.lookout.conditions(ASKED, "default").unwell == {"haiku": "its circuit is open after failures"}
    assert watch.first() != "haiku"
    assert watch.first(model="haiku") == "haiku"


async def test_speed_and_usual_answers_are_what_was_seen(watch: Watch) -> None:
    watch.answered("haiku", 2.0, 100)
    known = watch.lookout.conditions(ASKED, "default")
    assert (known.latency, known.usual_output) == ({"haiku": (1.0, 100.0)}, {"haiku": 100})


async def test_a_model_without_room_gives_way(watch: Watch) -> None:
    assert watch.first() == "haiku"
    watch.limits.hold(HAIKU, 30, whole_provider=True, reason="wait")
    assert CATALOG.models[watch.first()].provider == "gemini"


async def test_a_model_whose_limits_the_request_never_fits_gives_way(watch: Watch) -> None:
    known = watch.lookout.conditions(Traits(input_tokens=100_000), "default")
    assert (known.room["haiku"], known.room["gemini"]) == (0.0, 1.0)
    assert watch.limits.room(HAIKU, 100) == 1.0


async def test_what_is_not_configured_is_not_looked_at() -> None:
    one = Watch(available={"gemini"})
    assert {CATALOG.models[alias].provider for alias in one.lookout.conditions(ASKED, "default").room} == {"gemini"}


async def test_settings_and_budgets_steer_it() -> None:
    nearly_used = False
    assert CATALOG.models[Watch(by_quality=True).first()].tier == 5
    assert Watch(default_model="haiku-5.5").first() == "haiku-5.5"
    budgeted = Watch(thrifty=lambda tenant: nearly_used and tenant == "default")
    assert budgeted.first(task_type="code").startswith("sonnet")
    nearly_used = True
    assert not budgeted.first(task_type="code").startswith("sonnet")
