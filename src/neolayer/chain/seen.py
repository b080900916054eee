"""Blocks that were processed, as the database remembers them: the follower's cursor is the highest.

Writes take the caller's connection, so that a block's consequences and the cursor commit together.
"""

from datetime import datetime
from typing import Final

from neolayer.chain.follower import Cursor
from neolayer.core.types import Hash256
from neolayer.db.pool import Connection, Database
from neolayer.db.sql import load_queries

_SQL: Final = load_queries("neolayer.chain")
#: Blocks kept to find where a private chain that lost blocks parts from what was seen.
KEPT: Final = 5_000


class SeenBlocks:
    def __init__(self, database: Database, network: int) -> None:
        """
        Args:
            network: magic; each network has a cursor of its own.
        """
        self._database = database
        self._network = network

    async def cursor(self) -> Cursor | None:
        row = await self._database.fetch_one(_SQL["cursor"], {"network": self._network})
        return None if row is None else Cursor(row[0], Hash256(bytes(row[1])))

    async def hash_at(self, index: int) -> Hash256 | None:
        row = await self._database.fetch_one(_SQL["hash_at"], {"network": self._network, "index": index})
        return None if row is None else Hash256(bytes(row[0]))

    async def advance(
        self, connection: Connection, cursor: Cursor, time: datetime, transactions: int | None = None
    ) -> None:
        """
        Args:
            transactions: how many the block holds, where that is known.

        Raises:
            psycopg.errors.UniqueViolation: another follower has processed this block.
        """
        params = {
            "network": self._network,
            "index": cursor.index,
            "hash": cursor.hash.data,
            "time": time,
            "transactions": transactions,
        }
        await connection.execute(_SQL["insert"], params)
        if cursor.index % (KEPT // 10) == 0:
            await connection.execute(
                _SQL["forget_below"], {"network": self._network, "index": cursor.index - KEPT}
            )

    async def rewind(self, connection: Connection, index: int) -> None:
        """Forget the blocks above ``index``."""
        await connection.execute(_SQL["rewind"], {"network": self._network, "index": index})
