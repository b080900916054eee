"""The durable queue of intents: leased many at a time, given back, refused, woken when they are due.

A worker owns what it leased as long as it renews the lease; when it dies, others take it up once the lease ends.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import msgspec

from neolayer.chain.market import Speed
from neolayer.core.ids import uuid7
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.transactions.grouping import Traffic
from neolayer.transactions.model import HEAD_START_S

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: The database's clock has gone back when it is so much behind what passed here; seconds.
CLOCK_STEP_S: Final = 2.0
#: No pause between tries is longer; seconds.
LONGEST_PAUSE_S: Final = 10.0
#: Recent blocks from which traffic is judged.
RECENT_BLOCKS: Final = 8
#: Waiting intents are counted up to this number. In the room of three empty blocks it makes groups of 104 calls,
#: which have 5 % of their bytes beside the calls; larger ones save little, and counting is frequent.
MOST_QUEUED: Final = 20_000
#: The first transactions of a block should wait for it, not the block for them; but what waits at nodes has left
#: our queue, where tenants take turns. So no more than these blocks' worth is on its way.
WINDOW_BLOCKS: Final = 3

type Cause = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Intent:
    """A queued transaction, leased."""

    tenant_id: UUID
    id: UUID
    wallet_id: UUID
    tries: int
    script: bytes
    call_count: int
    valid_for_blocks: int
    max_fee: int | None
    #: Magic of the network it was accepted for; None when no node could be asked then.
    network: int | None
    #: Never shares an on-chain transaction.
    alone: bool
    speed: Speed
    #: Datoshi that transactions in blocks have cost it already: those that it shared and that failed as a whole.
    paid: int

    @property
    def groupable(self) -> bool:
        """Several calls of one intent must all be undone when one fails, which a group's script cannot do."""
        return not self.alone and self.call_count == 1


@dataclass(frozen=True, slots=True)
class Batch:
    """What one lease holds."""

    lease: UUID
    intents: list[Intent]


@dataclass(frozen=True, slots=True)
class Window:
    """What one tenant may have on its way, whatever becomes of it."""

    network: int
    #: On-chain transactions.
    attempts: int
    #: Calls in each of those that are to be made.
    calls: int


#: While nobody knows how large blocks are.
UNBOUNDED: Final = Window(network=0, attempts=2**31 - 1, calls=1)


class Queue:
    def __init__(self, database: Database, *, lease_s: float) -> None:
        self._database = database
        self._lease_s = lease_s
        #: How far the database's clock was ahead of our monotonic one; seconds. None before it was asked.
        self._ahead_s: float | None = None
        #: Monotonic; times of a clock that was ahead are looked for until then.
        self._mend_until_s = 0.0

    async def lease(self, limit: int, window: Window = UNBOUNDED) -> Batch:
        """Up to ``limit`` intents that are due, tenants in turn, in the order of their ranks.

        Args:
            window: of each tenant.
        """
        lease = uuid7()
        params = {
            "lease": lease,
            "lease_s": self._lease_s,
            "limit": limit,
            "longest_start_s": max(HEAD_START_S.values()),
            "network": window.network,
            "window": window.attempts,
            "calls_each": window.calls,
        }
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["lock_queue"])
            rows = await (await connection.execute(_SQL["lease"], params)).fetchall()
        rows.sort(key=lambda row: (row[0], row[2], row[-1]))
        return Batch(
            lease,
            [
                Intent(tenant, id, wallet, tries, bytes(script), *terms)
                for tenant, id, wallet, tries, script, *terms, _ in rows
            ],
        )

    async def renew(self, leases: Iterable[UUID]) -> None:
        """Of intents and of signed attempts."""
        await self._database.execute(_SQL["renew"], {"leases": list(leases), "lease_s": self._lease_s})

    async def postpone(self, lease: UUID, intents: Sequence[tuple[Intent, float, Cause | None]]) -> None:
        """Give intents back, not to be leased again for so many seconds; the cause shows why they wait."""
        if intents:
            params = {
                "lease": lease,
                "tenants": [intent.tenant_id for intent, _, _ in intents],
                "ids": [intent.id for intent, _, _ in intents],
                "delays": [delay for _, delay, _ in intents],
                "causes": [cause_json(cause) for _, _, cause in intents],
            }
            await self._database.execute(_SQL["postpone"], params)

    async def reject(self, lease: UUID, intents: Sequence[tuple[Intent, Cause]]) -> None:
        """End intents of which nothing was ever sent."""
        if intents:
            params = {
                "lease": lease,
                "tenants": [intent.tenant_id for intent, _ in intents],
                "ids": [intent.id for intent, _ in intents],
                "causes": [cause_json(cause) for _, cause in intents],
            }
            await self._database.execute(_SQL["reject"], params)

    async def wake(self, height: int | None) -> None:
        """Let go what is due: leases of workers that died, intents whose block or whose turn has come.

        Args:
            height: of the chain; None while it is not known.
        """
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["lock_queue"])
            await self._heed_clock(connection)
            await connection.execute(_SQL["reclaim"])
            if height is not None:
                await connection.execute(_SQL["release_scheduled"], {"height": height})
                await connection.execute(_SQL["release_fifo"], {"height": height})

    async def _heed_clock(self, connection: Connection) -> None:
        """When the database's clock went back, nothing is to wait until it gets where it was.

        It may have done so while no worker ran, so the first look mends too. Rows that somebody has locked just
        when it happens are reached by the looks that follow. Going forward needs nothing: leases end early,
        and what their holders store or send then is refused or known already.
        """
        row = await (await connection.execute(_SQL["clock"])).fetchone()
        assert row is not None
        now_s = time.monotonic()
        ahead_s = row[0] - now_s
        if self._ahead_s is None:
            self._mend_until_s = now_s  # once: it reads all that is unfinished
        elif ahead_s < self._ahead_s - CLOCK_STEP_S:
            _log.warning("the database's clock went back by %.0f s", self._ahead_s - ahead_s)
            self._mend_until_s = now_s + self._lease_s
        self._ahead_s = ahead_s
        if now_s <= self._mend_until_s:
            params = {
                "lease_s": self._lease_s,
                "pause_s": LONGEST_PAUSE_S,
                "latest_start_s": -min(HEAD_START_S.values()),
            }
            await connection.execute(_SQL["clock_went_back"], params)

    async def traffic(self, network: int, *, block_capacity: int, pooled: int) -> Traffic:
        params = {
            "network": network,
            "blocks": RECENT_BLOCKS,
            "most_queued": MOST_QUEUED,
            "fresh_blocks": WINDOW_BLOCKS,
            "most_fresh": WINDOW_BLOCKS * block_capacity,
        }
        row = await self._database.fetch_one(_SQL["traffic"], params)
        assert row is not None
        queued, in_flight, per_block, ours_per_block, waited = row
        return Traffic(queued, in_flight, pooled, block_capacity, per_block, ours_per_block, waited)


def cause_json(cause: Cause | None) -> str | None:
    return None if cause is None else msgspec.json.encode(cause).decode()
