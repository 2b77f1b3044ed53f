"""After a failed attempt: which candidate is tried next and when, or which error the client gets. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from processor.errors import ErrorType, RequestError
from providers.errors import (
    BadCredentials,
    CallerFault,
    OutOfCredit,
    PromptTooLarge,
    ProviderError,
    Remedy,
    Throttled,
    Unsupported,
)

BACKOFF_BASE_S = 0.25
BACKOFF_CAP_S = 8.0
LONGEST_WAIT_S = 60.0
"""A limit of a minute is free again after a minute; a vendor that says later means a day's, and is not waited for."""


@dataclass(frozen=True, slots=True)
class Try:
    """Candidate number `index`, to be started `delay_s` from now."""

    index: int
    delay_s: float = 0.0


@dataclass(slots=True)
class Plan:
    """The order of attempts over candidates, best first; `providers` names each one's.

    A failure that another try may cure sends its candidate to the end of the queue, not before its backoff is over;
    one that none can cure takes it out, and a key without rights or credit all of its provider's. So the next
    candidate is tried at once, and a lone one after its pause. `jitter` gives a number in [0, 1): full jitter, after
    Brooker, "Exponential backoff and jitter" (AWS, 2015).
    """

    providers: Sequence[str]
    max_attempts: int
    jitter: Callable[[], float]
    failures: list[tuple[int, ProviderError]] = field(default_factory=list)
    _waiting: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._waiting = [(index, 0.0) for index in range(len(self.providers))]

    def first(self) -> Try | None:
        return Try(0) if self.providers else None

    def failed(self, index: int, error: ProviderError, now: float) -> Try | None:
        """The next try after candidate `index` failed at `now` seconds, or None when there is nothing left to try."""
        self.failures.append((index, error))
        self._waiting = [(i, at) for i, at in self._waiting if i != index]
        # What a model cannot do is refused before any call: it costs neither time nor money, and no attempt.
        calls = sum(1 for _, failure in self.failures if not isinstance(failure, Unsupported))
        if error.remedy is Remedy.NONE or calls >= self.max_attempts:
            return None
        if isinstance(error, BadCredentials | OutOfCredit):
            self._waiting = [(i, at) for i, at in self._waiting if self.providers[i] != self.providers[index]]
        elif error.remedy in {Remedy.SAME, Remedy.WAIT} and (error.retry_after_s or 0) <= LONGEST_WAIT_S:
            self._waiting.append((index, now + self._pause_s(index, error)))
        if not self._waiting:
            return None
        following, at = min(self._waiting, key=lambda w: max(w[1], now))
        return Try(following, max(0.0, at - now))

    def _pause_s(self, index: int, error: ProviderError) -> float:
        times = sum(1 for i, _ in self.failures if i == index)
        backoff = self.jitter() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0**times)
        if error.retry_after_s is not None:
            return error.retry_after_s + backoff
        return max(backoff, 1.0) if isinstance(error, Throttled) else backoff


def verdict(failures: Sequence[tuple[str, ProviderError]], refusals: Sequence[tuple[str, str]] = ()) -> RequestError:
    """The error for a client whose request every candidate failed.

    Args:
        failures: (model alias, error) in the order they happened.
        refusals: (model alias, reason) of models that were never called.
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
        ErrorType.UNAVAILABLE,
        "; ".join(said)[:1000] or "no model is available",
        retry_after_s=min(waits) if waits else None,
    )
