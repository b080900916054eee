"""The size of the pool of workers in every worker process, as an operator sets it while they run."""

from typing import Final

from neolayer.core.errors import InvalidRequest
from neolayer.db.notices import notify
from neolayer.db.pool import Database
from neolayer.db.sql import load_queries
from neolayer.transactions.model import POOL_TOPIC

#: Batches at a time in one process.
POOL_MAX: Final = 256
_SQL: Final = load_queries("neolayer.transactions")


async def pool_size(database: Database) -> int | None:
    """Batches that each process works on at a time; None while each goes by its own setting."""
    row = await database.fetch_one(_SQL["pool_size"])
    return None if row is None else row[0]


async def scale(database: Database, size: int) -> None:
    """Have every worker process work on so many batches at a time; 0 stops signing and sending.

    Raises:
        InvalidRequest: more than `POOL_MAX`.
    """
    if not 0 <= size <= POOL_MAX:
        raise InvalidRequest(f"a worker process takes 0 to {POOL_MAX} batches at a time, not {size}")
    async with database.transaction() as connection:
        await connection.execute(_SQL["set_pool_size"], {"size": size})
        await notify(connection, POOL_TOPIC)
