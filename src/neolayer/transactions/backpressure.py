"""A bounded queue: what comes when it is full is refused at once, and is to come again later.

Counting the queue at every request would cost more than the request. Each process counts it once a second for each
tenant that submits and adds what it accepted itself since; with several processes the bound may be passed by what
they accept within that second.
"""

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
    at: float
    of_tenant: int
    of_all: int


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

    async def admit(self, tenant_id: UUID) -> None:
        """Count one more of a tenant.

        Raises:
            QueueFull: there is no room for it.
        """
        count = self._counts.get(tenant_id)
        now = time.monotonic()
        if count is None or now > count.at + (FULL_S if self._full(count) else FRESH_S):
            row = await self._database.fetch_one(_SQL["count_queued"], {"tenant_id": tenant_id})
            assert row is not None
            if len(self._counts) >= _TENANTS:
                self._counts.clear()
            count = self._counts[tenant_id] = _Count(now, *row)
        if reason := self._full(count):
            raise QueueFull(reason, retry_after_s=RETRY_AFTER_S)
        count.of_tenant += 1
        count.of_all += 1

    def _full(self, count: _Count) -> str:
        if count.of_tenant >= self._tenant_max:
            return f"{self._tenant_max} transactions of this tenant are waiting already"
        if count.of_all >= self._total_max:
            return f"{self._total_max} transactions are waiting already"
        return ""
