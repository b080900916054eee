"""A bounded queue: what comes when it is full is refused at once, and is to come again later.

Counting the queue at every request would cost more than the request. Each process counts it once a second, and for
each tenant that submits that tenant's, no further than the bound, and adds what it accepted itself since; with
several processes the bound may be passed by what they accept within that second.
"""

import time
from dataclasses import dataclass
from typing import Any, Final
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
        self._counts: dict[UUID, _Count] = {}
        self._total: _Count | None = None

    async def admit(self, tenant_id: UUID) -> None:
        """Count one more of a tenant.

        Raises:
            QueueFull: there is no room for it.
        """
        own = self._counts.get(tenant_id)
        if own is None or not own.good:
            own = await self._count("count_queued_of", self._tenant_max, {"tenant_id": tenant_id})
            if len(self._counts) >= _TENANTS:
                self._counts.clear()
            self._counts[tenant_id] = own
        if self._total is None or not self._total.good:
            self._total = await self._count("count_queued", self._total_max, {})
        total = self._total
        if own.full:
            message = f"{own.most} transactions of this tenant are waiting already"
            raise QueueFull(message, retry_after_s=RETRY_AFTER_S)
        if total.full:
            raise QueueFull(f"{total.most} transactions are waiting already", retry_after_s=RETRY_AFTER_S)
        own.number += 1
        total.number += 1

    async def _count(self, query: str, most: int, params: dict[str, Any]) -> _Count:
        row = await self._database.fetch_one(_SQL[query], params | {"most": most})
        assert row is not None
        return _Count(time.monotonic(), row[0], most)
