"""What calls may spend: held before each, settled after it, and how near its budgets a tenant is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

from processor.book import LEASE_S, Renew, Reserve, Settle
from processor.bookkeeper import Bookkeeper
from processor.budgets import Budget, Exceeded, HeldUp, Price, by_tenant, used_share
from processor.spend import dollars, pico

RENEW_EVERY_S = LEASE_S / 4


class Spending:
    """The one place where budgets are enforced: every call to a vendor passes through `reserve`.

    Only hard budgets hold anything. `on_spent` hears of every call that ended.
    """

    def __init__(
        self,
        keeper: Bookkeeper,
        budgets: Sequence[Budget],
        on_spent: Callable[[], None],
        *,
        saving_from: float,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._keeper = keeper
        self._budgets = budgets
        self._concerning = by_tenant(budgets)
        self._on_spent = on_spent
        self._saving_from = saving_from
        self._now = now
        self._open: set[str] = set()

    @property
    def outstanding(self) -> int:
        """Holds of calls under way."""
        return len(self._open)

    def is_limited(self, tenant: str) -> bool:
        """Whether a hard budget concerns the tenant: otherwise what its calls will cost need not be known."""
        return any(budget.hard for budget in self._concerning(tenant))

    def limiting(self, tenant: str, price: Price) -> Sequence[str]:
        """The labels of the hard budgets that such a call needs room in."""
        return [budget.label for budget in self._concerning(tenant) if budget.hard] if price.most else ()

    async def reserve(self, tenant: str, price: Price) -> str | HeldUp | Exceeded | None:
        """Hold what a call may cost. A token to settle it by, None for a free one, or why it may not be made.

        A caller that is cancelled meanwhile holds nothing.

        Raises:
            BookUnavailable: nobody knows what is spent.
        """
        if not price.most:
            return None
        token = secrets.token_hex(8)
        self._open.add(token)
        try:
            refused = await self._keeper.do(Reserve(token, tenant, price))
        except BaseException:
            self._open.discard(token)
            self._keeper.tell(Settle(token, None))
            raise
        if refused is None:
            return token
        self._open.discard(token)
        assert isinstance(refused, HeldUp | Exceeded)
        return refused

    def settle(self, token: str | None, cost_usd: Decimal | None) -> None:
        """A call has ended and cost so much; None: it was never made."""
        if token is not None:
            self._open.discard(token)
            self._keeper.tell(Settle(token, None if cost_usd is None else pico(cost_usd)))
        if cost_usd is not None:
            self._on_spent()

    async def renew(self) -> None:
        """Keep the holds of calls that take long, for ever."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            if self._open:
                self._keeper.tell(Renew(tuple(self._open)))

    def is_nearly_used(self, tenant: str) -> bool:
        """Whether so much of a budget is spent that `auto` is to prefer cheaper models."""
        share = used_share(self._concerning(tenant), tenant, self._keeper.seen.spent, self._now().date())
        return 0 < self._saving_from <= share

    def used(self) -> dict[str, dict[str, float]]:
        """Each budget by its label, with what is spent of it, in dollars."""
        today, spent = self._now().date(), self._keeper.seen.spent
        return {
            budget.label: {
                "limit_usd": float(dollars(budget.limit)),
                "spent_usd": float(dollars(spent.get(budget.account(today), 0))),
            }
            for budget in self._budgets
        }
