"""From sent to final: what blocks say about our transactions.

One follower confirms everything of a block with one lookup, one batch of application logs and one database
transaction, which also moves the cursor: after a crash the block is either fully processed or not at all.
"""

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import Final

from neolayer.chain.follower import BlockFollower, Cursor
from neolayer.chain.rpc import ApplicationLog, Block, RpcClient
from neolayer.chain.seen import SeenBlocks
from neolayer.core.errors import ServiceError
from neolayer.core.text import storable
from neolayer.core.types import Hash256
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries

_SQL: Final = load_queries("neolayer.transactions")
_log = logging.getLogger(__name__)
#: How often sent transactions that no block shows are looked for; seconds.
RESEND_S: Final = 1.0
#: Blocks before the first cursor whose hashes are recorded.
KNOWN_BEFORE_START: Final = 20


class Monitor:
    """Implements the follower's `BlockConsumer`."""

    def __init__(self, database: Database, rpc: RpcClient, *, resend_after_blocks: int) -> None:
        self._database = database
        self._rpc = rpc
        self._resend_after_blocks = resend_after_blocks
        self._network = 0
        self._seen = SeenBlocks(database, 0)
        self.follower = BlockFollower(rpc, self)

    async def run(self) -> None:
        """Follow the chain and resend what it does not show, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.follower.run())
            tasks.create_task(self._resend())

    # --- BlockConsumer --------------------------------------------------------------------------------

    async def load_cursor(self) -> Cursor | None:
        self._network = (await self._rpc.version()).network
        self._seen = SeenBlocks(self._database, self._network)
        return await self._seen.cursor()

    async def start_at(self, cursor: Cursor) -> None:
        """Without a cursor, what was sent before may be in blocks that the follower will never see."""
        rows = await self._database.fetch(_SQL["live"], {"network": self._network})
        for (txid,) in rows:
            hash_ = Hash256(bytes(txid))
            height = await self._rpc.transaction_height(hash_)
            if height is not None and height <= cursor.index:
                block = await self._rpc.get_block(height)
                logs = await self._rpc.application_logs([hash_])
                async with self._database.transaction() as connection:
                    await self._include(connection, block, logs)
        # A private chain killed right after the first start may go back behind it: know some blocks before, too.
        indexes = range(max(cursor.index - KNOWN_BEFORE_START, 0), cursor.index)
        hashes = await self._rpc.batch([("getblockhash", [index]) for index in indexes])
        earlier = [Cursor(index, Hash256.parse(hash_)) for index, hash_ in zip(indexes, hashes, strict=True)]
        async with self._database.transaction() as connection:
            for known in (*earlier, cursor):
                await self._seen.advance(connection, known, datetime.now(UTC))

    async def process(self, block: Block) -> None:
        logs: list[ApplicationLog] = []
        if block.transactions:
            params = {"txids": [hash_.data for hash_ in block.transactions]}
            ours = [Hash256(bytes(row[0])) for row in await self._database.fetch(_SQL["ours"], params)]
            if ours:
                logs = await self._rpc.application_logs(ours)
        async with self._database.transaction() as connection:
            if logs:
                await self._include(connection, block, logs)
            await connection.execute(_SQL["expire"], {"network": self._network, "index": block.index})
            await self._seen.advance(connection, Cursor(block.index, block.hash), _time(block))

    async def hash_at(self, index: int) -> Hash256 | None:
        return await self._seen.hash_at(index)

    async def rewind(self, cursor: Cursor) -> None:
        async with self._database.transaction() as connection:
            await self._seen.rewind(connection, cursor.index)
            undone = await connection.execute(_SQL["unconfirm"], {"network": self._network, "index": cursor.index})
        _log.warning("the chain went back to block %d: %d transactions wait again", cursor.index, undone.rowcount)

    # --------------------------------------------------------------------------------------------------

    async def _include(self, connection: Connection, block: Block, logs: list[ApplicationLog]) -> None:
        params = {
            "txids": [log.hash.data for log in logs],
            "states": ["confirmed" if log.halted else "faulted" for log in logs],
            "results": [_result_json(log) for log in logs],
            # Contracts choose these words, as any bytes.
            "exceptions": [None if log.exception is None else storable(log.exception) for log in logs],
            "index": block.index,
            "time": _time(block),
        }
        await connection.execute(_SQL["include"], params)

    async def _resend(self) -> None:
        while True:
            await asyncio.sleep(RESEND_S)
            cursor = self.follower.cursor
            if cursor is None or self.follower.connected == "down":
                continue
            try:
                await self._resend_unseen(cursor.index)
            except ServiceError as error:
                _log.warning("resending waits: %s", error.detail)

    async def _resend_unseen(self, height: int) -> None:
        """A node that was restarted has an empty memory pool, and pools drop what they hold silently."""
        rows = await self._database.fetch(
            _SQL["unseen"],
            {"network": self._network, "height": height, "blocks": self._resend_after_blocks},
        )
        for txid, raw in rows:
            outcome = await self._rpc.send_raw_transaction(bytes(raw))
            if outcome.kind != "accepted":
                _log.info("resent %s: %s", Hash256(bytes(txid)), outcome.message)
            await self._database.execute(_SQL["mark_sent"], {"txid": txid, "height": height})


def _result_json(log: ApplicationLog) -> str:
    result = {
        "vmstate": log.vmstate,
        "exception": None if log.exception is None else storable(log.exception),
        "gas_consumed": log.gas_consumed,
        "stack": log.stack,
    }
    # json.dumps writes lone surrogates as escapes, where msgspec would raise.
    return json.dumps(result)


def _time(block: Block) -> datetime:
    return datetime.fromtimestamp(block.time_ms / 1000, UTC)
