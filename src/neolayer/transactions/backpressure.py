"""A bounded queue: what comes when it is full is refused at once, and is to come again later.

Counting the queue at every request would cost more than the request. Each process counts it once a second, and for
each tenant that submits that tenant's, no further than the bound, and adds what it accepted itself since; with
several processes the bound may be passed by what they accept within that second.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.errors import QueueFull

_SQL: Final = load_queries("neolayer.transactions")
#: How long a count is good; seconds. One that says "full" is looked at again sooner.
FRESH_S: Final = 1.0
FULL_S: Final = 0.1
#: A full queue is worth another look after this time; seconds.
RETRY_AFTER_S: Final = 5
_TENANTS: Final = 10_000


@dataclass(slots=True)
class _Count:
    """Of queued transactions, at a time."""

    at: float
    number: int
    most: int

    @property
    def full(self) -> bool:
        return self.number >= self.most

    @property
    def good(self) -> bool:
        return time.monotonic() <= self.at + (FULL_S if self.full else FRESH_S)


class QueueBound:
    def __init__(self, database: Database, *, tenant_max: int, total_max: int) -> None:
        """
        Args:
            tenant_max: queued transactions of one tenant.
            total_max: of all tenants together.
        """
        self._database = database
        self._tenant_max = tenant_max
        self._total_max = total_max
        #: By tenant; None for all of them.
        self._counts: dict[UUID | None, _Count] = {}
        self._counting: dict[UUID | None, asyncio.Task[_Count]] = {}

    async def admit(self, tenant_id: UUID) -> None:
        """Count one more of a tenant.

        Raises:
            QueueFull: there is no room for it.
        """
        own, total = await self._fresh(tenant_id), await self._fresh(None)
        if own.full:
            message = f"{own.most} transactions of this tenant are waiting already"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)
        if total.full:
            raise QueueFull(f"{total.most} transactions are waiting already", retry_after_s=RETRY_AFTER_S)
        own.number += 1
        total.number += 1

    async def _fresh(self, tenant_id: UUID | None) -> _Count:
        """Of a tenant, or of all. Those who come while it is counted wait for the same answer."""
        count = self._counts.get(tenant_id)
        if count is not None and count.good:
            return count
        counting = self._counting.get(tenant_id)
        if counting is None:
            counting = self._counting[tenant_id] = asyncio.create_task(self._count(tenant_id))
            counting.add_done_callback(lambda _: self._counting.pop(tenant_id, None))
        # One caller that gives up does not end it for the others.
        return await asyncio.shield(counting)

    async def _count(self, tenant_id: UUID | None) -> _Count:
        if tenant_id is None:
            query, params, most = "count_queued", {}, self._total_max
        else:
            query, params, most = "count_queued_of", {"tenant_id": tenant_id}, self._tenant_max
        row = await self._database.fetch_one(_SQL[query], params | {"most": most})
        assert row is not None
        if len(self._counts) >= _TENANTS:
            self._counts.clear()
        count = self._counts[tenant_id] = _Count(time.monotonic(), row[0], most)
        return count
