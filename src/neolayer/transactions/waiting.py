"""Waiting for a transaction's next change in one request."""

import time
from typing import Final
from uuid import UUID

from neolayer.core.errors import TooManyRequests
from neolayer.events.feed import Feed, Subscription
from neolayer.events.outbox import Event
from neolayer.transactions.model import UNFINISHED, TransactionView
from neolayer.transactions.service import Transactions

#: Longest wait of one request; seconds.
MAX_WAIT_S: Final = 60


class Waiting:
    def __init__(self, transactions: Transactions, feed: Feed) -> None:
        self._transactions = transactions
        self._feed = feed

    async def show(
        self, tenant_id: UUID, id: UUID, wait_s: float, after: int | None, *, final: bool
    ) -> TransactionView:
        """The transaction, once it has changed or its state is final, or when the time is up.

        Args:
            after: number of the last event that the client has seen; a later one is a change. Without it a change
                is what happens from now on.
            final: only a final state counts.

        Raises:
            TransactionNotFound: the tenant has none with this id.
            TooManyRequests: too many wait here.
        """
        if wait_s <= 0:
            return await self._transactions.show(tenant_id, id)
        try:
            return await self._changed(tenant_id, id, time.monotonic() + wait_s, after, final=final)
        except TooManyRequests:
            # Only those who would have to wait are too many.
            view = await self._transactions.show(tenant_id, id)
            if _answers(view, after, final=final):
                return view
            raise

    async def _changed(
        self, tenant_id: UUID, id: UUID, end: float, after: int | None, *, final: bool
    ) -> TransactionView:
        # First, so that no change falls between the reading and the waiting.
        async with self._feed.subscribe(tenant_id, id) as subscription:
            view = await self._transactions.show(tenant_id, id)
            seen = view.event if after is None else after
            while not _answers(view, seen, final=final):
                event = await self._change(subscription, end, final=final)
                if event is None:
                    # The time is up; or there was more than is kept for one who waits.
                    return await self._transactions.show(tenant_id, id)
                view = await self._transactions.show(tenant_id, id)
            return view

    async def _change(self, subscription: Subscription, end: float, *, final: bool) -> Event | None:
        """The next event that may answer; None when the time is up."""
        while (left := end - time.monotonic()) > 0:
            event = await subscription.next(left)
            if event is None or not final or event.data["state"] not in UNFINISHED:
                return event
        return None


def _answers(view: TransactionView, seen: int | None, *, final: bool) -> bool:
    return view.state not in UNFINISHED or (not final and seen is not None and view.event > seen)
