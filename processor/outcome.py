"""Which candidate is tried next and when, what a request waits for, and which error its client gets. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from processor.budgets import Exceeded
from processor.errors import ErrorType, RequestError
from providers.errors import (
    BadCredentials,
    CallerFault,
    ModelNoise,
    OutOfCredit,
    PromptTooLarge,
    ProviderError,
    RateLimited,
    Remedy,
)

BACKOFF_BASE_S = 0.25
BACKOFF_CAP_S = 8.0
LONGEST_PARK_S = 120.0
"""A limit of a minute is free again after a minute; what takes longer is a day's, and nobody stands in line for it."""
HAND_BACK_S = 300.0
"""For how long a request that has time rests in the queue before it looks again."""


@dataclass(frozen=True, slots=True)
class Option:
    """Candidate number `index`, to be started no sooner than `not_before`; `limited`: as its vendor's limits say."""

    index: int
    not_before: float
    limited: bool = False


class Contender(NamedTuple):
    """What the plan knows of a candidate; `window` in tokens."""

    provider: str
    window: int


@dataclass(slots=True)
class Plan:
    """Which candidates may still be tried, best first.

    A failure that another try may cure lets its candidate rest for a pause with full jitter, after Brooker,
    "Exponential backoff and jitter" (AWS, 2015), at most `max_retries` times; noise of the model's own making is worth
    one more try of the same model, at once. A failure that no second try can cure takes it out: a
    key without rights or credit all of its provider's, a prompt that is too large all whose window is no larger. So
    the next candidate is tried at once, and when all have failed, the next round begins with the one whose pause ends
    first. `jitter` gives a number in [0, 1).
    """

    contenders: Sequence[Contender]
    max_retries: int
    jitter: Callable[[], float]
    failures: list[tuple[int, ProviderError]] = field(default_factory=list)
    _left: dict[int, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._left = {index: Option(index, 0.0) for index in range(len(self.contenders))}

    def options(self) -> list[Option]:
        """What is left to try: those of the present round first, in order; empty when there is nothing."""
        tried = {index for index, _ in self.failures}
        if self.failures and isinstance(self.failures[-1][1], ModelNoise):
            tried.discard(self.failures[-1][0])  # its one more try comes before the next candidate
        return sorted(self._left.values(), key=lambda o: (o.index in tried, o.not_before, o.index))

    def failed(self, index: int, error: ProviderError, now: float) -> None:
        """Candidate `index` failed at `now` seconds.

        A prompt that its first vendor calls wrong is wrong; one that a fallback calls wrong may be so for that vendor.
        """
        only_callers_faults = all(isinstance(earlier, CallerFault) for _, earlier in self.failures)
        self.failures.append((index, error))
        was_left = self._left.pop(index, None) is not None
        times = sum(1 for i, _ in self.failures if i == index)
        mine = self.contenders[index]
        if error.remedy is Remedy.NONE and only_callers_faults:
            self._left.clear()
        elif error.remedy is Remedy.NONE or isinstance(error, BadCredentials | OutOfCredit):
            self._keep(lambda other: other.provider != mine.provider)
        elif isinstance(error, PromptTooLarge):
            self._keep(lambda other: other.window > mine.window)
        elif isinstance(error, ModelNoise):
            noises = sum(1 for i, e in self.failures if i == index and isinstance(e, ModelNoise))
            if was_left and noises == 1 and times <= self.max_retries:
                self._left[index] = Option(index, 0.0)
        elif was_left and error.remedy in {Remedy.SAME, Remedy.WAIT} and times <= self.max_retries:
            pause_s = (error.retry_after_s or 0.0) + self._backoff_s(times)
            self._left[index] = Option(index, now + pause_s, isinstance(error, RateLimited))

    def _keep(self, may: Callable[[Contender], bool]) -> None:
        self._left = {i: option for i, option in self._left.items() if may(self.contenders[i])}

    def _backoff_s(self, times: int) -> float:
        return self.jitter() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0**times)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a candidate cannot be called now, and when it may be; `wait_s` is infinite where it never fits."""

    index: int
    wait_s: float
    why: str
    limited: bool = True
    """It waits for a limit, its own pace or the vendor's Retry-After; otherwise for a vendor that failed."""
    exceeded: Exceeded | None = None
    """The budget that does not allow it, with no end to wait for."""


@dataclass(frozen=True, slots=True)
class Park:
    """Wait without a slot: in `wait_s` at the soonest a candidate may be free."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class HandBack:
    """Back into the queue for `wait_s`: no candidate is free soon, and the deadline is later, or there is none."""

    wait_s: float


def standstill(waits: Sequence[Wait], left_s: float | None) -> Park | HandBack | RequestError:
    """What to do when no candidate can be called now.

    Args:
        waits: one for each candidate that is left, at least one.
        left_s: seconds to the deadline, None without one.
    """
    soon = [w.wait_s for w in waits if w.wait_s <= LONGEST_PARK_S and (left_s is None or w.wait_s < left_s)]
    if soon:
        return Park(min(soon))
    shortest = min(w.wait_s for w in waits)
    said = "; ".join(dict.fromkeys(w.why for w in waits))[:1000]
    if math.isinf(shortest):
        if spent := [w.exceeded for w in waits if w.exceeded is not None]:
            first = min(spent, key=lambda exceeded: exceeded.wait_s)
            return RequestError(ErrorType.BUDGET_EXCEEDED, first.why, retry_after_s=math.ceil(first.wait_s))
        return RequestError(ErrorType.TOO_LARGE, said)
    if left_s is None or shortest < left_s:
        return HandBack(min(shortest, HAND_BACK_S))
    kind = ErrorType.RATE_LIMITED if all(w.limited for w in waits) else ErrorType.UNAVAILABLE
    return RequestError(kind, f"no candidate is free before the deadline: {said}", retry_after_s=math.ceil(shortest))


def verdict(
    failures: Sequence[tuple[str, ProviderError]],
    refusals: Sequence[tuple[str, str]] = (),
    nobody: ErrorType = ErrorType.UNAVAILABLE,
) -> RequestError:
    """The error for a client whose request every candidate failed.

    Args:
        failures: (model alias, error) in the order they happened.
        refusals: (model alias, reason) of models that were never called.
        nobody: what it is called where nobody could be.
    """
    if failures and all(isinstance(error, CallerFault) for _, error in failures):
        model, error = failures[-1]
        kind = ErrorType.TOO_LARGE if isinstance(error, PromptTooLarge) else ErrorType.INVALID_REQUEST
        return RequestError(kind, f"{model}: {error.message}")
    last = {model: f"{model}: {error.message} ({error.kind})" for model, error in failures}
    alike: dict[str, list[str]] = {}
    for model, reason in refusals:
        alike.setdefault(reason, []).append(model)
    said = [*last.values(), *(f"{', '.join(models)}: {reason}" for reason, models in alike.items())]
    waits = [error.retry_after_s for _, error in failures if error.retry_after_s is not None]
    return RequestError(
        ErrorType.UNAVAILABLE if failures else nobody,
        "; ".join(said)[:1000] or "no model is available",
        retry_after_s=min(waits) if waits else None,
    )
