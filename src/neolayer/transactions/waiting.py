"""Waiting for a transaction's next change in one request."""

import time
from typing import Final
from uuid import UUID

from neolayer.events.feed import Feed
from neolayer.transactions.model import UNFINISHED, TransactionView
from neolayer.transactions.service import Transactions

#: Longest wait of one request; seconds.
MAX_WAIT_S: Final = 60


class Waiting:
    def __init__(self, transactions: Transactions, feed: Feed) -> None:
        self._transactions = transactions
        self._feed = feed

    async def show(self, tenant_id: UUID, id: UUID, wait_s: float, after: int | None) -> TransactionView:
        """The transaction, once it has changed or its state is final, or when the time is up.

        Args:
            after: number of the last event that the client has seen; a later one is a change. Without it a change
                is what happens from now on.

        Raises:
            TransactionNotFound: the tenant has none with this id.
            TooManyRequests: too many wait here.
        """
        view = await self._transactions.show(tenant_id, id)
        if _answers(view, after) or wait_s <= 0:
            return view
        async with self._feed.subscribe(tenant_id, id) as subscription:
            # It may have changed before the subscription began.
            seen = view.event if after is None else after
            end = time.monotonic() + wait_s
            view = await self._transactions.show(tenant_id, id)
            while not _answers(view, seen) and (left := end - time.monotonic()) > 0:
                if await subscription.next(left) is not None:
                    view = await self._transactions.show(tenant_id, id)
            return view


def _answers(view: TransactionView, seen: int | None) -> bool:
    return view.state not in UNFINISHED or (seen is not None and view.event > seen)
