"""Which breaker a failure concerns: the model's, its provider's, or none."""

from __future__ import annotations

import pytest

from processor.breaker import BreakerState
from processor.catalog import load_catalog
from processor.health import Health, Transition
from providers.errors import (
    BadCredentials,
    ConnectionFailed,
    InvalidPrompt,
    ModelGone,
    ModelNoise,
    OutOfCredit,
    Overloaded,
    ProviderError,
    RateLimited,
    StreamCut,
    TimedOut,
    Unsupported,
)

CATALOG = load_catalog()
HAIKU, SONNET, LLAMA = (CATALOG.models[alias] for alias in ("haiku", "sonnet", "llama"))


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def after(error: ProviderError, times: int) -> Health:
    health = Health(now=Clock())
    for _ in range(times):
        health.failed(HAIKU, error, health.started(HAIKU))
    return health


@pytest.mark.parametrize("error", [Overloaded("busy"), StreamCut("cut")])
def test_a_models_trouble_stops_the_model_and_not_its_provider(error: ProviderError) -> None:
    health = after(error, 5)
    assert (health.refusal(HAIKU) is not None, health.refusal(SONNET)) == (True, None)


def test_a_vendor_that_cannot_be_reached_stops_all_its_models_and_no_others() -> None:
    health = after(ConnectionFailed("refused"), 5)
    assert health.refusal(SONNET) is not None
    assert health.refusal(LLAMA) is None


@pytest.mark.parametrize(("error", "wait_s"), [(BadCredentials("no"), 60), (OutOfCredit("no"), 300)])
def test_a_dead_key_stops_all_models_of_its_provider_at_once(error: ProviderError, wait_s: float) -> None:
    refusal = after(error, 1).refusal(SONNET)
    assert refusal is not None
    assert refusal.wait_s == wait_s


def test_a_model_that_is_gone_is_not_asked_for_again_for_a_while() -> None:
    health = after(ModelGone("no such model"), 1)
    assert (health.refusal(HAIKU) is not None, health.refusal(SONNET)) == (True, None)


@pytest.mark.parametrize("error", [InvalidPrompt("bad"), ModelNoise("noise"), RateLimited("slow"), Unsupported("no")])
def test_what_is_not_the_vendors_failure_opens_nothing(error: ProviderError) -> None:
    assert after(error, 50).refusal(HAIKU) is None


def test_what_was_never_asked_is_no_sign_of_health() -> None:
    health = after(Overloaded("busy"), 5)
    assert isinstance(health.now, Clock)
    health.now.now += 5
    health.failed(HAIKU, Unsupported("temperature of 1.5"), health.started(HAIKU))
    assert dict(health.states())["anthropic", "haiku"] is BreakerState.HALF_OPEN


def test_silence_of_one_model_says_nothing_good_of_its_provider() -> None:
    health = after(ConnectionFailed("refused"), 4)
    health.failed(HAIKU, TimedOut("silent"), health.started(HAIKU))
    health.failed(HAIKU, ConnectionFailed("refused"), health.started(HAIKU))
    assert health.refusal(SONNET) is not None


@pytest.mark.parametrize("late", ["succeeded", "abandoned", "failed"])
def test_what_began_before_it_opened_is_not_taken_for_the_probe(late: str) -> None:
    health = Health(now=(clock := Clock()))
    old = health.started(HAIKU)
    for _ in range(5):
        health.failed(HAIKU, Overloaded("busy"), health.started(HAIKU))
    clock.now += 5
    probe = health.started(HAIKU)
    if late == "failed":
        health.failed(HAIKU, Overloaded("busy"), old)
    else:
        getattr(health, late)(HAIKU, old)
    assert dict(health.states())["anthropic", "haiku"] is BreakerState.HALF_OPEN
    assert health.refusal(HAIKU) is not None
    health.succeeded(HAIKU, probe)
    assert health.refusal(HAIKU) is None


def test_every_transition_is_told_and_a_hint_is_not_told_on() -> None:
    told: list[Transition] = []
    closed: list[tuple[str, str]] = []
    health = Health(now=(clock := Clock()))
    health.on_change(told.append)
    health.on_closed(closed.append)
    health.hinted(("anthropic", "sonnet"), 30)
    assert (told, health.refusal(SONNET) is not None) == ([], True)
    for _ in range(5):
        health.failed(HAIKU, Overloaded("busy"), health.started(HAIKU))
    clock.now += 5
    health.succeeded(HAIKU, health.started(HAIKU))
    assert [(t.model, t.after) for t in told] == [
        ("haiku", BreakerState.OPEN),
        ("haiku", BreakerState.HALF_OPEN),
        ("haiku", BreakerState.CLOSED),
    ]
    assert closed == [("anthropic", "haiku")]
