"""Reserve, settle and refund what vendors' limits allow, in the best store that answers."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from processor.bucket import (
    GUARD_S,
    GUESS_MARGIN,
    LONGEST_HOLD_S,
    METRICS,
    WINDOW_S,
    Admit,
    Denied,
    Granted,
    Hold,
    Metric,
    Need,
    Op,
    Record,
    Result,
    Scope,
    Settle,
    Told,
)
from processor.catalog import Catalog, CatalogModel
from processor.catalog import Limits as LimitsTable
from processor.limit_accounts import Account, Tally, Word
from processor.limit_stores import Contended, LimitStore, MemoryStore, StateLost, StoreUnavailable, steady_clock
from processor.tasks import OwnedTasks
from providers.base import Quota

RETRY_S = 5.0
"""How often a better store that failed is asked again."""
FLUSH_S = 1.0
"""About how often a store that is not in use hears what was used."""
MAX_WAITING = 1_000
"""Operations of one provider that wait for its store."""
MAX_BATCH = 256
OVERLOADED_WAIT_S = 1.0
OVERLOADED = Denied(OVERLOADED_WAIT_S, "", "too many requests ask for its limits at once")
CONTENDED_PAUSE_S = 0.05
CLOSE_S = 5.0
INPUT_METRICS: Final[tuple[Metric, ...]] = ("tpm", "tpd", "itpm")
"""Those that a prompt alone can exceed."""
_NOBODY = "_"
"""No provider's name: what is written to a store to see whether it can be."""

log = structlog.get_logger(__name__)


@dataclass(eq=False, slots=True)
class Reservation:
    """What a request holds of its limits until it is settled, or its windows have passed."""

    provider: str
    granted: Granted
    number: int
    expires: float
    """In seconds of the monotonic clock."""
    settled: bool = False


class Limits:
    """The limits of all providers, for one replica.

    `stores` come in order of preference; the last resort is this process's memory. Operations of one provider keep
    their order, and those that arrive while a store is asked go together in its next call.
    """

    def __init__(
        self,
        catalog: Catalog,
        stores: Sequence[LimitStore],
        *,
        buffer: float,
        on_degraded: Callable[[str], None],
        on_recovered: Callable[[str], None],
        retry_s: float = RETRY_S,
    ) -> None:
        self._stores: list[LimitStore] = [*stores, MemoryStore(steady_clock())]
        self._current = 0
        self._share = 1.0 - buffer
        self._on_degraded = on_degraded
        self._on_recovered = on_recovered
        self._retry_s = retry_s
        self._clock = steady_clock()
        self._provider_limits = {name: _limits(table) for name, table in catalog.limits.items()}
        self._limited = {name for name, limits in self._provider_limits.items() if limits}
        self._limited |= {model.provider for model in catalog.models.values() if _limits(model.limits)}
        self._accounts: dict[str, Account] = {}
        self._open: dict[int, Reservation] = {}
        self._look_at = 64
        self._numbers = itertools.count()
        self._calls = OwnedTasks()
        self._retries = OwnedTasks()

    @property
    def outstanding(self) -> int:
        """Reservations neither settled nor expired."""
        now = time.monotonic()
        self._open = {n: held for n, held in self._open.items() if held.expires > now}
        return len(self._open)

    async def reserve(self, model: CatalogModel, need: Need, *, critical: bool) -> Reservation | Denied:
        """Take `need` of the limits of the model and of its provider, all or nothing.

        A caller that is cancelled meanwhile holds nothing.
        """
        limits = {"": self._provider_limits.get(model.provider, {}), model.alias: _limits(model.limits)}
        account = self._account(model.provider)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if not self._enqueue(account, Admit(limits, need, 1.0 if critical else self._share), future):
            return OVERLOADED
        try:
            result = await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:
                self._give_back(account, future.result())
            raise
        if isinstance(result, Denied):
            return result
        assert isinstance(result, Granted)
        return self._reserved(model.provider, result)

    def settle(self, reservation: Reservation, actual: Need | None) -> None:
        """Put the real usage in place of the estimate; None gives all back. A second time does nothing."""
        if reservation.settled:
            return
        reservation.settled = True
        self._open.pop(reservation.number, None)
        self._tell(reservation.provider, Settle(reservation.granted, actual))

    def hold(self, model: CatalogModel, for_s: float, *, whole_provider: bool, reason: str) -> None:
        """Admit nobody to the model, or to its whole provider, for `for_s` seconds."""
        hold = Hold("" if whole_provider else model.alias, for_s, reason)
        held = self._account(model.provider).holds
        until = time.monotonic() + min(for_s, LONGEST_HOLD_S)
        if until > held.get(hold.scope, (0.0, hold))[0]:
            held[hold.scope] = (until, hold)
        self._tell(model.provider, hold)

    def tell(self, model: CatalogModel, told: Sequence[Quota]) -> None:
        """What the vendor's headers say is left to the model: vendors count each model by itself."""
        for quota in told:
            if quota.limit:
                word = Word(quota.remaining / quota.limit, time.monotonic(), quota.reset_s)
                self._account(model.provider).told.setdefault(model.alias, {})[quota.metric] = word
            self._tell(model.provider, Told(model.alias, quota.metric, quota.remaining, quota.reset_s, quota.limit))

    def room(self, model: CatalogModel, input_tokens: int = 0) -> float | None:
        """The share that is free of the tightest of the limits of the model and its provider; None without limits.

        This replica's view, for comparing models, and no promise: what it took itself in the last windows, what a
        vendor said last, and 0 while a Retry-After, or the store's last refusal of a request that wanted no more than
        `MODEST` of a limit, says that there is nothing. What other replicas took shows only in these. The share kept
        for critical requests does not count as free. 0 too where a prompt of `input_tokens` never fits.
        """
        account, now_ms, free = self._account(model.provider), round(self._clock() * 1000), math.inf
        for scope, limits in (
            ("", self._provider_limits.get(model.provider, {})),
            (model.alias, _limits(model.limits)),
        ):
            if any(input_tokens > limits[metric] * GUESS_MARGIN for metric in INPUT_METRICS if metric in limits):
                return 0.0
            free = min(free, account.room(scope, limits, self._share, now_ms))
        return None if math.isinf(free) else min(1.0, max(0.0, free))

    def used(self, provider: str, scope: Scope, table: LimitsTable | None) -> dict[Metric, tuple[int, int]]:
        """Of each limit that `table` sets in the scope, what this replica took in its window, and the limit."""
        sums = self._account(provider).recent_sums(round(self._clock() * 1000))
        limits = {} if table is None else _limits(table)
        return {metric: (max(0, sums.get((scope, metric), 0)), limit) for metric, limit in limits.items()}

    async def close(self) -> None:
        """Write what was told, for at most `CLOSE_S` seconds, and end all tasks."""
        await self._retries.cancel()
        await self._calls.join(CLOSE_S)
        await self._calls.cancel()
        await self._retries.cancel()

    def _account(self, provider: str) -> Account:
        if (account := self._accounts.get(provider)) is None:
            account = Account(provider, [Tally() for _ in self._stores], limited=provider in self._limited)
            self._accounts[provider] = account
        return account

    def _reserved(self, provider: str, granted: Granted) -> Reservation:
        longest = max((WINDOW_S[metric] for _, metric in granted.taken), default=WINDOW_S["rpm"])
        expires = time.monotonic() + longest + GUARD_S
        reservation = Reservation(provider, granted, next(self._numbers), expires)
        self._open[reservation.number] = reservation
        if len(self._open) > self._look_at:
            self._look_at = 2 * self.outstanding + 64
        return reservation

    def _give_back(self, account: Account, result: Result) -> None:
        if isinstance(result, Granted):
            self._tell(account.provider, Settle(result, None))

    def _tell(self, provider: str, op: Settle | Hold | Told) -> None:
        if isinstance(op, Settle) and not (op.entries() or op.unused()):
            return
        if not self._enqueue(self._account(provider), op, None):
            # What is taken and never given back goes when its window passes.
            log.warning("limits: too many operations wait", provider=provider, dropped=type(op).__name__)

    def _enqueue(self, account: Account, op: Op, future: asyncio.Future[Result] | None) -> bool:
        if len(account.waiting) >= MAX_WAITING:
            return False
        account.waiting.append((op, future))
        if not account.running:
            account.running = True
            self._calls.start(self._work_off(account))
        return True

    async def _work_off(self, account: Account) -> None:
        """Run what waits, batch by batch, until nothing does."""
        batch: list[tuple[Op, asyncio.Future[Result] | None]] = []
        try:
            while account.waiting:
                taken = [account.waiting.popleft() for _ in range(min(len(account.waiting), MAX_BATCH))]
                batch = [(op, future) for op, future in taken if future is None or not future.done()]
                try:
                    results = await self._run(account, [op for op, _ in batch])
                except Contended:
                    # Who waits for an answer gets one; what was only told comes first in the next try.
                    account.waiting.extendleft(reversed([told for told in batch if told[1] is None]))
                    for _, future in batch:
                        if future is not None and not future.done():
                            future.set_result(OVERLOADED)
                    await asyncio.sleep(CONTENDED_PAUSE_S)
                    continue
                for (_, future), result in zip(batch, results, strict=True):
                    if future is None:
                        continue
                    if future.done():  # its caller was cancelled meanwhile
                        self._give_back(account, result)
                    else:
                        future.set_result(result)
        except BaseException as error:
            for _, future in (*batch, *account.waiting):
                if future is not None and not future.done():
                    future.set_exception(error) if isinstance(error, Exception) else future.cancel()
            account.waiting.clear()
            raise
        finally:
            account.running = False

    async def _run(self, account: Account, ops: Sequence[Op]) -> Sequence[Result]:
        while True:
            index = self._current if account.limited else len(self._stores) - 1
            try:
                results = await self._ask(account, index, [account.once(index, op) for op in ops])
            except StateLost:
                continue
            except StoreUnavailable as error:
                account.unsure.add(index)
                self._degrade(index, str(error))
            else:
                account.done(index, ops, results)
                return results

    async def _ask(self, account: Account, index: int, ops: Sequence[Op]) -> Sequence[Result]:
        """Run `ops` in a store, after what it has yet to hear."""
        tally, account.missing[index] = account.missing[index].entries(), Tally()
        first = account.before(index, tally)
        try:
            results = await self._stores[index].run(account.provider, [*first, *ops])
        except StateLost:
            account.missing[index] = account.own.copy()
            account.used = -1
            raise
        except StoreUnavailable:
            # Whether it heard the tally is unknown: nothing may be given back to it twice.
            account.missing[index].add([entry for entry in tally if entry.amount > 0])
            raise
        except BaseException:
            account.missing[index].add(tally)
            raise
        return results[len(first) :]

    async def keep_warm(self) -> None:
        """Tell shared stores what they have yet to hear, for ever: what an idle replica used counts for all."""
        while True:
            await asyncio.sleep(FLUSH_S * random.uniform(0.5, 1.5))
            for account, index in itertools.product([*self._accounts.values()], range(len(self._stores) - 1)):
                if index < self._current or not (account.limited and account.missing[index].entries()):
                    continue
                try:
                    await self._ask(account, index, [])
                except (StoreUnavailable, StateLost, Contended) as error:
                    log.debug("limits: a store is told later", store=self._stores[index].name, error=str(error))

    def _degrade(self, index: int, why: str) -> None:
        if self._current != index:  # another provider's call found out first
            return
        self._current = index + 1
        self._on_degraded(f"limits are counted in {self._stores[self._current].name}: {why}")
        if not self._retries:
            self._retries.start(self._look_again())

    async def _look_again(self) -> None:
        """Ask the better stores until the best one answers."""
        while self._current:
            await asyncio.sleep(self._retry_s)
            for index in range(self._current):
                if await self._writes(index):
                    self._current = index
                    self._on_recovered(f"limits are counted in {self._stores[index].name} again")
                    break

    async def _writes(self, index: int) -> bool:
        """Whether a store does more than answer: a Redis that is full refuses changes only."""
        for _ in range(2):  # one that came back empty says so first
            try:
                await self._stores[index].run(_NOBODY, [Record(())])
            except StateLost:
                continue
            except StoreUnavailable:
                return False
            except Contended:
                return True
            return True
        return False


def _limits(table: LimitsTable) -> Mapping[Metric, int]:
    if not table.model_fields_set:  # as most are, and all are looked at for every request
        return {}
    return {metric: limit for metric in METRICS if (limit := getattr(table, metric)) is not None}
