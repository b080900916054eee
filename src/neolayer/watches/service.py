"""Watches: made by tenants, and told of what their contracts notify of when a block is processed."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from psycopg.rows import TupleRow

from neolayer.chain.executions import Executions
from neolayer.chain.follower import Cursor
from neolayer.chain.notifications import Notification, notifications_of
from neolayer.chain.rpc import Block, RpcClient
from neolayer.chain.scripts import parse_contract
from neolayer.core.ids import parse_id, uuid7
from neolayer.core.text import storable
from neolayer.core.types import Hash160
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries
from neolayer.events.outbox import News, append
from neolayer.watches.errors import TooManyWatches, WatchExists, WatchNotFound

_SQL: Final = load_queries("neolayer.watches")
#: Of one tenant.
MAX_WATCHES: Final = 100


class WatchView(msgspec.Struct, frozen=True):
    """What the API shows."""

    id: UUID
    #: ``0x…``
    contract: str
    #: Null: whatever the contract notifies of.
    event: str | None
    #: Told is what happens in blocks above this one.
    after_block: int
    #: How many events there were, the number of the last one.
    events: int
    created_at: datetime


class Watches:
    def __init__(self, database: Database, rpc: RpcClient) -> None:
        self._database = database
        self._rpc = rpc

    async def create(self, tenant_id: UUID, contract: str, event: str | None) -> WatchView:
        """Tell of what happens from now on: in blocks that are made after this has returned none is left out.

        Args:
            contract: ``0x…`` or the name of a native contract. It need not be deployed yet.

        Raises:
            BadContractHash: it is neither.
            WatchExists, TooManyWatches: as they say.
            NodeUnavailable: no node tells how high the chain is.
        """
        wanted = parse_contract(contract)
        network, height = (await self._rpc.version()).network, await self._rpc.quorum.height()
        params = {
            "tenant_id": tenant_id,
            "id": uuid7(),
            "network": network,
            "contract": wanted.data,
            "event": event,
            "after_block": height,
        }
        async with self._database.transaction() as connection:
            await connection.execute(_SQL["lock_tenant"], params)
            same = await (await connection.execute(_SQL["same"], params)).fetchone()
            if same is not None:
                raise WatchExists(f"watch {same[0]} tells of this already", watch=str(same[0]))
            count = await (await connection.execute(_SQL["count"], params)).fetchone()
            assert count is not None
            if count[0] >= MAX_WATCHES:
                raise TooManyWatches(f"a tenant has at most {MAX_WATCHES} watches", limit=MAX_WATCHES)
            row = await (await connection.execute(_SQL["insert"], params)).fetchone()
        assert row is not None
        return _view(row)

    async def recent(self, tenant_id: UUID, before: UUID, limit: int) -> list[WatchView]:
        rows = await self._database.fetch(_SQL["list"], {"tenant_id": tenant_id, "before": before, "limit": limit})
        return [_view(row) for row in rows]

    async def show(self, tenant_id: UUID, id: str) -> WatchView:
        """
        Raises:
            WatchNotFound: the tenant has no such watch.
        """
        params = {"tenant_id": tenant_id, "id": parse_id(id, WatchNotFound, "watch")}
        row = await self._database.fetch_one(_SQL["show"], params)
        if row is None:
            raise WatchNotFound(f"no watch {id!r}")
        return _view(row)

    async def delete(self, tenant_id: UUID, id: str) -> None:
        """What it was told of stays in the outbox.

        Raises:
            WatchNotFound: the tenant has no such watch.
        """
        params = {"tenant_id": tenant_id, "id": parse_id(id, WatchNotFound, "watch")}
        if await self._database.fetch_one(_SQL["delete"], params) is None:
            raise WatchNotFound(f"no watch {id!r}")

    # --- while blocks are processed ---

    async def notifications(self, network: int, block: Block, executions: Executions) -> list[Notification]:
        """What the watched contracts notify of in a block; nothing is asked of nodes while none is watched."""
        rows = await self._database.fetch(_SQL["contracts"], {"network": network, "index": block.index})
        if not rows:
            return []
        contracts = {str(Hash160(bytes(contract))) for (contract,) in rows}
        return await notifications_of(self._rpc, block, executions, contracts)

    async def publish(
        self, connection: Connection, network: int, block: Block, notifications: Sequence[Notification]
    ) -> None:
        """Into the outbox, with the database transaction that moves the cursor."""
        params = {
            "network": network,
            "index": block.index,
            "contracts": [Hash160.parse(notification.contract).data for notification in notifications],
            # Contracts choose the names, as any text.
            "names": [storable(notification.event) for notification in notifications],
        }
        rows = await (await connection.execute(_SQL["count_up"], params)).fetchall()
        told = [
            News(tenant_id, "notification", watch, number, _data(watch, number, block, notifications[position]))
            for position, tenant_id, watch, number in rows
        ]
        await append(connection, told)

    async def rewind(self, connection: Connection, network: int, cursor: Cursor) -> None:
        """Each watch is told that what came from blocks above the cursor did not happen."""
        params = {"network": network, "index": cursor.index}
        rows = await (await connection.execute(_SQL["rewind"], params)).fetchall()
        told = [
            News(
                tenant_id,
                "chain_rewound",
                watch,
                number,
                json.dumps(
                    {"watch": str(watch), "number": number, "block": cursor.index, "block_hash": str(cursor.hash)}
                ),
            )
            for tenant_id, watch, number in rows
        ]
        await append(connection, told)


def _data(watch: UUID, number: int, block: Block, notification: Notification) -> str:
    data: dict[str, Any] = {
        "id": f"{block.hash}-{notification.execution}-{notification.index}",
        "watch": str(watch),
        "number": number,
        "contract": notification.contract,
        "event": storable(notification.event),
        "state": notification.state,
        "txid": str(notification.transaction) if notification.transaction else None,
        "trigger": notification.trigger,
        "execution": notification.execution,
        "index": notification.index,
        "block": block.index,
        "block_hash": str(block.hash),
        "block_time": datetime.fromtimestamp(block.time_ms / 1000, UTC).isoformat().replace("+00:00", "Z"),
    }
    return json.dumps(data)


def _view(row: TupleRow) -> WatchView:
    id, contract, event, after_block, events, created_at = row
    return WatchView(id, str(Hash160(bytes(contract))), event, after_block, events, created_at)
